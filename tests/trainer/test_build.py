"""Every checkpoint and every run say which image and which revision made them; what they are does not depend on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stageline
from stageline.build import find_build, write_build
from stageline.checkpoint.identity import read_run
from stageline.checkpoint.layout import resolve

DIGEST = "registry.example/stageline/trainer@sha256:" + "b" * 64


def test_checkpoint_and_run_record_the_image(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "build.json"
    write_build(file, revision="abc", image="stageline/trainer:0.1.0", base_image="b:1")
    monkeypatch.setenv("STAGELINE_BUILD", str(file))
    monkeypatch.setenv("STAGELINE_IMAGE", DIGEST)
    metadata = resolve(str(train(**{"trainer.max_steps": 2}).reference)).metadata
    assert metadata.image == DIGEST
    assert metadata.environment["build"] == {
        "version": stageline.__version__,
        "revision": "abc",
        "dirty": False,
        "image": DIGEST,
        "base_image": "b:1",
        "origin": "image",
    }
    record = read_run(str(tmp_path), "r")
    assert record is not None
    assert record.image == DIGEST


def test_another_build_is_not_another_run(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(**{"trainer.max_steps": 2})
    metadata = resolve(str(first.reference)).metadata
    assert metadata.image == ""
    assert metadata.environment["build"] == find_build().to_json()
    monkeypatch.setenv("STAGELINE_IMAGE", DIGEST)
    again = train(**{"trainer.max_steps": 2})
    assert (again.action, again.reference) == ("reuse", first.reference)
