"""Ranks started together: one of them prepares, the others get what it found, or learn that it failed or died."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from guards import HANG_SECONDS
from PIL import Image

from stageline.errors import StagelineError
from stageline.families import parse_config
from stageline.verbs import one_preparer, prepare

SILENT_SECONDS = 600.0


def rank(number: int, raw: dict[str, Any], silent: float = SILENT_SECONDS, *, dies: bool = False) -> int:
    """Start `prepare` as one of two ranks, in a process that is forked with all modules loaded; returns its id.

    silent: seconds after which rank 0 counts as dead.  dies: killed as soon as it reads a source file.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(RANK=str(number), WORLD_SIZE="2", TORCHELASTIC_RUN_ID="x", MASTER_ADDR="a", MASTER_PORT="1")
        one_preparer.SILENT_SECONDS = silent
        one_preparer.RENEW_SECONDS = one_preparer.POLL_SECONDS = 0.1
        lines: list[str] = []
        hash_sources = prepare.hash_sources

        def noted(*arguments: Any) -> Any:
            lines.append("hashed")
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return hash_sources(*arguments)

        prepare.hash_sources = noted
        try:
            lines.append(str(prepare.prepare_data(parse_config(raw)).reference))
            code = 0
        except StagelineError as error:
            lines.append(f"{type(error).__name__} {error}")
            code = error.exit_code
        said(raw, number).write_text("\n".join(lines))
    finally:
        os._exit(code)


def said(raw: dict[str, Any], number: int) -> Path:
    """Where a rank leaves its lines."""
    return Path(f"{raw['root']}-rank-{number}.txt")


def ends(raw: dict[str, Any], *pids: int) -> list[tuple[int, list[str]]]:
    """(exit code, lines) of each rank, once all have ended."""
    codes: dict[int, int] = {}
    end = time.monotonic() + HANG_SECONDS
    while len(codes) < len(pids):
        assert time.monotonic() < end, f"ended: {codes} of {pids}"
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    files = [said(raw, number) for number in range(len(pids))]
    return [
        (codes[pid], file.read_text().splitlines() if file.exists() else [])
        for pid, file in zip(pids, files, strict=True)
    ]


def small(root: Path) -> dict[str, Any]:
    data = {"num_train": 2, "num_val": 1, "image_size": 32}
    return {"family": "film_flow", "root": str(root), "model": {"image_size": 32}, "data": data}


def test_what_another_start_left_behind_makes_no_ranks() -> None:
    """Without an address nobody would ever come; `Ranks` then says what does not fit."""
    start = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "node-0"}
    assert one_preparer.has_peers(start)
    for name in start:
        assert not one_preparer.has_peers({key: value for key, value in start.items() if key != name})
    assert not one_preparer.has_peers({**start, "WORLD_SIZE": ""})


def test_rank_0_prepares_and_the_others_wait_for_it(tmp_path: Path) -> None:
    raw = small(tmp_path / "root")
    other = rank(1, raw)
    first = rank(0, raw)
    (code, lines), (other_code, other_lines) = ends(raw, first, other)
    assert (code, other_code) == (0, 0)
    assert lines[0] == "hashed"
    assert other_lines == lines[1:], "the same reference, and no source file was read for it"
    (note,) = (tmp_path / "root" / "cache" / "prepared" / "preparing").iterdir()
    assert json.loads(note.read_text())["reference"] == lines[1]


def test_the_others_end_where_rank_0_fails_or_dies(tmp_path: Path) -> None:
    bad = tmp_path / "bad" / "train" / "image"
    bad.mkdir(parents=True)
    Image.new("L", (40, 40)).save(bad / "a.png")
    raw = small(tmp_path / "one") | {"data": {"name": "folder", "train_dir": str(bad.parent), "val_dir": str(bad)}}
    raw["model"] |= {"vlm_film_config": {"prompt_template": "x"}}
    raw["data"] |= {"image_size": 32}
    (code, _), (other_code, other_lines) = ends(raw, rank(0, raw), rank(1, raw))
    assert (code, other_code) == (3, 138)
    assert "rank 0 could not prepare the data" in other_lines[0]

    raw = small(tmp_path / "two")
    (code, _), (other_code, other_lines) = ends(raw, rank(0, raw, dies=True), rank(1, raw, 2))
    assert (code, other_code) == (-9, 138)
    assert "has been silent for 2 seconds" in other_lines[0]
