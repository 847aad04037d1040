"""A finished run of the version that still counted `trainer.validation_batch_size` is reused, under its own name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from stageline.checkpoint.layout import StageDir
from stageline.families import parse_config
from stageline.work.decision import decide
from stageline.work.work import StageWork

DATA = Path(__file__).parents[1] / "golden" / "checkpoints" / "v2_counted"
RAW: dict[str, Any] = {
    "family": "film_flow",
    "run": "before",
    "stages": ["backbone"],
    "model": {
        "arch_name": "filmflow_concat",
        "image_size": 8,
        "model_channels": 8,
        "channel_mult": [1, 1],
        "attn_resolutions": [],
        "timesteps": 1,
        "use_vlm_film": False,
    },
    "data": {"name": "trees", "image_size": 8, "num_train": 2, "num_val": 2},
    "trainer": {"max_steps": 1, "batch_size": 1, "validation_batch_size": 3, "tensorboard": False},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The run of that version; its weights are not kept: a plan looks at the sizes of files alone."""
    shutil.copytree(DATA, tmp_path / "root")
    (ref,) = StageDir(str(DATA), "before", "backbone").survey().damaged
    assert ref.metadata is not None
    for name, record in ref.metadata.files.items():
        path = tmp_path / "root" / "runs" / "before" / "backbone" / "checkpoints" / ref.name / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(record.bytes))
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("override", "action"),
    [
        ("trainer.validation_batch_size=3", "reuse"),
        ("trainer.validation_batch_size=8", "reuse"),
        ("trainer.validation_batch_size=1", "reuse"),
        ("trainer.weight_decay=0.5", "run"),
    ],
)
def test_a_run_of_the_version_before_is_found(root: Path, override: str, action: str) -> None:
    work = decide(parse_config(RAW, [f"root={root}", override]), "backbone")
    assert isinstance(work, StageWork)
    assert work.action == action
    if action == "reuse":
        assert work.ref is not None
        assert work.fingerprint == work.ref.metadata.stage_fingerprint
    else:
        assert [reason.split(":")[0] for reason in work.reasons] == ["trainer.weight_decay"]
