"""Stages `resampler` and `finetune` of panorama_vlm without overlap against overlap 0.5, with features that are kept or
computed, with all tokens or without those seen twice; and the tower alone on five and nine views.

Run: `python benchmarks/bench_panorama_stages.py --rounds 5`. One thread, random weights of a middle size, one step of
every contestant in turn. Expected: five views take 0.45 to 0.70 of the tower's time of nine (linear is 0.56), a step
with kept features is at least 1.3 times faster than one without. What the sizes predict stands below each table.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import print_table, side_by_side

from stageline.contract import Workspace
from stageline.data.prepared import PreparedData
from stageline.families import load_family, parse_config
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, STAGES, PanoramaVlmConfig
from stageline.families.panorama_vlm.config.architectures import LanguageShape, VisionShape
from stageline.families.panorama_vlm.cost import cost_of
from stageline.families.panorama_vlm.data.made import DIRECTIONS
from stageline.families.panorama_vlm.data.tokenizer import save_tokenizer
from stageline.families.panorama_vlm.model.assembly import tiny_tokenizer
from stageline.families.panorama_vlm.model.language import build_language, language_config
from stageline.families.panorama_vlm.model.tower import build_tower, tower_config
from stageline.objectives.step import StepContext
from stageline.stage import stage_config
from stageline.store import open_store
from stageline.verbs.prepare import prepare_data

VISION = VisionShape(hidden_size=192, intermediate_size=768, num_layers=6, num_heads=3, patch_size=16, image_size=128)
"""64 tokens per view."""
LANGUAGE = {
    "hidden_size": 192,
    "intermediate_size": 576,
    "num_layers": 4,
    "num_heads": 3,
    "num_kv_heads": 1,
    "head_dim": 64,
}
PLANS = {
    "overlap 0.5": (),
    "overlap 0.5, dedupe": ("image_processing.stitching_mode=dedupe",),
    "overlap 0": ("image_processing.overlap_ratio=0",),
}
ROOMS = 4
BATCH = 2
"""Questions of a step, each about a panorama of its own."""
TOWER, CACHED = (0.45, 0.70), 1.3
"""Aims: the tower's time of five views over that of nine; speed-up of a step by kept features."""


def write_models(folder: Path) -> None:
    """A tower and a language model with random weights, as folders of the hub."""
    build_tower(tower_config(VISION, "siglip")).save_pretrained(str(folder / "vision"))
    tokenizer = tiny_tokenizer()
    shape = LanguageShape(**LANGUAGE, vocab_size=len(tokenizer))
    build_language(language_config(shape), "sdpa").save_pretrained(str(folder / "language"))
    save_tokenizer(tokenizer, folder / "language")


def config_of(folder: Path, *overrides: str) -> PanoramaVlmConfig:
    """Made-up rooms and the models of a folder."""
    plain = {
        "family": "panorama_vlm",
        "root": str(folder),
        "run": "bench",
        "model": {
            "vision_name": str(folder / "vision"),
            "language_model_name": str(folder / "language"),
            "resampler_type": "bimamba",
            "resampler_config": {"width": 128, "depth": 2, "head_dim": 32, "state": 32, "chunk_size": 32},
        },
        "lora": {"rank": 16, "alpha": 32},
        "data": {"name": "rooms", "num_train": ROOMS, "num_val": 1, "num_test": 1},
        "text": {"max_text_length": 64},
        "trainer": {"accelerator": "cpu", "precision": "32-true"},
    }
    config = parse_config(plain, list(overrides))
    assert isinstance(config, PanoramaVlmConfig)
    return config


def steps_of(config: PanoramaVlmConfig, stage: str, data: PreparedData) -> Callable[[], object]:
    """One optimizer step of a stage, each time on the next batch."""
    family, declared = load_family("panorama_vlm"), STAGES[stage]
    own = stage_config(config, declared)
    task: Any = family.build_task(own, declared, data)
    family.load_externals(own, declared, task.model)
    trains = FAMILY_CONFIG.trains(own, declared)
    for name, parameter in task.model.named_parameters():
        parameter.requires_grad_(trains.matches(name))
    optimizer = torch.optim.AdamW([p for p in task.model.parameters() if p.requires_grad], lr=1e-4)
    family.begin(task, Workspace(open_store(config.root), {}, 0, 1))
    task.set_train_mode(task.model)
    task.model.vision.eval()
    context = StepContext(step=0, progress=0.0, rng=torch.Generator())
    items = [item for item in task.batch_items(0) if item[1] % len(DIRECTIONS) == 0]  # one question of each panorama
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    place = iter(range(10**9))

    def step() -> None:
        batch = task.collate([task.train_set[item] for item in batches[next(place) % len(batches)]])
        loss = task.loss(task.model, batch, context)
        (loss.sum / loss.weight).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in batches:  # what is kept is there afterwards
        step()
    task.set_train_mode(task.model)
    task.model.vision.eval()
    return step


def tower_of(config: PanoramaVlmConfig) -> Callable[[], object]:
    """A forward pass of the frozen tower on the views of one panorama."""
    vision: Any = load_family("panorama_vlm").build_model(
        stage_config(config, STAGES["resampler"]), STAGES["resampler"]
    )
    size = config.tile_size
    views = torch.rand(1, config.image_processing.plan.num_views, 3, size, size)

    @torch.no_grad()
    def encode() -> object:
        return vision.eval().encode(views)

    return encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder)
        plans = {plan: config_of(folder, *keys) for plan, keys in PLANS.items()}
        data = PreparedData(prepare_data(plans["overlap 0.5"]))
        towers = side_by_side({plan: tower_of(plans[plan]) for plan in ("overlap 0.5", "overlap 0")}, rounds)
        print_table("tower, the views of one panorama", towers, reference="overlap 0.5")
        ratio = towers["overlap 0"] / towers["overlap 0.5"]
        print(f"  five views against nine: {ratio:.2f}, the aim is {TOWER[0]} to {TOWER[1]}")
        for stage in ("resampler", "finetune"):
            contestants, expected = {}, {}
            for plan, config in plans.items():
                for kept in (False, True):
                    label = f"{plan}, {config.image_tokens} tokens{', kept features' if kept else ''}"
                    contestants[label] = steps_of(
                        config_of(folder, *PLANS[plan], f"runtime.cache_vision_features={kept}"), stage, data
                    )
                    expected[label] = cost_of(config).training(cached=kept)
            seconds = side_by_side(contestants, rounds)
            first, kept_label = list(seconds)[:2]
            title = f"stage {stage}, a step of {BATCH} panoramas with a question each, median of {rounds}"
            predicted = ", ".join(f"{value / expected[first]:.2f}" for value in expected.values())
            print_table(title, seconds, reference=first, note=f"predicted from the sizes: {predicted}")
            speed = seconds[first] / seconds[kept_label]
            print(f"  kept features: {speed:.2f} times faster, the aim is {CACHED:g}", flush=True)


if __name__ == "__main__":
    main()
