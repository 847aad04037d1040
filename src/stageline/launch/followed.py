"""What following a job needs to know of it, and what the store tells of its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from stageline.errors import EXIT_INTERRUPTED
from stageline.launch.job import Job, Verdict

if TYPE_CHECKING:
    from stageline.config import ClusterConfig


class Probe(Protocol):
    """What the store says about a job's result."""

    def finished(self) -> bool:
        """Whether the final result is committed."""

    def progress(self) -> int:
        """The newest committed step, -1 if there is none."""


@dataclass(frozen=True)
class Followed:
    """What is followed. live: the job as it was started or adopted.  launcher: our holder's name.

    is_cancelled: whether somebody asked us to delete it.
    """

    job: Job
    cluster: ClusterConfig
    probe: Probe
    say: Callable[[str], None]
    live: dict[str, Any]
    launcher: str
    is_cancelled: Callable[[], bool]

    @property
    def uid(self) -> str:
        return str(self.live["metadata"]["uid"])


def interrupted(sentence: str, remedy: str) -> Verdict:
    """The verdict on a job that was asked to stop, or left running."""
    record = {"kind": "interrupted", "code": "", "sentence": sentence, "remedy": remedy}
    return Verdict(EXIT_INTERRUPTED, {**record, "exit_code": EXIT_INTERRUPTED})
