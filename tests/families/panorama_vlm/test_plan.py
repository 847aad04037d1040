"""The plan of a run that starts from another run's vision checkpoint: what of it is taken is told beforehand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stageline.cli import main
from stageline.errors import PlanError
from stageline.families import FAMILIES, raw_preset
from stageline.plan import make_plan

sys.path.insert(0, str(Path(__file__).parents[3]))

if TYPE_CHECKING:
    from tests.plan.conftest import Lab

TOWER = ["vision.encoder.layers.0.w", "vision.encoder.layers.1.w", "vision.post_layernorm.w", "projector.0.w"]
CONNECTED = ["pe.before.w", "resampler.fc1.w"]
TAP = ("vicreg.tap=resampler", "model.resampler_config.pooling=1")
ZERO = ("run=zero", "image_processing.overlap_ratio=0", "model.resampler_type=bimamba", "stages=[resampler,finetune]")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    from tests.plan.conftest import Lab

    monkeypatch.setitem(FAMILIES, "panorama_vlm", "stageline.families.panorama_vlm")
    return Lab(tmp_path / "root", "panorama_vlm")


def table(lab: Lab, *overrides: str) -> dict[str, tuple[str, str]]:
    """Section -> (outcome, reason) of stage `resampler` in the plan's JSON."""
    item = make_plan(lab.config(*ZERO, *overrides))["resampler"]
    assert item.action == "run", item.reasons
    return {found["section"]: (found["outcome"], found["reason"]) for found in item.to_json()["sections"]["default"]}


@pytest.mark.parametrize("kind", ["bimamba", "mlp"])
def test_a_vision_checkpoint_of_either_resampler_gives_its_tower(lab: Lab, kind: str) -> None:
    """Check 17 (a) and (b): tap vision; the rest is absent, and the other plan is reported."""
    lab.commit(lab.config("run=half", f"model.resampler_type={kind}"), "vision", tensors=TOWER)
    uri = f"runs/half/vision/anyres-e2p_{kind}"
    named = f"parents.resampler.default={uri}"
    found = table(lab, named)
    absent = ("fresh", "absent: the checkpoint has none")
    assert (found["pe"], found["resampler"]) == (absent, absent)
    assert {name: outcome for name, (outcome, _) in found.items()} == {
        "vision": "load or external",
        "projector": "drop",
        "pe": "fresh",
        "resampler": "fresh",
    }
    plan = make_plan(lab.config(*ZERO, named))
    assert "parent default: overlap: checkpoint 0.5, config 0.0 (reported)" in plan["resampler"].notes
    assert uri in plan["resampler"].parents["default"]
    assert plan["vision"].action == "not selected"
    assert plan["finetune"].action == "run"


def test_a_vision_checkpoint_that_holds_an_mlp_gives_its_tower_and_encoding(lab: Lab) -> None:
    """Check 17 (b): tap resampler; the resampler of another type is skipped."""
    made = lab.config("run=half", "model.resampler_type=mlp", *TAP)
    lab.commit(made, "vision", tensors=[*TOWER, *CONNECTED])
    found = table(lab, "parents.resampler.default=runs/half/vision")
    assert found["resampler"] == ("fresh", "skipped: checkpoint mlp, run bimamba")
    assert (found["vision"][0], found["pe"][0]) == ("load or external", "load")


def test_a_checkpoint_that_gives_nothing_is_refused(lab: Lab) -> None:
    """Check 17: no block was trained, the resampler is of another type, and there is no encoding."""
    bare = ("model.vision_trainable_blocks=0", "model.use_projection_positional_encoding=false")
    lab.commit(lab.config("run=half", *TAP, *bare), "vision", tensors=["projector.0.w", "resampler.fc1.w"])
    item = make_plan(lab.config(*ZERO, "parents.resampler.default=runs/half/vision"))["resampler"]
    assert item.action == "blocked"
    assert "gives this stage nothing" in " ".join(item.reasons)


def test_another_run_under_the_name_is_blocked_with_what_differs(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check 15: overlap 0 under the name of the run with overlap 0.5 ends with an exit code of its own."""
    from stageline.checkpoint.identity import claim_run
    from stageline.store import open_store

    claim_run(open_store(str(lab.root)), lab.config("run=half"), "test")
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(raw_preset("panorama_vlm", "tiny")))
    keys = ("run=half", f"root={lab.root}", "image_processing.overlap_ratio=0")
    assert main(["plan", "-c", str(path), *keys]) == PlanError.exit_code
    assert "image_processing.overlap_ratio: 0.5 -> 0" in " ".join(capsys.readouterr().out.split())


def test_what_later_stages_take_from_those_of_the_run(lab: Lab) -> None:
    plan = make_plan(lab.config("run=whole"))
    outcomes = {
        name: {s["section"]: s["outcome"] for s in plan[name].to_json()["sections"].get("default", [])}
        for name in ("vision", "resampler", "finetune")
    }
    assert outcomes["vision"] == {}
    assert outcomes["finetune"] == {"vision": "load or external", "pe": "load", "resampler": "load", "lora": "fresh"}
