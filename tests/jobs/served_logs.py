"""Logs in memory as an API server serves them: cut anywhere, rotated, of pods that restart or are replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from stageline.errors import ClusterError, ClusterUnavailableError
from stageline.kube.refusals import AbsentError

START = 1_790_000_000
Line = tuple[int, str]
"""(nanoseconds since START, text)"""


def stamped(line: Line) -> bytes:
    """A line as the kubelet serves it."""
    seconds, nanos = divmod(line[0], 10**9)
    moment = datetime.fromtimestamp(START + seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanos:09d}Z {line[1]}".encode()


@dataclass
class Cut:
    """How one stream ends: after so many bytes; dropping (an error) or closing as if it were over."""

    after_bytes: int
    drops: bool = True


class Stream:
    """One answer, all of it known when it is opened."""

    def __init__(self, lines: list[bytes], cut: Cut | None) -> None:
        self._lines = lines
        self._cut = cut

    def lines(self) -> Iterator[bytes]:
        left = self._cut.after_bytes if self._cut else None
        for line in self._lines:
            if left is not None and left < len(line) + 1:
                assert self._cut is not None
                if self._cut.drops:
                    raise ClusterUnavailableError("the stream was cut")
                if left:
                    yield line[:left]
                return
            yield line
            left = None if left is None else left - len(line) - 1

    def close(self) -> None:
        """Nothing to free."""


@dataclass
class ServedLogs:
    """One pod's instances, `instances[-1]` the current one. `cuts` end the first streams while it still runs."""

    instances: list[list[Line]]
    cuts: list[Cut] = field(default_factory=list)
    rotations: list[int] = field(default_factory=list)
    """Before the n-th stream, the current instance loses so many of its oldest lines."""
    uid: str = "u1"
    exists: bool = True
    before_open: Callable[[ServedLogs, int], None] = lambda logs, number: None  # noqa: ARG005
    opened: int = 0
    asked: list[dict[str, str]] = field(default_factory=list)
    lost: list[Line] = field(default_factory=list)

    def pod(self) -> dict[str, Any]:
        restarts = len(self.instances) - 1
        state = {"running": {}} if self.opened < len(self.cuts) else {"terminated": {"exitCode": 0}}
        status = {"name": "pytorch", "restartCount": restarts, "state": state}
        labels = {"training.kubeflow.org/replica-type": "worker", "training.kubeflow.org/replica-index": "0"}
        metadata = {"name": "lab-film-worker-0", "uid": self.uid, "labels": labels}
        return {"metadata": metadata, "status": {"phase": "Running", "containerStatuses": [status]}}

    def get(self, resource: str, name: str) -> dict[str, Any]:
        if not self.exists:
            raise AbsentError(f"{resource} {name} does not exist")
        return self.pod()

    def log(self, pod: str, query: Mapping[str, str]) -> Stream:
        self.before_open(self, self.opened)
        number, self.opened = self.opened, self.opened + 1
        self.asked.append(dict(query))
        if not self.exists:
            raise AbsentError(f"pods {pod} does not exist")
        if number < len(self.rotations):
            current = self.instances[-1]
            self.lost += current[: self.rotations[number]]
            del current[: self.rotations[number]]
        if query.get("previous") and len(self.instances) < 2:
            raise ClusterError('previous terminated container "pytorch" in pod not found')
        lines = self.instances[-2 if query.get("previous") else -1]
        since = query.get("sinceTime")
        if since:
            floor = (int(datetime.fromisoformat(since).timestamp()) - START) * 10**9
            lines = [line for line in lines if line[0] >= floor]
        cut = self.cuts[number] if number < len(self.cuts) else None
        return Stream([stamped(line) for line in lines], cut)
