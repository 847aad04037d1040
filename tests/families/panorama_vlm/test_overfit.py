"""Check 21: eight questions about two rooms are learned by heart, and their answers end by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import small, trained

from stageline.checkpoint.layout import StageDir
from stageline.data.tables import csv_rows
from stageline.families.panorama_vlm.data.made import write_made
from stageline.telemetry import read_events
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.prepare import prepare_data

SETTINGS = (
    *("trainer.batch_size=8", "trainer.log_every_steps=1", "trainer.weight_decay=0", "generation.max_new_tokens=16"),
    *("model.resampler_learning_rate_scale=1", "lora.dropout=0", "evaluate.weights=raw", "stages=[resampler,finetune]"),
    "lora.target_modules=[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]",
)
STAGES = {"resampler": {"trainer.max_steps": 60}, "finetune": {"trainer.max_steps": 200, "trainer.learning_rate": 5e-3}}
CASES = [("mlp", 0.5), ("bimamba", 0.0)]
"""Types of resamplers with an overlap; the other types are a benchmark."""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "overlap"), CASES)
def test_eight_rows_are_learned_by_heart(tmp_path: Path, kind: str, overlap: float) -> None:
    """Check 21: the resampler alone takes the loss to 0.7 of its start, adapters below 0.3 and to 8 right answers of
    8, each of which ends with the end of the turn."""
    files = write_made(tmp_path / "rooms", counts={"train": 2, "val": 1, "test": 1}, suffix=".png")
    rows = str(files["train"])
    data = {"name": "csv", "csv_train": [rows], "csv_val": [rows], "csv_test": [rows]}
    keys = (f"model.resampler_type={kind}", f"image_processing.overlap_ratio={overlap}")
    config = small(tmp_path, *SETTINGS, *keys, f"stage_overrides={json.dumps(STAGES)}", data=data)
    refs = trained(config)

    def losses(stage: str) -> list[float]:
        left = StageDir(config.root, config.run, stage, f"anyres-e2p_{kind}")
        return [event["loss"] for event in read_events(left.store) if event["event"] == "step"]

    first = losses("resampler")
    assert len(first) == 60
    assert sum(first[-10:]) / 10 <= 0.7 * sum(first[:5]) / 5
    assert losses("finetune")[-1] < 0.3
    found = evaluate_checkpoint(config, str(refs["finetune"].uri), str(prepare_data(config).reference))
    assert found.plain["metrics"]["exact_match"] == 1.0
    answers = answered(found)
    assert len(answers) == 8
    assert [row["finish"] for row in answers] == ["eos"] * 8
    assert [row["prediction"] for row in answers] == [row["reference"] for row in answers]


def answered(evaluation: Any) -> list[dict[str, str]]:
    folder = Path(evaluation.reference.uri.removeprefix("file://"))
    return csv_rows(next(folder.rglob("predictions.csv")).read_text(encoding="utf-8"))
