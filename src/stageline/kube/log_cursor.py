"""Which lines of a container's log are new: by the kubelet's own timestamps, across streams cut anywhere. Pure.

A log is resumed from the second of its last line, since the API takes no finer time; what comes again is recognised by
its nanoseconds and its text. Memory is that of one line. Clocks that go back within one container are not followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?")
_PREFIX = re.compile(rb"[\dT:.Z+-]{0,36}")
_GONE = re.compile(rb"(?:unable to retrieve container logs for|failed to try resolving symlinks in path|rpc error: )")


@dataclass(frozen=True)
class Gap:
    """Lines between two times (nanoseconds since 1970) that were not served any more; None: from there on."""

    after: int
    before: int | None

    def sentence(self, pod: str) -> str:
        if self.before is None:
            return f"(log of pod {pod} after {clock(self.after)} was not served any more)"
        return f"(log of pod {pod} between {clock(self.after)} and {clock(self.before)} was not served any more)"


def clock(nanoseconds: int) -> str:
    """A time as RFC 3339 with milliseconds, UTC."""
    moment = datetime.fromtimestamp(nanoseconds // 10**9, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds % 10**9 // 10**6:03d}Z"


@dataclass
class LogCursor:
    """What was delivered of one container instance. Feed `take` every line of every stream, each begun by `resume`."""

    last: int | None = None
    """Time of the newest delivered line."""
    _same: list[str] = field(default_factory=list)
    """Texts delivered with exactly that time, in order."""
    _pending: list[str] | None = None
    """Of those, what the current stream has still to repeat; None once it is past them."""
    _found: bool = False
    _second: bytes = b""
    _second_value: int = 0

    def resume(self) -> str:
        """The `sinceTime` to ask the next stream for; "" asks for everything."""
        if self.last is None:
            self._pending = None
            return ""
        self._pending, self._found = list(self._same), False
        return f"{datetime.fromtimestamp(self.last // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"

    def take(self, raw: bytes) -> Iterator[str | Gap]:
        """The new text of one served line, with a gap before it where lines are missing. raw: without its end."""
        match = _STAMP.match(raw)
        when = None if match is None else self._time(match)
        if match is None or when is None:
            # A line cut within its time comes again; words of the kubelet itself have none.
            if raw and not _PREFIX.fullmatch(raw) and not _GONE.match(raw):
                yield raw.decode("utf-8", errors="replace")
            return
        text = raw[match.end() :].decode("utf-8", errors="replace")
        if self._pending is not None:
            assert self.last is not None
            if when < self.last:
                return
            if when == self.last:
                again, text = self._repeated(text)
                if again and not text:
                    return
                if again:
                    yield text
                    return
            else:
                if not self._found:
                    yield Gap(self.last, when)
                self._pending = None
        if when == self.last:
            self._same.append(text)
        elif self.last is None or when > self.last:
            self.last, self._same = when, [text]
        yield text

    def _repeated(self, text: str) -> tuple[bool, str]:
        """(whether the line was delivered already, the rest of it that was not): a stream may end within a line."""
        assert self._pending is not None
        self._found = True
        if not self._pending:
            return False, text
        if text == self._pending[0]:
            self._pending.pop(0)
            return True, ""
        if len(self._pending) == 1 and text.startswith(self._pending[0]):
            rest = text[len(self._pending.pop()) :]
            self._same[-1] = text
            return True, rest
        if self._pending[0].startswith(text):  # cut before the place where it was cut last time
            return True, ""
        return False, text

    def missing_end(self) -> Gap | None:
        """The gap of a whole log, read to its end, that no longer holds our last line."""
        return Gap(self.last, None) if self.last is not None and self._pending is not None and not self._found else None

    def _time(self, match: re.Match[bytes]) -> int | None:
        """Nanoseconds since 1970, None for what is no time; the second is worked out once."""
        second = match[1] + match[3]
        if second != self._second:
            try:
                self._second_value = int(datetime.fromisoformat(second.decode()).timestamp())
            except (ValueError, OverflowError):
                return None
            self._second = second
        return self._second_value * 10**9 + int((match[2] or b"0").ljust(9, b"0"))
