"""The tiny profile of panorama_vlm: how long the whole way takes, and whether any resampler learns eight rows by heart.

Run: `python benchmarks/bench_panorama_tiny.py`, `--only way` or `--only rows` for one of both. The whole way is three
stages of BiMamba with overlap 0.5, the last two again without overlap from the same vision checkpoint, both evaluations
and their comparison, as commands. Expected: at most 120 s on two cores. Eight rows: stage `resampler` takes the loss to
at most 0.7 of its start, `finetune` below 0.3, and all eight answers are right and end by themselves.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from stageline.checkpoint.layout import StageDir
from stageline.config import RunConfig
from stageline.data.tables import csv_rows
from stageline.families import parse_config, raw_preset
from stageline.families.panorama_vlm.data.made import write_made
from stageline.telemetry import read_events
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

STAGELINE = Path(sys.executable).parent / "stageline"
AIM_SECONDS, AIM_RATIO, AIM_LOSS = 120.0, 0.7, 0.3
ROWS = 8
CASES = (("mlp", 0.5), ("qformer", 0.5), ("perceiver", 0.5), ("bimamba", 0.5), ("bimamba", 0.0))
FLAGS = ("--family", "panorama_vlm", "--preset", "tiny", "model.resampler_type=bimamba")
WAY: dict[str, tuple[str, ...]] = {
    "three stages, 9 views": ("run", *FLAGS, "run=half"),
    "two stages, 5 views": (
        *("run", *FLAGS, "run=none", "image_processing.overlap_ratio=0"),
        "parents.resampler.default=runs/half/vision/anyres-e2p_bimamba/best.ckpt",
    ),
    "comparison": ("compare", "runs/half", "runs/none"),
}
LENGTHS = {
    "resampler": {"trainer.max_steps": 60},
    "finetune": {"trainer.max_steps": 200, "trainer.learning_rate": 5e-3},
}
BY_HEART = (
    *("trainer.batch_size=8", "trainer.log_every_steps=1", "trainer.weight_decay=0", "trainer.tensorboard=false"),
    *("trainer.accelerator=cpu", "lora.dropout=0", "evaluate.num_panels=0", "stages=[resampler,finetune]"),
    *("model.resampler_learning_rate_scale=1", f"stage_overrides={json.dumps(LENGTHS)}"),
    "lora.target_modules=[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]",
)


def time_way() -> None:
    """Run every command of the whole way and print what it took."""
    print("\nthe whole way of the tiny profile, BiMamba, whole processes")
    total = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, words in WAY.items():
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            command = [str(STAGELINE), *words]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            total += wall
            print(f"  {name:<22} {wall:7.1f} s  {cpu:7.1f} CPU s", flush=True)
    verdict = "within" if total <= AIM_SECONDS else "beyond"
    print(f"  {'together':<22} {total:7.1f} s, {verdict} the aim of {AIM_SECONDS:g} s on two cores")


def config_of(root: Path, rows: str, kind: str, overlap: float) -> RunConfig:
    """Eight rows to train, to validate and to be asked."""
    raw: dict[str, Any] = raw_preset("panorama_vlm", "tiny")
    raw["data"] = {"name": "csv", "csv_train": [rows], "csv_val": [rows], "csv_test": [rows]}
    keys = (f"root={root}", f"run={kind}-{overlap}", f"model.resampler_type={kind}")
    return parse_config(raw, [*BY_HEART, *keys, f"image_processing.overlap_ratio={overlap}"])


def learn_rows(root: Path, rows: str, kind: str, overlap: float) -> None:
    """Train a resampler and then adapters on the rows; print what they came to."""
    config, start = config_of(root, rows, kind, overlap), time.perf_counter()
    data = str(prepare_data(config).reference)
    losses = {}
    for stage in ("resampler", "finetune"):
        reference = str(train_stage(config, stage, data=data).reference)
        place = StageDir(config.root, config.run, stage, f"anyres-e2p_{kind}")
        losses[stage] = [event["loss"] for event in read_events(place.store) if event["event"] == "step"]
    found = evaluate_checkpoint(config, reference, data)
    seconds = time.perf_counter() - start
    (table,) = Path(root, "runs", config.run).rglob("predictions.csv")
    ended = sum(row["finish"] == "eos" for row in csv_rows(table.read_text(encoding="utf-8")))
    ratio, last = mean(losses["resampler"][-10:]) / mean(losses["resampler"][:5]), losses["finetune"][-1]
    right = round((found.metrics["exact_match"] or 0.0) * ROWS)
    good = ratio <= AIM_RATIO and last < AIM_LOSS and right == ended == ROWS
    print(
        f"  {kind:<10} {9 if overlap else 5} views  loss to {ratio:.2f} of its start, then {last:.3f}  "
        f"{right} of {ROWS} right, {ended} ended  {seconds:5.0f} s  {'as expected' if good else 'NOT as expected'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("way", "rows"), help="one of both")
    only = parser.parse_args().only
    if only != "rows":
        time_way()
    if only != "way":
        torch.set_num_threads(1)
        print(f"\n{ROWS} rows by heart: 60 steps of stage resampler, 200 of finetune")
        with tempfile.TemporaryDirectory() as folder:
            files = write_made(Path(folder, "rooms"), counts={"train": 2, "val": 1, "test": 1}, suffix=".png")
            for kind, overlap in CASES:
                learn_rows(Path(folder, "root"), str(files["train"]), kind, overlap)


if __name__ == "__main__":
    main()
