"""Connections to servers that somebody else named: to the address that was judged, and no other.

A name is looked up once; what it leads to is judged and connected to, so that it cannot mean something else a moment
later. Where the environment names a proxy, the proxy looks up names, and only addresses in the URL itself are judged.
"""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from stageline.config.addresses import Address, looked_up

Refused = Callable[[Address], bool]
HEAD_TIMES = 4
"""How often the silence that is allowed the head of an answer may take, chosen here: a server that sends a byte now and
then is never silent."""


class RefusedAddressError(ValueError):
    """A server that is not asked, in words that follow the name of whoever led there."""


def _connector(refused: Refused) -> Callable[..., socket.socket]:
    """What connections are made by: to a proxy as it is, to any other host by an address that was judged."""
    named = (value if "://" in value else f"//{value}" for value in urllib.request.getproxies().values())
    proxies = {urlsplit(value).hostname for value in named}

    def connect(target: tuple[str, int], *more: Any, **options: Any) -> socket.socket:
        name, port = target
        if name.lower() in proxies:
            return socket.create_connection(target, *more, **options)
        found = looked_up(name, port)
        for _, address in found:
            if refused(address):
                raise RefusedAddressError(f"{name!r:.200} is at {address}, an address that is not asked for it")
        failure = OSError(f"{name!r:.200} has no address")
        for text, _ in found:
            try:
                return socket.create_connection((text, port), *more, **options)
            except OSError as error:
                failure = error
        raise failure

    return connect


class JudgedHandler(urllib.request.AbstractHTTPHandler):
    """urllib's handler of http and https that connects to no refused address.

    refused: whether an address may not be asked. RefusedAddressError before anything is sent.
    """

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, refused: Refused) -> None:
        super().__init__()
        self._connect = _connector(refused)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self._opened(http.client.HTTPConnection, req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self._opened(http.client.HTTPSConnection, req)

    def _opened(self, kind: type[http.client.HTTPConnection], req: urllib.request.Request) -> http.client.HTTPResponse:
        deadline = _Deadline(self._connect, (req.timeout or 0.0) * HEAD_TIMES)

        def connection(host: str, **options: Any) -> http.client.HTTPConnection:
            made = kind(host, **options)
            made._create_connection = deadline.connect  # type: ignore[attr-defined]
            return made

        try:
            answer = self.do_open(connection, req)
        finally:
            deadline.end()
        if deadline.is_late:
            answer.close()
            raise TimeoutError(deadline.told)
        return answer


class _Deadline:
    """Ends the connections of one request whose answer does not begin in time. seconds: 0 is no limit."""

    def __init__(self, connect: Callable[..., socket.socket], seconds: float) -> None:
        self.is_late = False
        self.told = f"no whole head of an answer within {seconds:.0f} s"
        self._connect = connect
        self._open: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        if seconds:
            self._timer.start()

    def connect(self, *given: Any, **options: Any) -> socket.socket:
        made = self._connect(*given, **options)
        self._open.append(made.dup())  # TLS takes the first one over; the connection is one
        return made

    def _cut(self) -> None:
        self.is_late = True
        for connection in self._open:
            with suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self._timer.cancel()
        for connection in self._open:
            connection.close()
