"""How a step talks to whoever follows it: JSON lines behind a mark where somebody does, plain lines in a pod's log."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stageline.config.bounds import read_json
from stageline.printing import one_line, quoted_block, remedy_lines, say

FOLLOWED_VARIABLE = "STAGELINE_FOLLOWED"
"""Environment variable: set by whoever reads marked JSON lines."""
DRIVER_VARIABLE = "STAGELINE_DRIVER_PID"
"""Environment variable: the process that runs the pipeline; when it dies, its steps end. Also marks what it started."""
MARK = "@stageline "
STATES = frozenset({"planned", "running", "reused", "done", "skipped", "stopped", "failed"})


def event_lines(event: Mapping[str, Any]) -> list[str]:
    """An event as plain lines: `item | what its process printed` or `item: state: text`, and what to do."""
    if "line" in event:
        return [one_line(f"{event['item']} | {event['line']}")]
    told = quoted_block(f"{event['item']}: {event['state']}: {event['text']}")
    return [*told, *remedy_lines(event.get("remedy", ""))]


def print_event(event: Mapping[str, Any]) -> None:
    """Print {"item", "line"} or {"item", "state", "text", …} the way the reader wants it."""
    followed = os.environ.get(FOLLOWED_VARIABLE)
    lines = [MARK + json.dumps(event)] if followed else event_lines(event)
    try:
        say(*lines)
    except (BrokenPipeError, ValueError):  # whoever followed is gone; the step ends by its own rules
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # lives as long as the process


def parse_event(line: str) -> dict[str, Any] | None:
    """The event behind the mark, or None for a line that is not ours: of another form, whatever its mark says."""
    text = line.strip()
    if not text.startswith(MARK):
        return None
    try:
        event = read_json(text[len(MARK) :])
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("item"), str):
        return None
    if "line" in event:
        return event if isinstance(event["line"], str) else None
    texts = all(isinstance(event.get(name, ""), str) for name in ("state", "text", "remedy", "reference"))
    seconds = event.get("seconds")
    is_whole = {"state", "text"} <= set(event) and event["state"] in STATES and type(seconds) in (int, float)
    return event if texts and is_whole else None
