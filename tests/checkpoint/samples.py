"""Checkpoints to test with: small tensors of nasty kinds, and a writer for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stageline.checkpoint.commit import CheckpointWriter, Snapshot
from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import BestRecord, Provenance
from stageline.config import RetentionConfig

FACTS = {"vlm_film_trained_stages": [2, 3], "decoder_channels": [8, 8, 4, 4], "use_junction": False}
ALL = RetentionConfig(last=1000)


def provenance(**changes: Any) -> Provenance:
    """What a stage of the family under test says about itself."""
    fields: dict[str, Any] = {
        "family": "film_flow",
        "stage": "film",
        "run": "a",
        "identity": "i" * 64,
        "stage_fingerprint": "f" * 64,
        "settings": {"trainer.learning_rate": 0.1, "model.film": [2, 3]},
        "facts": FACTS,
    }
    return Provenance(**fields | changes)


def tensors(seed: int) -> dict[str, Tensor]:
    """All that weights can be: scalar, empty, half, boolean, not contiguous, many bytes."""
    g = torch.Generator().manual_seed(seed)
    return {
        "backbone.weight": torch.randn(5, 3, generator=g),
        "backbone.conv": torch.randn(2, 3, 4, 4, generator=g).to(memory_format=torch.channels_last),
        "film.2.fc": torch.randn(8, 2, generator=g).t(),
        "film.3.half": torch.randn(7, generator=g).to(torch.bfloat16),
        "schedule.strength": torch.tensor(0.5 + seed),
        "empty": torch.zeros(0, 4),
        "mask": torch.rand(9, generator=g) > 0.5,
        "count": torch.tensor(seed, dtype=torch.int64),
    }


def snapshot(step: int, **changes: Any) -> Snapshot:
    """A snapshot whose tensors are a function of its step."""
    fields: dict[str, Any] = {
        "step": step,
        "steps": 100,
        "final": step == 100,
        "tensors": tensors(step),
        "ema": {name: tensor.clone() for name, tensor in tensors(step + 1000).items()},
        "training_tensors": {"exp_avg.backbone.weight": torch.full((5, 3), float(step))},
        "training_state": {"step": step, "groups": [{"lr": 0.1}]},
        "config_yaml": "family: film_flow\n",
    }
    return Snapshot(**fields | changes)


def measured(step: int, value: float, best: float, at: int, **changes: Any) -> Snapshot:
    """A snapshot with a validation value and the best so far."""
    record = BestRecord(metric="dice", direction="max", value=best, step=at)
    return snapshot(step, metrics={"dice": value}, best=record, is_best=at == step, **changes)


@contextmanager
def writing(
    directory: StageDir, keep: RetentionConfig = ALL, prov: Provenance | None = None, **options: Any
) -> Iterator[CheckpointWriter]:
    """A writer with a lease of its own, given back at the end."""
    with StageLease.acquire(directory, "test", keep_renewed=False) as lease:
        yield CheckpointWriter(directory, lease, prov or provenance(), keep, **options)


def save(directory: StageDir, *steps: int, **options: Any) -> list[CheckpointRef]:
    with writing(directory, **options) as writer:
        return [writer.save(snapshot(step)) for step in steps]


def expire_lease(directory: StageDir) -> None:
    """Let the lease be as if its holder had slept past its end."""
    plain = json.loads(directory.store.get("lease.json"))
    directory.store.put("lease.json", json.dumps(plain | {"expires": 0.0}).encode())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit, dtype and shape included."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
