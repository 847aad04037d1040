"""The Mamba-2 scan and its convolution on the chosen backend: the sequential loop, chunks in torch, or Triton kernels.

A backend changes how fast a result comes, never which module computes it. `auto` says once what it took; a backend
that was asked for and cannot be used is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.scan.chunked import chunked_scan
from stageline.families.panorama_vlm.scan.inputs import Scan, check_shapes, masked, scan_dtype, step_sizes
from stageline.families.panorama_vlm.scan.reference import ssd_reference

LOG = logging.getLogger("stageline.panorama_vlm")

ScanBackend = Literal["auto", "triton", "torch", "reference"]
BACKENDS: tuple[ScanBackend, ...] = ("auto", "triton", "torch", "reference")


@cache
def triton_scan() -> tuple[Callable[..., Any] | None, str]:
    """mamba_ssm's chunked scan, or None and why it is missing."""
    try:
        return import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined, ""
    except ImportError as error:
        return None, f"the package mamba_ssm cannot be imported ({error})"


@cache
def _fused_conv() -> Callable[..., Any] | None:
    """causal_conv1d's convolution, or None where the package is not."""
    try:
        function: Callable[..., Any] = import_module("causal_conv1d").causal_conv1d_fn
    except ImportError:
        return None
    return function


@cache
def _say_once(backend: str, reason: str) -> None:
    LOG.info("scan_backend auto: %s (%s)", backend, reason)


def choose_backend(backend: ScanBackend, device: torch.device, dtype: torch.dtype) -> ScanBackend:
    """The backend that is used: `triton`, `torch` or `reference`.

    backend: what the config says.  device, dtype: of the tensors to scan.
    `auto` takes Triton in half precision only: its products of float32 are made in TF32 (2e-3 off, and no faster).
    Raises ConfigError for an unknown word, and where `triton` was asked for and something it needs is missing.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"scan_backend {backend!r} is unknown", remedy=f"choose one of {', '.join(BACKENDS)}")
    if backend in ("torch", "reference"):
        return backend
    missing = [] if device.type == "cuda" else [f"a CUDA device (the tensors are on {device.type})"]
    if dtype == torch.float64:
        missing.append("float32 or half precision (the tensors are float64)")
    why = triton_scan()[1]
    if backend == "triton":
        missing += [why] if why else []
        if missing:
            raise ConfigError(
                f"scan_backend triton cannot be used; it lacks: {'; '.join(missing)}",
                remedy="use scan_backend: auto or torch, or install mamba-ssm on a machine with a CUDA device",
            )
        return "triton"
    if dtype == torch.float32:
        missing.append("half precision, since it multiplies float32 in TF32")
    if missing:
        _say_once("torch", f"triton needs {missing[0]}")
        return "torch"
    _say_once("torch" if why else "triton", why or "CUDA and mamba_ssm are there")
    return "torch" if why else "triton"


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    chunk_size: int = 64,
    *,
    initial_state: Tensor | None = None,
    mask: Tensor | None = None,
    reverse: bool = False,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    backend: ScanBackend = "auto",
) -> Scan:
    """The Mamba-2 scan: H_t = exp(dt_t A) H_(t-1) + (dt_t x_t) outer B_t, y_t = H_t C_t + D x_t, per head.

    x: (b, L, H, P).  dt: (b, L, H), > 0 (raw with `dt_softplus`).  A: (H,), < 0.  B, C: (b, L, g, N); head h reads
    group h // (H / g).  D: (H,) or None.  chunk_size: Q > 0, may exceed L; changes the speed only.
    initial_state: (b, H, P, N), zero without.  mask: (b, L), true for what counts: x and dt are zero elsewhere, so
    padding on either side is inert.  reverse: from the last step to the first.  dt_bias: (H,), added to dt.
    dt_softplus: dt + dt_bias is passed through softplus.  backend: see `choose_backend`.

    Computes in float32 (float64 where x is), also under autocast; Triton's products of float32 are TF32. Returns
    `Scan(y, state)`. Raises ConfigError for shapes that do not fit and for a backend that cannot be used.
    """
    check_shapes(x, dt, A, B, C, D, initial_state)
    if chunk_size < 1:
        raise ConfigError(f"chunk_size is {chunk_size}, expected a number > 0", remedy="32 or 64 on a CPU, 128 on CUDA")
    chosen = choose_backend(backend, x.device, x.dtype)
    if chosen == "reference":
        return ssd_reference(
            x, dt, A, B, C, D,
            initial_state=initial_state, mask=mask, reverse=reverse, dt_bias=dt_bias, dt_softplus=dt_softplus,
        )  # fmt: skip
    dtype = scan_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        steps = step_sizes(dt, dt_bias, dt_softplus=dt_softplus, dtype=dtype)
        inputs, steps, B = masked(mask, x if chosen == "triton" else x.to(dtype), steps, B)
        series = [inputs, steps, B.to(inputs.dtype), C.to(inputs.dtype)]
        inputs, steps, B, C = (t.flip(1) for t in series) if reverse else series
        A = A.to(dtype)
        state = None if initial_state is None else initial_state.to(dtype)
        if chosen == "triton":
            y, last = _triton(inputs, steps, A, B, C, chunk_size, D, state)
        else:
            y, last = chunked_scan(inputs, steps, A, B, C, chunk_size, state)
            if D is not None:
                y = y + D.to(dtype)[:, None] * inputs
        if reverse:
            y = y.flip(1)
    return Scan(y.to(x.dtype), last)


def _triton(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """mamba_ssm's kernels; dt is ready to use, they accumulate in float32."""
    function = triton_scan()[0]
    assert function is not None
    y, last = function(
        x.contiguous(), dt.contiguous(), A, B.contiguous(), C.contiguous(), chunk_size,
        D=None if D is None else D.float(), initial_states=state, dt_softplus=False, return_final_states=True,
    )  # fmt: skip
    return y, last.float()


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, backend: ScanBackend) -> Tensor:
    """SiLU of a causal depthwise convolution: output t sees the inputs t-k+1 ... t.

    x: (b, L, c).  weight: (c, 1, k).  bias: (c,) or None.  backend: with `auto` and `triton` the kernel of the package
    causal_conv1d computes it where tensors are on CUDA and the package is there; the result is the same.
    """
    kernel = weight.shape[-1]
    fused = _fused_conv() if x.is_cuda and backend in ("auto", "triton") and x.dtype != torch.float64 else None
    # The kernel takes channels-last tensors of 2 to 4 taps whose rows lie 8 numbers apart or a multiple of that.
    if fused is not None and 2 <= kernel <= 4 and x.shape[-1] % 8 == 0:
        bias = None if bias is None else bias.to(x.dtype)
        out: Tensor = fused(x.contiguous().transpose(1, 2), weight.squeeze(1).to(x.dtype), bias, activation="silu")
        return out.transpose(1, 2)
    padded = functional.pad(x.transpose(1, 2), (kernel - 1, 0))
    return functional.silu(functional.conv1d(padded, weight, bias, groups=x.shape[-1])).transpose(1, 2)
