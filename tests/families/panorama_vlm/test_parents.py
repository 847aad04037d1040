"""Check 17: vision checkpoints of other runs as parents of a run without overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import small, trained
from store.conftest import BUCKET, s3_endpoint, s3_environment
from tiny_run import Build, built_by

from stageline.checkpoint.layout import CheckpointRef
from stageline.checkpoint.tensors import read_tensors
from stageline.cli.tables import show_notes
from stageline.errors import CheckpointError, StagelineError
from stageline.plan import make_plan
from stageline.stage import Stage
from stageline.store import open_store
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

__all__ = ["s3_endpoint", "s3_environment"]

OVERLAP0 = "image_processing.overlap_ratio=0"
SHORT = "trainer.max_steps=2"
BEHIND = "vicreg.tap=resampler"
KINDS = {
    "bimamba": ("model.resampler_type=bimamba",),
    "mlp": (),
    "bimamba-behind": (BEHIND, "model.resampler_type=bimamba", "model.resampler_config={pool: none}"),
    "mlp-behind": (BEHIND, "model.resampler_config={pooling: 1}"),
}
"""Vision runs by resampler; those whose loss acted behind it."""
ABSENT = ("fresh", "absent: the checkpoint has none")
TABLES = {
    "bimamba": {"pe": ABSENT, "resampler": ABSENT},
    "mlp": {"pe": ABSENT, "resampler": ABSENT},
    "bimamba-behind": {
        "pe": ("load", "the same encoding, direction 33 x 48"),
        "resampler": ("load", "the same bimamba"),
    },
    "mlp-behind": {
        "pe": ("load", "the same encoding, direction 33 x 48"),
        "resampler": ("fresh", "skipped: checkpoint mlp, run bimamba"),
    },
}
"""What a bimamba run without overlap takes from each, beside the tower."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def parents(root: Path) -> dict[str, CheckpointRef]:
    """Vision checkpoints with overlap 0.5."""
    configs = {name: small(root, SHORT, *keys, run=f"of-{name}") for name, keys in KINDS.items()}
    return {name: trained(config, "vision")["vision"] for name, config in configs.items()}


@pytest.mark.parametrize("origin", KINDS)
def test_vision_parents_of_another_run_serve_overlap_0(
    root: Path, parents: dict[str, CheckpointRef], origin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check 17: the table of sections is the same planned, printed and recorded; the tower comes bit for bit, and so
    does a resampler of the same type behind which the loss acted."""
    given = parents[origin]
    keys = (OVERLAP0, "trainer.max_steps=1", "model.resampler_type=bimamba", "stages=[resampler]")
    config = small(root, *keys, f"parents.resampler.default={given.uri}", run=f"from-{origin}")
    plan = make_plan(config)
    seen: dict[str, dict[str, torch.Tensor]] = {}

    def watching(build: Build) -> Build:
        def watched(own: Any, stage: Stage, data: Any) -> Any:
            task = build(own, stage, data)
            loss = task.loss

            def at_start(model: Any, batch: Any, context: Any) -> Any:
                seen["start"] = {name: value.clone() for name, value in task.network.state_dict().items()}
                return loss(model, batch, context)

            task.loss = at_start
            return task

        return watched

    with built_by("panorama_vlm", watching):
        ref = trained(config, "resampler")["resampler"]
    told = ref.metadata.parents["default"]
    assert told.digest == given.digest
    assert plan["resampler"].to_json()["sections"]["default"] == told.sections
    found = {part["section"]: (part["outcome"], part["reason"]) for part in told.sections}
    assert found.pop("vision")[0] == "load or external"
    assert found.pop("projector") == ("drop", "the head of stage vision alone")
    assert found == TABLES[origin]
    show_notes(plan)
    lines = capsys.readouterr().out.splitlines()
    printed = [line.rstrip().split(maxsplit=4) for line in lines if line.startswith("resampler ")]
    assert {tuple(row[2:]) for row in printed if len(row) == 5} >= {
        (section, *told) for section, told in TABLES[origin].items()
    }
    before = read_tensors(given, "raw")
    taken = ("vision.", *(f"{section}." for section, (outcome, _) in found.items() if outcome == "load"))
    loaded = {name for name in before if name.startswith(taken)}
    assert any(name.startswith("vision.") for name in loaded)
    assert all(torch.equal(before[name], seen["start"][name]) for name in loaded)
    after = read_tensors(ref, "raw")
    assert all(torch.equal(before[name], after[name]) for name in loaded if name.startswith("vision."))


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["bimamba", "mlp"])
def test_vision_parents_serve_overlap_0_through_an_object_store(
    root: Path, parents: dict[str, CheckpointRef], tmp_path: Path, s3_environment: str, origin: str
) -> None:
    """Check 17: what becomes of their sections is the same, planned and done, here and in S3."""
    place, given = open_store(f"s3://{BUCKET}/{tmp_path.name}"), parents[origin]
    local = open_store(root)
    for info in local.list(f"runs/{given.metadata.run}"):
        place.put(info.key, local.get(info.key))
    named = given.uri.removeprefix(f"{root}/")
    keys = (OVERLAP0, SHORT, "model.resampler_type=bimamba", "stages=[resampler]", f"parents.resampler.default={named}")
    here, there = (small(where, *keys, run="overlap0") for where in (root, place.uri))
    planned = [
        {role: [part.to_json() for part in parts] for role, parts in make_plan(config)["resampler"].sections.items()}
        for config in (here, there)
    ]
    ref = trained(there, "resampler")["resampler"]
    told = ref.metadata.parents["default"]
    assert told.content == given.content
    assert planned == [{"default": told.sections}] * 2
    outcomes = {part["section"]: part["outcome"] for part in told.sections}
    assert outcomes == {"vision": "load or external", "projector": "drop", "pe": "fresh", "resampler": "fresh"}
    before, after = read_tensors(given, "raw"), read_tensors(ref, "raw")
    for name in (name for name in before if name.startswith("vision.")):
        assert torch.equal(before[name], after[name]), name


def test_the_same_resampler_of_other_shapes_is_refused(root: Path, parents: dict[str, CheckpointRef]) -> None:
    """Check 17: named with both values."""
    config = small(
        root,
        OVERLAP0,
        SHORT,
        "stages=[resampler]",
        f"parents.resampler.default={parents['mlp-behind'].uri}",
        run="shapes",
    )
    data = str(prepare_data(config).reference)
    with pytest.raises((CheckpointError, StagelineError), match="pooling"):
        train_stage(config, "resampler", data=data)
