"""Check 8: every scan path against a naive loop over numbers, stored values and transformers' own layer."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.scan import Mamba2Mixer, dispatch, mamba1_reference, ssd, ssd_reference

GOLDEN = Path(__file__).parents[2] / "golden" / "panorama" / "scan_mamba2.npz"
CHUNKS = [4, 16, 53, 64]
INPUTS = ("x", "dt_raw", "A", "B", "C", "D", "dt_bias")


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def run(
    stored: dict[str, Tensor], chunk: int, dtype: torch.dtype = torch.float64, **more: Any
) -> tuple[Tensor, Tensor]:
    x, dt, A, B, C, D, bias = (stored[name].to(dtype) for name in INPUTS)
    more = {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in more.items()}
    y, state = ssd(x, dt, A, B, C, D, chunk, dt_bias=bias, dt_softplus=True, **more)
    assert y.dtype == dtype
    return y.double(), state.double()


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunked_scan_gives_the_stored_values(stored: dict[str, Tensor], chunk: int) -> None:
    """Check 8: plain, with an initial state, with right padding, and reversed; in float64 and in float32."""
    cases: list[tuple[dict[str, Any], str, str | None]] = [
        ({}, "y", "last_state"),
        ({"initial_state": stored["h0"]}, "y_with_h0", "last_state_with_h0"),
        ({"mask": stored["mask"]}, "y_masked", "last_state_masked"),
        ({"reverse": True}, "y_backward", None),
        ({"reverse": True, "mask": stored["mask"]}, "y_backward_masked", None),
    ]
    for more, output, last in cases:
        for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
            y, state = run(stored, chunk, dtype, **more)
            assert far(y, stored[output]) <= bound, (output, dtype)
            if last is not None:
                assert far(state, stored[last]) <= bound, (last, dtype)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("chunk", [16, 64])
def test_gradients_give_the_stored_values(stored: dict[str, Tensor], chunk: int, backend: str) -> None:
    """Check 8: gradients of all seven inputs."""
    leaves = {name: stored[name].clone().requires_grad_() for name in INPUTS}
    y, _ = run(leaves, chunk, backend=backend)
    (y * stored["w"]).sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert far(leaf.grad, stored[f"grad_{name}"]) <= 1e-10, name


def naive_ssd(x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, h0: Any, *, reverse: bool) -> tuple[Any, Any]:
    """The recurrence, one number of a head at a time."""
    b, length, heads, _ = x.shape
    state, y = h0.copy(), np.zeros_like(x)
    for t in reversed(range(length)) if reverse else range(length):
        for n in range(b):
            for h in range(heads):
                g = h * B.shape[2] // heads
                state[n, h] *= math.exp(dt[n, t, h] * A[h])
                state[n, h] += np.outer(dt[n, t, h] * x[n, t, h], B[n, t, g])
                y[n, t, h] = state[n, h] @ C[n, t, g] + D[h] * x[n, t, h]
    return y, state


def naive_mamba1(x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, h0: Any, *, reverse: bool) -> tuple[Any, Any]:
    """The recurrence of Mamba-1, one channel at a time."""
    b, length, channels = x.shape
    state, y = h0.copy(), np.zeros_like(x)
    for t in reversed(range(length)) if reverse else range(length):
        for n in range(b):
            for d in range(channels):
                state[n, d] = np.exp(dt[n, t, d] * A[d]) * state[n, d] + dt[n, t, d] * B[n, t] * x[n, t, d]
                y[n, t, d] = C[n, t] @ state[n, d] + D[d] * x[n, t, d]
    return y, state


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_scans_equal_a_naive_loop(groups: int, reverse: bool) -> None:
    """Check 8: reference, chunked and Mamba-1 path, from an initial state, both directions."""
    rng = np.random.default_rng(groups)
    x, dt = rng.normal(size=(2, 11, 6, 3)), rng.uniform(0.01, 2, size=(2, 11, 6))
    A, D, h0 = -rng.uniform(0.1, 16, size=6), rng.normal(size=6), rng.normal(size=(2, 6, 3, 4))
    B, C = rng.normal(size=(2, 2, 11, groups, 4))
    y, state = naive_ssd(x, dt, A, B, C, D, h0, reverse=reverse)
    tensors = [torch.from_numpy(array) for array in (x, dt, A, B, C, D)]
    for found in (
        ssd_reference(*tensors, initial_state=torch.from_numpy(h0), reverse=reverse),
        ssd(*tensors, 4, initial_state=torch.from_numpy(h0), reverse=reverse),
    ):
        assert far(found.y, torch.from_numpy(y)) <= 1e-12
        assert far(found.state, torch.from_numpy(state)) <= 1e-12

    x, dt, h0 = rng.normal(size=(2, 11, 5)), rng.uniform(0.01, 2, size=(2, 11, 5)), rng.normal(size=(2, 5, 4))
    A, D, B, C = -rng.uniform(0.1, 16, size=(5, 4)), rng.normal(size=5), B[:, :, 0], C[:, :, 0]
    y, state = naive_mamba1(x, dt, A, B, C, D, h0, reverse=reverse)
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (x, dt, A, B, C, D)]
    found = mamba1_reference(*tensors, initial_state=torch.from_numpy(h0), reverse=reverse)
    assert far(found.y, torch.from_numpy(y)) <= 1e-12
    assert far(found.state, torch.from_numpy(state)) <= 1e-12


def test_mamba1_with_one_decay_per_head_is_mamba2() -> None:
    torch.manual_seed(0)
    x, B, C = torch.randn(2, 9, 4, 3).double(), torch.randn(2, 9, 1, 5).double(), torch.randn(2, 9, 1, 5).double()
    dt, A, D = torch.rand(2, 9, 4).double(), -torch.rand(4).double(), torch.randn(4).double()
    wide = ssd_reference(x, dt, A, B, C, D).y.flatten(2)
    narrow = mamba1_reference(
        x.flatten(2),
        dt.repeat_interleave(3, -1),
        A.repeat_interleave(3)[:, None].expand(-1, 5),
        B[:, :, 0],
        C[:, :, 0],
        D.repeat_interleave(3),
    ).y
    assert far(wide, narrow) <= 1e-13


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_steep_decay_neither_overflows_nor_poisons_gradients(chunk: int) -> None:
    """A masked exponent that is exponentiated first overflows from about 88 on in float32."""
    torch.manual_seed(0)
    x, B, C = torch.randn(1, 40, 2, 3), torch.randn(1, 40, 1, 4), torch.randn(1, 40, 1, 4)
    dt, A = torch.full((1, 40, 2), 20.0).requires_grad_(), torch.tensor([-16.0, -0.01]).requires_grad_()
    y, state = ssd(x, dt, A, B, C, None, chunk)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert state.isfinite().all()
    assert dt.grad is not None
    assert A.grad is not None
    assert dt.grad.isfinite().all()
    assert A.grad.isfinite().all()
    assert far(y, ssd_reference(x, dt, A, B, C).y) <= 1e-3


def test_padding_on_either_side_is_inert() -> None:
    torch.manual_seed(1)
    x, B, C = (torch.randn(1, 7, 2, 3).double(), torch.randn(1, 7, 1, 4).double(), torch.randn(1, 7, 1, 4).double())
    dt, A = torch.rand(1, 7, 2).double(), -torch.rand(2).double()
    plain = ssd(x, dt, A, B, C, chunk_size=4)
    padded = [torch.cat([torch.full_like(t[:, :3], 7.0), t, torch.full_like(t[:, :2], 7.0)], 1) for t in (x, dt, B, C)]
    mask = torch.tensor([[False] * 3 + [True] * 7 + [False] * 2])
    for reverse in (False, True):
        plain = ssd(x, dt, A, B, C, chunk_size=4, reverse=reverse)
        found = ssd(padded[0], padded[1], A, padded[2], padded[3], chunk_size=4, mask=mask, reverse=reverse)
        assert far(found.y[:, 3:10], plain.y) <= 1e-14
        assert far(found.state, plain.state) <= 1e-14


def test_what_stands_in_padding_may_be_no_number() -> None:
    torch.manual_seed(1)
    x, B, C = torch.randn(2, 9, 2, 3).double(), torch.randn(2, 9, 1, 4).double(), torch.randn(2, 9, 1, 4).double()
    dt, A, mask = torch.rand(2, 9, 2).double(), -torch.rand(2).double(), torch.arange(9).expand(2, 9) < 6
    broken = [part.masked_fill(~mask.reshape(2, 9, *[1] * (part.ndim - 2)), math.nan) for part in (x, dt, B, C)]
    for scan in (ssd, ssd_reference):
        plain, found = scan(x, dt, A, B, C, mask=mask), scan(broken[0], broken[1], A, *broken[2:], mask=mask)
        assert torch.equal(found.y[mask], plain.y[mask])
        assert torch.equal(found.state, plain.state)
    narrow = [x[:, :, 0], dt[:, :, :1].expand(-1, -1, 3), A[:1, None].expand(3, 4), B[:, :, 0], C[:, :, 0]]
    waste = [part if part.ndim == 2 else part.masked_fill(~mask[..., None], math.nan) for part in narrow]
    assert torch.equal(mamba1_reference(*waste, mask=mask).state, mamba1_reference(*narrow, mask=mask).state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_short_sequences_of_every_type_equal_the_loop(dtype: torch.dtype) -> None:
    """L = 1, L below, at and above a chunk, rows without anything that counts, from a state; y has the type of x."""
    bound = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}[dtype]
    rng = np.random.default_rng(0)
    for length in (1, 4, 5):
        x, dt = rng.normal(size=(2, length, 4, 2)), rng.uniform(0.01, 1, size=(2, length, 4))
        A, D, h0 = -rng.uniform(0.1, 4, size=4), rng.normal(size=4), rng.normal(size=(2, 4, 2, 3))
        B, C = rng.normal(size=(2, 2, length, 2, 3))
        tensors = [torch.from_numpy(part).to(dtype) for part in (x, dt, A, B, C, D)]
        mask = torch.tensor([[False], [True]]).expand(2, length)
        arrays = [part.double().numpy() for part in tensors]
        y, state = naive_ssd(
            arrays[0], arrays[1] * mask[..., None].numpy(), *arrays[2:5], 0 * arrays[5], h0, reverse=False
        )
        y = y + arrays[5][:, None] * arrays[0] * mask[..., None, None].numpy()
        for found in (
            ssd(*tensors, 4, initial_state=torch.from_numpy(h0), mask=mask),
            ssd_reference(*tensors, initial_state=torch.from_numpy(h0), mask=mask.to(dtype)),
        ):
            assert found.y.dtype == dtype
            assert far(found.y.double(), torch.from_numpy(y)) <= bound
            assert far(found.state.double(), torch.from_numpy(state)) <= bound
            assert torch.equal(found.state[0].double(), torch.from_numpy(h0[0]).to(found.state.dtype).double())


def test_scan_computes_in_float32_under_autocast() -> None:
    torch.manual_seed(2)
    x, B, C = torch.randn(1, 50, 2, 8), torch.randn(1, 50, 1, 16), torch.randn(1, 50, 1, 16)
    dt, A = torch.rand(1, 50, 2), -torch.rand(2)
    expected = ssd(x, dt, A, B, C)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ssd(x, dt, A, B, C).y, expected.y)
        half = ssd(x.bfloat16(), dt, A, B.bfloat16(), C.bfloat16())
    assert half.y.dtype == torch.bfloat16
    assert half.state.dtype == torch.float32


MIXERS: list[dict[str, Any]] = [
    {"hidden_size": 32, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
    {"hidden_size": 32, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2},
    {"hidden_size": 24, "num_heads": 2, "head_dim": 24, "state_size": 5, "n_groups": 2, "conv_kernel": 3},
    {"hidden_size": 16, "num_heads": 4, "head_dim": 4, "state_size": 4, "n_groups": 4, "expand": 1},
]


@pytest.mark.parametrize("biases", [(False, True), (True, False)], ids=["bias of conv", "biases of projections"])
@pytest.mark.parametrize("sizes", MIXERS, ids=["one group", "two groups", "three taps", "a group per head"])
def test_mixer_equals_that_of_transformers(sizes: dict[str, Any], biases: tuple[bool, bool]) -> None:
    """Check 8: its state dict is taken as it is, and outputs agree to 1e-5, with and without padding; lengths of one
    step, of a chunk and beside it."""
    module = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    from transformers import Mamba2Config

    torch.manual_seed(3)
    told = {**sizes, "use_bias": biases[0], "use_conv_bias": biases[1]}
    theirs = module.Mamba2Mixer(Mamba2Config(chunk_size=16, num_hidden_layers=1, **told), 0).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours = Mamba2Mixer(chunk_size=8, **told)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        for length in (1, 8, 15, 16, 53):
            x, mask = torch.randn(2, length, sizes["hidden_size"]), torch.ones(2, length)
            assert far(ours(x), theirs(x)) <= 1e-5
            if length > 1:  # theirs looks at no mask of a single step
                mask[1, length // 2 :], mask[0, : length // 3] = 0, 0
                padded, expected = ours(x, mask), theirs(x, attention_mask=mask)
                assert far(padded[mask.bool()], expected[mask.bool()]) <= 1e-5


def test_triton_without_cuda_is_an_error_that_says_what_is_missing() -> None:
    """Check 8: never another module, and no other backend than the one that was asked for."""
    x = torch.zeros(1, 2, 1, 1)
    with pytest.raises(ConfigError, match=r"(?s)a CUDA device .*cpu.*mamba_ssm"):
        ssd(x, x[..., 0], torch.zeros(1), x, x, backend="triton")
    with pytest.raises(ConfigError, match="scan_backend 'cuda' is unknown"):
        ssd(x, x[..., 0], torch.zeros(1), x, x, backend="cuda")  # type: ignore[arg-type]


def test_auto_takes_triton_in_half_precision_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its products of float32 are TF32: asked for by name only."""
    monkeypatch.setattr(dispatch, "triton_scan", lambda: (lambda *_: None, ""))
    cuda = torch.device("cuda")
    found = {dtype: dispatch.choose_backend("auto", cuda, dtype) for dtype in (torch.bfloat16, torch.float32)}
    assert found == {torch.bfloat16: "triton", torch.float32: "torch"}
    assert dispatch.choose_backend("triton", cuda, torch.float32) == "triton"


def test_auto_says_once_what_it_took(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._say_once.cache_clear()
    x = torch.zeros(1, 2, 1, 1)
    with caplog.at_level(logging.INFO, "stageline.panorama_vlm"):
        for _ in range(3):
            ssd(x, x[..., 0], torch.zeros(1), x, x)
    assert [record.getMessage() for record in caplog.records] == [
        "scan_backend auto: torch (triton needs a CUDA device (the tensors are on cpu))"
    ]


def test_kernels_are_called_by_their_own_conventions(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the kernel: transformers' torch function, which takes what it hands on to that kernel."""
    theirs = pytest.importorskip("transformers.models.mamba2.modeling_mamba2").mamba2_chunk_scan
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.ops.triton.ssd_combined"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["mamba_ssm.ops.triton.ssd_combined"].mamba_chunk_scan_combined = theirs  # type: ignore[attr-defined]
    dispatch.triton_scan.cache_clear()
    try:
        torch.manual_seed(4)
        x, B, C = torch.randn(2, 21, 4, 3), torch.randn(2, 21, 2, 5), torch.randn(2, 21, 2, 5)
        dt, A, D, state = torch.rand(2, 21, 4), -torch.rand(4), torch.randn(4), torch.randn(2, 4, 3, 5)
        y, last = dispatch._triton(x, dt, A, B, C, 8, D, state)
        expected = ssd(x, dt, A, B, C, D, 8, initial_state=state)
        assert far(y, expected.y) <= 1e-5
        assert far(last, expected.state) <= 1e-5
        with pytest.raises(ConfigError, match="it lacks: a CUDA device") as caught:
            ssd(x, dt, A, B, C, backend="triton")
        assert "mamba_ssm" not in str(caught.value)
    finally:
        dispatch.triton_scan.cache_clear()


def test_all_shapes_that_do_not_fit_are_named_at_once() -> None:
    x, B = torch.zeros(1, 5, 3, 2), torch.zeros(1, 5, 2, 4)
    with pytest.raises(ConfigError) as caught:
        ssd(x, torch.zeros(1, 4, 3), torch.zeros(2), B, B)
    for word in ("dt has shape (1, 4, 3), expected (1, 5, 3)", "A has shape (2,)", "3 heads cannot be shared"):
        assert word in str(caught.value)
    with pytest.raises(ConfigError, match="no steps"):
        ssd(x[:, :0, :2], torch.zeros(1, 0, 2), torch.zeros(2), B[:, :0], B[:, :0])
    flat = torch.zeros(1, 5, 3)
    with pytest.raises(ConfigError, match=r"(?s)2 faults.*A has shape \(2, 4\), expected \(3, 4\).*D has shape \(2,\)"):
        mamba1_reference(flat, flat, torch.zeros(2, 4), torch.zeros(1, 5, 4), torch.zeros(1, 5, 4), torch.zeros(2))
