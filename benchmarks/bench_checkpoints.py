"""Saving and loading one model: our committed, hashed, fsynced checkpoints beside torch.save and torch's DCP.

Run: `python benchmarks/bench_checkpoints.py --mebibytes 256 --folder FOLDER` (the folder decides on the disk).
torch.save and DCP neither hash what they write nor flush it to the disk: the lines "+ fsync" and "+ SHA-256" say what
that costs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from measure import print_table, side_by_side
from torch import Tensor

from stageline.checkpoint.commit import CheckpointWriter, Snapshot
from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import Provenance
from stageline.checkpoint.tensors import read_tensors
from stageline.config import RetentionConfig
from stageline.store import open_store

NUM_TENSORS = 64


def make_tensors(mebibytes: int) -> dict[str, Tensor]:
    """Random float32 tensors of that size in all."""
    rows = mebibytes * 2**20 // 4 // NUM_TENSORS // 1024
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i:02d}.weight": torch.randn(rows, 1024, generator=generator) for i in range(NUM_TENSORS)}


def flush(path: Path) -> None:
    """fsync a file, or every file of a folder."""
    for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Contest:
    """One folder, one set of tensors, every way of saving and loading them."""

    def __init__(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        self.folder, self.tensors, self.step = folder, tensors, 0
        self.stage_dir = StageDir(open_store(str(folder)), "bench", "stage")
        self.lease = StageLease.acquire(self.stage_dir, "benchmark")
        provenance = Provenance(
            family="none", stage="stage", run="bench", identity="0" * 64, stage_fingerprint="0" * 64
        )
        self.writer = CheckpointWriter(self.stage_dir, self.lease, provenance, RetentionConfig(last=1, best=0))

    def save_ours(self) -> None:
        self.step += 1
        self.writer.save(Snapshot(step=self.step, steps=1000, final=False, tensors=self.tensors))

    def save_torch(self, then: Callable[[Path], object] | None = None) -> None:
        path = self.folder / "model.pt"
        torch.save(self.tensors, path)
        if then is not None:
            then(path)

    def save_torch_hashed(self) -> None:
        self.save_torch(flush)
        digest(self.folder / "model.pt")

    def save_dcp(self) -> None:
        shutil.rmtree(self.folder / "dcp", ignore_errors=True)
        dcp.save(self.tensors, checkpoint_id=self.folder / "dcp", no_dist=True)

    def load_ours(self) -> dict[str, Tensor]:
        return read_tensors(self.stage_dir.committed()[-1])

    def load_torch(self) -> dict[str, Tensor]:
        loaded: dict[str, Tensor] = torch.load(self.folder / "model.pt", weights_only=True)
        return loaded

    def load_torch_hashed(self) -> dict[str, Tensor]:
        digest(self.folder / "model.pt")
        return self.load_torch()

    def load_dcp(self) -> dict[str, Tensor]:
        empty = {name: torch.empty_like(tensor) for name, tensor in self.tensors.items()}
        dcp.load(empty, checkpoint_id=self.folder / "dcp", no_dist=True)
        return empty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    tensors = make_tensors(arguments.mebibytes)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        contest = Contest(Path(folder), tensors)
        saved = {
            "torch.save": contest.save_torch,
            "torch.save + fsync": lambda: contest.save_torch(flush),
            "torch.save + fsync + SHA-256": contest.save_torch_hashed,
            "DCP save": contest.save_dcp,
            "stageline (hashed, fsynced, committed)": contest.save_ours,
        }
        size = f"{arguments.mebibytes} MiB, median of {arguments.rounds}"
        print_table(f"save, {size}", side_by_side(saved, arguments.rounds), reference="torch.save + fsync")
        loaded = {
            "torch.load(weights_only=True)": contest.load_torch,
            "torch.load + SHA-256": contest.load_torch_hashed,
            "DCP load": contest.load_dcp,
            "stageline (every byte verified)": contest.load_ours,
        }
        for name, call in loaded.items():
            found = call()
            assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items()), name
        seconds = side_by_side(loaded, arguments.rounds)
        print_table(f"load, {size}", seconds, reference="torch.load(weights_only=True)")
        contest.lease.release()


if __name__ == "__main__":
    main()
