"""The network compiles as one graph: nothing in the forward pass prints, stores or branches on data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stageline.families.film_flow.model.network import FilmFlowModel

Build = Callable[..., FilmFlowModel]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:torch"),
]


@pytest.mark.parametrize(
    ("stages", "kwargs"),
    [
        ((), {}),
        ((0, 1), {}),
        ((2, 3), {"gate": (2, 3), "junction_channels": 12}),
        ((0, 1, 2, 3), {}),
    ],
    ids=str,
)
def test_one_graph(build: Build, inputs: Any, stages: tuple[int, ...], kwargs: dict[str, Any]) -> None:
    """Acceptance check 24."""
    model = build(stages, **kwargs)
    call = (*inputs.positional(), inputs.condition)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # a graph break would raise
    with torch.no_grad():
        out, expected = compiled(*call, full=True, diagnostics=True), model(*call, full=True, diagnostics=True)
    assert torch.allclose(out.prediction, expected.prediction, atol=1e-6)
    assert list(out.diagnostics) == list(stages)


def test_inductor_agrees_with_eager(build: Build, inputs: Any) -> None:
    """A network of one resolution: nearly the same parts, a fraction of the kernels to compile."""
    model = build((0,), channel_mult=(1,))
    call = (*inputs.positional(), inputs.condition)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert (compiled(*call) - model(*call)).abs().max() < 1e-4
