"""Watching objects: every change once, across streams that are cut, resourceVersions that expire and servers that go.

A watch is a list followed by a stream from the list's resourceVersion. When the stream ends it is resumed from the last
version seen; when that is too old (410), listed again and compared with what is known, so that nothing is doubled and
what vanished meanwhile is reported as gone.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from stageline.config.bounds import read_json
from stageline.errors import ClusterUnavailableError, StagelineError
from stageline.kube.client import Api
from stageline.kube.refusals import ExpiredError, explain
from stageline.kube.responses import Response

RETRY_SECONDS = 0.5
"""Between attempts to reach a server that does not answer."""
UNSAID_SECONDS = 2.0
"""A server that is back by then was only busy."""


@dataclass(frozen=True)
class Change:
    """added | modified | deleted: one object. synced: the list is complete, `object` is empty."""

    kind: Literal["added", "modified", "deleted", "synced"]
    object: dict[str, Any]


class Known:
    """What was reported so far, by uid: tells news from repetition. Pure."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}

    def take(self, item: dict[str, Any]) -> Iterator[Change]:
        """An object as it is now."""
        uid = item["metadata"]["uid"]
        before = self.objects.get(uid)
        self.objects[uid] = item
        if before is None:
            yield Change("added", item)
        elif before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            yield Change("modified", item)

    def drop(self, item: dict[str, Any]) -> Iterator[Change]:
        """An object that is gone, in its last state."""
        if self.objects.pop(item["metadata"]["uid"], None) is not None:
            yield Change("deleted", item)

    def take_list(self, items: list[dict[str, Any]]) -> Iterator[Change]:
        """All objects there are now: what is known and not among them is gone."""
        there = {item["metadata"]["uid"] for item in items}
        for uid in [uid for uid in self.objects if uid not in there]:
            yield from self.drop(self.objects[uid])
        for item in items:
            yield from self.take(item)


class Watch:
    """The changes of one resource. `changes` from one thread; `stop` from any.

    patience_seconds: how long to try again when no server answers, before ClusterUnavailableError.
    say: told why while no server answers, and "" once one does.
    """

    def __init__(
        self,
        api: Api,
        resource: str,
        *,
        labels: str = "",
        fields: str = "",
        patience_seconds: float,
        say: Callable[[str], None],
    ) -> None:
        self._api = api
        self._resource = resource
        self._selection: dict[str, Any] = {"labels": labels, "fields": fields}
        self._patience_seconds = patience_seconds
        self._say = say
        self._known = Known()
        self._version = ""
        self._stopped = threading.Event()
        self._response: Response | None = None
        self._gone_since = 0.0

    def changes(self) -> Iterator[Change]:
        """Endless until `stop`. Refusals (no permission, no such kind) raise at once."""
        while not self._stopped.is_set():
            try:
                yield from self._list() if not self._version else self._stream()
            except ExpiredError:
                self._version = ""
            except ClusterUnavailableError as error:
                if self._stopped.is_set():
                    return
                self._await_server(error)

    def _await_server(self, error: ClusterUnavailableError) -> None:
        """A pause before the next attempt; the error itself once patience is over."""
        now = time.monotonic()
        self._gone_since = self._gone_since or now
        seconds = now - self._gone_since
        if seconds > self._patience_seconds:
            raise error
        if seconds > UNSAID_SECONDS:
            self._say(error.message)
        self._stopped.wait(RETRY_SECONDS)

    def _found_server(self) -> None:
        if self._gone_since:
            self._gone_since = 0.0
            self._say("")

    def _list(self) -> Iterator[Change]:
        found = self._api.list(self._resource, **self._selection)
        self._found_server()
        kind = str(found.get("kind", "")).removesuffix("List")
        items = [{"kind": kind, **item} for item in found.get("items") or []]
        yield from self._known.take_list(items)
        self._version = str(found["metadata"]["resourceVersion"])
        yield Change("synced", {})

    def _stream(self) -> Iterator[Change]:
        response = self._response = self._api.watch(self._resource, self._version, **self._selection)
        try:
            if self._stopped.is_set():  # while the stream was opened: `stop` did not see it
                return
            self._found_server()
            for line in response.lines():
                yield from self._take(line)
        finally:
            response.close()

    def _take(self, line: bytes) -> Iterator[Change]:
        try:
            event = read_json(line)
        except ValueError as e:  # the stream ended within a line
            raise ClusterUnavailableError("a watch was cut", remedy="start again") from e
        item = event["object"]
        if event["type"] == "ERROR":
            raise self._refused(item)
        self._version = str(item["metadata"]["resourceVersion"])
        if event["type"] == "DELETED":
            yield from self._known.drop(item)
        elif event["type"] != "BOOKMARK":
            yield from self._known.take(item)

    def _refused(self, status: dict[str, Any]) -> StagelineError:
        code = int(status.get("code") or 500)
        return explain(code, json.dumps(status), verb="watch", what=self._resource, namespace=self._api.namespace)

    def stop(self) -> None:
        """End `changes`; a reader that waits is woken."""
        self._stopped.set()
        if self._response is not None:
            self._response.close()
