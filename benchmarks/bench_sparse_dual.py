"""The dual backbone of sparse_structure on the CPU: frozen against trained, the exact shortcuts' gain, more objects.

Run: `python benchmarks/bench_sparse_dual.py --json FILE`. Blocks 24 : 4 and a condition 1.8 times as long as the shape,
as at public size, at a small width; contestants are interleaved, on one thread, in seconds of the process itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import print_table, side_by_side
from sparse_networks import PUBLIC, Sizes, arguments, build_dual, kept_bytes, load_networks, make_inputs, train_step

SMALL = Sizes(width=128, heads=4, side=6, condition_tokens=397, sparse_blocks=24, scene_blocks=4)
OBJECTS = 9
GROWTH = (1, 2, 4, 9)
CPU = torch.device("cpu")


def frozen_or_both(rounds: int) -> dict[str, Any]:
    """A training step with the per-object branch frozen, and with gradients of both; bytes kept for backward."""
    latents, condition = make_inputs(SMALL, OBJECTS, CPU, torch.float32)
    duals = {what: build_dual(SMALL, CPU) for what in ("both", "frozen")}
    duals["frozen"].freeze_sparse()
    steps = {what: train_step(dual, latents, condition) for what, dual in duals.items()}
    seconds = side_by_side(steps, rounds, time.process_time)
    print_table(f"training step, {OBJECTS} objects, blocks 24 : 4", seconds, reference="both")
    kept = {w: kept_bytes(partial(d, latents, 500.0, condition, d=250.0), d, condition) for w, d in duals.items()}
    branch = duals["frozen"].global_sparse_flow
    scene = kept_bytes(partial(branch, latents, 500.0, condition, d=250.0), branch, condition)
    ratio = {"both_over_frozen": seconds["both"] / seconds["frozen"], "frozen_kept_of_scene": kept["frozen"] / scene}
    print(
        f"  both / frozen {ratio['both_over_frozen']:.2f}; kept bytes of frozen / of the scene's branch alone "
        f"{ratio['frozen_kept_of_scene']:.3f}, of both {kept['both'] / scene:.1f}"
    )
    return {"seconds": seconds, "kept_bytes": {**kept, "scene": scene}, **ratio}


@torch.no_grad()
def shortcut_gains(rounds: int) -> dict[str, float]:
    """One evaluation, the plain way and with each of the exact shortcuts."""
    latents, condition = make_inputs(SMALL, OBJECTS, CPU, torch.float32)
    plain, short = build_dual(SMALL, CPU, exact_shortcuts=False), build_dual(SMALL, CPU)
    prepared = short.prepare_condition(condition)
    calls: dict[str, Callable[[], object]] = {
        "plain": partial(plain, latents, 500.0, condition),
        "pose absorbed": partial(short, latents, 500.0, condition),
        "and keys kept": partial(short, latents, 500.0, prepared),
        "and condition shared": partial(short, latents, 500.0, condition[:1]),
        "unconditional, plain": partial(plain, latents, 500.0, condition, cfg=True),
        "unconditional, closed form": partial(short, latents, 500.0, condition, cfg=True),
    }
    seconds = side_by_side(calls, rounds, time.process_time)
    print_table(f"one evaluation, {OBJECTS} objects", seconds, reference="plain")
    return seconds


@torch.no_grad()
def growth(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of the scene's branch by objects and attention, and of the per-object branch."""
    duals = {
        mode: build_dual(SMALL, CPU, scene={"scene_attention": mode, "pool": 2}) for mode in ("full", "pose", "pooled")
    }
    found: dict[str, dict[str, float]] = {}
    for objects in GROWTH:
        latents, condition = make_inputs(SMALL, objects, CPU, torch.float32)
        calls = {mode: partial(dual.global_sparse_flow, latents, 500.0, condition) for mode, dual in duals.items()}
        calls["per object"] = partial(duals["full"].sparse_flow, latents, 500.0, condition)
        found[str(objects)] = side_by_side(calls, rounds, time.process_time)
        print_table(f"one evaluation, {objects} objects", found[str(objects)], reference="per object")
    return found


def public_size() -> dict[str, float]:
    """Host memory and seconds of building the dual backbone at public size, in float32 on the CPU."""
    networks = load_networks()
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    dual = networks.DualBackboneSparseStructureFlowTdfyWrapper(
        arguments(PUBLIC, PUBLIC.sparse_blocks), arguments(PUBLIC, PUBLIC.scene_blocks)
    )
    found = {
        "tensors_gib": sum(x.nbytes for x in dual.state_dict().values()) / 2**30,
        "peak_growth_gib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20,
        "seconds": time.process_time() - begun,
    }
    print(f"\npublic size, built: {', '.join(f'{name} {value:.2f}' for name, value in found.items())}")
    return found


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--public", action="store_true", help="also build the public size, in 5 GiB of memory")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures: dict[str, Any] = {"public": public_size()} if given.public else {}
    figures |= {
        "sizes": vars(SMALL),
        "objects": OBJECTS,
        "training": frozen_or_both(given.rounds),
        "evaluation_seconds": shortcut_gains(given.rounds),
        "growth_seconds": growth(given.rounds),
    }
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
