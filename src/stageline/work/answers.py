"""What whoever prepared the data of a run last answered, for those who can't see the sources themselves. No torch.

A launcher without the job's mounts can't hash source files, and so can't tell which prepared data they lead to. The job
hashes them and leaves its answer below the root; the launcher waits for one that was not there before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import uuid4

from stageline.checkpoint.usercode import code_digests
from stageline.config import RunConfig, fingerprint, is_sealed, seal
from stageline.config.bounds import read_json
from stageline.data.prepared import Prepared
from stageline.families import family_config
from stageline.store import NotFoundError, Store
from stageline.work.data import SOURCES, run_splits

ANSWERS = f"{SOURCES}/answers"


@dataclass(frozen=True)
class PreparedAnswer:
    """One answer. reference: of the prepared data.  reused: whether they were there already.  serial: its own."""

    reference: str
    reused: bool
    serial: str


def leave_answer(root: Store, config: RunConfig, prepared: Prepared) -> None:
    """Say which data the sources of a run lead to, after they were read."""
    plain = {"reference": str(prepared.reference), "reused": prepared.reused, "serial": uuid4().hex}
    root.put(_key(config), (json.dumps(seal(plain), indent=1) + "\n").encode())


def read_answer(root: Store, config: RunConfig) -> PreparedAnswer | None:
    """The last answer to what this config asks of this run; None where there is none that can be read."""
    try:
        plain = read_json(root.get(_key(config)))
    except (NotFoundError, ValueError):
        return None
    if not is_sealed(plain):
        return None
    reference, reused, serial = (plain.get(name) for name in ("reference", "reused", "serial"))
    if not (isinstance(reference, str) and isinstance(reused, bool) and isinstance(serial, str)):
        return None
    return PreparedAnswer(reference, reused, serial)


def _key(config: RunConfig) -> str:
    """Of the answer to one question: a run's splits as the config asks for them, whatever their sources hold."""
    splits = {split.name: dict(split.key) for split in run_splits(config, family_config(config.family))}
    code = sorted(code_digests(config, "data.code").values())
    return f"{ANSWERS}/{fingerprint({'run': config.run, 'family': config.family, 'splits': splits, 'code': code})}.json"
