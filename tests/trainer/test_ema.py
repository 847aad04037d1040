"""The average: its closed form, what it copies, and that looking through it leaves the model bitwise alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_family.model import ToyModel

from stageline.layers.ema import LEFTOVER_FRACTION, Ema, decay_of_update, leftover_fraction


def test_decay_of_the_first_updates_and_its_limit():
    assert decay_of_update(1, 0.999) == pytest.approx(2 / 11)
    assert decay_of_update(2, 0.999) == pytest.approx(3 / 12)
    assert decay_of_update(10**6, 0.999) == 0.999
    assert decay_of_update(1, 0.0) == 0.0


def test_closed_form_over_updates():
    model = nn.Linear(1, 1, bias=False).double()
    values = [5.0, 1.0, -2.0, 4.0, 0.5]
    with torch.no_grad():
        model.weight.fill_(values[0])
    ema = Ema(model, ["weight"], 0.3)
    for value in values[1:]:
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model)
    decays = [min(0.3, (1 + n) / (10 + n)) for n in range(1, 5)]
    weights = [1 - d for d in decays]
    # Each value weighs its own 1 - d times all later decays; the first weighs what is left.
    expected, rest = 0.0, 1.0
    for value, weight, decay in zip(reversed(values[1:]), reversed(weights), reversed(decays), strict=True):
        expected += rest * weight * value
        rest *= decay
    expected += rest * values[0]
    assert float(ema.state_dict(model)["weight"]) == pytest.approx(expected, rel=1e-12)


def test_buffers_and_frozen_parameters_are_the_models_alone():
    model = ToyModel()
    ema = Ema(model, [name for name, _ in model.named_parameters() if not name.startswith("stem")], 0.9)
    with torch.no_grad():
        model.strength.fill_(0.25)
        for parameter in model.parameters():
            parameter.add_(1.0)
    ema.update(model)
    state = {name: tensor.clone() for name, tensor in ema.state_dict(model).items()}
    averaged = {name for name in model.state_dict() if not name.startswith("stem") and name != "strength"}
    assert set(state) == averaged, "the average holds no second copy of what the model has"
    with ema.applied(model):
        assert float(model.strength) == 0.25
        assert torch.equal(model.head.weight, state["head.weight"])
    assert not torch.equal(state["head.weight"], model.head.weight)


def test_applied_weights_are_put_back_bitwise():
    model = ToyModel()
    ema = Ema(model, [name for name, _ in model.named_parameters()], 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    ema.update(model)
    raw = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = {name: tensor.clone() for name, tensor in ema.state_dict(model).items()}

    def look() -> None:
        with ema.applied(model):
            assert all(torch.equal(tensor, average[name]) for name, tensor in model.named_parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look()
    assert all(torch.equal(tensor, raw[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, average[name]) for name, tensor in ema.state_dict(model).items())


def test_tied_weights_have_one_average():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    ema = Ema(model, ["0.weight"], 0.5)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    ema.update(model)
    state = ema.state_dict(model)
    assert torch.equal(state["0.weight"], state["1.weight"])
    assert not torch.equal(state["1.weight"], model[1].weight)


def test_leftover_of_the_first_weights():
    """By the average itself, which forgets them quickly however long it is meant to be."""
    for decay, updates in ((0.0, 1), (0.5, 3), (0.9999, 1), (0.9999, 2), (0.98, 80), (0.9999, 1300)):
        model = nn.Linear(1, 1, bias=False).double()
        nn.init.ones_(model.weight)
        ema = Ema(model, ["weight"], decay)
        nn.init.zeros_(model.weight)
        for _ in range(updates):
            ema.update(model)
        assert float(ema.state_dict(model)["weight"]) == pytest.approx(leftover_fraction(decay, updates), abs=1e-8)
    assert leftover_fraction(0.9999, 1) > LEFTOVER_FRACTION > leftover_fraction(0.9999, 2)
