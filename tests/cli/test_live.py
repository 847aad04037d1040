"""What a run shows: one bar per step on a terminal, plain lines elsewhere, and nothing that no person reads."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from stageline.cli.live import RunView, shortened
from stageline.plan import Plan
from stageline.work.record import Item

DIGEST = "a" * 64
PLAN = Plan(
    "film_flow",
    "demo",
    "runs/demo",
    (
        Item("prepare_data", "prepare_data", "run"),
        Item("backbone", "stage", "not selected"),
        Item("film", "stage", "run", steps=40),
    ),
)
EVENTS = [
    {"item": "prepare_data", "state": "reused", "text": f"runs/x@sha256:{DIGEST}", "seconds": 0.25},
    {"item": "film", "state": "running", "text": "training 40 steps", "seconds": 0.0},
    {"item": "film", "line": "film: step 10/40  loss 1.25  0:00:30 left"},
    {"item": "film", "line": "film: warning: [bold] is no markup here, in 1/2 of all cases"},
    {"item": "film", "line": f"/data/runs/demo/film/checkpoints/step-00000040@sha256:{DIGEST}"},
    {"item": "film", "state": "done", "text": "40 steps", "seconds": 12.0},
]


def shown(terminal: bool, events: list[dict[str, object]] = EVENTS) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=140, color_system=None, legacy_windows=False)
    with RunView(console) as view:
        view.plan(PLAN)
        for event in events:
            view.event(event)
            if view._progress is not None:
                view._progress.refresh()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_elsewhere_than_on_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(terminal=False).splitlines()
    assert lines == [
        "prepare_data: reused: runs/x@sha256:aaaaaaaaaaaa  (0.2 s)",
        "film: running: training 40 steps",
        "  film | step 10/40  loss 1.25  0:00:30 left",
        "  film | warning: [bold] is no markup here, in 1/2 of all cases",
        "film: done: 40 steps  (12.0 s)",
    ]
    assert "plan of run demo" in capsys.readouterr().out


def test_on_a_terminal_every_selected_step_has_a_row_and_the_running_one_a_bar() -> None:
    text = shown(terminal=True)
    assert re.search(r"film\s+\S+\s+10/40", text)
    assert "loss 1.25  0:00:30 left" in text
    last = [line for line in text.splitlines() if line.startswith(("film ", "prepare_data ", "backbone "))][-2:]
    assert [line.split()[0] for line in last] == ["prepare_data", "film"]
    assert re.search(r"40/40\s.*done: 40 steps", last[1])
    assert "warning: [bold] is no markup here, in 1/2 of all cases" in text
    assert DIGEST not in text


def test_a_bar_that_was_under_way_stays_where_it_stopped() -> None:
    stopped = [*EVENTS[:3], {"item": "film", "state": "failed", "text": "the loss is not finite", "seconds": 1.0}]
    last = [line for line in shown(terminal=True, events=stopped).splitlines() if line.startswith("film ")][-1]
    assert re.search(r"10/40\s.*failed: the loss is not finite", last)


def test_the_terminal_is_given_back_on_an_error() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False)

    def interrupted() -> None:
        with RunView(console) as view:
            view.plan(PLAN)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a@sha256:{DIGEST} b@sha256:{DIGEST}", "a@sha256:aaaaaaaaaaaa b@sha256:aaaaaaaaaaaa"),
        (f"digest {DIGEST}", f"digest {DIGEST}"),
        ("nothing", "nothing"),
    ],
)
def test_references_are_shortened(text: str, expected: str) -> None:
    assert shortened(text) == expected


@pytest.mark.parametrize("terminal", [False, True])
def test_of_a_failure_of_several_lines_the_first_says_that_it_failed(terminal: bool) -> None:
    failed = {"item": "film", "state": "failed", "text": "scenes: 2 faults\n  - one\n  - two", "seconds": 1.0}
    text = shown(terminal=terminal, events=[*EVENTS[:3], failed])
    assert "failed: scenes: 2 faults" in text
    assert r"\n" not in text
    assert "- one" not in text
