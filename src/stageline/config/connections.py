"""Connections to servers that somebody else named: to the address that was judged, and no other.

A name is looked up once; what it leads to is judged and connected to, so that it cannot mean something else a moment
later. Where the environment names a proxy, the proxy looks up names, and only addresses in the URL itself are judged.
"""

from __future__ import annotations

import http.client
import socket
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from stageline.config.addresses import Address, looked_up

Refused = Callable[[Address], bool]


class RefusedAddressError(ValueError):
    """A server that is not asked, in words that follow the name of whoever led there."""


def judged_handlers(refused: Refused) -> tuple[urllib.request.BaseHandler, urllib.request.BaseHandler]:
    """urllib's handlers of http and https that connect to no refused address. refused: whether it may not be asked.

    RefusedAddressError before anything is sent.
    """
    return _Plain(refused), _Secure(refused)


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


class _Plain(urllib.request.HTTPHandler):
    def __init__(self, refused: Refused) -> None:
        super().__init__()
        self._connect = _connector(refused)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)

    def _connection(self, host: str, **options: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(host, **options)
        connection._create_connection = self._connect  # type: ignore[attr-defined]
        return connection


class _Secure(urllib.request.HTTPSHandler):
    def __init__(self, refused: Refused) -> None:
        super().__init__()
        self._connect = _connector(refused)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)

    def _connection(self, host: str, **options: Any) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(host, **options)
        connection._create_connection = self._connect  # type: ignore[attr-defined]
        return connection
