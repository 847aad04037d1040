"""How a step talks to whoever follows it: JSON lines behind a mark where somebody does, plain lines in a pod's log."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLLOWED_VARIABLE = "STAGELINE_FOLLOWED"
"""Environment variable: set by whoever reads marked JSON lines."""
DRIVER_VARIABLE = "STAGELINE_DRIVER_PID"
"""Environment variable: the process that runs the pipeline; when it dies, its steps end. Also marks what it started."""
MARK = "@stageline "


def event_text(event: Mapping[str, Any]) -> str:
    """An event as a plain line: `item | what its process printed` or `item: state: text`."""
    if "line" in event:
        return f"{event['item']} | {event['line']}"
    remedy = f"\n  -> {event['remedy']}" if event.get("remedy") else ""
    return f"{event['item']}: {event['state']}: {event['text']}{remedy}"


def print_event(event: Mapping[str, Any]) -> None:
    """Print {"item", "line"} or {"item", "state", "text", …} the way the reader wants it."""
    followed = os.environ.get(FOLLOWED_VARIABLE)
    text = MARK + json.dumps(event, ensure_ascii=False) if followed else event_text(event)
    try:
        print(text, flush=True)
    except (BrokenPipeError, ValueError):  # whoever followed is gone; the step ends by its own rules
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # lives as long as the process


def parse_event(line: str) -> dict[str, Any] | None:
    """The event behind the mark, or None for a line that is not ours."""
    text = line.strip()
    if not text.startswith(MARK):
        return None
    event: dict[str, Any] = json.loads(text[len(MARK) :])
    return event
