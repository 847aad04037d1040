"""panorama_vlm on a real cluster: a stage of two pods, its parent and the weights of others in an object store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stageline.checkpoint.layout import StageDir, resolve
from stageline.checkpoint.tensors import read_tensors
from stageline.checkpoint.verify import verify
from stageline.config import to_yaml
from stageline.families import parse_config
from stageline.families.panorama_vlm.base_weights import write_language, write_tower
from stageline.plan import make_plan
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

Kubectl = Any
VISION = "vision/anyres-e2p_mlp"
RESAMPLER = "resampler/anyres-e2p_bimamba"


def small(root: str, base: Path) -> dict[str, Any]:
    """Tiny weights in folders, made-up rooms, two steps."""
    return {
        "family": "panorama_vlm",
        "root": root,
        "model": {"vision_name": str(base / "vision"), "language_model_name": str(base / "language")},
        "vicreg": {"projector_width": 64},
        "data": {"name": "rooms", "num_train": 4, "num_val": 2, "num_test": 2},
        "text": {"max_text_length": 64},
        "trainer": {
            **{"accelerator": "cpu", "precision": "32-true", "tensorboard": False, "use_ema": False},
            **{"max_steps": 2, "batch_size": 2, "accumulate_grad_batches": 1},
            "process_group_timeout_seconds": 60,
        },
    }


@pytest.fixture
def variables(bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """How this process reaches the bucket."""
    own = {
        "AWS_ACCESS_KEY_ID": bucket["access_key"],
        "AWS_SECRET_ACCESS_KEY": bucket["secret_key"],
        "AWS_ENDPOINT_URL_S3": bucket["endpoint"],
        "AWS_REGION": bucket["region"],
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    return own


def test_a_stage_without_overlap_starts_from_a_vision_stage_in_the_store(
    kubeconfig: str,
    kubectl: Kubectl,
    namespace: str,
    bucket: dict[str, str],
    variables: dict[str, str],
    trainer_image: str,
    tmp_path: Path,
) -> None:
    """Check 17: `vision` of an MLP run, trained here; BiMamba without overlap in two pods that see no file of ours."""
    base = tmp_path / "base"
    write_tower(base / "vision")
    write_language(base / "language", lambda *_: None, steps=0)
    root = f"s3://{bucket['bucket']}/panorama"
    shared = small(root, base)
    with_overlap = parse_config(
        {**shared, "run": "with-overlap", "model": {**shared["model"], "resampler_type": "mlp"}}
    )
    data = str(prepare_data(with_overlap).reference)
    train_stage(with_overlap, "vision", data=data)
    vision = resolve(f"{root}/runs/with-overlap/{VISION}")

    sizes = {"width": 64, "depth": 2, "head_dim": 16, "state": 16, "chunk_size": 32}
    s3 = {"endpoint": bucket["endpoint"], "region": bucket["region"], "secret": "s3"}
    own = {
        **shared,
        "run": "overlap-0",
        "stages": ["resampler"],
        "model": {**shared["model"], "resampler_type": "bimamba", "resampler_config": sizes},
        "image_processing": {"overlap_ratio": 0.0},
        "parents": {"resampler": {"default": f"runs/with-overlap/{VISION}"}},
        "trainer": {**shared["trainer"], "nodes": 2},
        "cluster": {
            **{"namespace": namespace, "image": trainer_image, "service_account": "default"},
            "storage": {"s3": s3},
        },
    }
    config = parse_config(own)
    prepare_data(config)
    shutil.rmtree(base)
    planned = [section.to_json() for section in make_plan(config)["resampler"].sections["default"]]
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))  # with the sizes that stood in the folders
    keys = {name: value for name, value in variables.items() if name.endswith("KEY_ID") or name.endswith("ACCESS_KEY")}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}, "stringData": keys}
    kubectl("-n", namespace, "create", "-f", "-", text=json.dumps(secret))
    done = subprocess.run(
        [sys.executable, "-m", "stageline", "job", "submit", "resampler", "--follow", "-c", str(path)],
        env={**os.environ, "KUBECONFIG": kubeconfig},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    made = StageDir(root, "overlap-0", RESAMPLER).newest()
    assert made is not None
    assert verify(made) == []
    metadata = made.metadata
    assert (metadata.final, metadata.step, metadata.environment["ranks"]) == (True, 2, 2)
    assert metadata.environment["host"].startswith("overlap-0-resampler")
    assert metadata.parents["default"].content == vision.content
    assert metadata.parents["default"].sections == planned
    assert len(metadata.externals) == 2
    before, after = read_tensors(vision, "raw"), read_tensors(made, "raw")
    tower = [name for name in before if name.startswith("vision.")]
    assert tower
    assert all(torch.equal(before[name], after[name]) for name in tower)
