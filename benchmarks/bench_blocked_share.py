"""How much of a step interval the loop waits for checkpoints: written behind its back, in the loop, and not at all.

Run: `python benchmarks/bench_blocked_share.py --mebibytes 64 --folder FOLDER`. Every save holds weights, their average
and Adam's two moments: four times the model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from stageline.checkpoint.commit import CheckpointWriter
from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import Provenance
from stageline.config import RetentionConfig, TrainerConfig
from stageline.contract import ParameterGroup
from stageline.objectives.step import StageLoss, StepContext
from stageline.stage import Stage
from stageline.store import open_store
from stageline.telemetry import EventLog, read_events
from stageline.trainer.assembly import assemble
from stageline.trainer.interruption import StopRequest
from stageline.trainer.loop import fit
from stageline.trainer.ranks import Ranks
from stageline.trainer.recorder import Recorder
from stageline.trainer.saving import CheckpointSaver
from stageline.trainer.state import TrainingState

STAGE = Stage("wide", trains=("*",), objective="mean square", steps=30, metric="error", direction="min")
WIDTH = 1024
PASSES = 48
"""Forward passes per step: makes a step long enough beside a save for the share to mean something."""


class Samples(torch.utils.data.Dataset[Any]):
    """Indexed by anything."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, item: object) -> object:
        return item


class WideTask:
    """Square layers of 4 MiB each."""

    def __init__(self, mebibytes: int) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(mebibytes // 4)))
        self.train_set = Samples(1024)
        self.val_set = Samples(1)

    def collate(self, samples: Sequence[Any]) -> Tensor:
        return torch.ones(len(samples) * PASSES, WIDTH)

    def batch_items(self, epoch: int) -> None:
        """The loop's own order."""

    def loss(self, model: nn.Module, batch: Tensor, context: StepContext) -> StageLoss:
        return StageLoss(model(batch).square().mean(1).sum(), len(batch))

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return (ParameterGroup("all", tuple(name for name, _ in self.model.named_parameters())),)

    def set_train_mode(self, model: nn.Module) -> None:
        model.train()

    def advance(self, step: int, steps: int) -> None:
        """No schedules."""

    def validate(self, model: nn.Module, batch: Tensor) -> Mapping[str, tuple[float, float]]:
        return {"error": (float(model(batch).square().mean()), 1.0)}

    def shard_units(self) -> Sequence[nn.Module]:
        return ()

    def facts(self) -> dict[str, Any]:
        return {}


def train(folder: Path, name: str, *, mebibytes: int, steps: int, every: int, background: bool) -> dict[str, float]:
    """Train once; seconds from one step's end to the next, share of it blocked by saves, seconds per write."""
    task = WideTask(mebibytes)
    settings = TrainerConfig(
        accelerator="cpu",
        batch_size=2,
        checkpoint_every_steps=every,
        async_checkpoint=background,
        tensorboard=False,
        log_every_steps=1,
    )
    ranks = Ranks(settings)
    parts = assemble(task, settings, ranks, STAGE)
    stage_dir = StageDir(open_store(str(folder)), name, STAGE.name)
    lease = StageLease.acquire(stage_dir, "benchmark")
    provenance = Provenance(family="none", stage=STAGE.name, run=name, identity="0" * 64, stage_fingerprint="0" * 64)
    writer = CheckpointWriter(stage_dir, lease, provenance, RetentionConfig(last=1, best=0))
    saver = CheckpointSaver(stage_dir, writer, ranks, steps=steps, background=background) if every else None
    with StopRequest() as stop:
        fit(
            parts,
            seed=0,
            steps=steps,
            recorder=Recorder(events=EventLog(stage_dir.store)),
            saver=saver,
            stop=stop,
            state=TrainingState(),
        )
    lease.release()
    events = read_events(stage_dir.store)
    ends = [event["time"] for event in events if event["event"] == "step"]
    saves = [event for event in events if event["event"] == "checkpoint" and event["step"] < steps]
    return {
        "step": (ends[-1] - ends[0]) / (len(ends) - 1),
        "blocked": sum(event["blocked_seconds"] for event in saves) / (ends[-1] - ends[0]),
        "write": sum(event["write_seconds"] for event in saves) / max(1, len(saves)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ways = {
        "no checkpoints before the end": {"every": 0, "background": False},
        "written in the loop": {"every": arguments.every, "background": False},
        "written behind it (async_checkpoint)": {"every": arguments.every, "background": True},
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                size = {"mebibytes": arguments.mebibytes, "steps": arguments.steps}
                found[name].append(train(Path(folder), "bench", **size, **way))
    print(f"\ncheckpoint of {4 * arguments.mebibytes} MiB every {arguments.every} steps, median of {arguments.rounds}")
    print(f"  {'':<36}  {'step interval':>13}  {'ratio':>9}  {'loop blocked':>12}  {'one write':>9}")
    medians = {name: {key: median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}
    reference = medians["no checkpoints before the end"]["step"]
    for name, row in medians.items():
        ratio = "reference" if row["step"] == reference else f"{row['step'] / reference:.2f} x"
        print(f"  {name:<36}  {row['step']:>11.3f} s  {ratio:>9}  {row['blocked']:>12.1%}  {row['write']:>7.2f} s")


if __name__ == "__main__":
    main()
