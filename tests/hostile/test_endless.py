"""What never ends, or begins again and again: lines, folders in folders, events, answers that drip."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from stageline.jobs.processes import bounded_lines
from stageline.jobs.step_lines import MARK
from stageline.kube import responses
from stageline.printing import LONGEST_LINE
from stageline.telemetry import parse_events


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
    monkeypatch.setattr(responses, "LONGEST_LINE", 100_000)
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
