"""Fences: after a lease changed hands, its former holder can't commit, even where it still breathes. Loads no torch.

A checkpoint is committed by *creating* its metadata, which succeeds once. Whoever takes a lease over first creates a
small fence under that very name in every step directory that was begun and not committed: either the former holder's
commit came first, and the new one sees it and continues from there, or the fence did, and the commit fails. Nothing
lies between the two, however long a process or a request stood still. Step directories begun after that need a check
of the lease first, which fails. A fence is kept for `FENCE_SECONDS`: a writer that stands still for longer than that
between its check and its commit is the one thing not held off.
"""

from __future__ import annotations

import json
import time

from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import CLAIM_NAME, METADATA_NAME, is_fence
from stageline.config.bounds import read_json
from stageline.store import NotFoundError
from stageline.store.holder import is_dead

FENCE_SECONDS = 86400.0
"""Longer than any pause of a process or retry of a request that was ever heard of."""


def fence_leftovers(directory: StageDir, lease: StageLease) -> list[str]:
    """Close every step directory that others began and did not commit; returns their names. For a new holder."""
    lease.check()
    names = [name for name in directory.step_dirs() if not directory.step_store(name).exists(METADATA_NAME)]
    return [name for name in names if close_step(directory, name, lease)]


def close_step(directory: StageDir, name: str, lease: StageLease) -> bool:
    """See to it that nobody can commit a step directory any more; False if it was committed by now.

    Where its writer is this lease's own holder or a dead process of this machine, nothing has to be left behind.
    """
    store = directory.step_store(name)
    if not _writer_may_live(directory, name, lease):
        return not directory.is_committed(name)
    plain = {"fenced": round(time.time(), 3), "by": lease.holder, "lease": lease.id}
    store.create(METADATA_NAME, json.dumps(plain).encode())
    return not directory.is_committed(name)


def empty_step(directory: StageDir, name: str) -> None:
    """Remove what a closed step directory holds; its fence stays until it is old."""
    store, keep = directory.step_store(name), _has_young_fence(directory, name)
    for info in store.list():
        if not (keep and info.key == METADATA_NAME):
            store.delete(info.key)


def is_emptied(directory: StageDir, name: str) -> bool:
    """Whether a step directory holds a fence that is still needed, and nothing else."""
    return _has_young_fence(directory, name) and len(directory.step_store(name).list()) == 1


def _has_young_fence(directory: StageDir, name: str) -> bool:
    try:
        data = directory.step_store(name).get(METADATA_NAME)
    except NotFoundError:
        return False
    return is_fence(data) and float(read_json(data)["fenced"]) > time.time() - FENCE_SECONDS


def _writer_may_live(directory: StageDir, name: str, lease: StageLease) -> bool:
    try:
        claim = read_json(directory.step_store(name).get(CLAIM_NAME))
        return bool(claim["lease"] != lease.id and not is_dead(claim))
    except (NotFoundError, ValueError, TypeError, KeyError):
        return True
