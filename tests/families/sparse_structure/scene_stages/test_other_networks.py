"""Networks of other kinds than the presets': their stages train, and what comes of them is sampled."""

from __future__ import annotations

from pathlib import Path

from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.prepare import prepare_data

from .runs import small, trained


def test_plain_flow_matching_has_networks_that_are_told_no_step(tmp_path: Path) -> None:
    """`is_shortcut_model: false` for both branches, in every stage and in every mode of an evaluation."""
    told = ["objective.self_consistency_prob=0", "evaluate.steps=[1,2]", "evaluate.num_panels=0"]
    told += [f"model.{branch}.is_shortcut_model=false" for branch in ("sparse_flow", "global_sparse_flow")]
    config = small(tmp_path, *told, "trainer.max_steps=1")
    found = trained(config)
    assert not [name for name in found["global_flow"].metadata.trained if "d_embedder" in name]
    record = evaluate_checkpoint(config, str(found["global_flow"].uri), str(prepare_data(config).reference))
    assert None not in (record.metrics["iou"], record.metrics["iou_steps_1"], record.metrics["iou_sparse"])
