"""Roots for runs on each kind of store; S3 is served by moto on loopback."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from served_bucket import served_bucket

from stageline.checkpoint.layout import StageDir
from stageline.store import Store, open_store

BUCKET = "stageline-checkpoints"


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is room: what is tested here is order and content, and fsync takes its time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < 2**30:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="stageline-test-", dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    with served_bucket(BUCKET, "AKIATEST", "secret") as endpoint:
        yield endpoint


@pytest.fixture(params=["disk", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A root for runs on each kind of store."""
    if request.param == "disk":
        return open_store(tmp_path / "root")
    if request.param == "memory":
        return open_store(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_endpoint"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return open_store(f"s3://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture
def directory(tmp_path: Path) -> StageDir:
    """A stage directory on local disk."""
    return StageDir(str(tmp_path / "root"), "a", "film")
