"""Whoever asks about an item of a run gets one answer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from stageline.checkpoint.layout import CheckpointRef
from stageline.config import RunConfig
from stageline.data.splits import silent
from stageline.encoders.copies import lock_external
from stageline.encoders.lock import EXTERNALS
from stageline.errors import StagelineError
from stageline.families import family_config
from stageline.pipeline.items import plain_config, resolved_job
from stageline.plan import make_plan
from stageline.pod.finished import find_finished
from stageline.pod.settings import Pod
from stageline.store import Store, open_store
from stageline.store.references import decode, encode, join_pairs, split_pairs
from stageline.verbs.evaluate.evaluation import named_checkpoints
from stageline.work.decision import decide, decide_evaluation, decide_stage, hand_on
from stageline.work.externals import run_externals
from stageline.work.given import Given, given_by, given_to_stage
from stageline.work.work import StageWork, Work, refuse_blocked
from tests.plan.conftest import Lab

STAGES = ("base", "middle", "last")
MOSTLY = st.sampled_from([True, True, True, False])
WHICH = st.sampled_from([0, 0, 0, 1])
COMMITS = st.one_of(
    st.lists(st.tuples(st.sampled_from(STAGES), WHICH, MOSTLY, MOSTLY), max_size=4),
    st.tuples(*(st.tuples(st.just(stage), WHICH, MOSTLY, MOSTLY) for stage in STAGES)).map(list),
)
"""(stage, which settings, trained to its end, from what the run has of its parents) of what was trained before."""
SELECTIONS = st.one_of(st.none(), st.lists(st.sampled_from(STAGES), min_size=1, unique=True))
PARENTS = st.fixed_dictionaries(
    {},
    optional={
        "parents.middle.default": st.sampled_from(["none", "runs/other/base", "runs/lab/middle", "runs/nowhere/base"]),
        "parents.last.extra": st.sampled_from(["none", "runs/other/base"]),
    },
)
Answer = tuple[str, dict[str, str], str]
"""(action, role -> reference, fingerprint)"""


def answer(work: Work) -> Answer:
    action = work.action.removesuffix(" (not selected)")
    parents = {role: str(ref.reference) for role, ref in work.sources.items()} if isinstance(work, StageWork) else {}
    return ("blocked", {}, "") if action == "blocked" else (action, parents, work.fingerprint)


def write_tower(folder: Path, value: float) -> Path:
    """A file of other people's weights."""
    path = folder / "tower.safetensors"
    path.unlink(missing_ok=True)
    save_file({"row": np.full(4, value)}, path)
    return path


def lock_tower(lab: Lab, words: Sequence[str]) -> None:
    config = lab.config(*words)
    for external in run_externals(config, family_config("chain")):
        lock_external(open_store(lab.root), external, silent)


def train_before(lab: Lab, commits: Sequence[tuple[str, int, bool, bool]], words: Sequence[str]) -> None:
    made: dict[str, CheckpointRef] = {}
    family = family_config("chain")
    for stage, which, final, linked in commits:
        roles = family.stages[stage].parents
        parents = {role: made[source] for role, source in roles.items() if linked and source in made}
        config = lab.config(f"trainer.learning_rate=0.00{which + 1}", *words)
        steps = {"step": 10, "final": True} if final else {"step": 4, "final": False}
        value = (len(made) + which) / 10
        ref = lab.commit(config, stage, parents=parents, value=value, **steps)  # type: ignore[arg-type]
        if final:
            made[stage] = ref


def through_steps(config: RunConfig, root: Store, data: str) -> dict[str, Answer | None]:
    """What the pipeline's steps decide one after another, up to the first that would have to train or refuses."""
    family = family_config(config.family)
    answers: dict[str, Answer | None] = {}
    handed: dict[str, str] = {}
    for stage in family.stages:
        parents = split_pairs(" ".join(f"{encode(r)}={handed.get(s, '')}" for r, s in stage.parents.items()))
        try:
            work = hand_on(config, stage.name, root, given_to_stage(config, stage.name, decode(data), parents))
        except StagelineError:  # it is not selected, and a selected one that needs it is blocked
            answers["refused"] = None
            break
        answers[stage.name] = answer(work)
        handed[stage.name] = encode(work.result)
        if work.action in ("run", "continue", "blocked"):
            break
    if len(handed) == len(STAGES):
        words = split_pairs(join_pairs({name: decode(word) for name, word in handed.items()}))
        answers["evaluate"] = answer(decide_evaluation(config, root, Given(decode(data), stages=words)))
    return answers


def as_job(config: RunConfig, item: str, root: Store) -> Answer | None:
    """What each rank of an item's job says, and with it its pod's entry; None where no job can be made of it."""
    try:
        prospect = resolved_job(config, item, root)
    except StagelineError:
        return None
    job = prospect.job
    handed = given_by(job.arguments)
    pod = Pod(job.arguments, plain_config(config), job=job.name, item=item, fingerprint=job.fingerprint)
    reference = find_finished(pod, before=True)
    assert find_finished(pod) == reference
    assert prospect.result.finished() == bool(reference)
    assert prospect.reference == reference
    rank = decide_stage(config, item, root, handed) if item in STAGES else decide_evaluation(config, root, handed)
    assert rank.result == reference
    assert rank.fingerprint == job.fingerprint
    return answer(rank)


@settings(
    max_examples=24, deadline=None, suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate)
)
@given(
    COMMITS,
    SELECTIONS,
    PARENTS,
    WHICH,
    st.sampled_from(["", "", "word"]),
    st.sampled_from(["none", "none", "locked", "locked anew", "lock lost"]),
)
def test_all_callers_agree(
    commits: list[tuple[str, int, bool, bool]],
    selection: list[str] | None,
    parents: dict[str, str],
    which: int,
    word: str,
    tower: str,
) -> None:
    """The callers, each as it asks: the plan (`make_plan`); the pipeline's steps, which hand encoded references on
    (`hand_on`, `given_to_stage`, `decide_evaluation`); `stageline job` (`resolved_job` with its probe); a pod's entry
    before and after its ranks (`find_finished`); each rank of a job with references (`decide_stage` with `given_by`);
    `stageline train` by itself (`decide_stage` without parents); `stageline evaluate` (`named_checkpoints`).

    word: variant of the stages.  tower: what became of the weights of others after what was trained before.
    """
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder) / "my root, 100% = ä", "chain")
        lab.commit(lab.config("run=other"), "base", value=0.9)
        others = [] if tower == "none" else [f"model.tower='{write_tower(Path(folder), 0.5)}'"]
        lock_tower(lab, others)
        train_before(lab, commits, others)
        if tower == "locked anew":
            write_tower(Path(folder), 0.75)
            lock_tower(lab, others)
        if tower == "lock lost":
            open_store(lab.root).delete_tree(EXTERNALS)
        words = [f"trainer.learning_rate=0.00{which + 1}", *(f"{key}={name}" for key, name in parents.items())]
        words += [f"stages=[{','.join(selection)}]"] if selection else []
        words += [f"model.word={word}"] if word else []
        words += others
        config, root = lab.config(*words), open_store(lab.root)
        data = encode(str(lab.prepare(config).reference))
        selected = {stage.name for stage in family_config("chain").selected(config)}

        plan = make_plan(config)
        stepped = through_steps(config, root, data)
        assert "refused" not in stepped or plan.blocked
        for item in (*STAGES, "evaluate"):
            work = decide(config, item, root)
            assert (plan[item].action, plan[item].reference) == (work.action, work.reference)
            decided = bool(work.fingerprint) or work.action == "blocked"
            event(f"{item}: {work.action}{'' if decided else ', undecided'}")
            if item in stepped and decided:
                assert stepped[item] == answer(work), item
            if item not in selected | {"evaluate"} or not decided:
                continue
            if item in STAGES:
                assert answer(decide_stage(config, item, root, Given(decode(data)))) == answer(work)
            job = as_job(config, item, root)
            assert job == (None if work.action == "blocked" else answer(work)), item
        evaluation = decide_evaluation(config, root)
        try:
            refuse_blocked(evaluation)
            named = named_checkpoints(config, None, decode(data))
        except StagelineError:
            named = {}
        assert named == {name: str(ref.reference) for name, ref in evaluation.checkpoints.items()}
