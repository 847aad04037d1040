"""What the metadata of parents prove wrong is refused before torch is loaded, by every caller."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from guards import HANG_SECONDS

from stageline.checkpoint.layout import CheckpointRef
from stageline.errors import CheckpointError, PlanError
from stageline.families import FAMILIES
from stageline.pipeline.items import plain_config, resolved_job
from stageline.plan import make_plan
from stageline.pod.finished import find_finished
from stageline.pod.settings import Pod
from stageline.store import open_store
from stageline.work.decision import decide_stage, hand_on
from stageline.work.given import Given
from stageline.work.work import StageWork, refuse_blocked

if TYPE_CHECKING:
    from tests.plan.conftest import Lab


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    from tests.plan.conftest import Lab

    monkeypatch.setitem(FAMILIES, "pair", "pair_family")
    return Lab(tmp_path / "my root", "pair")


def halves(lab: Lab, left: str = "left.w", right: str = "right.w") -> tuple[CheckpointRef, CheckpointRef]:
    """Finished checkpoints of both stages in the run `halves`, each with the tensors that are named."""
    config = lab.config("run=halves")
    return lab.commit(config, "left", tensors=left.split()), lab.commit(config, "right", tensors=right.split())


def both(lab: Lab, left: str, right: str, *overrides: str) -> StageWork:
    """What is decided about the stage that starts from two checkpoints of `halves`."""
    named = (f"parents.both.left=runs/halves/{left}", f"parents.both.right=runs/halves/{right}")
    return decide_stage(lab.config("stages=[both]", *named, *overrides), "both")


def test_each_role_in_its_place_is_taken(pair: Lab) -> None:
    left, right = halves(pair)
    work = both(pair, "left", "right")
    assert work.action == "run"
    assert {role: str(ref.reference) for role, ref in work.sources.items()} == {
        "left": str(left.reference),
        "right": str(right.reference),
    }


def test_exchanged_roles_of_equal_facts_and_stages_are_told_from_their_tensors(pair: Lab) -> None:
    """Both roles accept both stages, so that nothing but the names of the tensors tells; the remedy lifts the block."""
    left, right = halves(pair)
    work = both(pair, "right", "left")
    assert work.action == "blocked"
    with pytest.raises(PlanError) as caught:
        refuse_blocked(work)
    message, remedy = caught.value.message, caught.value.remedy
    assert "the parents 'left' and 'right' of stage 'both' look exchanged" in message
    assert f"'left' is {right.uri} (stage 'right')" in message
    assert f"'right' is {left.uri} (stage 'left')" in message
    words = shlex.split(remedy.removeprefix("exchange them: "))
    assert words == ["parents.both.left=runs/halves/left", "parents.both.right=runs/halves/right"]
    assert decide_stage(pair.config("stages=[both]", *words), "both").action == "run"


def test_roles_of_different_stages_are_exchanged_too(chain: Lab) -> None:
    base = chain.commit(chain.config("run=other"), "base")
    middle = chain.commit(chain.config("run=other"), "middle", parents={"default": base})
    named = [f"parents.last.default={base.uri}", f"parents.last.extra={middle.uri}"]
    (reason,) = decide_stage(chain.config(*named), "last").reasons
    assert "the parents 'default' and 'extra' of stage 'last' look exchanged" in reason
    alone = decide_stage(chain.config(f"parents.last.default={base.uri}", "parents.last.extra=none"), "last")
    assert "is a checkpoint of stage 'base', expected 'middle'" in alone.reasons[0]


@pytest.mark.parametrize(
    ("left", "right", "overrides", "faults"),
    [
        ("right.w", "right.w", (), ["section 'left' (left.*)", "of 'left'", "parent 'left' gives this stage nothing"]),
        ("left.w", "left.w right.w other.w", (), ["other.w: belongs to no section; sections: left, right"]),
        (
            "left.w right.w",
            "left.w right.w",
            ("model.claims=right",),
            ["right.w: would be loaded from left and right"],
        ),
    ],
    ids=["nothing", "unexplained", "twice"],
)
def test_what_no_model_is_needed_for_is_refused(
    pair: Lab, left: str, right: str, overrides: tuple[str, ...], faults: list[str]
) -> None:
    halves(pair, left, right)
    work = both(pair, "left", "right", *overrides)
    assert work.action == "blocked"
    assert not work.parents
    with pytest.raises(CheckpointError) as caught:
        refuse_blocked(work)
    assert all(fault in caught.value.message for fault in faults), caught.value.message
    assert "runs/halves/left/checkpoints/step-00000010" in caught.value.message


def test_parents_of_the_run_itself_are_looked_at_too(pair: Lab) -> None:
    """Its own stages hand on what the family does not explain: no caller starts from it."""
    config = pair.config()
    pair.commit(config, "left", tensors=["side.w"])
    pair.commit(config, "right", tensors=["right.w"])
    assert make_plan(config)["both"].action == "blocked"
    assert "section 'left'" in make_plan(config)["both"].reasons[0]


def test_steps_jobs_pods_and_ranks_refuse_exchanged_roles_alike(pair: Lab) -> None:
    """`train` ends before it looks for the family's torch half, which this family has not."""
    from stageline.verbs.train import train_stage

    left, right = halves(pair)
    config = pair.config("stages=[both]")
    data = str(pair.prepare(config).reference)
    handed = {"left": str(right.reference), "right": str(left.reference)}
    with pytest.raises(PlanError, match="look exchanged") as caught:
        refuse_blocked(hand_on(config, "both", given=Given(data, handed)))
    words = shlex.split(caught.value.remedy.removeprefix("exchange them: "))
    assert words == [f"--parent=left={left.reference}", f"--parent=right={right.reference}"]
    with pytest.raises(PlanError, match="look exchanged"):
        train_stage(config, "both", data=data, parents=handed)
    arguments = ("train", "both", f"--data={data}", *(f"--parent={role}={ref}" for role, ref in handed.items()))
    with pytest.raises(PlanError, match="look exchanged"):
        find_finished(Pod(arguments, plain_config(config), job="j", item="both", fingerprint="f"), before=True)
    swapped = pair.config("stages=[both]", f"parents.both.left={right.uri}", f"parents.both.right={left.uri}")
    with pytest.raises(PlanError, match="look exchanged"):
        resolved_job(swapped, "both", open_store(pair.root))


PLAN = """
import json, sys
from stageline.families import FAMILIES
sys.path.insert(0, sys.argv[1])
FAMILIES["pair"] = "pair_family"
from stageline.cli import main
code = main(["plan", *json.loads(sys.argv[2])])
heavy = sorted({"torch", "safetensors", "lightning_fabric"} & set(sys.modules))
print(json.dumps({"code": code, "heavy": heavy}))
"""


def test_the_plan_says_it_on_the_command_line_without_torch(pair: Lab, tmp_path: Path) -> None:
    left, right = halves(pair)
    config = tmp_path / "config.yaml"
    config.write_text("family: pair\n")
    named = ["parents.both.left=runs/halves/right", "parents.both.right=runs/halves/left"]
    words = ["--config", str(config), f"root={pair.root}", "run=lab", "stages=[both]", *named]
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(Path(__file__).parent), json.dumps(words)],
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG_SECONDS,
    )
    text, answer = done.stdout.rsplit("\n", 2)[:2]
    assert json.loads(answer) == {"code": PlanError.exit_code, "heavy": []}
    said = " ".join(text.split())
    assert "the parents 'left' and 'right' of stage 'both' look exchanged" in said
    assert all(ref.uri.replace(" ", "") in said.replace(" ", "") for ref in (left, right))
    assert "exchange them: parents.both.left=runs/halves/left parents.both.right=runs/halves/right" in said
