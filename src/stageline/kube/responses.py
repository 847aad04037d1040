"""An API server's answer, read whole or line by line as it comes; a connection that fails, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from stageline.errors import ClusterUnavailableError

MAX_LINE_BYTES = 16 * 2**20
"""Bytes kept of a line, chosen here: several times the largest object that an API server takes."""


class Response:
    """A response whose body is read as it comes. `lines` from one thread; `close` from any."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.status = int(raw.status)
        self.date = str(raw.headers.get("Date", ""))
        self.closed = False

    def text(self) -> str:
        """The whole body."""
        try:
            return bytes(self._raw.read()).decode("utf-8", errors="replace")
        except Exception as e:
            raise unreachable(e, "its answer broke off") from e
        finally:
            self._raw.release_conn()

    def lines(self) -> Iterator[bytes]:
        """Every line without its end, as soon as it has come. A stream that is cut raises ClusterUnavailableError.

        Of a line longer than MAX_LINE_BYTES its beginning: a container may write for ever without ending one.
        """
        rest = bytearray()
        try:
            for chunk in self._raw.stream(2**16, decode_content=True):
                first, *others = chunk.split(b"\n")
                rest += first[: MAX_LINE_BYTES - len(rest)]
                for line in others:
                    yield bytes(rest)
                    rest = bytearray(line)
            if rest:
                yield bytes(rest)
        except GeneratorExit:
            raise
        except Exception as e:
            if not self.closed:
                raise unreachable(e, "the stream was cut") from e
        finally:
            self.close()

    def close(self) -> None:
        """End the stream; a reader that waits for a line is woken."""
        self.closed = True
        with suppress(Exception):
            self._raw.shutdown()
        with suppress(Exception):
            self._raw.close()


def unreachable(error: BaseException, what: str) -> ClusterUnavailableError:
    reason = getattr(error, "reason", None) or error
    text = str(reason)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return ClusterUnavailableError(
            f"{what}: its certificate is not the one expected: {text}",
            remedy="the kubeconfig is of another cluster, or its certificate-authority is missing",
        )
    return ClusterUnavailableError(
        f"the API server is not reachable: {what} ({text})",
        remedy="is the cluster up, is this its kubeconfig? kubectl cluster-info; then start again",
    )
