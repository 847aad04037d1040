"""The Mamba-2 scan: chunks against the sequential loop and against transformers' torch path, and growth with length.

Run: `python benchmarks/bench_scan.py [heads]`, on one thread. Forward passes at the size of one direction of the
default BiMamba block: 32 heads of 64, state 64, one panorama. Expected: chunks at least 2 times faster than the loop
at 256 tokens, and 4 times the tokens in at most 8 times the time (linear is 4, quadratic 16).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["USE_HUB_KERNELS"] = "NO"

import torch
from measure import print_table, side_by_side
from torch import Tensor
from torch.nn import functional
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

from stageline.families.panorama_vlm.scan import ssd

HEAD_DIM, STATE, CHUNK = 64, 64, 32
LENGTHS = (256, 576, 1280, 2304)
FASTER, GROWTH = 2.0, 8.0


def make_inputs(length: int, heads: int) -> list[Tensor]:
    """x, dt, A, B, C, D of one panorama."""
    rng = torch.Generator().manual_seed(0)
    sizes = ((heads, HEAD_DIM), (1, STATE), (1, STATE))
    series = [torch.randn(1, length, num, size, generator=rng) for num, size in sizes]
    steps = functional.softplus(torch.randn(1, length, heads, generator=rng) - 4)
    decay = -torch.empty(heads).uniform_(1, 16, generator=rng)
    return [series[0], steps, decay, *series[1:], torch.ones(heads)]


def contestants(length: int, heads: int) -> dict[str, Callable[[], object]]:
    """Each path with the same inputs; they are checked to agree."""
    inputs = make_inputs(length, heads)
    calls: dict[str, Callable[[], object]] = {
        f"chunks of {chunk}": partial(ssd, *inputs, chunk, backend="torch") for chunk in (16, CHUNK, 64, 128)
    }
    calls["transformers, chunks of 32"] = partial(mamba2_chunk_scan, *inputs[:5], CHUNK, D=inputs[5])
    calls["sequential loop"] = partial(ssd, *inputs, backend="reference")
    expected = ssd(*inputs, backend="reference").y
    for name, call in calls.items():
        found = call()
        y = found if torch.is_tensor(found) else found.y  # type: ignore[attr-defined]
        assert float((y - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), name
    return calls


def main() -> None:
    """Print one table per length and the two ratios."""
    torch.set_num_threads(1)
    heads = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    own, loop, taken = f"chunks of {CHUNK}", "sequential loop", {}
    with torch.no_grad():
        for length in LENGTHS:
            seconds = side_by_side(contestants(length, heads), rounds=5)
            print_table(f"{length} tokens, {heads} heads, forward, median of 5", seconds, reference=own)
            taken[length] = seconds
        growth = side_by_side(
            {str(n): partial(ssd, *make_inputs(n, heads), CHUNK, backend="torch") for n in LENGTHS}, rounds=9
        )
    speed, ratio = taken[256][loop] / taken[256][own], growth["2304"] / growth["576"]
    print(f"\n256 tokens: {speed:.1f} times faster than the loop, the aim is {FASTER:g}")
    print(f"2304 against 576 tokens: {ratio:.1f} times the time, the aim is at most {GROWTH:g}")
    print(f"2304 against 256 tokens: {growth['2304'] / growth['256']:.1f} times the time for 9 times the tokens")


if __name__ == "__main__":
    main()
