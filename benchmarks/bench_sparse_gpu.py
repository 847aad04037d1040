"""The dual backbone of sparse_structure at public size on one CUDA device: time, streams, shortcuts, training.

Run: `python benchmarks/bench_sparse_gpu.py --json FILE`; four minutes at most (`--seconds`). It needs CUDA: without it
says so and ends with code 2; `--tiny` runs everything at a small size, on a CPU too. Random weights, bfloat16 blocks,
24 per-object and 4 scene blocks, 4096 voxels and 7528 condition tokens per object. It needs torch and nothing else.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sparse_networks import PUBLIC, TINY, Sizes, build_dual, kept_bytes, make_inputs, train_step
from torch.nn.attention import SDPBackend, sdpa_kernel

NEEDS = "this benchmark needs a CUDA device, and torch sees none; nothing was measured (`--tiny` runs on a CPU)"
OBJECTS = (1, 4, 9)
TRAINED = (9, 6, 4, 2)
"""Objects of a training step with both branches: the largest number that fits is taken."""
MARGIN = 3
"""Rounds that do not count."""


class Bench:
    """One device, what it measured, and how long it may go on."""

    def __init__(self, sizes: Sizes, device: torch.device, seconds: float) -> None:
        self.sizes, self.device, self.end = sizes, device, time.monotonic() + seconds
        self.rows: list[dict[str, Any]] = []
        self.is_cuda = device.type == "cuda"

    def milliseconds(self, call: Callable[[], object], rounds: int = 7) -> float:
        """Median of calls, by the device's own clock."""
        for _ in range(MARGIN):
            call()
        taken = []
        for _ in range(rounds):
            if self.is_cuda:
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                stop.record()
                stop.synchronize()
                taken.append(start.elapsed_time(stop))
            else:
                begun = time.perf_counter()
                call()
                taken.append(1000 * (time.perf_counter() - begun))
            if time.monotonic() > self.end:
                break
        return sorted(taken)[len(taken) // 2]

    def note(self, what: str, **values: Any) -> None:
        """Keep a row, and show it."""
        self.rows.append({"what": what, **values})
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        print(f"  {what:<44} {shown}", flush=True)

    def is_over(self, what: str) -> bool:
        """Whether the time is up; says what is left out then."""
        over = time.monotonic() > self.end
        if over:
            self.note(what, left_out="the time is up")
        return over

    def forget_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gibibytes(self) -> float:
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.is_cuda else 0.0


def measure_peak(bench: Bench, side: int) -> float:
    """Operations per second of a square matrix product in bfloat16."""
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2.0 * side**3 / bench.milliseconds(lambda: a @ b, rounds=20) * 1000
    bench.note("matrix product, bfloat16", side=side, tflops=rate / 1e12)
    return rate


@torch.no_grad()
def measure_streams(bench: Bench, dual: Any, rate: float) -> None:
    """Both branches one after the other and on two streams: equal to the last bit, and their times."""
    for objects in OBJECTS:
        if bench.is_over(f"streams, N={objects}"):
            return
        latents, condition = make_inputs(bench.sizes, objects, bench.device, torch.bfloat16)
        outs, taken = {}, {}
        for parallel in ("none", "streams"):
            dual.parallel = parallel
            outs[parallel] = dual(latents, 500.0, condition, d=250.0)
            taken[parallel] = bench.milliseconds(lambda x=latents, c=condition: dual(x, 500.0, c, d=250.0))
        dual.parallel = "none"
        equal = all(torch.equal(x, outs["streams"][name]) for name, x in outs["none"].items())
        operations = sum(bench.sizes.operations(objects, shortcuts=True))
        bench.note(
            f"dual forward, N={objects}",
            sequential_ms=taken["none"],
            streams_ms=taken["streams"],
            gain=taken["none"] / taken["streams"],
            bit_equal=equal,
            tflops=operations / taken["none"] / 1e9,
            share_of_peak=operations / taken["none"] * 1000 / rate,
        )


@torch.no_grad()
def measure_ways(bench: Bench, dual: Any, rate: float) -> None:
    """One evaluation of the most objects: the plain way, the exact shortcuts, kept keys, the unconditional pass."""
    objects = OBJECTS[-1]
    if bench.is_over("ways of one evaluation"):
        return
    latents, condition = make_inputs(bench.sizes, objects, bench.device, torch.bfloat16)
    bench.forget_peak()
    reference = 0.0
    for what, shortcuts, given in (
        ("plain", False, {}),
        ("exact shortcuts", True, {}),
        ("shortcuts, condition shared", True, {"shared": True}),
        ("shortcuts, keys kept", True, {"kept": True}),
        ("shortcuts, unconditional", True, {"cfg": True}),
    ):
        for branch in (dual.sparse_flow, dual.global_sparse_flow):
            branch.exact_shortcuts = shortcuts
        used = condition[:1] if given.pop("shared", False) else condition
        used = dual.prepare_condition(used) if given.pop("kept", False) else used
        taken = bench.milliseconds(lambda c=used, g=given: dual(latents, 500.0, c, d=250.0, **g))
        reference = reference or taken
        values = {"ms": taken, "of_plain": taken / reference}
        if what in ("plain", "exact shortcuts"):
            sparse, scene = bench.sizes.operations(objects, shortcuts=shortcuts)
            values |= {
                "tflop_sparse": sparse / 1e12,
                "tflop_scene": scene / 1e12,
                "tflops": (sparse + scene) / taken / 1e9,
                "share_of_peak": (sparse + scene) / taken * 1000 / rate,
            }
        bench.note(f"{what}, N={objects}", **values, peak_gib=bench.peak_gibibytes())


@torch.no_grad()
def measure_flash(bench: Bench, dual: Any) -> None:
    """Whether every attention of both branches runs in the flash kernel: torch refuses if one can not."""
    latents, condition = make_inputs(bench.sizes, 2, bench.device, torch.bfloat16)
    for shortcuts in (True, False):
        for branch in (dual.sparse_flow, dual.global_sparse_flow):
            branch.exact_shortcuts = shortcuts
        verdict = "all"
        try:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                dual(latents, 500.0, condition, d=250.0)
        except RuntimeError as error:
            verdict = f"not all: {str(error).splitlines()[0]}"
        bench.note(f"flash attention, shortcuts {'on' if shortcuts else 'off'}", used=verdict)
    for branch in (dual.sparse_flow, dual.global_sparse_flow):
        branch.exact_shortcuts = True


def measure_training(bench: Bench, dual: Any) -> None:
    """A step with the per-object branch frozen, and with gradients of both; as many objects as fit."""
    for objects in TRAINED:
        if bench.is_over(f"training, N={objects}"):
            return
        latents, condition = make_inputs(bench.sizes, objects, bench.device, torch.bfloat16)
        step = train_step(dual, latents, condition)
        values: dict[str, Any] = {}
        try:
            for what in ("frozen", "both"):
                dual.sparse_flow.requires_grad_(what == "both")
                bench.forget_peak()
                kept = kept_bytes(partial(dual, latents, 500.0, condition, d=250.0), dual, condition)
                values |= {f"{what}_ms": bench.milliseconds(step, rounds=5), f"{what}_kept_gib": kept / 2**30}
                values[f"{what}_peak_gib"] = bench.peak_gibibytes()
            scene = dual.global_sparse_flow
            alone = kept_bytes(partial(scene, latents, 500.0, condition, d=250.0), scene, condition)
        except torch.OutOfMemoryError:
            bench.note(f"training, N={objects}", **values, both="does not fit")
            dual.zero_grad(set_to_none=True)
            del step
            gc.collect()  # the failed step's graph goes round in circles and would leave no room for the next
            torch.cuda.empty_cache()
            continue
        values["both_over_frozen"] = values["both_ms"] / values["frozen_ms"]
        values["frozen_kept_of_scene_alone"] = values["frozen_kept_gib"] * 2**30 / alone
        bench.note(f"training, N={objects}", **values)
        return


@torch.no_grad()
def measure_compiled(bench: Bench, dual: Any) -> None:
    """The forward pass of the most objects with compiled blocks; compiling is told apart."""
    objects = OBJECTS[-1]
    if bench.is_over("compiled blocks"):
        return
    latents, condition = make_inputs(bench.sizes, objects, bench.device, torch.bfloat16)
    plain = dual(latents, 500.0, condition, d=250.0)
    before = bench.milliseconds(lambda: dual(latents, 500.0, condition, d=250.0))
    for block in (*dual.sparse_flow.blocks, *dual.global_sparse_flow.blocks):
        block.compile()
    begun = time.monotonic()
    out = dual(latents, 500.0, condition, d=250.0)
    far = max(float((out[name] - x).abs().max() / x.abs().max()) for name, x in plain.items())
    seconds = time.monotonic() - begun
    after = bench.milliseconds(lambda: dual(latents, 500.0, condition, d=250.0))
    bench.note(
        f"compiled blocks, N={objects}",
        eager_ms=before,
        compiled_ms=after,
        gain=before / after,
        compile_seconds=seconds,
        relative_difference=far,
    )


def main() -> int:
    """Measure; returns 2 where there is no CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    parser.add_argument("--seconds", type=float, default=200.0, help="no measurement begins after them")
    parser.add_argument("--compile", action="store_true", help="measure compiled blocks too, last: a minute more")
    parser.add_argument("--tiny", action="store_true", help="a small size, on the CPU where there is no CUDA device")
    given = parser.parse_args()
    if not torch.cuda.is_available() and not given.tiny:
        print(NEEDS, file=sys.stderr)
        return 2
    begun = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    bench = Bench(TINY if given.tiny else PUBLIC, device, given.seconds)
    name = torch.cuda.get_device_name() if bench.is_cuda else "CPU"
    print(f"{name}, torch {torch.__version__}; {bench.sizes}")
    rate = measure_peak(bench, 256 if given.tiny else 8192)
    dual = build_dual(bench.sizes, device, torso_dtype="bfloat16")
    bench.note("dual backbone", parameters=sum(p.numel() for p in dual.parameters()), seconds=time.monotonic() - begun)
    measure_flash(bench, dual)
    measure_streams(bench, dual, rate)
    measure_ways(bench, dual, rate)
    measure_training(bench, dual)
    bench.note("all", seconds=time.monotonic() - begun)

    def write() -> None:
        if given.json is not None:
            figures = {"device": name, "torch": torch.__version__, "sizes": vars(bench.sizes), "rows": bench.rows}
            given.json.write_text(json.dumps(figures, indent=1) + "\n")

    write()
    if given.compile:
        measure_compiled(bench, dual)
        write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
