"""One request to a server that somebody else named: no redirects, and to the address that was judged, no other.

A name is looked up once; what it leads to is judged and connected to, so that it cannot mean something else a moment
later. Where the environment names a proxy, the proxy looks up names, and only addresses in the URL itself are judged.
"""

from __future__ import annotations

import http.client
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from stageline.config.addresses import Address, addresses_of, link_local_fault, plain_address

REDIRECTS = (301, 302, 303, 307, 308)
LARGEST_ANSWER = 2**20
Refused = Callable[[Address], bool]


class RefusedAddressError(ValueError):
    """A server that is not asked, in words that follow the name of whoever led there."""


def request(method: str, url: str, headers: dict[str, str], seconds: float, refused: Refused) -> tuple[int, Any, bytes]:
    """(status, headers, body) of one request to an http or https URL; a redirect is an answer like others.

    seconds: of silence.  refused: whether an address may not be asked.
    OSError or ValueError as the connection fails; RefusedAddressError before anything is sent.
    """
    host = urlsplit(url).hostname or ""
    written = plain_address(host)
    if link_local_fault(url) or (written is not None and refused(written)):
        raise RefusedAddressError(f"{host!r:.200} is an address that is not asked for it")
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Plain(host, refused),
        _Secure(host, refused),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    asked = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310  # http and https only
    try:
        with opener.open(asked, timeout=seconds) as answer:
            return answer.status, answer.headers, answer.read(LARGEST_ANSWER)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, b""


def _connector(host: str, refused: Refused) -> Callable[..., socket.socket]:
    """What connections are made by: to a proxy as it is, to the host itself by an address that was judged."""

    def connect(target: tuple[str, int], *more: Any, **options: Any) -> socket.socket:
        name, port = target
        if name != host:  # a proxy that the environment names
            return socket.create_connection(target, *more, **options)
        found = addresses_of(name, port)
        for address in found:
            if refused(address):
                raise RefusedAddressError(f"{name!r:.200} is at {address}, an address that is not asked for it")
        failure = OSError(f"{name!r:.200} has no address")
        for address in found:
            try:
                return socket.create_connection((str(address), port), *more, **options)
            except OSError as error:
                failure = error
        raise failure

    return connect


class _Plain(urllib.request.HTTPHandler):
    def __init__(self, host: str, refused: Refused) -> None:
        super().__init__()
        self._connect = _connector(host, refused)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)

    def _connection(self, host: str, **options: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(host, **options)
        connection._create_connection = self._connect  # type: ignore[attr-defined]
        return connection


class _Secure(urllib.request.HTTPSHandler):
    def __init__(self, host: str, refused: Refused) -> None:
        super().__init__()
        self._connect = _connector(host, refused)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, req)

    def _connection(self, host: str, **options: Any) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(host, **options)
        connection._create_connection = self._connect  # type: ignore[attr-defined]
        return connection
