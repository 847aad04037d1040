"""Stores to test on: local disk, memory of this process, S3 served by moto on loopback."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from served_bucket import served_bucket

from stageline.store import Store, open_store, settings

KEY_ID, SECRET = "AKIATESTKEYID00000001", "very/secret+key0000000000000000000000001"
BUCKET = "stageline-test"


@pytest.fixture(autouse=True)
def _a_wrong_address_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "FIRST_SECONDS", 0.5)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A mock S3 with one bucket; never leaves this machine."""
    with served_bucket(BUCKET, KEY_ID, SECRET) as endpoint:
        yield endpoint


@pytest.fixture
def s3_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The usual variables, pointing at the mock."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return s3_endpoint


@pytest.fixture(params=["disk", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "disk":
        return open_store(tmp_path / "store")
    if request.param == "memory":
        return open_store(f"memory://{uuid.uuid4().hex}/inner")
    request.getfixturevalue("s3_environment")
    return open_store(f"s3://{BUCKET}/{uuid.uuid4().hex}")
