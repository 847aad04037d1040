"""Ranks started together: one of them prepares, the others get what it found, or learn that it failed or died."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from guards import HANG_SECONDS
from PIL import Image

RANK = """
import json, sys
from stageline.errors import StagelineError
from stageline.families import parse_config
from stageline.verbs import one_preparer
from stageline.verbs import prepare
one_preparer.SILENT_SECONDS = float(sys.argv[2])
one_preparer.RENEW_SECONDS = 0.2
raw = json.loads(sys.argv[1])
hashed = prepare.hash_sources
def noted(*args):
    print("hashed", flush=True)
    if len(sys.argv) > 3:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return hashed(*args)
prepare.hash_sources = noted
try:
    made = prepare.prepare_data(parse_config(raw))
except StagelineError as error:
    print(type(error).__name__, error)
    raise SystemExit(error.exit_code)
print(made.reference)
"""


def start(raw: dict[str, Any], rank: int, silent: float = 60, *more: str) -> subprocess.Popen[str]:
    ranks = {"RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "MASTER_PORT": "1"}
    words = [sys.executable, "-c", RANK, json.dumps(raw), str(silent), *more]
    return subprocess.Popen(words, env={**os.environ, **ranks}, stdout=subprocess.PIPE, text=True)


def ends(*ranks: subprocess.Popen[str]) -> list[tuple[int, list[str]]]:
    outputs = [rank.communicate(timeout=HANG_SECONDS)[0].splitlines() for rank in ranks]
    return [(rank.returncode, lines) for rank, lines in zip(ranks, outputs, strict=True)]


def small(root: Path) -> dict[str, Any]:
    data = {"num_train": 2, "num_val": 1, "image_size": 32}
    return {"family": "film_flow", "root": str(root), "model": {"image_size": 32}, "data": data}


def test_rank_0_prepares_and_the_others_wait_for_it(tmp_path: Path) -> None:
    other = start(small(tmp_path), 1)
    first = start(small(tmp_path), 0)
    (code, lines), (other_code, other_lines) = ends(first, other)
    assert (code, other_code) == (0, 0)
    assert lines[0] == "hashed"
    assert other_lines == lines[1:], "the same reference, and no source file was read for it"
    (note,) = (tmp_path / "cache" / "prepared" / "preparing").iterdir()
    assert json.loads(note.read_text())["reference"] == lines[1]


def test_the_others_end_where_rank_0_fails_or_dies(tmp_path: Path) -> None:
    bad = tmp_path / "bad" / "train" / "image"
    bad.mkdir(parents=True)
    Image.new("L", (40, 40)).save(bad / "a.png")
    raw = small(tmp_path / "one") | {"data": {"name": "folder", "train_dir": str(bad.parent), "val_dir": str(bad)}}
    raw["model"] |= {"vlm_film_config": {"prompt_template": "x"}}
    raw["data"] |= {"image_size": 32}
    (code, _), (other_code, other_lines) = ends(start(raw, 0), start(raw, 1))
    assert (code, other_code) == (3, 138)
    assert "rank 0 could not prepare the data" in other_lines[0]

    (code, _), (other_code, other_lines) = ends(
        start(small(tmp_path / "two"), 0, 60, "die"), start(small(tmp_path / "two"), 1, 3)
    )
    assert (code, other_code) == (-9, 138)
    assert "has been silent for 3 seconds" in other_lines[0]
