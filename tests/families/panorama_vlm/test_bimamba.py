"""The bidirectional block, scan orders and what is taken out of a sequence before it is scanned."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.image_tokens import TokenRules
from stageline.families.panorama_vlm.model.bimamba import BiMambaBlock, compact
from stageline.families.panorama_vlm.model.resampler import Connection
from stageline.families.panorama_vlm.model.resamplers import BiMambaResampler, make_resampler
from stageline.families.panorama_vlm.orders import scan_sequences
from stageline.families.panorama_vlm.scan import ssd
from stageline.families.panorama_vlm.stitching import ScanOrder, TokenLayout, stitch

WIDTH, HEAD, STATE = 12, 6, 5


def make_block(seed: int = 0, **more: object) -> BiMambaBlock:
    """A small block in float64 with every parameter off its starting value."""
    torch.manual_seed(seed)
    block = BiMambaBlock(WIDTH, head_dim=HEAD, state=STATE, chunk_size=4, **more).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for name in ("D", "dt_bias"):
            getattr(block, name).normal_()
        block.gated_norm.weight.normal_()
        block.norm.weight.normal_()
    return block


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def one_direction(block: BiMambaBlock, x0: np.ndarray, bc: np.ndarray, dt: np.ndarray, side: int) -> np.ndarray:
    """One direction's outputs (L, d_i) of inputs that are in its scan order, in plain loops."""
    inner, heads = block.inner, block.heads
    stream = np.concatenate([x0, bc], axis=1)
    rows = slice(side * block.stream, (side + 1) * block.stream)
    weight, bias = block.conv1d.weight.detach().numpy()[rows, 0], block.conv1d.bias.detach().numpy()[rows]  # type: ignore[union-attr]
    taps = weight.shape[1]
    mixed = np.stack([
        silu(bias + sum(weight[:, k] * stream[t - taps + 1 + k] for k in range(taps) if t - taps + 1 + k >= 0))
        for t in range(len(stream))
    ])  # fmt: skip
    x, B, C = mixed[:, :inner], mixed[:, inner : inner + STATE], mixed[:, inner + STATE :]
    y = np.zeros_like(x)
    for h in range(heads):
        n, cols = side * heads + h, slice(h * HEAD, (h + 1) * HEAD)
        A, D, bias_h = (float(getattr(block, name)[n].detach()) for name in ("A_log", "D", "dt_bias"))
        state = np.zeros((HEAD, STATE))
        for t in range(len(x)):
            step = math.log1p(math.exp(dt[t, h] + bias_h))
            state = math.exp(-step * math.exp(A)) * state + step * np.outer(x[t, cols], B[t])
            y[t, cols] = state @ C[t] + D * x[t, cols]
    return y


@pytest.mark.parametrize("merge", ["mean", "sum", "concat"])
def test_block_is_its_formula(merge: str) -> None:
    """Check 9: a naive float64 evaluation; each direction is scanned from its own end."""
    block = make_block(merge=merge)
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    u = x[0].numpy() / np.sqrt((x[0].numpy() ** 2).mean(-1, keepdims=True) + 1e-5) * block.norm.weight.detach().numpy()
    p = u @ block.in_proj.weight.detach().numpy().T
    inner, heads = block.inner, block.heads
    z, x0, bc_f, dt_f, bc_b, dt_b = np.split(p, np.cumsum([inner, inner, 2 * STATE, heads, 2 * STATE]), axis=1)
    y_f = one_direction(block, x0, bc_f, dt_f, 0)
    y_b = one_direction(block, x0[::-1], bc_b[::-1], dt_b[::-1], 1)[::-1]
    y = {"mean": (y_f + y_b) / 2, "sum": y_f + y_b, "concat": np.concatenate([y_f, y_b], 1)}[merge]
    y = y * silu(np.concatenate([z, z], 1) if merge == "concat" else z)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * block.gated_norm.weight.detach().numpy()
    out = x[0].numpy() + y @ block.out_proj.weight.detach().numpy().T
    assert far(block(x)[0], torch.from_numpy(out)) <= 1e-12


def test_one_call_equals_two_separate_ones() -> None:
    """Check 9: heads of the two directions, stacked with one group per direction, do not meet."""
    torch.manual_seed(1)
    x, dt, A = torch.randn(2, 21, 8, 3).double(), torch.rand(2, 21, 8).double(), -torch.rand(8).double()
    B, C, D = torch.randn(2, 21, 2, 5).double(), torch.randn(2, 21, 2, 5).double(), torch.randn(8).double()
    both = ssd(x, dt, A, B, C, D, 8)
    for side in range(2):
        h, g = slice(4 * side, 4 * side + 4), slice(side, side + 1)
        one = ssd(x[:, :, h], dt[:, :, h], A[h], B[:, :, g], C[:, :, g], D[h], 8)
        assert far(both.y[:, :, h], one.y) <= 1e-12
        assert far(both.state[:, h], one.state) <= 1e-12


def swapped(block: BiMambaBlock) -> BiMambaBlock:
    """The block with the parameters of its two directions exchanged."""
    other = copy.deepcopy(block)
    with torch.no_grad():
        shared = 2 * block.inner
        own = block.in_proj.weight[shared:]
        other.in_proj.weight[shared:] = torch.cat(own.chunk(2)[::-1])
        for name in ("dt_bias", "A_log", "D"):
            getattr(other, name).copy_(torch.cat(getattr(block, name).chunk(2)[::-1]))
        other.conv1d.weight.copy_(torch.cat(block.conv1d.weight.chunk(2)[::-1]))
        assert block.conv1d.bias is not None
        assert other.conv1d.bias is not None
        other.conv1d.bias.copy_(torch.cat(block.conv1d.bias.chunk(2)[::-1]))
    return other


def test_reversed_input_with_swapped_directions_reverses_the_output() -> None:
    """Check 9; and without the swap it does not."""
    block = make_block(2)
    x = torch.randn(2, 17, WIDTH, dtype=torch.float64)
    assert far(swapped(block)(x.flip(1)), block(x).flip(1)) <= 1e-12
    assert far(block(x.flip(1)), block(x).flip(1)) > 1e-2


def test_padding_at_an_end_leaves_valid_outputs_unchanged() -> None:
    """Check 9: trailing and leading padding of any content."""
    block = make_block(3)
    x, waste = torch.randn(1, 13, WIDTH).double(), torch.randn(1, 6, WIDTH).double() * 5
    expected = block(x)
    ones, zeros = torch.ones(1, 13, dtype=torch.bool), torch.zeros(1, 6, dtype=torch.bool)
    trailing = block(torch.cat([x, waste], 1), torch.cat([ones, zeros], 1))
    leading = block(torch.cat([waste, x], 1), torch.cat([zeros, ones], 1))
    assert far(trailing[:, :13], expected) <= 1e-12
    assert far(leading[:, 6:], expected) <= 1e-12


def test_a_gap_is_closed_by_gathering_and_not_by_masking() -> None:
    block = make_block(4)
    x, keep = torch.randn(1, 20, WIDTH).double(), torch.ones(1, 20, dtype=torch.bool)
    keep[0, 7:11] = False
    expected = block(x[:, keep[0]])
    moved, mask, places = compact(x, keep)
    found = block(moved, mask).gather(1, places.unsqueeze(-1).expand_as(x))[:, keep[0]]
    assert far(found, expected) <= 1e-12
    assert far(block(x, keep)[:, keep[0]], expected) > 1e-2


def test_initialisation() -> None:
    torch.manual_seed(0)
    block = BiMambaBlock(64, depth=8)
    steps = torch.nn.functional.softplus(block.dt_bias)
    assert steps.min() >= 1e-3 * 0.99
    assert steps.max() <= 1e-1 * 1.01
    assert block.A_log.exp().min() >= 1
    assert block.A_log.exp().max() <= 16
    assert torch.equal(block.D, torch.ones_like(block.D))
    # nn.Linear starts uniform in +-1/sqrt(fan_in), here over sqrt(2 depth) = 4.
    assert float(block.out_proj.weight.detach().abs().max()) == pytest.approx(1 / math.sqrt(128) / 4, rel=0.02)


def test_scan_stays_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    block = BiMambaBlock(64)
    seen: list[torch.dtype] = []
    block.gated_norm.register_forward_hook(lambda _, args, __: seen.append(args[0].dtype))
    x = torch.randn(2, 40, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.float32
    assert far(y, block(x)) <= 0.05
    for name in ("dt_bias", "A_log", "D"):
        assert getattr(block, name).dtype == torch.float32


def order_of(order: ScanOrder, grid: int = 2, tiles: int = 2, **more: int) -> list[int]:
    layout = TokenLayout.ring([-180 + k * 360 / tiles for k in range(tiles)], grid, 90)
    (sequence,) = scan_sequences(stitch(layout, "concat"), order, per_view=False, **more)
    return [int(number) for number in sequence.numbers[sequence.emitted]]


def test_scan_orders_of_two_tiles() -> None:
    """Global view 0..3 row-major first; tiles are [[4, 5], [6, 7]] and [[8, 9], [10, 11]] side by side."""
    first = [0, 1, 2, 3]
    assert order_of("view") == [*first, 4, 5, 6, 7, 8, 9, 10, 11]
    assert order_of("sweep") == [*first, 4, 6, 5, 7, 8, 10, 9, 11]
    assert order_of("raster") == [*first, 4, 5, 8, 9, 6, 7, 10, 11]
    assert order_of("serpentine") == [*first, 4, 6, 7, 5, 8, 10, 11, 9]


def test_warm_up_repeats_columns_of_the_other_end() -> None:
    layout = TokenLayout.ring([-180, 0], 2, 90)
    (sequence,) = scan_sequences(stitch(layout, "concat"), "sweep", per_view=False, warmup_cols=1)
    assert sequence.numbers.tolist() == [0, 1, 2, 3, 9, 11, 4, 6, 5, 7, 8, 10, 9, 11, 4, 6]
    assert sequence.emitted.tolist() == [True] * 4 + [False] * 2 + [True] * 8 + [False] * 2
    with pytest.raises(ConfigError, match="scan_order raster"):
        scan_sequences(stitch(layout, "concat"), "raster", per_view=False, warmup_cols=1)
    with pytest.raises(ConfigError, match="the ring has 4 columns"):
        scan_sequences(stitch(layout, "concat"), "sweep", per_view=False, warmup_cols=5)


def make(layout: TokenLayout, **rules: object) -> BiMambaResampler:
    torch.manual_seed(0)
    made = make_resampler(
        Connection(layout, TokenRules(type="bimamba", **rules), 6, 8),  # type: ignore[arg-type]
        width=16,
        depth=2,
        head_dim=8,
        state=8,
        query_heads=2,
    )
    assert isinstance(made, BiMambaResampler)
    with torch.no_grad():  # short memory, so that a warm-up of a few columns can be enough
        for block in made.mamba.blocks:
            block.dt_bias.fill_(1.0)
            block.A_log.fill_(1.0)
    return made.double().eval()


def test_warm_up_makes_the_ring_nearly_cyclic() -> None:
    """Rolled by one tile, the outputs roll along: better with every column of warm-up."""
    layout = TokenLayout.ring([-180, -90, 0, 90], 4, 90, has_global=False)
    x = torch.randn(1, 4, 16, 6).double()
    dirs = torch.zeros(4, 16, 3).double()
    errors = []
    for warmup in (0, 1, 2, 4):
        model = make(layout, pool="none", circular_warmup_cols=warmup)
        y, rolled = (model(part, dirs).tokens.unflatten(1, (4, 16)) for part in (x, x.roll(1, 1)))
        errors.append(far(rolled, y.roll(1, 1)))
    assert errors[0] > 1e-2
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= 1e-12


@pytest.mark.parametrize("scope", ["panorama", "per_view"])
@pytest.mark.parametrize("stitching", ["concat", "dedupe"])
def test_an_invalid_view_is_as_if_it_were_not_there(scope: str, stitching: str) -> None:
    """Check 9: taken out before the scan, whatever stands in its features."""
    yaws = [-180.0, -90.0, 0.0, 90.0]
    x, valid = torch.randn(1, 5, 16, 6).double(), torch.tensor([[True, True, False, True, True]])
    x[0, 2] = float("nan")
    full = make(TokenLayout.ring(yaws, 4, 90), scope=scope, stitching=stitching, pool="none")
    found = full(x, torch.zeros(5, 16, 3).double(), valid)
    assert found.mask is not None
    assert found.tokens[~found.mask].eq(0).all()
    # The layout without that tile keeps all columns, as four tiles of 90 degrees do.
    less = make(TokenLayout.ring([-180.0, 0.0, 90.0], 4, 90), scope=scope, stitching="concat", pool="none")
    expected = less(x[:, valid[0]], torch.zeros(4, 16, 3).double()).tokens
    if stitching == "dedupe":  # read column by column there
        grids = expected.unflatten(1, (4, 4, 4))
        expected = torch.cat([grids[:, :1], grids[:, 1:].transpose(2, 3)], 1).flatten(1, 3)
    assert far(found.tokens[found.mask][None], expected) <= 1e-12
