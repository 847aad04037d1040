"""The one sampling path: batch independence, noise, windows, ensembles, FiLM modes, guidance, counted evaluations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.data.windows import Window
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.families.film_flow.sampling import (
    Probability,
    Sampling,
    evaluation_sampling,
    predict_probability,
    switch_off,
    take,
    training_sampling,
)

from .small import at_stage, kicked_model, make_config

CONFIG = make_config()
IDS = ("a.png", "b:1", "", "ü/4")


def inputs(count: int = 4, height: int = 32, width: int = 32, features: int = 64) -> tuple[Tensor, ConditionBundle]:
    rng = torch.Generator().manual_seed(7)
    image = torch.rand(count, 1, height, width, generator=rng) * 2 - 1
    vec = torch.randn(count, features, generator=rng)
    return image, ConditionBundle(vec, torch.ones(count, dtype=torch.bool), source="text")


@pytest.fixture(scope="module")
def model() -> FilmFlowModel:
    """Kicked heads, and a network that is not the same everywhere."""
    return kicked_model(CONFIG)


def plain(**keys: Any) -> Sampling:
    return replace(training_sampling(at_stage(CONFIG, "film")), steps=2, **keys)


def run(model: FilmFlowModel, sampling: Sampling, rows: list[int] | None = None, **size: int) -> Probability:
    image, condition = inputs(**size)
    rows = list(range(len(image))) if rows is None else rows
    return predict_probability(model, image[rows], take(condition, rows), [IDS[r] for r in rows], sampling)


@pytest.mark.parametrize("keys", [{}, {"mode": "dfm_binary"}, {"solver": "heun"}, {"ensemble": 2}])
def test_an_image_alone_in_a_batch_or_in_another_order_is_the_same(model: FilmFlowModel, keys: dict[str, Any]) -> None:
    """Acceptance check 16."""
    sampling = plain(**keys)
    together = run(model, sampling).mean
    for order in ([0], [2], [3, 1], [3, 2, 1, 0]):
        found = run(model, sampling, order).mean
        assert_close(found, together[order], atol=2e-6, rtol=0)


def test_noise_depends_on_seed_image_and_member_alone(model: FilmFlowModel) -> None:
    sampling = plain()
    one = run(model, sampling).mean
    assert torch.equal(run(model, sampling).mean, one)
    assert not torch.equal(run(model, replace(sampling, seed=1)).mean, one)
    image, condition = inputs()
    renamed = predict_probability(model, image, condition, ["x", *IDS[1:]], sampling).mean
    assert not torch.equal(renamed[0], one[0])
    assert_close(renamed[1:], one[1:], atol=2e-6, rtol=0)


def test_an_ensemble_is_the_mean_of_its_members(model: FilmFlowModel) -> None:
    both = run(model, plain(ensemble=2))
    first = run(model, plain()).mean
    assert run(model, plain()).std is None
    assert both.std is not None
    second = 2 * both.mean - first
    assert_close(both.std, (first - second).abs() / 2, atol=1e-5, rtol=0)
    assert both.nfe == 4


def test_one_euler_step_is_the_networks_own_endpoint(model: FilmFlowModel) -> None:
    """Acceptance check 17."""
    image, condition = inputs()
    asked: list[Tensor] = []

    def forward(x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = model(x, t, *args, **kwargs)
        assert torch.equal(t, torch.zeros(4))
        asked.append(out)
        return out

    found = predict_probability(model, image, condition, IDS, replace(plain(), steps=1), forward=forward)
    assert len(asked) == found.nfe == 1
    assert_close(found.mean, torch.sigmoid(asked[0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("keys", "calls"),
    [
        ({"solver": "euler", "steps": 3}, 3),
        ({"solver": "heun", "steps": 3}, 5),
        ({"solver": "midpoint", "steps": 3}, 5),
        ({"mode": "dfm_binary", "steps": 3}, 3),
        ({"steps": 3, "ensemble": 2}, 6),
        ({"steps": 3, "guidance": 2.0}, 6),
        ({"steps": 3, "guidance": 0.0}, 3),
        ({"steps": 3, "junction": "pred"}, 6),
        ({"steps": 3, "window": 16, "overlap": 0.0}, 12),
    ],
)
def test_reported_evaluations_are_the_calls(model: FilmFlowModel, keys: dict[str, Any], calls: int) -> None:
    """Acceptance check 17."""
    image, condition = inputs()
    count = 0

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal count
        count += 1
        return model(*args, **kwargs)

    sampling = replace(plain(), **keys)
    found = predict_probability(model, image, condition, IDS, sampling, forward=forward)
    assert found.nfe == count == calls


def test_dopri5_treats_every_image_alone(model: FilmFlowModel) -> None:
    """Its step sizes follow the error of all it is given: an image is harder to follow the brighter it is here.

    Acceptance check 17: the reported evaluations are the calls that one image cost.
    """
    calls: list[int] = []

    def forward(x: Tensor, t: Tensor, image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(len(x))
        return 2 * torch.sin(4 * image.mean() * x) + image

    image = torch.linspace(-1, 1, 3)[:, None, None, None] * torch.ones(3, 1, 8, 8)

    def solve(rows: list[int]) -> Probability:
        sampling = plain(solver="dopri5", junction=None)
        return predict_probability(model, image[rows], None, [IDS[r] for r in rows], sampling, forward=forward)

    alone = [solve([row]) for row in range(3)]
    assert sum(calls) == sum(found.nfe for found in alone)
    together = solve([2, 0, 1])
    assert torch.equal(together.mean, torch.cat([alone[row].mean for row in (2, 0, 1)]))
    assert together.nfe == max(found.nfe for found in alone) > min(found.nfe for found in alone) > 6


def test_guidance_of_one_is_the_condition_and_of_nought_is_film_off(model: FilmFlowModel) -> None:
    image, condition = inputs()
    off = predict_probability(model, image, switch_off(condition), IDS, plain()).mean
    none = predict_probability(model, image, None, IDS, plain()).mean
    assert torch.equal(off, none)
    assert torch.equal(run(model, plain(guidance=0.0)).mean, off)
    assert not torch.equal(run(model, plain()).mean, off)
    nearly = run(model, plain(guidance=1.0 + 1e-4)).mean
    assert_close(nearly, run(model, plain()).mean, atol=1e-3, rtol=0)


def test_an_ablation_runs_a_part_of_the_heads(model: FilmFlowModel) -> None:
    none = predict_probability(model, inputs()[0], None, IDS, plain()).mean
    all_, two, three = (run(model, plain(film_active=active)).mean for active in ((2, 3), (2,), (3,)))
    assert torch.equal(all_, run(model, plain()).mean)
    for one, other in ((all_, two), (all_, three), (two, three), (two, none)):
        assert not torch.equal(one, other)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 40), (7, 3), (1, 1)])
def test_any_size_is_predicted_at_its_own_size(model: FilmFlowModel, height: int, width: int) -> None:
    found = run(model, plain(), height=height, width=width)
    assert found.mean.shape == (4, 1, height, width)
    assert found.junction is not None
    assert found.junction.shape == found.mean.shape
    assert bool(((found.mean >= 0) & (found.mean <= 1)).all())


def test_one_window_is_no_window(model: FilmFlowModel) -> None:
    assert torch.equal(run(model, plain(window=32)).mean, run(model, plain()).mean)


def test_windows_share_one_noise_field_and_one_condition(model: FilmFlowModel) -> None:
    """A network that looks at one pixel of the state gives the same map in windows as at once. Acceptance check 16."""
    image, condition = inputs(height=48, width=40)
    seen: list[Tensor] = []

    def forward(x: Tensor, t: Tensor, image: Tensor, condition: Any, gate: Any, **kwargs: Any) -> Tensor:
        seen.append(condition.vec)
        return x + image + condition.vec[:, :1, None, None]

    def predict(window: int | None) -> Tensor:
        sampling = plain(window=window, overlap=0.25, junction=None)
        return predict_probability(model, image, condition, IDS, sampling, forward=forward).mean

    assert_close(predict(16), predict(None), atol=1e-6, rtol=0)
    assert all(torch.equal(vec, condition.vec) for vec in seen)


def test_the_junction_map_is_made_once_per_image_and_cut_per_window(model: FilmFlowModel) -> None:
    image, condition = inputs(height=48, width=48)
    gates: list[Tensor] = []

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        gates.append(args[4])
        return model(*args, **kwargs)

    found = predict_probability(model, image, condition, IDS, plain(window=32, overlap=0.5), forward=forward)
    whole = model.junction_map(image)
    assert found.junction is not None
    assert torch.equal(found.junction, whole)
    assert torch.equal(gates[0], whole[..., :32, :32])
    assert torch.equal(gates[-1], whole[..., 16:, 16:])


def test_a_condition_per_window_is_asked_for_every_window(model: FilmFlowModel) -> None:
    image, condition = inputs(height=32, width=48)
    asked: list[Window] = []

    def of_window(window: Window) -> ConditionBundle:
        asked.append(window)
        return condition

    predict_probability(model, image, of_window, IDS, plain(window=32, overlap=0.5))
    assert asked == [Window(0, 0, 32, 32), Window(0, 16, 32, 32)]


def test_validation_and_evaluation_sample_alike_unless_told_otherwise() -> None:
    own = at_stage(make_config(model__solver="heun", model__num_ensemble=3), "film")
    assert evaluation_sampling(own) == training_sampling(own)
    other = at_stage(make_config(evaluate__k=9, evaluate__solver="midpoint", evaluate__ensemble=2), "film")
    found = evaluation_sampling(other)
    assert (found.steps, found.solver, found.ensemble) == (9, "midpoint", 2)
    assert (training_sampling(other).steps, training_sampling(other).solver) == (4, "euler")
