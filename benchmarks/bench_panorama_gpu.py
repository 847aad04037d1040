"""panorama_vlm at real size on one CUDA device, with random weights: time and memory of steps against what the device
could do, and mamba-ssm's Triton scan beside chunks in torch.

Run: `python benchmarks/bench_panorama_gpu.py`; six minutes at most (`--seconds`). mamba-ssm's kernels tune themselves
for half a minute at each length, so scans come last. It needs CUDA: without it says so and ends with code 2.
SigLIP2-so400m/256, Qwen3-0.6B, BiMamba, in bfloat16. The roofline is the operations that the sizes come to, at the rate
of a large matrix product that is measured in the same run: what is shown is the share of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stageline.families import load_family, parse_config, raw_preset
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, STAGES, PanoramaVlmConfig
from stageline.families.panorama_vlm.cost import RESPONSE_TOKENS, TEXT_TOKENS, cost_of
from stageline.families.panorama_vlm.data.text import TextBatch, response_loss
from stageline.families.panorama_vlm.scan import ssd
from stageline.families.panorama_vlm.scan.dispatch import triton_scan
from stageline.stage import stage_config

SIZES = "google/siglip2-so400m-patch16-256, Qwen/Qwen3-0.6B, bimamba"
OVERLAPS = (0.5, 0.0)
LENGTHS = (320, 576, 1280, 2304)
SCAN = {"heads": 64, "head_dim": 64, "state": 64, "groups": 2}
"""Both directions of the default block, stacked on the head axis."""
CLOSE = {torch.bfloat16: 2e-2, torch.float32: 5e-3}
"""Largest difference of both paths, relative to the largest output; Triton's products of float32 are made in TF32."""
IMAGE_ID = 1
NEEDS = "this benchmark needs a CUDA device, and torch sees none; nothing was measured"


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Clock:
    """Median seconds of calls on a device, as long as there is time left."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.end = device, time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.end

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def median(self, call: Callable[[], object], rounds: int = 10, warm: int = 3) -> float:
        """Seconds of one call, after some that do not count."""
        for _ in range(warm):
            call()
        taken = []
        for _ in range(rounds):
            start = self._now()
            call()
            taken.append(self._now() - start)
            if self.is_over:
                break
        return sorted(taken)[len(taken) // 2]


def peak_rate(clock: Clock, side: int = 8192) -> float:
    """Operations per second of a square matrix product in bfloat16."""
    a, b = (torch.randn(side, side, device=clock.device, dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * side**3 / clock.median(lambda: a @ b, rounds=20)


def config_of(overlap: float, *overrides: str) -> PanoramaVlmConfig:
    raw = {**raw_preset("panorama_vlm", "base"), "data": {"name": "rooms"}}
    config = parse_config(raw, [f"image_processing.overlap_ratio={overlap}", "run=gpu", *overrides])
    assert isinstance(config, PanoramaVlmConfig)
    return config


def text_batch(num_tokens: int, batch: int, device: torch.device) -> TextBatch:
    """Prompts with image tokens, and responses of `RESPONSE_TOKENS` to be predicted; ids are made up."""
    length = num_tokens + TEXT_TOKENS
    ids = torch.randint(2, 500, (batch, length), device=device)
    ids[:, 8 : 8 + num_tokens] = IMAGE_ID
    labels = torch.full_like(ids, -100)
    labels[:, -RESPONSE_TOKENS:] = ids[:, -RESPONSE_TOKENS:]
    positions = torch.arange(length, device=device).expand(batch, -1)
    return TextBatch(ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, labels=labels)


def build_step(
    config: PanoramaVlmConfig, stage: str, batch: int, device: torch.device, *, kept: bool
) -> Callable[[], object]:
    """One optimizer step of a stage. kept: the tower's features are there already."""
    own, declared = stage_config(config, STAGES[stage]), STAGES[stage]
    with device:
        model: Any = load_family("panorama_vlm").build_model(own, declared)
    trains = FAMILY_CONFIG.trains(own, declared)
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains.matches(name))
        if parameter.requires_grad:
            trained.append(parameter)
        else:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.to(device).train()
    model.vision.eval()
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    count, size = config.image_processing.plan.num_views, config.tile_size
    views = torch.rand(batch, count, 3, size, size, device=device)
    text = text_batch(model.resampler.num_tokens, batch, device)

    @torch.no_grad()
    def encode() -> Tensor:
        return torch.cat([model.encode(views[number : number + 1]) for number in range(batch)])

    features = encode() if kept else None

    def step() -> None:
        seen = encode() if features is None else features
        with torch.autocast(device.type, torch.bfloat16):
            tokens = model.image_tokens(seen.float()).tokens
            total, labels = response_loss(model.hidden(tokens, text, IMAGE_ID), model.lm_head, text.labels)
        (total / labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def show_steps(clock: Clock, batch: int, rate: float) -> None:
    """Step time, peak memory and share of the roofline of both stages, with nine views and five."""
    print(f"\n{SIZES}; a step of {batch} panoramas with {TEXT_TOKENS} tokens of text each")
    for stage in ("resampler", "finetune"):
        for overlap in OVERLAPS:
            config = config_of(overlap)
            for kept in (False, True):
                label = f"{stage}, overlap {overlap:g}{', kept features' if kept else ''}"
                if clock.is_over:
                    print(f"  {label:<42} not measured: the time is up")
                    continue
                if clock.device.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(clock.device)
                step = build_step(config, stage, batch, clock.device, kept=kept)
                seconds = clock.median(step)
                peak = torch.cuda.max_memory_allocated(clock.device) / 2**30 if clock.device.type == "cuda" else 0.0
                ideal = batch * cost_of(config).training(cached=kept) / rate
                share = f"{ideal / seconds:4.0%} of the roofline ({1000 * ideal:.1f} ms)"
                print(f"  {label:<42} {1000 * seconds:8.1f} ms  {peak:6.1f} GiB  {share}", flush=True)
                del step


def scan_inputs(length: int, device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """x, dt, A, B, C of one panorama, and D."""
    rng = torch.Generator().manual_seed(0)
    heads, groups = SCAN["heads"], SCAN["groups"]
    sizes = ((heads, SCAN["head_dim"]), (groups, SCAN["state"]), (groups, SCAN["state"]))
    x, b, c = (torch.randn(1, length, *size, generator=rng).to(device, dtype) for size in sizes)
    steps = torch.nn.functional.softplus(torch.randn(1, length, heads, generator=rng) - 4).to(device)
    decay = -torch.empty(heads).uniform_(1, 16, generator=rng).to(device)
    return [x, steps, decay, b, c], torch.ones(heads, device=device)


def show_scans(clock: Clock, dtypes: Sequence[torch.dtype], lengths: Sequence[int]) -> None:
    """Triton beside torch, forward and backward: time, and how far the results are apart."""
    why = triton_scan()[1]
    print("\nscan of both directions, one panorama, forward and backward")
    if why:
        print(f"  Triton is not measured: {why}")
    for dtype in dtypes:
        for length in lengths:
            if clock.is_over:
                print("  the rest is not measured: the time is up")
                return
            inputs, skip = scan_inputs(length, clock.device, dtype)
            inputs[0].requires_grad_()

            def run(backend: Any, given: list[Tensor], last: Tensor) -> Tensor:
                y = ssd(*given, D=last, chunk_size=128, backend=backend).y
                (given[0].grad,) = torch.autograd.grad(y.float().square().sum(), given[0])
                return y.detach().float()

            chunks = clock.median(partial(run, "torch", inputs, skip))
            line = f"  {named(dtype):<9}{length:6d} tokens  torch {1000 * chunks:8.2f} ms"
            if not why:
                kernels = clock.median(partial(run, "triton", inputs, skip))
                found, expected = run("triton", inputs, skip), run("torch", inputs, skip)
                apart = float((found - expected).abs().max() / expected.abs().max())
                verdict = "agree" if apart <= CLOSE[dtype] else "DIFFER"
                line += (
                    f"  Triton {1000 * kernels:8.2f} ms, {chunks / kernels:.1f} times faster; {verdict} ({apart:.1e})"
                )
            print(line, flush=True)


def main() -> int:
    """Measure; returns 2 where there is no CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4, help="panoramas of a step")
    parser.add_argument("--seconds", type=float, default=330.0, help="no measurement begins after them")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a scan")
    parser.add_argument(
        "--dtypes", nargs="+", default=[named(dtype) for dtype in CLOSE], choices=[named(dtype) for dtype in CLOSE]
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(NEEDS, file=sys.stderr)
        return 2
    torch.manual_seed(0)
    clock = Clock(torch.device("cuda"), arguments.seconds)
    rate = peak_rate(clock)
    print(f"{torch.cuda.get_device_name()}: {rate / 1e12:.0f} TFLOP/s in a matrix product of bfloat16")
    show_steps(clock, arguments.batch, rate)
    show_scans(clock, [dtype for dtype in CLOSE if named(dtype) in arguments.dtypes], arguments.lengths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
