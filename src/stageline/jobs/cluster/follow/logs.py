"""The logs of a job's pods as they are written: every line that the kubelets still serve exactly once, gaps said.

One thread per pod reads one stream at a time. A stream that is cut is resumed where it broke (`cursor`); a container
that restarted is read to its end first (`previous`); a pod of the same name that took the place of ours is noticed by
its uid. Nothing is kept but the last line of each pod.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from stageline.errors import ClusterUnavailableError, StagelineError
from stageline.jobs.cluster.explain.describe import pod_label
from stageline.kube.keys import CONTAINER, PODS, Plain
from stageline.kube.log_cursor import Gap, LogCursor
from stageline.kube.refusals import NO_LOG, AbsentError
from stageline.printing import one_line

RETRY_SECONDS = 0.2
LONGEST_RETRY_SECONDS = 3.0
"""Between attempts to open a stream that was refused: doubled from the first to this."""
PATIENCE_CUTS = 5
"""Streams in a row that may be cut where a log is read without following."""


class LogStream(Protocol):
    """One answer. A stream that is cut raises ClusterUnavailableError; one that ends well just ends."""

    def lines(self) -> Iterator[bytes]: ...
    def close(self) -> None: ...


class LogSource(Protocol):
    """What serves logs: `kube.client.Api`."""

    def log(self, pod: str, query: Mapping[str, str]) -> LogStream: ...
    def get(self, resource: str, name: str) -> dict[str, Any]: ...


class LogFollower:
    """Follows the pods it is told of by `update` and `ended`.

    on_line: gets every line, from several threads but one at a time.  prefixed: begin lines with the pod's label.
    say: told once when logs may not be read.  since: time from which on lines are wanted, RFC 3339; "" is all.
    follow: False reads what there is and ends.
    """

    def __init__(
        self,
        source: LogSource,
        on_line: Callable[[str], None],
        *,
        prefixed: bool = False,
        say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
        since: str = "",
        follow: bool = True,
    ) -> None:
        self.source = source
        self.since = since
        self.follow = follow
        self._on_line = on_line
        self._prefixed = prefixed
        self._say = say
        self._refused: set[str] = set()
        self._mutex = threading.Lock()
        self._readers: dict[str, _Reader] = {}
        self.closed = threading.Event()

    def update(self, pod: Plain) -> None:
        """A pod as it is now; its log is read as soon as its container has started."""
        uid = str(pod["metadata"]["uid"])
        reader = self._readers.get(uid)
        if reader is None:
            if self.closed.is_set() or not _has_started(pod):
                return
            reader = self._readers[uid] = _Reader(self, pod)
            reader.start()
        reader.update(pod)

    def ended(self, pod: Plain) -> None:
        """A pod was deleted; what is still served of its log is read."""
        reader = self._readers.get(str(pod["metadata"]["uid"]))
        if reader is not None:
            reader.gone.set()
            reader.wake.set()
        elif _has_started(pod) and not self.closed.is_set():
            self.deliver(pod_label(pod), f"(log of pod {pod['metadata']['name']} was not served any more)")

    def drain(self, seconds: float) -> None:
        """Wait until the logs of all pods are read to their ends, at most for `seconds`."""
        end = time.monotonic() + seconds
        for reader in list(self._readers.values()):
            reader.join(max(0.0, end - time.monotonic()))

    def close(self) -> None:
        """End every stream. No line is delivered afterwards."""
        with self._mutex:
            self.closed.set()
        for reader in list(self._readers.values()):
            reader.close()
        for reader in list(self._readers.values()):
            if reader is not threading.current_thread():
                reader.join(1.0)

    def deliver(self, label: str, text: str) -> None:
        """One line to whoever reads them."""
        with self._mutex:
            if not self.closed.is_set():
                self._on_line(one_line(f"[{label}] {text}" if self._prefixed else text))

    def refuse(self, error: StagelineError) -> None:
        """Say once why logs cannot be read."""
        with self._mutex:
            if error.message in self._refused:
                return
            self._refused.add(error.message)
        self._say(f"logs cannot be read: {error.message}")


class _Reader(threading.Thread):
    """Reads one pod's log, stream after stream, instance after instance of its container."""

    def __init__(self, follower: LogFollower, pod: Plain) -> None:
        super().__init__(name=f"log-{pod['metadata']['name']}", daemon=True)
        self.gone = threading.Event()
        self.wake = threading.Event()
        self._follower = follower
        self._uid = str(pod["metadata"]["uid"])
        self._name = str(pod["metadata"]["name"])
        self._label = pod_label(pod)
        self._cursor = LogCursor()
        self._instance = 0
        self._restarts, self._terminated = _instance(pod)
        self._stream: LogStream | None = None
        self._told = False  # whether the last stream came to its own end
        self._skip_instances()

    def _skip_instances(self) -> None:
        """Of the instances before we came, the last one can still be read."""
        if self._restarts > 1:
            self._instance = self._restarts - 1
            if not self._follower.since:
                self._line(f"(log of pod {self._name} before restart {self._instance} was not served any more)")

    def update(self, pod: Plain) -> None:
        restarts, terminated = _instance(pod)
        self._restarts, self._terminated = max(restarts, self._restarts), terminated
        self.wake.set()

    def close(self) -> None:
        self.wake.set()
        stream = self._stream
        if stream is not None:
            stream.close()

    def run(self) -> None:
        pause, cuts = RETRY_SECONDS, 0
        while not self._follower.closed.is_set():
            restarted = self._instance < self._restarts
            over = self._terminated or self.gone.is_set() or not self._follower.follow
            whole = False
            try:
                whole = self._read(previous=restarted, follow=not over and not restarted)
            except AbsentError:
                self._end_without_pod()
                return
            except ClusterUnavailableError:
                cuts += 1
            except StagelineError as error:
                if not any(word in error.message for word in NO_LOG):
                    self._follower.refuse(error)
                    return
                whole = restarted or over  # such an instance has no log, or none any more
            if whole and restarted:
                self._say_gap(self._cursor.missing_end())
                self._instance, self._cursor = self._restarts, LogCursor()
                continue
            if whole and over:
                self._say_gap(self._cursor.missing_end())
                return
            if not self._follower.follow and cuts > PATIENCE_CUTS:
                self._follower.refuse(ClusterUnavailableError(f"the log of pod {self._name} was cut {cuts} times"))
                return
            self.wake.wait(pause)
            self.wake.clear()
            pause = RETRY_SECONDS if whole else min(pause * 2, LONGEST_RETRY_SECONDS)

    def _read(self, *, previous: bool, follow: bool) -> bool:
        """Deliver what one stream has; True if it was of our turn and came to its own end."""
        query = {"container": CONTAINER, "timestamps": "true"}
        since = self._cursor.resume() or self._follower.since
        query |= {"sinceTime": since} if since else {}
        query |= {"previous": "true"} if previous else {}
        query |= {"follow": "true"} if follow else {}
        stream = self._stream = self._follower.source.log(self._name, query)
        try:
            if self._follower.closed.is_set():  # while the stream was opened: `close` did not see it
                return False
            # Asked after the stream was opened: if the pod is still ours, so is the stream.
            pod = self._follower.source.get(PODS, self._name)
            if str(pod["metadata"]["uid"]) != self._uid:
                raise AbsentError(f"pod {self._name} is another one by now")
            self._restarts, self._terminated = _instance(pod)
            if not previous and self._restarts > self._instance:
                return False
            self._told = False
            for raw in stream.lines():
                for item in self._cursor.take(raw):
                    if isinstance(item, Gap):
                        self._say_gap(item)
                    else:
                        self._line(item)
                if self._follower.closed.is_set():
                    return False
            self._told = True
        finally:
            self._stream = None
            stream.close()
        return True

    def _end_without_pod(self) -> None:
        """The pod is gone. A stream that had come to its end has told everything, as far as anybody can know."""
        if not self._told:
            last = self._cursor.last
            if last is None:
                self._line(f"(log of pod {self._name} was not served any more)")
            else:
                self._say_gap(Gap(last, None))

    def _say_gap(self, gap: Gap | None) -> None:
        if gap is not None:
            self._line(gap.sentence(self._name))

    def _line(self, text: str) -> None:
        self._follower.deliver(self._label, text)


def _container(pod: Plain) -> Plain:
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        if status.get("name") == CONTAINER:
            return dict(status)
    return {}


def _has_started(pod: Plain) -> bool:
    status = _container(pod)
    state = status.get("state") or {}
    return bool(status.get("restartCount")) or "running" in state or "terminated" in state


def _instance(pod: Plain) -> tuple[int, bool]:
    """(restarts so far, whether the container is over for good as far as it is known)."""
    status = _container(pod)
    ended = "terminated" in (status.get("state") or {})
    return int(status.get("restartCount") or 0), ended
