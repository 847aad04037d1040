"""Locks between processes of one machine that leave no files behind. No store, no arrays."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stageline.store.below import open_local

LOCK = ".lock"
"""How the names of lock files end."""


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold a lock, one process or thread of the machine at a time; it goes with the process.

    path: of a file that is there only while somebody holds the lock or died with it.
    """
    handle = _lock(path, fcntl.LOCK_EX)
    assert handle is not None, "it waited"
    try:
        yield
    finally:
        _unlock(path, handle)


@contextmanager
def hold_if_free(path: Path) -> Iterator[bool]:
    """The same without waiting: whether it is held now."""
    handle = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            _unlock(path, handle)


def sweep_locks(folder: Path) -> None:
    """Remove the lock files of a folder whose holders died."""
    for path in folder.glob(f"*{LOCK}"):
        with hold_if_free(path):
            pass


def _lock(path: Path, how: int) -> int | None:
    """A descriptor that holds the lock of this path, None where that would mean waiting.

    Holders remove the file before they let go of it. Whoever waited for a removed one takes the one there is now: the
    lock counts only while the path leads to the locked file itself.
    """
    while True:
        handle = open_local(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(handle, how)
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        if _leads_to(path, handle):
            return handle
        os.close(handle)


def _unlock(path: Path, handle: int) -> None:
    """Remove a lock file that is held, as the last thing that is done under it, then let go."""
    if _leads_to(path, handle):
        path.unlink(missing_ok=True)
    os.close(handle)


def _leads_to(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False
