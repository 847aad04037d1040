"""Running checks at the same time, each for a limited one: what hangs becomes a line instead of a wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from stageline.doctor.line import Check, Line, line_of_error, unknown
from stageline.errors import StagelineError
from stageline.telemetry import redact


def run_checks(checks: Sequence[Check], seconds: float) -> list[Line]:
    """The line of every check, in their order; one that takes longer than `seconds` is unknown."""
    lines: dict[str, Line] = {}
    threads = [threading.Thread(target=_run, args=(check, lines), daemon=True) for check in checks]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    late = [
        unknown(check.name, f"no answer within {seconds:.0f} s", "look again with --seconds 30") for check in checks
    ]
    return [lines.get(check.name, waited) for check, waited in zip(checks, late, strict=True)]


def _run(check: Check, lines: dict[str, Line]) -> None:
    try:
        line = check.call()
    except StagelineError as error:
        line = line_of_error(check.name, error)
    except Exception as error:  # noqa: BLE001  # one check that fails may not hide the others
        line = unknown(check.name, f"the check itself failed: {type(error).__name__}: {error}", "report it, please")
    lines[check.name] = Line(line.name, line.state, redact(line.text), redact(line.remedy))
