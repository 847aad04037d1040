"""The loss against a loop over single objects, its branches, its guidance, and what the trainer is handed."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from stageline.errors import ConfigError
from stageline.families.sparse_structure.model.flow import PreparedCondition, SparseStructureFlowTdfyWrapper
from stageline.families.sparse_structure.shortcut import (
    ClassifierFreeGuidanceWithExternalUnconditionalProbability,
    FlowMatching,
    ShortCut,
    ShortCutDraws,
)

from ..model.networks import CHANNELS, COND, NUM_COND, SHARED, SIDE, arguments, moved
from .toy import SIZES, Network, WithProbability, condition, data

WEIGHTS = {"shape": 0.5, "translation": 2.0}


def by_hand(
    model: ShortCut, network: Any, x1: dict[str, Tensor], draws: ShortCutDraws, cond: Tensor
) -> tuple[Tensor, Tensor]:
    """The two losses, one object after the other, every step written out; of the model only its settings are read."""
    sigma, weights = model.sigma_min, dict(model.loss_weights)
    consistent = [n for n in range(len(draws.h)) if draws.h[n] > 0]
    losses: dict[str, list[Tensor]] = {"fm": [], "sc": []}
    for n in range(len(draws.h)):
        own = cond[n : n + 1]
        t = draws.t[n : n + 1]
        h = draws.h[n : n + 1] if draws.h[n] > 0 else draws.eps[n : n + 1]
        noise = {m: draws.x0[m][n : n + 1] for m in x1}
        end = {m: x1[m][n : n + 1] for m in x1}
        at = t.to(end[next(iter(x1))].dtype)
        x = {m: (1 - (1 - sigma) * at) * noise[m] + at * end[m] for m in x1}
        student = network(x, 1000 * t, own, d=2000 * h)
        if n not in consistent:
            target = {m: end[m] - (1 - sigma) * noise[m] for m in x1}
        else:
            place = consistent.index(n)
            told = h if not draws.use_fm_target else 0 * h
            if model.anchor_smallest_step and float(h) == 1 / 128:
                told = 0 * h
            strength = model.self_consistency_cfg_strength
            guided = place < draws.n_cfg and (not model.cfg_only_smallest_step or float(h) == 1 / 128)
            every = draws.n_cfg < len(consistent)

            def velocity(x: dict[str, Tensor], at: Tensor) -> dict[str, Tensor]:
                on = network(x, 1000 * at, own, d=1000 * told)  # noqa: B023
                off = network(x, 1000 * at, 0 * own, d=1000 * told)  # noqa: B023
                names = [m for m in on if guided and (every or m in model.cfg_modalities)]  # noqa: B023
                return {m: (1 + strength) * on[m] - strength * off[m] if m in names else on[m] for m in on}  # noqa: B023

            first = velocity(x, t)
            second = velocity({m: x[m] + h.to(at.dtype) * first[m] for m in x}, t + h)
            target = {m: ((first[m] + second[m]) / 2).detach() for m in x}
        each = [weights[m] * ((student[m] - target[m]) ** 2).mean() for m in sorted(x1)]
        losses["sc" if n in consistent else "fm"].append(torch.stack(each).sum())
    fm, sc = (torch.stack(values).mean() if values else torch.zeros(()) for values in losses.values())
    return fm, sc


def gradients(loss: Tensor, network: torch.nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


def build(network: torch.nn.Module | None = None, **settings: Any) -> ShortCut:
    settings = {"loss_weights": WEIGHTS, "seed_or_generator": 5, **settings}
    return ShortCut(reverse_fn=network or Network(), **settings)


@pytest.mark.parametrize("kind", [Network, WithProbability])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sigma_min": 0.1, "shortcut_loss_weight": 3.0, "fm_eps_max": 1 / 128},
        {"ratio_cfg_samples_in_self_consistency_target": 1.0, "cfg_modalities": ["translation"]},
        {"fm_in_shortcut_target_prob": 1.0},
        {"t_d_sampling": "grid", "anchor_smallest_step": True, "self_consistency_prob": 1.0},
        {"cfg_only_smallest_step": True, "self_consistency_prob": 1.0, "t_d_sampling": "grid"},
        {"batch_mode": True, "self_consistency_prob": 1.0, "ratio_cfg_samples_in_self_consistency_target": 1.0},
        {"batch_mode": True, "self_consistency_prob": 0.0, "fm_eps_max": 0.25},
    ],
)
def test_the_loss_is_that_of_a_loop_over_objects(settings: dict[str, Any], kind: type[Network]) -> None:
    """Check 6: losses and gradients by an independent reference, with the guidance's two rules."""
    network = kind()
    model = build(network, **{"self_consistency_prob": 0.5, **settings})
    x1, cond = data(12), condition(12)
    draws = model.sample_draws(x1)
    if settings.get("cfg_only_smallest_step"):
        assert (draws.h == 1 / 128).any()
    total, details = model.loss_from_draws(x1, draws, cond)
    alike = Network()
    fm, sc = by_hand(model, alike, x1, draws, cond)
    assert_close(details["flow_matching_loss"].double(), fm.double(), rtol=1e-12, atol=1e-12)
    assert_close(details["self_consistency_loss"].double(), sc.double(), rtol=1e-10, atol=1e-12)
    whole = fm + model.shortcut_loss_weight * sc
    assert_close(gradients(total, network), gradients(whole, alike), rtol=1e-9, atol=1e-11)
    assert not details["flow_matching_loss"].requires_grad


@pytest.mark.parametrize(
    ("scene", "shared", "sampling", "anchor"),
    [*itertools.product([False, True], [False, True], ["independent", "grid"], [False, True])],
)
def test_every_combination_trains(scene: bool, shared: bool, sampling: str, anchor: bool) -> None:
    model = build(
        batch_mode=scene, shared_draws=shared, t_d_sampling=sampling, anchor_smallest_step=anchor, fm_eps_max=1 / 128
    )
    x1, cond, seen = data(8), condition(8), set()
    for _ in range(12):
        draws = model.sample_draws(x1)
        consistent = draws.h > 0
        seen.add(int(consistent.sum()))
        for values in (draws.t, draws.h[consistent], draws.eps[~consistent]):
            assert not shared or sampling == "grid" or len(values.unique()) <= 1
        if scene and shared:
            assert len(draws.t.unique()) == len(draws.h.unique()) == 1
        if sampling == "grid":
            assert (draws.t + 2 * draws.h)[consistent].le(1).all()
            steps = draws.t[consistent] / (2 * draws.h[consistent])
            assert_close(steps, steps.round(), rtol=0, atol=0)
        total, _ = model.loss_from_draws(x1, draws, cond)
        total.backward()
        assert torch.isfinite(total)
    assert seen == ({0, 8} if scene else {2})


def test_all_faults_are_told_by_name() -> None:
    with pytest.raises(ConfigError) as fault:
        ShortCut(
            Network(),
            self_consistency_prob=1.5,
            fm_eps_max=0.7,
            t_d_sampling="paper",  # type: ignore[arg-type]
            cfg_modalities="shape",
            inference_steps=0,
            sigma_min=1.0,
        )
    for word in ("self_consistency_prob", "fm_eps_max", "'paper'", "cfg_modalities", "inference_steps", "sigma_min"):
        assert word in str(fault.value)
    with pytest.raises(ConfigError, match=r"shared_draws_from 0.6.*shared_draws is off"):
        ShortCut(Network(), batch_mode=False, shared_draws_from=0.6)
    with pytest.raises(ConfigError, match="solver_method 'sde'"):
        ShortCut(Network(), solver_method="sde")
    with pytest.raises(TypeError, match="no_shortcuts"):
        ShortCut(Network(), no_shortcuts=True)


def test_losses_and_weights_name_exactly_the_modalities() -> None:
    for settings in ({"loss_weights": {"shape": 1.0}}, {"loss_fn": dict.fromkeys([*SIZES, "scale"], torch.dist)}):
        with pytest.raises(KeyError, match=r"'shape'.*'translation'"):
            build(**settings).loss(data(4), condition(4))
    with pytest.raises(KeyError, match="cfg_modalities names \\['scale'\\]"):
        build(cfg_modalities=["scale"], batch_mode=True, self_consistency_prob=1.0).loss_from_draws(
            data(4), build(batch_mode=True).sample_draws(data(4), self_consistent=True, guided=True), condition(4)
        )


def test_conditions_follow_their_objects_or_are_shared() -> None:
    network = Network()
    model = build(network, self_consistency_prob=0.5)
    x1, cond = data(8), condition(8)
    draws = model.sample_draws(x1)
    alike = condition(1).expand(8, -1)
    one, _ = model.loss_from_draws(x1, draws, condition(1))
    each, _ = model.loss_from_draws(x1, draws, cond=alike)
    assert_close(one, each, rtol=1e-12, atol=1e-12)
    with pytest.raises(ConfigError, match="condition 0 has 3 rows for 8 objects"):
        model.loss_from_draws(x1, replace(draws, n_cfg=0), cond[:3], reverse_fn=Network())


@pytest.mark.parametrize("sampling", ["independent", "grid"])
def test_the_networks_of_the_room_are_asked_as_by_hand(sampling: str) -> None:
    """Check 6: with the published loss weights, guidance by `cfg=True`, which zeroes the condition after embedding."""
    network = moved(SparseStructureFlowTdfyWrapper(**arguments(**SHARED)))
    rng = torch.Generator().manual_seed(3)
    x1 = {m: torch.randn(8, SIDE**3 if m == "shape" else 1, CHANNELS[m], generator=rng) for m in CHANNELS}
    cond = torch.randn(8, NUM_COND, COND, generator=rng)
    weights = {"6drotation_normalized": 0.1, "scale": 0.1, "shape": 0.0, "translation": 1.0, "translation_scale": 0.0}
    guidance = ClassifierFreeGuidanceWithExternalUnconditionalProbability(
        network, p_unconditional=0.0, unconditional_handling="add_flag", interval=(0, 500)
    )
    model = build(guidance, loss_weights=weights, self_consistency_prob=0.5, t_d_sampling=sampling)
    draws = model.sample_draws(x1)
    assert 0 < draws.n_cfg < 4
    total, _ = model.loss_from_draws(x1, draws, cond)
    own = gradient_norms(total, network)
    fm, sc = by_hand(model, network, x1, draws, cond)
    assert_close(total, fm + sc, rtol=1e-5, atol=1e-6)
    assert_close(own, gradient_norms(fm + sc, network), rtol=1e-4, atol=1e-5)


def gradient_norms(loss: Tensor, network: torch.nn.Module) -> dict[str, float]:
    network.zero_grad()
    loss.backward()
    return {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in network.named_parameters()}


def test_a_prepared_condition_follows_its_objects_too() -> None:
    network = Network()

    def asked(x: dict[str, Tensor], t: Tensor, cond: PreparedCondition, d: Tensor) -> dict[str, Tensor]:
        return network(x, t, cond.tokens, d)

    model = build(network, self_consistency_prob=0.5)
    x1, cond = data(8), condition(8)
    draws = model.sample_draws(x1)
    plain, _ = model.loss_from_draws(x1, draws, cond)
    prepared, _ = model.loss_from_draws(x1, draws, PreparedCondition(cond), reverse_fn=asked)
    assert torch.equal(plain, prepared)
    with pytest.raises(ConfigError, match="condition 0 has 3 rows"):
        model.loss_from_draws(x1, draws, PreparedCondition(cond[:3]), reverse_fn=asked)


def test_scene_mode_hands_every_condition_through_untouched() -> None:
    """Check 9: all times equal, all steps equal, a quarter of the scenes self-consistent, conditions by identity."""
    network = Network()
    model = build(network, batch_mode=True)
    x1, cond = data(3), condition(3)
    consistent = 0
    for _ in range(1000):
        draws = model.sample_draws(x1)
        assert len(draws.t.unique()) == len(draws.h.unique()) == 1
        consistent += bool(draws.h[0] > 0)
    assert abs(consistent / 1000 - 0.25) < 0.04
    mask = torch.ones(3, dtype=torch.bool)

    def asked(x: Any, t: Tensor, *given: Any, d: Tensor, p_unconditional: float | None = None, **more: Any) -> Any:
        assert given[0] is cond
        assert more["mask"] is mask
        assert t.shape == d.shape == (3,)
        network.calls.append({"p": p_unconditional, "d": d})
        return {m: x[m] * (1 + d.reshape(-1, 1, 1)) for m in x}

    model.loss_from_draws(
        x1, model.sample_draws(x1, self_consistent=True, guided=True), cond, reverse_fn=asked, mask=mask
    )
    assert [call["p"] for call in network.calls] == [None, 0.0, 1.0, 0.0, 1.0]


def test_a_network_without_condition_is_not_guided_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    def plain(x: dict[str, Tensor], t: Tensor, d: Tensor) -> dict[str, Tensor]:
        calls.append(t)
        return x

    calls: list[Tensor] = []
    model = build(batch_mode=True)
    draws = model.sample_draws(data(2), self_consistent=True, guided=True)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            model.loss_from_draws(data(2), draws, reverse_fn=plain)
    assert len(calls) == 6
    assert caplog.text.count("no condition to drop") == 1


def test_the_step_size_never_becomes_zero_with_the_condition() -> None:
    network = Network()
    model = build(network, batch_mode=True, seed_or_generator=1)
    draws = model.sample_draws(data(2), self_consistent=True, guided=True)
    model.loss_from_draws(data(2), draws, cond=condition(2))
    student, *target = network.calls
    assert_close(student["d"], 2000 * draws.h)
    assert [bool((call["cond"] == 0).all()) for call in target] == [False, True, False, True]  # type: ignore[union-attr]
    for call in target:
        assert_close(call["d"], 1000 * draws.h)


@pytest.mark.parametrize("scene", [False, True])
def test_sums_and_counts_make_means_that_hold_absent_parts_apart(scene: bool) -> None:
    """A mean over micro-batches of a part divides by the batches (scenes) or objects that have it."""
    model = build(batch_mode=scene, self_consistency_prob=0.5)
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    seen: dict[str, list[Tensor]] = {"flow_matching_loss": [], "self_consistency_loss": []}
    for step in range(8):
        x1 = data(4, seed=step)
        draws = model.sample_draws(x1)
        terms = model.loss_terms(x1, draws, condition(4))
        assert terms.weight == (1 if scene else 4)
        for part in seen:
            sums[part] = sums.get(part, 0) + float(terms.parts[part][0])
            counts[part] = counts.get(part, 0) + terms.parts[part][1]
        for part, number in (("flow_matching_loss", "num_fm"), ("self_consistency_loss", "num_sc")):
            if terms.details[number]:
                seen[part].append(terms.details[part])
            else:
                assert terms.details[part] == 0
    for part, values in seen.items():
        assert 0 < len(values) <= 8
        assert_close(torch.tensor(sums[part] / counts[part]), torch.stack(values).mean().float())
    assert {"flow_matching/shape", "self_consistency/translation"} <= set(terms.parts)


def test_flow_matching_is_the_loss_of_objects_at_their_own_times() -> None:
    network = Network()
    plain = FlowMatching(network, loss_weights=WEIGHTS, sigma_min=0.2, seed_or_generator=7)
    x1, cond = data(6), condition(6)
    total, details = plain.loss(x1, cond)
    rng = torch.Generator().manual_seed(7)
    t = torch.sigmoid(torch.randn(6, generator=rng))
    x0 = {m: torch.randn(6, *SIZES[m], generator=rng).double() for m in sorted(SIZES)}
    draws = ShortCutDraws(t=t, h=torch.zeros(6), x0=x0, eps=torch.zeros(6))
    shortcut = build(network, sigma_min=0.2)
    fm, _ = by_hand(shortcut, network, x1, draws, cond)
    assert_close(total, fm, rtol=1e-12, atol=1e-12)
    assert details["flow_matching_loss"] == total


def test_recorded_eps_may_be_steps_or_uniform_numbers_of_all_or_of_some() -> None:
    h = torch.tensor([0.0, 0.5, 0.0])
    made = ShortCutDraws(h, h, h, torch.tensor([0.001, 0.0, 0.002]), 0, False)  # the guide's order
    told = torch.tensor([0.001, 0.5, 0.002])
    assert_close(made.half_steps(0.01), told)
    assert_close(replace(made, eps=torch.tensor([0.001, 0.002])).half_steps(0.01), told)
    assert_close(replace(made, eps=torch.tensor([0.1, 0.2])).half_steps(0.01), told)
    assert_close(replace(made, eps=torch.tensor(0.001)).half_steps(0.01)[::2], torch.full((2,), 0.001))
    with pytest.raises(ConfigError, match="eps of the draws has the shape"):
        replace(made, eps=torch.zeros(4)).half_steps(0.01)
