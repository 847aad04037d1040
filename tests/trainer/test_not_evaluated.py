"""A stage whose checkpoints cannot be evaluated says why, to the plan, to steps and to whoever names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stageline.errors import ConfigError, PlanError
from stageline.families import parse_config
from stageline.pipeline import steps
from stageline.pipeline.items import check_item, item_names
from stageline.plan import make_plan
from stageline.verbs.evaluate.evaluation import named_checkpoints
from stageline.verbs.report import build_report
from stageline.work.decision import decide_evaluation
from stageline.work.given import Given


def asked(root: Path, stages: str, *overrides: str) -> Any:
    return parse_config({"family": "toy", "run": "r", "root": str(root)}, [f"stages={stages}", *overrides])


def test_the_last_stage_that_can_be_evaluated_is(tmp_path: Path) -> None:
    item = make_plan(asked(tmp_path, "[base, whole]"))["evaluate"]
    assert (item.action, item.reasons) == ("run", ("stage 'base' will be trained",))


def test_a_run_without_such_a_stage_ends_well(
    train: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = asked(tmp_path, "[whole]", "seed=3")
    plan = make_plan(config)
    assert not plan.blocked
    assert plan["evaluate"].action == "not evaluated"
    assert plan["evaluate"].reasons == ("stage 'whole': it is whole already",)
    assert item_names(config) == ("prepare_data", "whole")
    with pytest.raises(ConfigError, match="stage 'whole': it is whole already"):
        check_item(config, "evaluate")
    with pytest.raises(PlanError, match="nothing to evaluate: stage 'whole': it is whole already"):
        named_checkpoints(config)
    text = json.dumps({"family": "toy", "run": "r", "root": str(tmp_path), "seed": 3, "stages": ["whole"]})
    shown = SimpleNamespace(path=str(tmp_path / "shown.json"), metadata={})
    given = {"family": "toy", "config": text, "launcher": "local"}
    assert steps.evaluate(shown, "", "whole=", **given) == ("",)
    assert "not evaluated: stage 'whole': it is whole already" in capsys.readouterr().out
    made = train("whole", **{"trainer.accumulate_grad_batches": 1, "trainer.max_steps": 1, "stages": ["whole"]})
    named = Given(checkpoints={"": str(made.reference)})
    (sentence,) = decide_evaluation(config, given=named).reasons
    assert sentence.endswith("is of stage 'whole' and cannot be evaluated: it is whole already")
    (tmp_path / "runs/r/plan.json").write_text(json.dumps(make_plan(config).to_json()))
    page = Path(build_report(str(tmp_path / "runs/r"))).read_text()
    assert "nothing is evaluated: stage" in page


def test_naming_one_is_refused_by_the_plan(tmp_path: Path) -> None:
    config = asked(tmp_path, "[base, whole]", "evaluate.checkpoints={early: base, late: whole}")
    plan = make_plan(config)
    assert [item.name for item in plan.blocked] == ["evaluate", "report"]
    assert plan["evaluate"].reasons == ("a checkpoint of stage 'whole' cannot be evaluated: it is whole already",)
