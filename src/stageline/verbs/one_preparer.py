"""Ranks that were started together have their data prepared once: rank 0 prepares, the others wait for what it found.

Rank 0 keeps a note below the root, `cache/prepared/preparing/<start>.json`, and writes it anew every few seconds while
it lives; at the end the note names the prepared set, or says that preparing failed. The others read that note alone: no
rank but rank 0 reads a source file. A note that is no longer renewed is rank 0's death, which is worth another try.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from stageline.config.bounds import read_json
from stageline.data.prepared import Prepared, read_prepared
from stageline.data.splits import PREPARED, Progress
from stageline.errors import PeerLostError, StagelineError
from stageline.store import NotFoundError, Store

RENEW_SECONDS = 5.0
SILENT_SECONDS = 120.0
"""How long a note may stay as it is, or away, before rank 0 counts as lost. Chosen here: many renewals."""
POLL_SECONDS = 0.5
START_VARIABLES = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")
"""What the ranks of one start have in common, and those of another start have not."""


def has_peers(environment: Mapping[str, str]) -> bool:
    """Whether this process is one of several ranks that torchrun started.

    Without an address of theirs the variables are somebody else's, left behind: nobody would come.
    """
    return int(environment.get("WORLD_SIZE") or "1") > 1 and {"RANK", "MASTER_ADDR"} <= environment.keys()


def prepare_once(
    root: Store, environment: Mapping[str, str], make: Callable[[], Prepared], progress: Progress
) -> Prepared:
    """What `make` gives on rank 0, on every rank. root: the store below which the note lies.

    PeerLostError on the other ranks where rank 0 failed or died: its own record says why.
    """
    key = f"{PREPARED}/preparing/{_start_of(environment)}.json"
    if environment["RANK"] != "0":
        return _await(root, key, progress)
    with _note(root, key) as say:
        made = make()
        say(reference=str(made.reference))
    return made


def _start_of(environment: Mapping[str, str]) -> str:
    marks = json.dumps([environment.get(name, "") for name in START_VARIABLES])
    return hashlib.sha256(marks.encode()).hexdigest()[:32]


@contextmanager
def _note(root: Store, key: str) -> Iterator[Callable[..., None]]:
    """Rank 0's note, renewed by a thread until it says how preparing ended."""
    born, ended = time.time_ns(), threading.Event()

    def write(count: int, **end: str) -> None:
        plain = {"born": born, "count": count, "reference": "", "failure": "", **end}
        root.put(key, json.dumps(plain).encode())

    def renew() -> None:
        count = 1
        while not ended.wait(RENEW_SECONDS):
            with suppress(StagelineError):  # a store that is away for a moment; silence for long is told by the others
                write(count)
            count += 1

    def say(**end: str) -> None:
        ended.set()
        thread.join()
        write(-1, **end)

    write(0)
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield say
    except BaseException as error:
        with suppress(StagelineError):
            say(failure=f"{type(error).__name__}: {error}")
        raise
    finally:
        ended.set()


def _await(root: Store, key: str, progress: Progress) -> Prepared:
    """Follow rank 0's note to its end."""
    seen, since = b"", time.monotonic()
    while True:
        try:
            found = root.get(key)
        except NotFoundError:
            found = b""
        if found != seen:
            seen, since = found, time.monotonic()
            note = read_json(found)
            if note["reference"]:
                return read_prepared(note["reference"])
            if note["failure"]:
                raise PeerLostError("rank 0 could not prepare the data", remedy="its own failure record says why")
            progress(0, 1, "waiting for rank 0, which prepares the data")
        if time.monotonic() - since > SILENT_SECONDS:
            raise PeerLostError(
                f"rank 0, which prepares the data, has been silent for {SILENT_SECONDS:.0f} seconds",
                remedy="start again: splits that were finished are reused",
            )
        time.sleep(POLL_SECONDS)
