"""What a check says: one line each, ok, wrong or unknown, and the command that mends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from stageline.errors import ClusterUnavailableError, DoctorError, StagelineError
from stageline.kube.refusals import is_silent_webhook

State = Literal["ok", "wrong", "unknown"]


@dataclass(frozen=True)
class Line:
    """name: what was looked at.  remedy: the command that mends it, or tells what is unknown."""

    name: str
    state: State
    text: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """Something to look at. call: gives its line; an error of ours it raises becomes one."""

    name: str
    call: Callable[[], Line]


def ok(name: str, text: str) -> Line:
    return Line(name, "ok", text)


def wrong(name: str, text: str, remedy: str) -> Line:
    return Line(name, "wrong", text, remedy)


def unknown(name: str, text: str, remedy: str = "") -> Line:
    return Line(name, "unknown", text, remedy)


def line_of_error(name: str, error: StagelineError) -> Line:
    """What may not be seen from here is unknown; an API server that does not answer has a line of its own."""
    if error.code == "E_FORBIDDEN":
        return unknown(name, f"can't be seen from here: {error.message}", error.remedy)
    if isinstance(error, ClusterUnavailableError) and not is_silent_webhook(error):
        return unknown(name, "the API server did not answer, see `api`")
    if error.code == "E_UNAUTHORIZED":
        return unknown(name, "the API server does not know us, see `api`")
    return wrong(name, error.message, error.remedy)


def raise_if_wrong(lines: Sequence[Line]) -> None:
    """DoctorError if a line is wrong; what is unknown is no fault."""
    names = [line.name for line in lines if line.state == "wrong"]
    if names:
        raise DoctorError(
            f"{len(names)} of {len(lines)} checks found something wrong: {', '.join(names)}",
            remedy="each line says what mends it; then look again",
        )
