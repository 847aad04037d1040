"""Modules that the tests of this family share, and the guard that keeps them from the network."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _no_profile_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PANO_PROFILE", raising=False)


def is_here(kind: int, address: Any) -> bool:
    """Whether a socket's address is on this machine; a name that is none of its own would have to be looked up."""
    if kind not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = str(address[0]).partition("%")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("", "localhost")


@pytest.fixture(autouse=True, scope="module")
def _no_network() -> Iterator[None]:
    """Check 23: whatever reaches for another machine fails at once, in the tests of this family and what they fork."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        guard_sockets(patch)
        yield


def guard_sockets(patch: pytest.MonkeyPatch) -> None:
    """Let sockets reach this machine only, until the patch ends."""

    def refuse(what: Any) -> None:
        raise AssertionError(f"a test reaches for the network: {what!r}")

    for name in ("connect", "connect_ex", "sendto"):
        real = getattr(socket.socket, name)

        def guarded(self: socket.socket, *arguments: Any, real: Any = real) -> Any:
            if not is_here(self.family, arguments[-1]):
                refuse(arguments[-1])
            return real(self, *arguments)

        patch.setattr(socket.socket, name, guarded)
    look_up = socket.getaddrinfo

    def found(host: Any, *arguments: Any, **more: Any) -> Any:
        if host is not None and not is_here(socket.AF_INET, (host if isinstance(host, str) else host.decode(),)):
            refuse(host)
        return look_up(host, *arguments, **more)

    patch.setattr(socket, "getaddrinfo", found)
