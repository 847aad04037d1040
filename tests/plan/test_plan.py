"""A plan says what will happen and why, and changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from guards import HANG_SECONDS

from stageline.checkpoint.identity import claim_run
from stageline.checkpoint.layout import CheckpointRef
from stageline.checkpoint.metadata import METADATA_NAME
from stageline.cli.tables import duration, show_plan
from stageline.config import RunConfig
from stageline.errors import ConfigError
from stageline.plan import Plan, make_plan

if TYPE_CHECKING:
    from conftest import Lab


def actions(plan: Plan) -> dict[str, str]:
    return {item.name: item.action for item in plan.items}


def text(plan: Plan, name: str) -> str:
    return "\n".join(plan[name].reasons)


def test_an_empty_root_runs_everything_in_order(lab: Lab) -> None:
    plan = make_plan(lab.config())
    assert [item.name for item in plan.items] == ["prepare_data", "backbone", "film", "evaluate", "report"]
    assert set(actions(plan).values()) == {"run"}
    assert "never recorded" in text(plan, "backbone")
    assert plan["backbone"].steps == 80
    assert plan["film"].steps == 250


def test_a_first_run_has_an_estimate_that_is_marked_and_a_recorded_pace_takes_its_place(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    config = lab.config("trainer.accelerator=cpu")
    plan = make_plan(config)
    backbone, film = plan["backbone"], plan["film"]
    assert backbone.seconds is not None
    assert film.seconds == pytest.approx(backbone.seconds * 250 / 80)
    assert (backbone.is_estimate, film.is_estimate) == (True, True)
    show_plan(plan)
    assert f"~{duration(backbone.seconds)}" in capsys.readouterr().out
    assert "expected with ~: from rates measured on one thread of a server's CPU, training steps alone" in plan.notes
    assert backbone.to_json()["expected_is_estimate"] is True
    double = make_plan(lab.config("trainer.accelerator=cpu", "trainer.batch_size=16"))["backbone"].seconds
    assert double == pytest.approx(2 * backbone.seconds)
    assert make_plan(lab.config("trainer.accelerator=cpu", "trainer.batch_size=1000"))["backbone"].seconds is None
    lab.commit(config, "backbone", step=4, final=False)
    again = make_plan(config)
    assert (again["backbone"].is_estimate, again["film"].is_estimate) == (False, True)


def test_finished_stages_are_reused_with_their_digest(lab: Lab) -> None:
    config = lab.config()
    backbone, film = lab.train_all(config)
    plan = make_plan(config)
    assert actions(plan) == {
        "prepare_data": "reuse",
        "backbone": "reuse",
        "film": "reuse",
        "evaluate": "run",
        "report": "run",
    }
    assert plan["backbone"].reference == str(backbone.reference)
    assert plan["film"].reference == str(film.reference)
    assert plan["film"].parents == {"default": str(backbone.reference)}
    assert plan["backbone"].parameters == {"trained": 1234, "total": 1234}


RATE, STEPS = "trainer.learning_rate", "trainer.max_steps"
BOTH = {"backbone", "film"}
CHANGES = [
    pytest.param("stage_overrides.film.trainer.learning_rate=0.01", {"film"}, RATE, id="film-only"),
    pytest.param("trainer.learning_rate=0.01", BOTH, RATE, id="both"),
    pytest.param("stage_overrides.backbone.trainer.max_steps=81", BOTH, STEPS, id="parent"),
    pytest.param("trainer.log_every_steps=3", set(), "", id="operational"),
    pytest.param("evaluate.k=7", set(), "", id="evaluation"),
]


@pytest.mark.parametrize(("override", "flipped", "field"), CHANGES)
def test_one_change_flips_exactly_the_stages_it_reaches(lab: Lab, override: str, flipped: set[str], field: str) -> None:
    lab.train_all(lab.config())
    plan = make_plan(lab.config(override))
    assert {name for name in ("backbone", "film") if plan[name].action == "run"} == flipped
    assert {name for name in ("backbone", "film") if plan[name].action == "reuse"} == {"backbone", "film"} - flipped
    if field:
        first = next(name for name in ("backbone", "film") if name in flipped)
        assert any(line.startswith(f"{field}: ") and " -> " in line for line in plan[first].reasons), plan[
            first
        ].reasons
    if flipped == {"backbone", "film"} and "film" in text(plan, "film"):
        assert "will be trained" in text(plan, "film")


def test_a_changed_field_is_told_with_old_and_new_value(lab: Lab) -> None:
    lab.train_all(lab.config())
    plan = make_plan(lab.config("stage_overrides.film.trainer.learning_rate=0.01"))
    assert plan["film"].reasons == ("trainer.learning_rate: 0.003 -> 0.01",)


def test_another_parent_is_the_reason(lab: Lab) -> None:
    config = lab.config()
    lab.train_all(config)
    other = lab.commit(lab.config("run=other"), "backbone", value=0.9)
    plan = make_plan(lab.config(f"parents.film.default={other.uri}"))
    assert plan["backbone"].action == "reuse"
    assert plan["film"].action == "run"
    assert plan["film"].reasons == (f"parent default: {lab_content(lab, config)} -> {other.content[:12]}",)


def lab_content(lab: Lab, config: RunConfig) -> str:
    plan = make_plan(config)
    from stageline.checkpoint.layout import resolve

    return resolve(plan["backbone"].reference).content[:12]


def test_a_stopped_stage_is_continued_and_its_child_waits(lab: Lab) -> None:
    config = lab.config()
    lab.commit(config, "backbone", step=4, final=False)
    plan = make_plan(config)
    assert plan["backbone"].action == "continue"
    assert plan["backbone"].from_step == 4
    assert plan["backbone"].seconds == pytest.approx((80 - 4) * 0.5)
    assert plan["film"].action == "run"
    assert "parent default: stage 'backbone' will be trained" in plan["film"].reasons


def test_other_data_are_the_reason(lab: Lab) -> None:
    lab.train_all(lab.config())
    changed = lab.config("evaluate.k=7", "trainer.num_workers=2")
    assert make_plan(changed)["prepare_data"].action == "reuse"
    wider = make_plan(lab.config("run=lab", "data.num_train=96"))
    assert wider["prepare_data"].action == "run"
    assert "data.num_train: 192 -> 96" in text(wider, "backbone")


def test_an_unselected_stage_is_shown_and_its_child_starts_from_scratch(lab: Lab) -> None:
    plan = make_plan(lab.config("stages=[film]"))
    assert plan["backbone"].action == "not selected"
    assert plan["film"].action == "run"
    assert plan["film"].parents == {}
    plan = make_plan(lab.config("stages=[backbone]"))
    assert plan["film"].action == "not selected"


def test_another_identity_under_the_name_blocks_with_difference_and_flag(lab: Lab) -> None:
    config = lab.config()
    claim_run(config.root, config)
    plan = make_plan(lab.config("seed=1"))
    assert set(actions(plan).values()) == {"blocked"}
    assert "seed: 0 -> 1" in text(plan, "prepare_data")
    assert "run=<new name>" in " ".join(plan["prepare_data"].remedies)


def test_bad_parents_block(lab: Lab) -> None:
    config = lab.config()
    backbone, _ = lab.train_all(lab.config("run=first"))
    strange = lab.commit(lab.config("run=strange"), "backbone", stage="decoder")
    foreign = lab.commit(lab.config("run=foreign"), "backbone", family="champ")
    cases: dict[str, tuple[str, str]] = {
        "wrong stage": (strange.uri, "checkpoint of stage 'decoder', expected 'backbone'"),
        "wrong family": (foreign.uri, "is of family 'champ', expected 'film_flow'"),
        "missing": ("runs/nowhere/backbone", "there is no checkpoint"),
        "another digest": (f"{backbone.uri}@sha256:{'0' * 64}", "another checkpoint"),
    }
    for name, (uri, sentence) in cases.items():
        plan = make_plan(lab.config(f"parents.film.default={uri}"))
        assert plan["film"].action == "blocked", name
        assert sentence in text(plan, "film"), name
        assert plan["film"].remedies, name
        assert plan["evaluate"].action == "blocked"
    uncommit(backbone)
    plan = make_plan(lab.config(f"parents.film.default={backbone.uri}"))
    assert plan["film"].action == "blocked"
    assert "never committed" in text(plan, "film")
    assert make_plan(config)["film"].action == "run"


def test_a_stage_may_be_tuned_further_from_its_own_kind(lab: Lab) -> None:
    _, film = lab.train_all(lab.config("run=first"))
    plan = make_plan(lab.config(f"parents.film.default={film.uri}"))
    assert plan["film"].action == "run"
    assert plan["film"].parents == {"default": str(film.reference)}


def uncommit(ref: CheckpointRef) -> None:
    ref.store.delete(METADATA_NAME)


def test_a_relative_parent_lies_below_the_root(lab: Lab) -> None:
    first = lab.commit(lab.config("run=first"), "backbone")
    plan = make_plan(lab.config("parents.film.default=runs/first/backbone"))
    assert plan["film"].parents == {"default": str(first.reference)}


def test_a_stage_that_wants_other_data_blocks_the_run(lab: Lab) -> None:
    plan = make_plan(lab.config("stage_overrides.film.data.num_train=10"))
    assert plan["prepare_data"].action == "blocked"
    assert "stage 'film' asks for other data: data.num_train: 192 -> 10" in text(plan, "prepare_data")


def test_stages_that_do_not_exist_are_named_with_the_nearest(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"no stage 'flim'; did you mean 'film'"):
        make_plan(lab.config("stages=[flim]"))


def test_a_plan_writes_nothing_and_is_the_same_twice(lab: Lab) -> None:
    config = lab.config()
    lab.train_all(config)
    before = lab.files()
    first, second = make_plan(config), make_plan(config)
    assert lab.files() == before
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())
    empty = Path(config.root).parent / "empty"
    make_plan(config.model_copy(update={"root": str(empty)}))
    assert not empty.exists()


PROBE = """
import json, sys
from stageline.families import parse_config
from stageline.plan import make_plan
plan = make_plan(parse_config(json.loads(sys.argv[1])))
heavy = sorted({"torch", "lightning_fabric", "scipy", "skimage", "kfp", "transformers"} & set(sys.modules))
print(json.dumps({"heavy": heavy, "actions": [item.action for item in plan.items]}))
"""


def test_a_plan_over_checkpoints_loads_no_torch(lab: Lab) -> None:
    config = lab.config()
    lab.train_all(config)
    raw = config.model_dump_json(exclude_unset=True, by_alias=True)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, raw], capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    )
    answer = json.loads(done.stdout)
    assert answer == {"heavy": [], "actions": ["reuse", "reuse", "reuse", "run", "run"]}
