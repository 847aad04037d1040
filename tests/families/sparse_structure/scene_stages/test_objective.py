"""The objective as the stages use it: several scenes in a batch, decisions of all ranks, combinations of settings."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stageline.data.prepared import PreparedData
from stageline.families.sparse_structure.config import STAGES
from stageline.families.sparse_structure.objective import make_guidance, make_shortcut, scene_draws
from stageline.families.sparse_structure.task import FlowTask, build_task
from stageline.objectives.step import StepContext, ValidationContext, seeded

from .runs import at_stage, small

SIZES = (2, 3, 4)
DRAWS = Path(__file__).with_name("draws.json")
"""What two ranks of four micro-batches each drew in one step, a scene a micro-batch."""


def task_of(root: Path, prepared: PreparedData, stage: str, *overrides: str) -> FlowTask:
    task = build_task(at_stage(small(root, *overrides), stage), STAGES[stage], prepared)
    assert isinstance(task, FlowTask)
    with torch.no_grad():  # a branch that gives zeros would hide what scenes do to each other
        for parameter in task.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded("awake", parameter.numel())))
    return task


def context(micro: int, rank: int = 0, progress: float = 0.9) -> StepContext:
    """As the loop makes it."""
    return StepContext(3, progress, seeded("step", 0, 3, rank, micro), seeded("shared", 0, 3, micro), micro)


def data(sizes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    rng = seeded("data", *sizes)
    return {name: torch.randn(sum(sizes), 1, 3, generator=rng) for name in ("shape", "translation")}


def network(*_args: Any, **_keywords: Any) -> Any:
    raise AssertionError("draws ask no network")


def test_scenes_of_a_batch_take_one_branch_with_draws_of_their_own(tmp_path: Path) -> None:
    """Check 9: in a scene all times and steps are equal; another scene has others."""
    shortcut = make_shortcut(at_stage(small(tmp_path, "objective.self_consistency_prob=0.5"), "global_flow"))
    both = set()
    for micro in range(16):
        draws = scene_draws(shortcut, data(SIZES), SIZES, context(micro), network)
        scenes = list(zip(draws.t.split(SIZES), draws.h.split(SIZES), strict=True))
        assert all(len(set(t.tolist())) == len(set(h.tolist())) == 1 for t, h in scenes)
        consistent = {bool((h > 0).all()) for _, h in scenes}
        assert len(consistent) == 1
        both |= consistent
        assert draws.n_cfg in (0, sum(SIZES))
        if not consistent.pop():
            assert len({float(t[0]) for t, _ in scenes}) == len(SIZES)
        noise = draws.x0["shape"].split(SIZES)
        assert not torch.equal(noise[0][0], noise[1][0])
    assert both == {False, True}, "a step of some accumulated scenes draws both branches"


def test_ranks_decide_alike_and_draw_noise_of_their_own(tmp_path: Path) -> None:
    """Check 16: coins per micro-batch are equal on all ranks, and those of one scene are those of several."""
    config = at_stage(small(tmp_path, "objective.ratio_cfg_samples_in_self_consistency_target=0.5"), "global_flow")
    shortcut = make_shortcut(config)
    for micro in range(12):
        draws = [scene_draws(shortcut, data((s,)), (s,), context(micro, r), network) for r, s in ((0, 3), (1, 4))]
        assert len({bool((one.h > 0).any()) for one in draws}) == 1
        assert len({(one.n_cfg > 0, one.use_fm_target, one.unconditional) for one in draws}) == 1
        assert not torch.equal(draws[0].x0["shape"][:3], draws[1].x0["shape"][:3])
        several = scene_draws(shortcut, data((3, 4)), (3, 4), context(micro, 0), network)
        assert torch.equal(several.t[:3], draws[0].t)
        assert torch.equal(several.x0["shape"][:3], draws[0].x0["shape"])


OF_RECORDED = (
    *("self_consistency_prob=0.25", "ratio_cfg_samples_in_self_consistency_target=0.5", "fm_eps_max=0.0078125"),
    *("fm_in_shortcut_target_prob=0.5", "t_d_sampling=grid", "time_mean=-1.0", "time_std=1.0", "time_window=null"),
    *("shared_draws_from=0.0", "shared_draws_prob=1.0", "guidance.p_unconditional=0.5"),
)
"""Settings of the objective under which `draws.json` was recorded."""


def recorded_draws(tmp_path: Path, step: int, sizes: list[list[int]]) -> list[list[dict[str, Any]]]:
    """What the stage draws in a step: rank -> micro-batch -> draws, as in the file. sizes: objects of its scenes."""
    config = at_stage(small(tmp_path, *(f"objective.{key}" for key in OF_RECORDED)), "global_flow")
    shortcut, asked = make_shortcut(config), make_guidance(config).train().around(network)
    found = []
    for rank, scenes in enumerate(sizes):
        found.append([])
        for micro, num in enumerate(scenes):
            where = StepContext(
                step, 0.9, seeded("step", 0, step, rank, micro), seeded("shared", 0, step, micro), micro
            )
            x1 = {"shape": torch.zeros(num, 2, 2), "translation": torch.zeros(num, 1, 3)}
            draws = vars(scene_draws(shortcut, x1, (num,), where, asked))
            noise = {name: x.tolist() for name, x in draws["x0"].items()}
            plain = {name: x.tolist() for name, x in draws.items() if isinstance(x, torch.Tensor)}
            found[-1].append({**draws, **plain, "x0": noise})
    return found


def test_a_step_of_two_ranks_draws_what_was_recorded(tmp_path: Path) -> None:
    """Bit for bit, four scenes a rank: both branches in one step, coins equal per micro-batch, noise is not."""
    recorded = json.loads(DRAWS.read_text())
    ranks = recorded["ranks"]
    sizes = [[len(draws["t"]) for draws in rank] for rank in ranks]
    assert recorded_draws(tmp_path, recorded["step"], sizes) == ranks
    coins = [
        [(draws["h"][0] > 0, draws["n_cfg"] > 0, draws["use_fm_target"], draws["unconditional"]) for draws in rank]
        for rank in ranks
    ]
    assert coins[0] == coins[1]
    assert {consistent for consistent, *_ in coins[0]} == {False, True}
    assert len(set(coins[0])) >= 3
    for one, other in zip(*ranks, strict=True):
        assert one["x0"]["translation"][0] != other["x0"]["translation"][0]
    times = [draws["t"][0] for rank in ranks for draws in rank if draws["h"][0] == 0]
    assert len(set(times)) == len(times)


def test_warm_up_has_a_time_for_each_object(tmp_path: Path) -> None:
    keys = ("objective.shared_draws_from=0.5", "objective.self_consistency_prob=0")
    shortcut = make_shortcut(at_stage(small(tmp_path, *keys), "global_flow"))
    before, after = (
        scene_draws(shortcut, data(SIZES), SIZES, context(0, progress=progress), network) for progress in (0.4, 0.5)
    )
    assert len(set(before.t.tolist())) == sum(SIZES)
    assert len(set(after.t.tolist())) == len(SIZES)


@pytest.mark.parametrize("consistent", [False, True])
def test_a_batch_of_scenes_is_the_mean_of_its_scenes(root: Path, prepared: PreparedData, consistent: bool) -> None:
    """Scenes of different size weigh the same, and do not see each other."""
    task = task_of(root, prepared, "global_flow", "objective.self_consistency_prob=" + ("1.0" if consistent else "0.0"))
    scenes = sorted((task.train_set[number] for number in range(4)), key=lambda scene: scene["num_objects"])
    pair = [scenes[0], scenes[-1]]
    assert pair[0]["num_objects"] != pair[1]["num_objects"]
    singles = [task.collate([scene]) for scene in pair]
    whole, rngs = task.collate(pair), [seeded("scene", number) for number in range(2)]
    asked = task.guidance.eval().around(task.flow.velocity)
    x = [task._data(task.flow, batch) for batch in singles]
    parts = [
        scene_draws(task.shortcut, one, batch["scene_sizes"], [seeded("scene", n)], asked, self_consistent=consistent)
        for n, (one, batch) in enumerate(zip(x, singles, strict=True))
    ]
    joined = task._data(task.flow, whole)
    draws = scene_draws(task.shortcut, joined, whole["scene_sizes"], rngs, asked, self_consistent=consistent)
    with torch.no_grad():
        alone = [
            task._terms(one, drawn, batch, asked).total for one, drawn, batch in zip(x, parts, singles, strict=True)
        ]
        together = task._terms(joined, draws, whole, asked).total
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-5, atol=1e-6)


def test_a_micro_batch_counts_its_scenes(root: Path, prepared: PreparedData) -> None:
    task = task_of(root, prepared, "global_flow")
    total = task.loss(task.model, task.collate([task.train_set[0], task.train_set[1]]), context(0))
    assert total.weight == 2.0
    counts = {name: count for name, (_, count) in total.parts.items() if name.endswith("_loss")}
    assert sorted(counts.values()) == [0.0, 2.0], "the branch that the batch lacks counts nothing"
    objects = task_of(root, prepared, "sparse_flow")
    batch = objects.collate([objects.train_set[0], objects.train_set[1]])
    assert objects.loss(objects.model, batch, context(0)).weight == batch["num_objects"]


def test_validation_of_a_scene_does_not_depend_on_its_neighbours(root: Path, prepared: PreparedData) -> None:
    task = task_of(root, prepared, "global_flow")
    task.model.eval()
    both = [task.val_set[0], task.val_set[1]]
    with torch.no_grad():
        together = task.validate(task.model, task.collate(both), ValidationContext(0, (0, 1)))
        alone = [
            task.validate(task.model, task.collate([scene]), ValidationContext(0, (number,)))
            for number, scene in enumerate(both)
        ]
    for name, (value, count) in together.items():
        assert count == 2.0
        assert value == pytest.approx(sum(one[name][0] for one in alone), rel=1e-5)


def test_every_combination_of_the_settings_trains(root: Path, prepared: PreparedData) -> None:
    """batch_mode x shared_draws x t_d_sampling x anchor_smallest_step, of self-consistency with guidance."""
    task = task_of(root, prepared, "global_flow", "trainer.batch_size=1")
    batch = task.collate([task.train_set[0]])
    always = ("self_consistency_prob=1.0", "ratio_cfg_samples_in_self_consistency_target=1.0")
    for batch_mode, shared, sampling, anchor in itertools.product(
        ("true", "false"), ("null", "true", "false"), ("grid", "independent"), ("true", "false")
    ):
        own = (f"batch_mode={batch_mode}", f"shared_draws={shared}", f"t_d_sampling={sampling}")
        keys = [f"objective.{key}" for key in (*always, *own, f"anchor_smallest_step={anchor}")]
        task.config = at_stage(small(root, *keys, "trainer.batch_size=1"), "global_flow")
        task.shortcut = make_shortcut(task.config)
        task.model.zero_grad()
        task.loss(task.model, batch, context(0)).sum.backward()
        gradients = [p.grad for p in task.flow.global_sparse_flow.parameters()]  # type: ignore[union-attr]
        assert all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients)
