"""The guidance wrapper: its coin, its handlings, its strength by time, and that it leaves the step size alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from stageline.errors import ConfigError
from stageline.families.sparse_structure.shortcut import (
    ClassifierFreeGuidance,
    ClassifierFreeGuidanceWithExternalUnconditionalProbability,
    FlowMatching,
    ShortCut,
    ShortCutDraws,
)

from .toy import Network, condition, data

External = ClassifierFreeGuidanceWithExternalUnconditionalProbability


class Recorder(nn.Module):
    """Answers x, and keeps what it was asked with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, x: Any, t: Tensor, *conditions: Any, **keywords: Any) -> Any:
        self.calls.append((conditions, keywords))
        return x


@pytest.mark.parametrize("kind", [ClassifierFreeGuidance, External])
def test_no_handling_touches_the_step_size(kind: type[ClassifierFreeGuidance]) -> None:
    """Check 22: d is the same with and without condition, whatever becomes of the condition."""
    tokens, mask, step = torch.ones(2, 3), torch.ones(2), torch.tensor([250.0])
    x, t, given = {"shape": torch.ones(2, 1, 1)}, torch.tensor([100.0]), {"mask": mask, "kind": "room", "d": step}
    expected = {
        "zeros": ((torch.zeros(2, 3), "text"), {"mask": torch.zeros(2), "kind": "room"}),
        "discard": ((), {}),
        "drop_tensors": (("text",), {"kind": "room"}),
        "add_flag": ((tokens, "text"), {"mask": mask, "kind": "room", "cfg": True}),
    }
    for handling, (conditions, keywords) in expected.items():
        network = Recorder()
        guidance = kind(network, 1.0, 2.0, handling, (0, 500))  # type: ignore[arg-type]
        guidance(x, t, tokens, "text", **given)
        guidance.eval()(x, t, tokens, "text", **given)
        assert len(network.calls) == 3
        for call in (network.calls[0], network.calls[2]):
            assert call[1].pop("d") is step
            assert repr(call) == repr((conditions, keywords))
        on, told = network.calls[1]
        assert on[0] is tokens
        assert on[1] == "text"
        assert told == given


def test_a_call_without_condition_is_for_discard_alone_and_a_step_is_none() -> None:
    x, t, d = torch.ones(2, 1, 1), torch.tensor([1.0]), torch.tensor([500.0])
    with pytest.raises(RuntimeError, match="called without a condition"):
        External(Recorder(), unconditional_handling="zeros")(x, t, d=d)
    network = Recorder()
    External(network, unconditional_handling="discard")(x, t, d=d)
    assert network.calls == [((), {"d": d})]


def test_training_tosses_one_coin_for_the_whole_call_and_the_caller_may_say_its_probability() -> None:
    network, x = Network(), data(3)
    guidance = External(network, p_unconditional=0.3)
    random.seed(4)
    for _ in range(300):
        guidance(x, torch.tensor([100.0]), condition(3))
    dropped = [bool((call["cond"] == 0).all()) for call in network.calls]  # type: ignore[union-attr]
    assert 0.22 < sum(dropped) / 300 < 0.38
    rng = random.Random(4)  # noqa: S311
    assert dropped == [rng.random() < 0.3 for _ in range(300)]
    network.calls.clear()
    for probability in (1.0, 0.0):
        guidance(x, torch.tensor([100.0]), condition(3), p_unconditional=probability)
    assert [bool((call["cond"] == 0).all()) for call in network.calls] == [True, False]  # type: ignore[union-attr]


def test_eval_guides_inside_the_interval_alone_and_per_object_where_times_differ() -> None:
    """Check 22: times of several objects work in eval mode."""
    network, x, cond = Network(), data(3), condition(3)
    guidance = External(network, strength=2.0, interval=(0, 500)).eval()

    def one_by_one(times: list[float]) -> dict[str, Tensor]:
        rows = []
        for n, time in enumerate(times):
            own = ({m: x[m][n : n + 1] for m in x}, torch.tensor([time]))
            on, off = network(*own, cond[n : n + 1]), network(*own, 0 * cond[n : n + 1])
            rows.append({m: 3 * on[m] - 2 * off[m] if time <= 500 else on[m] for m in x})
        return {m: torch.cat([row[m] for row in rows]) for m in x}

    for times in ([500.0, 500.0, 500.0], [100.0, 501.0, 30.0], [501.0, 700.0, 900.0]):
        assert_close(guidance(x, torch.tensor(times), cond, p_unconditional=1.0), one_by_one(times))
    network.calls.clear()
    guidance(x, torch.tensor(700.0), cond)
    guidance(x, torch.tensor([100.0]), cond)
    assert len(network.calls) == 3


def test_no_interval_means_never_and_strengths_may_differ_by_modality() -> None:
    network, x, cond, t = Network(), data(2), condition(2), torch.tensor([300.0])
    on, off = network(x, t, cond), network(x, t, 0 * cond)
    assert_close(External(network, strength=5.0, interval=None).eval()(x, t, cond), on)
    each = External(
        network, strength={"shape": 2.0, "translation": 7.0}, interval={"shape": (0, 400), "translation": (0, 200)}
    )
    mixed = each.eval()(x, t, cond)
    assert_close(mixed["shape"], 3 * on["shape"] - 2 * off["shape"])
    assert_close(mixed["translation"], on["translation"])
    alike = External(network, strength=2.0, interval={"shape": (0, 400), "translation": (0, 200)}).eval()(x, t, cond)
    assert_close(alike, mixed)
    alone = External(network, strength=2.0, interval={"shape": (0, 400), "translation": None}).eval()(x, t, cond)  # type: ignore[dict-item]
    assert_close(alone, mixed)
    with pytest.raises(KeyError, match="strength or interval is given for"):
        External(network, strength={"shape": 1.0}, interval=(0, 500)).eval()(x, t, cond)


def test_faults_of_construction_are_told_together() -> None:
    with pytest.raises(ConfigError, match=r"handling 'none'.*p_unconditional 2.*interval of shape 7.*interval for"):
        ClassifierFreeGuidance(Network(), 2, {"scale": 1.0}, "none", {"shape": 7})  # type: ignore[arg-type, dict-item]
    for interval in (5, (500, 0), (1, 2, 3)):
        with pytest.raises(ConfigError, match=r"interval .*: \(low, high\)"):
            ClassifierFreeGuidance(Network(), interval=interval)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [ClassifierFreeGuidance, External])
def test_the_loss_in_eval_mode_is_that_of_training_without_drops(kind: type[ClassifierFreeGuidance]) -> None:
    """Check 22: never a doubly guided target, never an error, and the student's coin does not reach the target."""
    x1, cond = data(8), condition(8)
    guidance = kind(Network(), p_unconditional=0.0, strength=7.0, interval=(0, 1000))
    model = ShortCut(guidance, self_consistency_prob=0.5, seed_or_generator=2)
    draws = model.sample_draws(x1)
    trained, details = model.loss_from_draws(x1, draws, cond)
    evaluated, same = model.eval().loss_from_draws(x1, draws, cond)
    bare, _ = ShortCut(Network(), self_consistency_prob=0.5).loss_from_draws(x1, draws, cond)
    assert torch.equal(trained, evaluated)
    assert torch.equal(trained, bare)
    assert_close(details, same)
    guidance.p_unconditional = 1.0
    kept, _ = model.eval().loss_from_draws(x1, replace(draws, unconditional=None), cond)
    assert torch.equal(kept, trained)
    _, other = model.train().loss_from_draws(x1, replace(draws, unconditional=None), cond)
    forced, _ = model.eval().loss_from_draws(x1, replace(draws, unconditional=True), cond)
    student_alone, alike = _student_without_condition(x1, draws, cond)
    assert_close(forced, student_alone)
    assert_close(other, alike)
    assert other["self_consistency_loss"] != details["self_consistency_loss"]


def _student_without_condition(x1: Any, draws: ShortCutDraws, cond: Tensor) -> tuple[Tensor, Any]:
    """The loss whose first call alone sees a condition of zeros."""
    network, calls = Network(), []

    def asked(x: Any, t: Tensor, cond: Tensor, d: Tensor, p_unconditional: float | None = None) -> Any:
        calls.append(p_unconditional)
        return network(x, t, cond if p_unconditional == 0.0 else 0 * cond, d)

    found = ShortCut(asked, self_consistency_prob=0.5).loss_from_draws(x1, replace(draws, unconditional=True), cond)
    assert calls == [1.0, 0.0, 1.0, 0.0, 1.0]
    return found


def test_guidance_around_a_wrapped_network_calls_the_wrapper() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.asked = module, 0

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.asked += 1
            return self.module(*args, **kwargs)

    guidance = External(Network(), p_unconditional=0.5)
    wrapped = Wrapper(guidance.backbone)  # type: ignore[arg-type]
    around = guidance.around(wrapped)
    around.eval()
    assert guidance.training
    assert wrapped.training
    assert list(guidance.state_dict()) == [f"backbone.{name}" for name in Network().state_dict()]
    model = ShortCut(guidance, batch_mode=True, seed_or_generator=1)
    x1, cond = data(2), condition(2)
    draws = model.sample_draws(x1, self_consistent=True, guided=True)
    own, _ = model.eval().loss_from_draws(x1, draws, cond)
    other, _ = model.loss_from_draws(x1, draws, cond, reverse_fn=around)
    assert torch.equal(own, other)
    assert wrapped.asked == 5
    outer, _ = model.loss_from_draws(x1, draws, cond, reverse_fn=Wrapper(guidance))
    assert torch.equal(own, outer)


@pytest.mark.parametrize("objective", [FlowMatching, ShortCut])
@pytest.mark.parametrize("kind", [ClassifierFreeGuidance, External])
def test_a_loss_in_eval_mode_is_neither_guided_nor_without_condition(
    kind: type[ClassifierFreeGuidance], objective: type[FlowMatching]
) -> None:
    """Check 22: of both objectives, with guidance at all times: that of training mode where nothing is dropped."""
    losses = []
    for train, probability in ((True, 0.0), (False, 0.0), (False, 1.0)):
        model = objective(kind(Network(), probability, 3.0, "zeros", (0, 1000)), seed_or_generator=1)
        losses.append(model.train(train).loss(data(4), condition(4))[0].item())
    assert losses == 3 * losses[:1]
