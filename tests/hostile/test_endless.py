"""What never ends, or begins again and again: lines, folders in folders, events, answers that drip."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from stageline.errors import StoreError
from stageline.jobs.processes import bounded_lines
from stageline.jobs.step_lines import MARK
from stageline.kube import responses
from stageline.printing import LONGEST_LINE
from stageline.store import Store, open_store
from stageline.telemetry import parse_events
from stageline.verbs.report import build_report
from stageline.verbs.report.listing import list_runs

from ..report.run_directory import HandMade


class Endless:
    """An answer of a container that does not end its line. num: how many pieces it writes.  end: what comes then."""

    status = 200
    headers: Mapping[str, str] = {}

    def __init__(self, num: int, *, end: bytes = b"\nlast") -> None:
        self.num, self.end = num, end

    def stream(self, size: int, *, decode_content: bool) -> Iterator[bytes]:
        assert decode_content
        yield from [b"x" * size] * self.num
        yield self.end

    def shutdown(self) -> None: ...
    def close(self) -> None: ...


def test_a_line_of_a_pod_without_end_is_kept_as_far_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "MAX_LINE_BYTES", 100_000)
    assert list(map(len, responses.Response(Endless(40)).lines())) == [100_000, 4]
    assert list(map(len, responses.Response(Endless(40, end=b"x")).lines())) == [100_000]
    assert list(responses.Response(Endless(0, end=b"a\n\nb\n")).lines()) == [b"a", b"", b"b"]
    assert list(responses.Response(Endless(0, end=b"")).lines()) == []


def test_a_line_of_a_program_without_end_comes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("x" * 200_000 + "\n\nlast")
    with path.open() as output:
        lines = list(bounded_lines(output))
    assert "".join(lines) == "x" * 200_000 + "last"
    assert lines[-2:] == ["", "last"]
    assert max(map(len, lines)) <= LONGEST_LINE + 1
    path.write_text(f"{MARK}{'x' * (LONGEST_LINE - len(MARK))}\n")
    with path.open() as output:  # as long as a line of ours can be
        assert [len(line) for line in bounded_lines(output)] == [LONGEST_LINE]


def test_no_reader_of_lines_takes_them_as_long_as_they_come() -> None:
    """Whoever follows a program asks for its lines by `bounded_lines`, or with a limit."""
    source = Path(responses.__file__).parents[1]
    texts = {path.relative_to(source).as_posix(): path.read_text() for path in source.rglob("*.py")}
    following = {name for name, text in texts.items() if "stdout=subprocess.PIPE" in text}
    assert following == {"jobs/local.py", "pipeline/driver.py", "pod/program.py", "pod/rank.py"} | {
        name for name in following if name.startswith("families/")
    }
    assert [name for name in following if "bounded_lines(" not in texts[name] and "readline(L" not in texts[name]] == []


AGAIN = {
    "resumed": [{"event": "resumed"}],
    "validated": [{"event": "validation", "step": 1}, {"event": "warning"}],
    "backwards": [{"event": "step", "step": 5}, {"event": "resumed", "step": 4}],
}


@pytest.mark.parametrize("events", AGAIN.values(), ids=AGAIN)
def test_lines_that_make_others_void_cost_no_more_than_others(events: list[dict[str, object]]) -> None:
    """100,000 of them took minutes, ten times as many hours: a file of two megabytes."""
    block = "".join(json.dumps(event) + "\n" for event in events) * 50_000
    begin = time.process_time()
    parse_events([block])
    assert time.process_time() - begin < 30


def test_events_are_void_as_before() -> None:
    told = [
        {"event": "step", "step": 1},
        {"event": "validation", "step": 1, "n": 1},
        {"event": "step", "step": 2},
        {"event": "validation", "step": 1, "n": 2},
        {"event": "step", "step": 3},
        {"event": "resumed", "step": 2},
        {"event": "warning"},
        {"event": "step", "step": 3, "n": 2},
        {"event": "resumed", "step": 1},
        {"event": "validation", "step": 2},
        {"event": "finished", "step": None},
    ]
    found = parse_events("".join(json.dumps(event) + "\n" for event in told[at : at + 4]) for at in range(0, 12, 4))
    assert found == [told[0], told[3], told[6], told[8], told[9], told[10]]
    assert parse_events(["".join(json.dumps(event) + "\n" for event in told[:6])[:-1]]) == [
        told[0],
        told[2],
        told[3],
        told[4],
    ]


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Store]:
    """A root with a run, and with another that holds thousands of folders in each other."""
    HandMade(open_store(tmp_path).child("runs", "good")).claim()
    HandMade(open_store(tmp_path).child("runs", "deep")).claim()
    for folder in ("runs/deep", "runs/deep/evaluations", "runs/empty"):
        (tmp_path / folder).mkdir(exist_ok=True)
        handle = os.open(tmp_path / folder, os.O_DIRECTORY)
        for _ in range(1500):
            os.mkdir("d", dir_fd=handle)
            inner = os.open("d", os.O_DIRECTORY, dir_fd=handle)
            os.close(handle)
            handle = inner
        os.close(handle)
    yield open_store(tmp_path)
    subprocess.run(["rm", "-rf", str(tmp_path / "runs")], check=True)


def test_folders_in_folders_without_end_are_told(deep: Store) -> None:
    for action in (lambda: deep.list("runs"), lambda: deep.delete_tree("runs/deep"), lambda: deep.list()):
        with pytest.raises(StoreError, match="MAX_LEVELS"):
            action()
    assert deep.folders("runs") == ["deep", "empty", "good"]
    assert [run.run for run in list_runs(deep)] == ["deep", "empty", "good"]
    assert "MAX_LEVELS" in Path(build_report(deep.child("runs", "deep").uri)).read_text()
