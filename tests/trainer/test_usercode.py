"""The user's own files of a stage: executed before its task is built, part of what it depends on, kept with the run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stageline.checkpoint.layout import resolve


def test_a_stage_executes_keeps_and_depends_on_its_users_files(train: Callable[..., Any], tmp_path: Path) -> None:
    plain = train(**{"trainer.max_steps": 2})
    own = tmp_path / "own.py"
    own.write_text("SEEN = True\n")
    first = train(run="own", **{"trainer.max_steps": 2, "code": [str(own)]})
    metadata = resolve(str(first.reference)).metadata
    assert metadata.stage_fingerprint != resolve(str(plain.reference)).metadata.stage_fingerprint
    (digest,) = metadata.code.values()
    assert (tmp_path / "runs" / "own" / "code" / f"{digest}.py").read_bytes() == own.read_bytes()
    assert sys.modules[f"stageline_user_{digest[:16]}"].SEEN  # type: ignore[attr-defined]
    assert f"own.py@sha256:{digest}" in resolve(str(first.reference)).store.get("config.yaml").decode()

    moved = tmp_path / "moved" / "own.py"
    moved.parent.mkdir()
    own.rename(moved)
    assert train(run="own", **{"trainer.max_steps": 2, "code": [str(moved)]}).action == "reuse"
    kept = [f"own.py@sha256:{digest}"]
    assert train(run="own", **{"trainer.max_steps": 2, "code": kept}).action == "reuse"
    moved.write_text("SEEN = False\n")
    assert train(run="own", **{"trainer.max_steps": 2, "code": [str(moved)]}).action == "run"
