"""The junction gate: its algebra for every pair of subsets, and how the junction map changes size."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from stageline.errors import ConfigError
from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.config.film_plan import decoder_channels, resolve_gate_stages
from stageline.families.film_flow.model.film import gate_map, resize_junction
from stageline.families.film_flow.model.junction_head import JunctionHead
from stageline.families.film_flow.model.network import FilmFlowModel
from tests.families.film_flow.model.subsets import SUBSETS, every_subset

Build = Callable[..., FilmFlowModel]
PAIRS = [(s, g) for s in SUBSETS for n in range(1, len(s) + 1) for g in combinations(s, n)]


def test_there_are_65_pairs() -> None:
    """Acceptance check 13."""
    assert len(PAIRS) == 65


@pytest.fixture(scope="module")
def models(build: Build) -> dict[tuple[int, ...], FilmFlowModel]:
    """The model without a gate, per subset of decoder stages."""
    return {s: build(s) for s in [(), *SUBSETS]}


@pytest.fixture(scope="module")
def ungated(models: dict[tuple[int, ...], FilmFlowModel], inputs: Any) -> dict[tuple[int, ...], torch.Tensor]:
    """Output of the model without a gate for the batch three times, per subset of decoder stages."""
    with torch.no_grad():
        return {s: model(*thrice(inputs)) for s, model in models.items()}


def gated(model: FilmFlowModel, **changes: Any) -> FilmFlowModel:
    """The same weights under a plan with a gate."""
    other = copy(model)
    other._plan = replace(model.plan, **changes)
    return other


def thrice(inputs: Any) -> tuple[Any, ...]:
    """The batch three times as one."""
    condition = ConditionBundle(inputs.condition.vec.repeat(3, 1), inputs.condition.present.repeat(3))
    return (*(part.repeat(3, *(1,) * (part.dim() - 1)) for part in inputs.positional()), condition)


@pytest.mark.parametrize("stages", every_subset())
def test_gate_algebra(build: Build, models: Any, inputs: Any, ungated: Any, stages: tuple[int, ...]) -> None:
    """Acceptance check 13."""
    some = torch.rand(inputs.image.shape, generator=torch.Generator().manual_seed(1))
    call = thrice(inputs)
    each = torch.cat([torch.zeros_like(some), torch.ones_like(some), some])
    channels = decoder_channels(8, (1, 2, 3, 4))
    with torch.no_grad():
        for gate in (g for s, g in PAIRS if s == stages):
            model = gated(models[stages], gate_stages=gate)
            without = ungated[tuple(s for s in stages if s not in gate)]
            off, full, partly = model(*call, each).split(2)
            assert torch.equal(off, ungated[stages][:2]), gate
            assert torch.equal(full, without[2:4]), gate
            assert not torch.equal(partly, ungated[stages][4:]), gate
            idle = gated(models[stages], gate_stages=gate, gate_value=1.0)
            assert torch.equal(idle(*call, each), ungated[stages]), gate
            model.schedule.set(gate=0.0)
            assert torch.equal(model(*call, each), ungated[stages]), gate
            model.schedule.set(gate=1.0)
        built = build(stages, gate=stages)
        assert torch.equal(built(*call, each), gated(models[stages], gate_stages=stages)(*call, each))
        same = resolve_gate_stages("same_as_film", stages, channels)
        assert same == stages


def test_gate_beyond_film_is_refused(build: Build) -> None:
    """Acceptance check 13."""
    for stages in SUBSETS:
        for gate in SUBSETS:
            if not set(gate) <= set(stages):
                with pytest.raises(ConfigError) as error:
                    build(stages, gate=gate)
                assert error.value.code == "E_GATE_STAGE"


def test_a_small_disc_survives_going_down() -> None:
    junction = torch.zeros(1, 1, 64, 64)
    junction[0, 0, 13, 50] = 1.0
    small = resize_junction(junction, 8, 8)
    assert small.sum() == 1
    assert small[0, 0, 1, 6] == 1
    assert resize_junction(junction, 8, 8, "nearest").sum() == 0


def test_going_up_is_bilinear_and_stays_in_range() -> None:
    junction = torch.rand(1, 1, 8, 8)
    large = resize_junction(junction, 16, 16)
    expected = torch.nn.functional.interpolate(junction, size=(16, 16), mode="bilinear", align_corners=False)
    assert torch.allclose(large, expected)
    assert large.min() >= 0
    assert large.max() <= 1
    assert resize_junction(junction, 4, 16).shape == (1, 1, 4, 16)


def test_gate_formula() -> None:
    junction = torch.rand(1, 1, 4, 4)
    gate = gate_map(junction, torch.tensor(0.5), 0.25, 4, 4, "maxpool")
    assert torch.allclose(gate, 1 - 0.5 * 0.75 * junction)


def test_the_head_feeds_the_gate_where_no_map_is_given(build: Build, inputs: Any) -> None:
    model = build((1, 3), gate=(3,), junction_channels=12)
    call = (*inputs.positional(), inputs.condition)
    with torch.no_grad():
        out = model(*call, full=True)
        given = model(*call, model.junction_map(inputs.image))
    assert torch.equal(out.prediction, given)
    assert out.junction_logits is not None
    assert torch.equal(torch.sigmoid(out.junction_logits), model.junction_map(inputs.image))


def test_a_gate_without_any_map_is_refused_not_skipped(build: Build, inputs: Any) -> None:
    model = build((1, 3), gate=(3,))
    with pytest.raises(ConfigError) as error:
        model(*inputs.positional(), inputs.condition)
    assert error.value.code == "E_NO_JUNCTION"
    assert torch.isfinite(model(*inputs.positional())).all()
    assert torch.isfinite(model(*inputs.positional(), inputs.condition, film_active=[1])).all()


@pytest.mark.parametrize("detach", [True, False])
def test_flow_loss_reaches_the_junction_head_only_when_asked(build: Build, inputs: Any, detach: bool) -> None:
    model = build((3,), gate=(3,), junction_channels=12, detach_gate=detach)
    model(*inputs.positional(), inputs.condition).square().mean().backward()
    touched = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.junction.parameters()]
    assert all(touched) != detach
    assert any(touched) != detach


def test_junction_head_size_and_prior() -> None:
    head = JunctionHead()
    assert sum(p.numel() for p in head.parameters()) == 15_553
    assert torch.sigmoid(head.out.bias).item() == pytest.approx(0.01, rel=0.01)
    assert head(torch.rand(1, 1, 40, 24)).shape == (1, 1, 40, 24)
