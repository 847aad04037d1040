"""Where random numbers come from: upstream's order, the step's generators, ranks that decide alike."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from stageline.families.sparse_structure.shortcut import (
    ClassifierFreeGuidanceWithExternalUnconditionalProbability,
    ShortCut,
    ShortCutDraws,
    lognorm_sampler,
    window_sampler,
)
from stageline.objectives.step import StepContext, seeded

from .toy import SIZES, Network, condition, data

BASE = [1 / 2**i for i in range(8)]


def upstream(num: int, *, scene: bool, coin: float = 0.25, student: float | None = None) -> dict[str, Any]:
    """The draws in upstream's order, as the guide lists them, from torch's and Python's global generators."""
    t = torch.sigmoid(torch.randn(num))
    count = int(random.random() < coin) * num if scene else int(num * coin)  # noqa: S311
    h = torch.zeros(num)
    h[:count] = torch.tensor([random.choices(BASE)[0] for _ in range(count)])  # noqa: S311
    h = h[torch.randperm(num)]
    x0 = {name: torch.randn(num, *SIZES[name]) for name in sorted(SIZES)}
    found = {"t": t, "h": h, "x0": x0, "eps": torch.rand(int((h == 0).sum()))}
    if student is not None:
        found["unconditional"] = random.random() < student  # noqa: S311
    guided = (random.random() < 0.5) * count if scene and count else int(count * 0.5)  # noqa: S311
    return {**found, "n_cfg": guided}


@pytest.mark.parametrize(("scene", "student"), [(False, None), (False, 0.4), (True, 0.4)])
@pytest.mark.parametrize("own", [False, True])
def test_draws_come_in_upstreams_order(scene: bool, student: float | None, own: bool) -> None:
    """Check 7: seeds give upstream's t, h, noise and coins, from the global generators or from the model's own."""
    network: Any = Network()
    if student is not None:
        network = ClassifierFreeGuidanceWithExternalUnconditionalProbability(network, student)
    consistent = set()
    for seed in range(12):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            expected = upstream(9, scene=scene, student=student)
            model = ShortCut(
                network,
                batch_mode=scene,
                shared_draws=False,
                fm_eps_max=0.01,
                seed_or_generator=seed if own else None,
            )
            torch.manual_seed(0 if own else seed)
            random.seed(0 if own else seed)
            draws = model.sample_draws({name: torch.zeros(9, *size) for name, size in SIZES.items()})
        for name in ("t", "h", "x0"):
            assert_close(getattr(draws, name), expected[name], rtol=0, atol=0)
        assert_close(draws.eps[draws.h == 0], 0.01 * expected["eps"])
        assert draws.n_cfg == expected["n_cfg"]
        assert draws.unconditional == expected.get("unconditional")
        consistent.add(int((draws.h > 0).sum()))
    assert consistent == ({0, 9} if scene else {2})


def test_few_objects_have_no_share_of_self_consistency() -> None:
    model = ShortCut(Network(), seed_or_generator=1)
    assert [int((model.sample_draws(data(num)).h > 0).sum()) for num in (1, 3, 4, 8)] == [0, 0, 1, 2]


def context(step: int, micro: int, rank: int, progress: float = 0.0) -> StepContext:
    return StepContext(
        step=step,
        progress=progress,
        rng=seeded("step", 3, step, rank, micro),
        shared=seeded("shared", 3, step, micro),
        micro=micro,
    )


def drawn(model: ShortCut, where: StepContext, num: int) -> ShortCutDraws:
    return model.sample_draws(data(num), rng=where.rng, shared=where.shared, progress=where.progress)


@pytest.mark.parametrize("scene", [False, True])
def test_ranks_decide_alike_and_draw_numbers_of_their_own(scene: bool) -> None:
    """Check 16: branch, guidance and what targets are told are equal on all ranks, times and noise are not."""
    model = ShortCut(Network(), batch_mode=scene, self_consistency_prob=0.5, fm_in_shortcut_target_prob=0.5)
    other, seen = ShortCut(Network(), batch_mode=scene, sync_decisions=False, self_consistency_prob=0.5), set()
    apart = 0
    for step in range(20):
        draws = [drawn(model, context(step, 0, rank), num) for rank, num in enumerate((4, 6))]
        decided = [(bool((d.h > 0).any()), d.n_cfg > 0, d.use_fm_target) for d in draws]
        assert decided[0] == decided[1]
        seen.add(decided[0])
        assert draws[0].t[0] != draws[1].t[0]
        assert draws[0].x0["shape"][0, 0, 0] != draws[1].x0["shape"][0, 0, 0]
        own = [drawn(other, context(step, 0, rank), 4) for rank in range(2)]
        apart += bool((own[0].h > 0).any()) != bool((own[1].h > 0).any())
    assert len(seen) == (5 if scene else 2)
    assert bool(apart) == scene


def test_accumulated_scenes_of_one_step_mix_the_branches() -> None:
    model = ShortCut(Network(), batch_mode=True)
    counts = [sum(bool(drawn(model, context(step, micro, 0), 3).h[0] > 0) for micro in range(4)) for step in range(60)]
    assert {1, 2} <= set(counts)
    assert 0.17 < sum(counts) / 240 < 0.33


def test_the_loss_of_a_step_is_a_function_of_where_the_loop_stands() -> None:
    """A resume inside a step of self-consistency meets the same numbers; the model's own source is not touched."""
    guidance = ClassifierFreeGuidanceWithExternalUnconditionalProbability(Network(), 0.5)
    x1, cond = data(3), condition(3)
    values = []
    for seed in (1, 2):
        model = ShortCut(guidance, batch_mode=True, self_consistency_prob=0.5, seed_or_generator=seed)
        random.seed(seed)
        steps = range(6) if seed == 1 else reversed(range(6))
        found = {step: model.loss_terms(x1, drawn(model, context(step, 1, 0), 3), cond) for step in steps}
        values.append([found[step].total.item() for step in range(6)])
        assert {bool(terms.details["num_sc"]) for terms in found.values()} == {False, True}
    assert values[0] == values[1]


def test_draws_are_shared_from_a_share_of_the_training_on() -> None:
    model = ShortCut(Network(), batch_mode=True, shared_draws_from=0.6)
    for progress in (0.0, 0.59):
        assert len(drawn(model, context(1, 0, 0, progress), 4).t.unique()) == 4
    assert len(drawn(model, context(1, 0, 0, 0.6), 4).t.unique()) == 1
    assert len(model.sample_draws(data(4)).t.unique()) == 1, "without a trainer the training is over"
    half = ShortCut(Network(), batch_mode=True, shared_draws_from=0.5, shared_draws_prob=0.5)
    shared = [len(drawn(half, context(step, 0, 0, 0.7), 4).t.unique()) == 1 for step in range(40)]
    assert 10 < sum(shared) < 30
    for rank in (0, 1):
        draws = drawn(half, context(7, 0, rank, 0.7), 4)
        assert (len(draws.t.unique()) == 1) == shared[7]


def test_the_grid_holds_every_step_and_start_equally_often() -> None:
    model = ShortCut(Network(), t_d_sampling="grid", self_consistency_prob=1.0, seed_or_generator=4)
    draws = model.sample_draws(torch.zeros(7000, 1, 1))
    assert torch.unique(draws.h).tolist() == sorted(2.0**-i for i in range(1, 8))
    for h in draws.h.unique():
        starts = draws.t[draws.h == h]
        assert 850 < len(starts) < 1150
        assert len(starts.unique()) == min(int(1 / (2 * h)), len(starts))


def test_independent_times_leave_the_path_as_often_as_upstreams() -> None:
    """The share of objects asked beyond the end, 0.27 with the published time sampler: why the grid is there."""
    model = ShortCut(
        Network(),
        self_consistency_prob=1.0,
        training_time_sampler_fn=lambda **kwargs: lognorm_sampler(-1.0, 1.0, **kwargs),
        seed_or_generator=4,
    )
    draws = model.sample_draws(torch.zeros(20_000, 1, 1))
    assert abs(float((draws.t + 2 * draws.h > 1).float().mean()) - 0.27) < 0.02


def test_times_are_concentrated_on_a_window() -> None:
    rng = torch.Generator().manual_seed(1)
    t = window_sampler(0.05, 0.4, share=0.75, size=(20_000,), generator=rng)
    inside = ((t >= 0.05) & (t <= 0.4)).float().mean()
    plain = lognorm_sampler(size=(20_000,), generator=rng)
    expected = 0.75 + 0.25 * ((plain >= 0.05) & (plain <= 0.4)).float().mean()
    assert abs(float(inside - expected)) < 0.02


def test_only_targets_of_the_smallest_step_are_guided_and_others_cost_nothing() -> None:
    network = Network()
    model = ShortCut(
        network,
        batch_mode=True,
        t_d_sampling="grid",
        cfg_only_smallest_step=True,
        ratio_cfg_samples_in_self_consistency_target=1.0,
        self_consistency_prob=1.0,
        seed_or_generator=3,
    )
    x1, cond, seen = data(2), condition(2), set()
    for _ in range(40):
        network.calls.clear()
        draws = model.sample_draws(x1)
        model.loss_from_draws(x1, draws, cond)
        seen.add((float(draws.h[0]) == 1 / 128, len(network.calls)))
        where = context(1, 0, 0)
        assert drawn(model, where, 2).n_cfg == 2, "ranks that decide alike ask equally often"
    assert seen == {(True, 5), (False, 3)}


def test_half_precision_copies_made_without_gradient_do_not_reach_the_student() -> None:
    """The student is asked first, and nothing cached before it is used: every weight has a gradient under autocast."""
    network = Network().float()
    model = ShortCut(network, batch_mode=True, seed_or_generator=1)
    x1, cond = {m: x.float() for m, x in data(3).items()}, condition(3).float()
    draws = model.sample_draws(x1, self_consistent=True, guided=True)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            network(x1, torch.zeros(3), cond)
        total, _ = model.loss_from_draws(x1, draws, cond)
    total.backward()
    unweighted = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert unweighted == set()


def test_where_the_data_lie_the_noise_is_drawn_in_their_kind() -> None:
    draws = ShortCut(Network(), seed_or_generator=1).sample_draws(data(2))
    x0: Any = draws.x0
    assert {name: (x.dtype, tuple(x.shape)) for name, x in x0.items()} == {
        name: (torch.float64, (2, *size)) for name, size in SIZES.items()
    }


def test_a_copy_draws_like_the_model_and_not_from_it() -> None:
    """As an average of weights beside the model: one seed is one sample, and what one draws the other still has."""
    model = ShortCut(Network())
    found = []
    with torch.random.fork_rng():
        for one in (model, copy.deepcopy(model)):
            torch.manual_seed(3)
            random.seed(3)
            found.append(one.sample_draws(data(8)))
    assert_close(found[0].t, found[1].t, rtol=0, atol=0)
    own, alone = (ShortCut(Network(), self_consistency_prob=1.0, seed_or_generator=3) for _ in range(2))
    copy.deepcopy(own).sample_draws(data(8))
    assert_close(own.sample_draws(data(8)).h, alone.sample_draws(data(8)).h, rtol=0, atol=0)


def test_a_generator_that_is_set_later_draws_as_one_that_was_given() -> None:
    given, later = ShortCut(Network(), seed_or_generator=3), ShortCut(Network())
    later.random_generator = torch.Generator().manual_seed(3)
    found, expected = (model.sample_draws(data(8)) for model in (later, given))
    assert_close((found.t, found.h), (expected.t, expected.h), rtol=0, atol=0)
