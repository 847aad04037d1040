"""Eight questions about two made rooms, learned by heart with each of the four resamplers, at both overlaps.

Run: `python benchmarks/bench_overfit.py [type ...]`, about two minutes on one thread for all. The resampler alone
trains for 60 steps, then adapters and resampler for 200. Expected: the mean loss of the resampler's last 10 steps at
most 0.7 of that of its first 5, a last loss of the adapters below 0.3, 8 of 8 answers right, each ended by the model.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from stageline.checkpoint.layout import StageDir
from stageline.data.tables import csv_rows
from stageline.families import parse_config, raw_preset
from stageline.families.panorama_vlm.config import PanoramaVlmConfig
from stageline.families.panorama_vlm.config.resamplers import TYPES
from stageline.families.panorama_vlm.data.made import write_made
from stageline.telemetry import read_events
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

OVERLAPS = {9: 0.5, 5: 0.0}
STEPS = {"resampler": {"trainer.max_steps": 60}, "finetune": {"trainer.max_steps": 200, "trainer.learning_rate": 5e-3}}
SETTINGS = (
    *("trainer.accelerator=cpu", "trainer.tensorboard=false", "trainer.batch_size=8", "trainer.log_every_steps=1"),
    *("trainer.weight_decay=0", "model.resampler_learning_rate_scale=1", "lora.dropout=0", "evaluate.weights=raw"),
    *("evaluate.num_panels=0", "stages=[resampler,finetune]", f"stage_overrides={json.dumps(STEPS)}"),
    "lora.target_modules=[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]",
)


def make_config(root: Path, kind: str, views: int, rows: str) -> PanoramaVlmConfig:
    """The config of one type: the same rows to train on, to validate with and to answer."""
    raw = raw_preset("panorama_vlm", "tiny")
    raw["data"] = {"name": "csv", "csv_train": [rows], "csv_val": [rows], "csv_test": [rows]}
    own = (f"root={root}", f"run={kind}-{views}", f"model.resampler_type={kind}")
    keys = [*SETTINGS, *own, f"image_processing.overlap_ratio={OVERLAPS[views]}"]
    return parse_config(raw, keys)


def learn(config: PanoramaVlmConfig) -> tuple[float, float, float, int, int]:
    """Mean loss of the resampler's first 5 and last 10 steps, last of the adapters; answers right, and ended."""
    data, uri = str(prepare_data(config).reference), ""
    losses: dict[str, list[float]] = {}
    for stage in STEPS:
        uri = str(train_stage(config, stage, data=data).reference)
        left = StageDir(config.root, config.run, stage, f"anyres-e2p_{config.model.resampler_type}")
        losses[stage] = [event["loss"] for event in read_events(left.store) if event["event"] == "step"]
    found = evaluate_checkpoint(config, uri, data)
    text = (Path(found.reference.uri.removeprefix("file://")) / "predictions.csv").read_text(encoding="utf-8")
    answers = csv_rows(text)
    right = sum(answer["prediction"] == answer["reference"] for answer in answers)
    ended = sum(answer["finish"] == "eos" for answer in answers)
    first = losses["resampler"]
    return sum(first[:5]) / 5, sum(first[-10:]) / 10, losses["finetune"][-1], right, ended


def main() -> None:
    """Print one line per type and number of views; exit code 1 where one misses what is expected."""
    torch.set_num_threads(1)
    kinds, missed = sys.argv[1:] or list(TYPES), []
    with tempfile.TemporaryDirectory(prefix="stageline-overfit-") as scratch:
        root = Path(scratch)
        rows = str(write_made(root / "rooms", counts={"train": 2, "val": 1, "test": 1}, suffix=".png")["train"])
        print("type       views  resampler first 5 -> last 10   finetune last  right  ended  seconds")
        for kind in kinds:
            for views in OVERLAPS:
                begin = time.monotonic()
                first, last, tuned, right, ended = learn(make_config(root, kind, views, rows))
                seconds = time.monotonic() - begin
                print(
                    f"{kind:<10} {views:>5}  {first:17.2f} -> {last:7.2f}   {tuned:13.3f}  {right}/8    {ended}/8  "
                    f"{seconds:7.1f}",
                    flush=True,
                )
                if last > 0.7 * first or tuned >= 0.3 or (right, ended) != (8, 8):
                    missed.append(f"{kind} with {views} views")
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
