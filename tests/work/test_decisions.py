"""What a decision says of parents that are not selected, of work that was superseded, and of data that are gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.metadata import METADATA_NAME
from stageline.config import seal
from stageline.errors import CheckpointError, ConfigError, PlanError
from stageline.families import family_config
from stageline.plan import make_plan
from stageline.pod.trial import with_parents
from stageline.store import open_store
from stageline.work.decision import decide, decide_evaluation, decide_stage, hand_on
from stageline.work.given import Given, given_by, given_to_stage
from stageline.work.work import StageWork, refuse_blocked

if TYPE_CHECKING:
    from tests.plan.conftest import Lab


def stage(lab: Lab, name: str, *overrides: str) -> StageWork:
    work = decide(lab.config(*overrides), name)
    assert isinstance(work, StageWork)
    return work


def refs(found: Mapping[str, CheckpointRef]) -> dict[str, str]:
    return {name: str(ref.reference) for name, ref in found.items()}


def rewrite(ref: CheckpointRef, **said: object) -> CheckpointRef:
    """The checkpoint with other words in its metadata, sealed anew."""
    plain = {**json.loads(ref.store.get(METADATA_NAME)), **said}
    plain.pop("seal")
    ref.store.put(METADATA_NAME, json.dumps(seal(plain)).encode())
    found = StageDir.at(open_store(ref.uri.rsplit("/checkpoints/", 1)[0])).survey().refs
    return next(one for one in found if one.name == ref.name)


def test_a_stage_that_is_not_selected_is_taken_where_it_is_finished_with_these_settings(chain: Lab) -> None:
    base = chain.commit(chain.config(), "base")
    work = stage(chain, "middle", "stages=[middle]")
    assert refs(work.sources) == {"default": str(base.reference)}
    assert make_plan(chain.config("stages=[middle]"))["base"].action == "reuse (not selected)"
    assert hand_on(chain.config("stages=[middle]"), "base").result == str(base.reference)
    middle = chain.commit(chain.config(), "middle", parents={"default": base})
    assert refs(stage(chain, "last", "stages=[last]").sources) == {
        "default": str(middle.reference),
        "extra": str(base.reference),
    }


def test_work_under_other_settings_blocks_with_the_difference_and_both_ways_out(chain: Lab) -> None:
    chain.commit(chain.config("trainer.learning_rate=0.5"), "base")
    work = stage(chain, "middle", "stages=[middle]")
    assert work.action == "blocked"
    (reason,) = work.reasons
    assert "trainer.learning_rate: 0.5 -> " in reason
    (remedy,) = work.remedies
    for way in ("stages=[base,middle]", "parents.middle.default=runs/lab/base", "parents.middle.default=none"):
        assert way in remedy
        chosen = stage(chain, "middle", way if way.startswith("parents") else "stages=[base,middle]", "seed=0")
        assert chosen.action == "run"
    with pytest.raises(PlanError, match="was trained otherwise"):
        hand_on(chain.config("stages=[middle]"), "base")


def test_unfinished_work_of_a_stage_that_is_not_selected_blocks(chain: Lab) -> None:
    chain.commit(chain.config(), "base", step=4, final=False)
    assert "is unfinished: stopped at step 4 of 10" in stage(chain, "middle", "stages=[middle]").reasons[0]


def test_what_was_never_trained_is_from_scratch_or_missing(chain: Lab) -> None:
    work = stage(chain, "middle", "stages=[middle]")
    assert (work.action, dict(work.parents)) == ("run", {})
    assert "parent default: from scratch" in work.notes
    last = stage(chain, "last", "stages=[last]")
    assert last.action == "blocked"
    assert "needs a checkpoint of 'middle' (role 'default')" in last.reasons[0]


def test_an_optional_parent_that_the_config_needs_is_waited_for_and_missed(chain: Lab) -> None:
    """Absent, said to be none, or handed on as nothing; the remedies offer no start from scratch."""
    missing = "needs a checkpoint of 'base' (role 'default') and has none: needy"
    for way in ("stages=[middle]", "parents.middle.default=none"):
        work = stage(chain, "middle", way, "model.needy=true")
        assert work.action == "blocked"
        assert missing in work.reasons[0]
    config = chain.config("model.needy=true")
    assert "parent default: stage 'base' will be trained" in stage(chain, "middle", "model.needy=true").waiting
    data = str(chain.prepare(config).reference)
    with pytest.raises(PlanError, match="has none: needy"):
        refuse_blocked(decide_stage(config, "middle", given=Given(data, {"default": ""})))
    chain.commit(chain.config("trainer.learning_rate=0.5"), "base")
    for needy, offered in (("true", False), ("false", True)):
        (remedy,) = stage(chain, "middle", "stages=[middle]", f"model.needy={needy}").remedies
        assert ("start from scratch" in remedy) == offered
    assert with_parents(family_config("chain"), config, "middle") == ["base", "middle"]
    assert with_parents(family_config("chain"), chain.config(), "middle") == ["middle"]


def test_a_role_that_no_stage_of_the_run_fills_is_named_or_empty(chain: Lab) -> None:
    """A stage may start from a checkpoint of its own kind; it is in its fingerprint and in the words of its job."""
    config = chain.config()
    data = str(chain.prepare(config).reference)
    assert stage(chain, "base", "parents.base.before=none").fingerprint == stage(chain, "base").fingerprint
    assert not stage(chain, "base").parents
    other = chain.commit(chain.config("run=other"), "base", value=0.9)
    named = chain.config("parents.base.before=runs/other/base")
    for given in (None, Given(data), Given(data, {}), Given(data, {"before": str(other.reference)})):
        work = decide_stage(named, "base", given=given)
        assert refs(work.sources) == {"before": str(other.reference)}
        assert work.fingerprint != stage(chain, "base").fingerprint
        assert given_by(work.arguments()) == Given(data, {"before": str(other.reference)})
    last = chain.commit(chain.config("run=other"), "last")
    wrong = stage(chain, "base", f"parents.base.before={last.uri}")
    assert "is a checkpoint of stage 'last', expected 'base' or 'middle'" in wrong.reasons[0]
    with pytest.raises(ConfigError, match=r"parents\.base: no role 'default'; roles: before"):
        stage(chain, "base", "parents.base.default=none")


def test_given_references_are_never_filled_up_from_the_store(chain: Lab) -> None:
    config = chain.config()
    data = str(chain.prepare(config).reference)
    base = chain.commit(config, "base")
    assert refs(decide_stage(config, "middle", given=Given(data)).sources) == {"default": str(base.reference)}
    assert refs(decide_stage(config, "middle", given=Given(data, {"default": ""})).sources) == {}
    other = chain.commit(chain.config("run=other"), "base", value=0.9)
    named = chain.config(f"parents.middle.default={other.uri}")
    handed = given_to_stage(named, "middle", data, {"default": str(base.reference)})
    work = decide_stage(named, "middle", given=handed)
    assert refs(work.sources) == {"default": str(other.reference)}
    assert given_by(work.arguments()) == Given(data, {"default": str(other.reference)})
    with pytest.raises(PlanError, match="no parent 'extra'; roles: default"):
        refuse_blocked(decide_stage(config, "middle", given=Given(data, {"extra": ""})))


def test_a_stage_that_diverged_seeds_nothing_unless_it_is_named(chain: Lab) -> None:
    config = chain.config()
    base = rewrite(chain.commit(config, "base"), best=None, metrics={"dice": None})
    work = stage(chain, "base")
    assert (work.action, work.diverged) == ("reuse", "diverged: its metric 'dice' was never finite")
    child = stage(chain, "middle")
    assert child.action == "blocked"
    with pytest.raises(CheckpointError, match="diverged"):
        refuse_blocked(child)
    data = str(chain.prepare(config).reference)
    handed = Given(data, {"default": str(base.reference)})
    assert decide_stage(config, "middle", given=handed).action == "blocked"
    named = chain.config("parents.middle.default=runs/lab/base/last.ckpt")
    chain_dir = StageDir(open_store(chain.root), "lab", "base")
    chain_dir.store.delete("last.ckpt")
    chain_dir.set_pointer("last", base)
    assert decide_stage(named, "middle").action == "run"
    assert decide_stage(named, "middle", given=handed).action == "run"


def test_reported_facts_stand_in_the_plan_and_others_block(chain: Lab) -> None:
    chain.commit(chain.config(), "base")
    notes = make_plan(chain.config("stage_overrides.middle.model.shade=dark"))["middle"].notes
    assert "parent default: shade: checkpoint 'light', config 'dark' (reported)" in notes
    assert "trains head.*" in notes
    blocked = make_plan(chain.config("stage_overrides.middle.model.width=9"))["middle"]
    assert blocked.action == "blocked"
    assert "width: checkpoint 8, config 9" in blocked.reasons[0]


def test_going_back_to_the_settings_of_before_is_reuse_and_the_plan_names_what_is_kept(chain: Lab) -> None:
    first = chain.commit(chain.config(), "base")
    second = chain.commit(chain.config("trainer.learning_rate=0.5"), "base", value=0.7)
    assert stage(chain, "base").result == str(first.reference)
    assert stage(chain, "base", "trainer.learning_rate=0.5").result == str(second.reference)
    assert any(note.startswith("keeps 1 superseded") for note in make_plan(chain.config())["base"].notes)


def test_runs_of_a_variant_lie_side_by_side(chain: Lab) -> None:
    chain.commit(chain.config(), "base")
    worded = chain.commit(chain.config("run=two", "model.word=wide"), "base")
    assert worded.uri.endswith("runs/two/base/wide/checkpoints/step-00000010")
    assert stage(chain, "base", "run=two", "model.word=wide").result == str(worded.reference)
    assert refs(stage(chain, "middle", "run=two", "model.word=wide").sources) == {"default": str(worded.reference)}


def test_after_the_cache_is_gone_stages_are_still_reused(lab: Lab) -> None:
    config = lab.config()
    lab.train_all(config)
    before = {item.name: item.action for item in make_plan(config).items}
    shutil.rmtree(lab.root / "cache")
    plan = make_plan(config)
    assert {item.name: item.action for item in plan.items} == before | {"prepare_data": "run"}
    lab.prepare(config)
    assert {item.name: item.action for item in make_plan(config).items} == before


def test_the_last_selected_stage_is_evaluated(chain: Lab) -> None:
    config = chain.config()
    base = chain.commit(config, "base")
    middle = chain.commit(config, "middle", parents={"default": base})
    only = chain.config("stages=[base]")
    assert refs(decide_evaluation(only).checkpoints) == {"": str(base.reference)}
    handed = {"base": str(base.reference), "middle": str(middle.reference), "last": ""}
    data = str(chain.prepare(config).reference)
    assert refs(decide_evaluation(only, given=Given(data, stages=handed)).checkpoints) == {"": str(base.reference)}
    assert decide_evaluation(config, given=Given(data, stages=handed)).action == "blocked"


def test_a_checkpoint_of_the_schema_before_is_neither_reused_nor_continued(chain: Lab) -> None:
    base = rewrite(chain.commit(chain.config(), "base"), schema="stageline/1")
    work = stage(chain, "base")
    assert work.action == "run"
    assert "neither continued nor reused" in work.reasons[0]
    child = stage(chain, "middle", "stages=[middle]")
    assert "earlier version" in child.reasons[0]
    assert refs(stage(chain, "middle", f"parents.middle.default={base.uri}").sources) == {
        "default": str(base.reference)
    }
