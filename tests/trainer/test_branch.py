"""A branch of a pipeline: the steps of a second run that shares a stage with the main one, and the comparison of both.

The steps' bodies are called as KFP calls them, in the order of the chain; what they would start as jobs is done before.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stageline.checkpoint.layout import resolve
from stageline.config import RunConfig
from stageline.errors import ConfigError, PlanError
from stageline.families import parse_config
from stageline.pipeline import steps
from stageline.plan import plan_branch
from stageline.store.references import decode
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.train import train_stage
from stageline.work.branches import branch_config

KEYS = (
    *("trainer.accelerator=cpu", "trainer.tensorboard=false", "trainer.max_steps=1", "trainer.ema_decay=0.1"),
    *("trainer.batch_size=4", "stages=[base, tune]"),
)


def config_of(root: Path, *overrides: str) -> RunConfig:
    return parse_config({"family": "toy", "root": str(root)}, [*KEYS, *overrides])


class Chain:
    """Calls the bodies of a pipeline's steps."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        text = config.model_dump_json(exclude_unset=True, by_alias=True)
        self.given = {"family": "toy", "config": text, "launcher": "local"}
        self.shown = SimpleNamespace(path=str(folder / "shown"), metadata={}, log_metric=lambda *_: None)

    def call(self, step: Any, *words: str, branch: str = "") -> str:
        artifacts = [self.shown] * (2 if step is steps.train_stage else 1)
        (answer,) = step(*artifacts, *words, **self.given, branch=branch)
        return str(answer)


def test_the_second_run_starts_from_the_shared_stage_and_both_are_compared(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path)
    base = str(train_stage(config, "base", data=data).reference)
    own, plan = plan_branch(config, "wide")
    assert plan is not None
    assert [plan[name].action for name in ("base", "tune", "evaluate")] == ["not selected", "run", "run"]
    assert (own.run, own.stages, own.trainer.batch_size) == ("toy_S0.W8", ("tune",), 8)
    for run in (config, own):
        tune = str(train_stage(run, "tune", data=data).reference)
        evaluate_checkpoint(run, tune, data)
    assert resolve(f"{tmp_path}/runs/toy_S0.W8/tune").metadata.parents["default"].digest == resolve(base).digest

    chain = Chain(config, tmp_path)
    first = chain.call(steps.train_stage, "base", data, "")
    assert decode(first) == base
    words = f"wide base={first}"
    evaluations = []
    for branch in ("", words):
        tune = chain.call(steps.train_stage, "tune", data, f"default={first}", branch=branch)
        evaluations.append(chain.call(steps.evaluate, data, f"base={first} tune={tune}", branch=branch))
    chain.call(steps.report, evaluations[0], "")
    comparison = chain.call(steps.compare, *evaluations)
    chain.call(steps.report, evaluations[1], "", branch=words)
    assert "Comparisons" in Path(decode(chain.call(steps.report, evaluations[0], comparison))).read_text()
    told = json.loads(Path(decode(comparison)).read_text())
    assert (told["a"]["run"], told["b"]["run"]) == ("toy_S0.W4", "toy_S0.W8")
    lines = capsys.readouterr().out.splitlines()
    shown = [line.partition(":")[0] for line in lines]
    assert [item for item in shown if item.startswith("wide.")] == ["wide.tune", "wide.evaluate", "wide.report"]
    made = [line for line in lines if line.startswith("report: done")]
    assert len(made) == 2, "one without the comparison is not kept"
    assert chain.call(steps.compare, evaluations[0], "") == ""


def test_before_the_shared_stage_is_trained_the_branch_has_no_plan_yet(tmp_path: Path) -> None:
    own, plan = plan_branch(config_of(tmp_path, "run=mine"), "wide")
    assert plan is None
    assert own.run == "mine__wide", "a name that a person gave"
    assert own.parents == {}


def test_what_a_person_names_as_parent_stays(tmp_path: Path) -> None:
    config = config_of(tmp_path, "parents.tune.default=runs/other/base")
    assert branch_config(config, "wide", {"base": "runs/x@sha256:1"}).parents == {
        "tune": {"default": "runs/other/base"}
    }


@pytest.mark.parametrize(
    ("keys", "branch", "words"),
    [
        ((), "wider", "toy has no branch 'wider'"),
        (("trainer.batch_size=8",), "wide", "branch 'wide' changes nothing"),
        (("stages=[base]",), "wide", "has nothing to train: it shares base"),
    ],
)
def test_branches_that_make_no_sense_are_refused(
    tmp_path: Path, keys: tuple[str, ...], branch: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_branch(config_of(tmp_path, *keys), branch)


def test_a_branch_whose_name_is_another_runs_is_refused_at_once(tmp_path: Path) -> None:
    from stageline.checkpoint.identity import claim_run

    claim_run(str(tmp_path), config_of(tmp_path, "run=mine__wide", "seed=9"))
    with pytest.raises(PlanError, match="another identity"):
        plan_branch(config_of(tmp_path, "run=mine"), "wide")
