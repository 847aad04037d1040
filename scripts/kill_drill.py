"""Kill a process in the middle of saving, again and again, and look at what it leaves.

    python scripts/kill_drill.py [KILLS] [--seed N] [--folder EMPTY_FOLDER]

Children are forked from one warmed parent, save checkpoint after checkpoint, and get SIGKILL at a random moment of a
save. After each one: whatever is committed is whole, its tensors are those of its step, no pointer names anything
uncommitted, and no progress is lost. Ends with a non-zero exit code at the first violation.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from stageline.checkpoint.commit import CheckpointWriter, Snapshot
from stageline.checkpoint.layout import POINTERS, StageDir
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import METADATA_NAME, Provenance
from stageline.checkpoint.tensors import read_tensors
from stageline.checkpoint.verify import verify
from stageline.config import RetentionConfig

NUMBERS = 60_000
PROVENANCE = Provenance(family="drill", stage="save", run="drill", identity="0" * 64, stage_fingerprint="0" * 64)


def tensors(step: int) -> dict[str, torch.Tensor]:
    """Weights that are a function of the step, so that a mixture of two steps is seen."""
    return {f"w{i}": torch.full((NUMBERS,), float(step * 10 + i)) for i in range(4)}


def save_until_killed(directory: StageDir, begin: int) -> None:
    """The child: take over the dead one's lease, mend, then save for ever; one byte into the pipe before each save."""
    lease = StageLease.acquire(directory, f"child {os.getpid()}", keep_renewed=False)
    writer = CheckpointWriter(directory, lease, PROVENANCE, RetentionConfig(last=2, best=0))
    newest = directory.newest()
    step = newest.metadata.step if newest else 0
    while True:
        step += 1
        snapshot = Snapshot(step=step, steps=10**9, final=False, tensors=tensors(step), training_state={"step": step})
        os.write(begin, b".")
        writer.save(snapshot)


def one_kill(directory: StageDir, delay: random.Random, seconds: float) -> None:
    """Fork a child and kill it at a random moment of its first, second or third save."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            save_until_killed(directory, write)
        finally:
            os._exit(70)
    os.close(write)
    for _ in range(delay.randint(1, 3)):
        if not os.read(read, 1):
            break
    time.sleep(delay.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    os.close(read)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != -signal.SIGKILL:
        raise SystemExit(f"a child ended by itself with exit code {code}")


def look(directory: StageDir, before: int) -> tuple[int, str]:
    """(newest step, where the kill hit); SystemExit at the first thing that must not be."""
    refs = directory.committed()
    for ref in refs:
        faults = verify(ref)
        if faults:
            raise SystemExit(f"{ref.uri} is committed and damaged: {faults}")
    newest = refs[-1].metadata.step if refs else 0
    if newest < before:
        raise SystemExit(f"step {before} was committed once, now the newest is {newest}")
    if refs:
        found = read_tensors(refs[-1])
        expected = tensors(newest)
        if any(not torch.equal(found[name], expected[name]) for name in expected):
            raise SystemExit(f"the tensors of step {newest} are not those of step {newest}")
    behind = False
    for name in POINTERS:
        # A pointer that named something uncommitted, or something else than its digest, raises here.
        pointed = directory.pointer(name)
        behind |= bool(refs) and (pointed is None or pointed.digest != refs[-1].digest)
    names = directory.step_dirs()
    if any(not directory.step_store(name).exists(METADATA_NAME) for name in names):
        return newest, "inside a save"
    return newest, "between commit and pointers" if behind else "between saves"


def drill(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Where the kills hit, counted."""
    torch.set_num_threads(1)
    directory = StageDir(str(folder), "drill", "save")
    # Warm up elsewhere: imports, allocator, and how long a save takes here.
    with StageLease.acquire(StageDir(str(folder), "drill", "warm"), "parent", keep_renewed=False) as lease:
        writer = CheckpointWriter(StageDir(str(folder), "drill", "warm"), lease, PROVENANCE)
        start = time.perf_counter()
        for step in range(3):
            writer.save(Snapshot(step=step, steps=3, final=False, tensors=tensors(step)))
        seconds = (time.perf_counter() - start) / 3
    delay = random.Random(seed)  # noqa: S311  # no secret
    hits: dict[str, int] = {}
    newest = 0
    for _ in range(kills):
        one_kill(directory, delay, seconds)
        newest, where = look(directory, newest)
        hits[where] = hits.get(where, 0) + 1
    return {"kills": kills, "steps": newest, **hits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", nargs="?", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty folder on the disk to drill; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stageline-drill-") as scratch:
        found = drill(options.folder or Path(scratch), options.kills, options.seed)
    print(json.dumps(found))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
