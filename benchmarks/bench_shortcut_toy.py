"""One step against many, on eight Gaussians: flow matching, shortcut steps of objects, and of scenes.

Run: `nice -n 19 python benchmarks/bench_shortcut_toy.py`, about five minutes on one core; it rewrites
benchmarks/results/shortcut_toy.json, from which docs/sparse_structure.md has its table (`--table` prints it and trains
nothing). Data: a circle of radius 1.5, spread 0.1. Every variant: the same network, 6000 updates of 512 points, Adam
1e-3 with a cosine, averaged weights 0.995, two seeds. Distance: sliced Wasserstein-2 of 4096 samples; hit: share of
them within 0.3 of a centre; both are means of four sets. Expected with one step: at most 0.15 for objects, 0.20 for
scenes, above 0.9 for flow matching.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stageline.families.sparse_structure.shortcut import FlowMatching, ShortCut

RESULT = Path(__file__).parent / "results" / "shortcut_toy.json"
RECIPE: dict[str, Any] = {"t_d_sampling": "grid", "anchor_smallest_step": True, "fm_eps_max": 1 / 128}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "flow matching": None,
    "ShortCut, objects": RECIPE,
    "ShortCut, scenes": {**RECIPE, "batch_mode": True},
}
STEPS = (1, 4, 128)
MODES, RADIUS, SPREAD = 8, 1.5, 0.1
UPDATES, BATCH, RATE, AVERAGE = 6000, 512, 1e-3, 0.995
NUM_SAMPLES, NUM_DIRECTIONS, NEAR, REPEATS = 4096, 256, 0.3, 4

ANGLES = 2 * math.pi * torch.arange(MODES) / MODES
CENTRES = RADIUS * torch.stack([torch.cos(ANGLES), torch.sin(ANGLES)], dim=1)


class ToyNetwork(nn.Module):
    """Velocity of points (N, 1, 2) from x, t and d: sinusoids of both, three residual layers of width 128."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("waves", math.pi * 2.0 ** torch.arange(6))
        self.enter = nn.Linear(2 + 24, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor, d: Tensor | None = None) -> Tensor:
        """x: (N, 1, 2).  t, d: (N,) or (1,), thousandths; no d is 0."""
        step = torch.zeros_like(t) if d is None else d
        angles = torch.cat([t[:, None] * self.waves, step[:, None] * self.waves], dim=1) / 1000
        clock = torch.cat([angles.cos(), angles.sin()], dim=1).expand(len(x), -1)
        hidden = self.enter(torch.cat([x[:, 0], clock], dim=1))
        for layer in self.layers:
            hidden = hidden + layer(nn.functional.silu(hidden))
        return self.leave(nn.functional.silu(hidden))[:, None]


def draw_data(num: int, rng: torch.Generator) -> Tensor:
    """Points (num, 1, 2) of the eight Gaussians."""
    chosen = torch.randint(MODES, (num,), generator=rng)
    return (CENTRES[chosen] + SPREAD * torch.randn(num, 2, generator=rng))[:, None]


def train(settings: dict[str, Any] | None, seed: int, updates: int = UPDATES) -> FlowMatching:
    """A model with averaged weights; settings of ShortCut, None is flow matching."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ToyNetwork()
    average = copy.deepcopy(network)
    if settings is None:
        model = FlowMatching(network, seed_or_generator=seed)
    else:
        model = ShortCut(network, seed_or_generator=seed, **settings)
    rng = torch.Generator().manual_seed(1000 + seed)
    weights, averaged = list(network.parameters()), list(average.parameters())
    optimizer = torch.optim.Adam(weights, lr=RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        loss, _ = model.loss(draw_data(BATCH, rng))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, weights, 1 - AVERAGE)
    model.reverse_fn = average
    return model


def sliced_distance(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein-2 of two sets of as many points (n, 1, 2)."""
    angles = math.pi * torch.arange(NUM_DIRECTIONS) / NUM_DIRECTIONS
    directions = torch.stack([torch.cos(angles), torch.sin(angles)])
    first, second = (torch.sort(points[:, 0] @ directions, dim=0).values for points in (a, b))
    return float(((first - second) ** 2).mean().sqrt())


def measure(samples: Tensor, rng: torch.Generator) -> dict[str, float]:
    """Distance to fresh data and hit rate."""
    nearest = torch.cdist(samples[:, 0], CENTRES).min(dim=1).values
    truth = draw_data(len(samples), rng)
    return {"distance": sliced_distance(samples, truth), "hit": float((nearest < NEAR).float().mean())}


def mean_of(draws: list[dict[str, float]]) -> dict[str, float]:
    """Mean of what was measured."""
    return {name: sum(draw[name] for draw in draws) / len(draws) for name in draws[0]}


def measure_model(model: FlowMatching, seed: int) -> dict[str, dict[str, float]]:
    """Both, by number of steps, as means over a few sets of samples; every model starts from the same noise."""
    found = {}
    for steps in STEPS:
        rng = torch.Generator().manual_seed(3000 + seed)
        draws = [measure(model.generate((NUM_SAMPLES, 1, 2), "cpu", steps=steps, rng=rng), rng) for _ in range(REPEATS)]
        found[str(steps)] = mean_of(draws)
    return found


def table(results: dict[str, Any]) -> str:
    """The docs' table: mean over the seeds."""
    lines = ["| | 1 step | 4 steps | 128 steps |", "|---|---|---|---|"]
    for name, seeds in results["variants"].items():
        cells = []
        for steps in STEPS:
            values = [seed[str(steps)] for seed in seeds.values()]
            distance, hit = (
                " / ".join(f"{value[key]:.{n}f}" for value in values) for key, n in (("distance", 3), ("hit", 2))
            )
            cells.append(f"{distance}; hit {hit}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    floor = results["floor"]
    return "\n".join([*lines, f"| data against data | {floor['distance']:.3f}; hit {floor['hit']:.2f} | | |"])


def main() -> None:
    """Train every variant with two seeds and keep what was measured."""
    if "--table" in sys.argv:
        print(table(json.loads(RESULT.read_text(encoding="utf-8"))))
        return
    torch.set_num_threads(1)
    variants: dict[str, Any] = {}
    for name, settings in VARIANTS.items():
        for seed in (0, 1):
            start = time.perf_counter()
            variants.setdefault(name, {})[str(seed)] = measure_model(train(settings, seed), seed)
            print(f"{name}, seed {seed}: {time.perf_counter() - start:.0f} s  {variants[name][str(seed)]}", flush=True)
    rng = torch.Generator().manual_seed(4000)
    floor = mean_of([measure(draw_data(NUM_SAMPLES, rng), rng) for _ in range(16)])
    results = {"floor": floor, "variants": variants}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
