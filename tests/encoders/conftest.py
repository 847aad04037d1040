"""Folders of other people's weights, and roots on disk, in memory and on S3."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from served_bucket import served_bucket

from stageline.store import Store, open_store

KEY_ID, SECRET, BUCKET = "AKIATESTKEYID00000001", "very/secret+key0000000000000000000000001", "stageline-test"


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub cache and a folder for what pods fetch, of this test alone; never the network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "pod").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "pod"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder: config, weights, and files that do not matter."""
    return write_folder(tmp_path / "model")


def write_folder(path: Path, value: float = 0.5) -> Path:
    """A folder with one tensor of this value."""
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "tiny"}')
    (path / "README.md").write_text("not a part of the model")
    save_file({"row": torch.full((4,), value)}, path / "model.safetensors")
    return path


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A mock S3 with one bucket; never leaves this machine."""
    with served_bucket(BUCKET, KEY_ID, SECRET) as endpoint:
        yield endpoint


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty root of each kind."""
    if request.param == "disk":
        return open_store(tmp_path / "root")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_endpoint"))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return open_store(f"s3://{BUCKET}/{uuid.uuid4().hex}")
