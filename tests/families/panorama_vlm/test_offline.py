"""The guard that keeps these tests from the network does so."""

from __future__ import annotations

import socket
import threading

import pytest


def test_sockets_reach_this_machine_only() -> None:
    """Check 23: names and addresses of others are refused before a packet leaves, loopback is not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        socket.create_connection(server.getsockname()).close()
        thread.join()
    for host in ("192.0.2.1", "2001:db8::1", "example.invalid"):
        with pytest.raises(AssertionError, match="reaches for the network"):
            socket.create_connection((host, 443))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for act in (lambda: probe.connect(("192.0.2.1", 53)), lambda: probe.sendto(b"", ("192.0.2.1", 53))):
            with pytest.raises(AssertionError, match="reaches for the network"):
                act()
