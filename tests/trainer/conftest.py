"""The toy family in the table of families, prepared data for it, and a call of `train_stage`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "families"))

from stageline.data.prepared import silent
from stageline.encoders.copies import lock_external
from stageline.families import FAMILIES, family_config, parse_config
from stageline.store import open_store
from stageline.work.externals import run_externals


@pytest.fixture(autouse=True)
def _toy_family(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from toy_family import family

    monkeypatch.setitem(FAMILIES, "toy", "toy_family")
    family.TASKS.clear()
    family.CHANGE.clear()
    yield
    family.TASKS.clear()
    family.CHANGE.clear()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Reference of the toy family's prepared rows, the same for all tests."""
    from stageline.verbs.prepare import prepare_data

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "toy", "toy_family")
        config = parse_config({"family": "toy", "run": "rows", "root": str(tmp_path_factory.mktemp("rows"))})
        return str(prepare_data(config).reference)


@pytest.fixture
def train(tmp_path: Path, data: str) -> Callable[..., Any]:
    """train(stage, run=..., **{"trainer.batch_size": 4}) -> StageResult, in this process.

    lock: whether weights of others are locked before, as prepare does.
    """
    from stageline.verbs.train import train_stage

    def call(stage: str = "base", *, run: str = "r", parents: Any = None, lock: bool = True, **dotted: Any) -> Any:
        settings = {
            "trainer.batch_size": 2,
            "trainer.accumulate_grad_batches": 2,
            "trainer.accelerator": "cpu",
            "trainer.tensorboard": False,
            "trainer.learning_rate": 0.02,
            "trainer.ema_decay": 0.5,
            "trainer.log_every_steps": 1,
            **dotted,
        }
        words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        config = parse_config({"family": "toy", "run": run, "root": str(tmp_path), "seed": 3}, words)
        for external in run_externals(config, family_config("toy")) if lock else ():
            lock_external(open_store(config.root), external, silent)
        return train_stage(config, stage, data=data, parents=parents)

    return call
