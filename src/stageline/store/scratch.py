"""Scratch folders that no death leaves behind for long: locked while their process lives, swept by the next one.

The lock is on the folder itself and ends with the process, however that ends. What cannot be locked, or belongs to
somebody else, is left alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stageline.errors import DataError
from stageline.store.keys import HIDDEN
from stageline.store.locks import sweep_locks

MARK = "stageline-"
YOUNG_SECONDS = 60.0
"""Chosen here: between a folder's creation and its lock lie microseconds; a younger one is never swept."""


def pod_folder() -> Path:
    """The folder that all processes of this user on this machine share for what they fetch; made on first use."""
    folder = Path(tempfile.gettempdir()) / f"stageline-data-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid():
        raise DataError(
            f"{str(folder)!r} belongs to somebody else", remedy="remove it, or point TMPDIR to another folder"
        )
    sweep_locks(folder)
    return folder


@contextmanager
def scratch_folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """A fresh folder, removed at the end; those that dead processes left for the same purpose are removed first.

    purpose: one word, part of its name.  parent: where it lies, under a name that stores hide; none is the system's
    temporary folder.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    prefix = f"{MARK if parent is None else HIDDEN}{purpose}-"
    sweep_scratch(place, prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks: then nobody sweeps it either
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep_scratch(place: Path, prefix: str) -> list[Path]:
    """Remove the folders of dead processes whose names begin so; returns them."""
    swept = []
    for folder in sorted(place.glob(f"{prefix}*")):
        with suppress(OSError):  # somebody else's, or swept by another process at the same time
            status = folder.lstat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > YOUNG_SECONDS and _is_left(folder):
                shutil.rmtree(folder)
                swept.append(folder)
    return swept


def _is_left(folder: Path) -> bool:
    """Whether nobody holds this folder or one that a child of its holder made in it."""
    if not folder.is_dir() or folder.is_symlink():
        return False
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return all(_is_left(inner) for inner in folder.glob(f"*/{MARK}*") if inner.is_dir())
