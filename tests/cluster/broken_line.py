"""A TCP line to the API server that can be cut and put back: what a restart, a proxy or a bad network looks like."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class BrokenLine:
    """Forwards connections from a port of this machine; `kubeconfig` is the given one, led through it."""

    def __init__(self, kubeconfig: str, folder: Path) -> None:
        plain = yaml.safe_load(Path(kubeconfig).read_text())
        cluster = plain["clusters"][0]["cluster"]
        server = urlsplit(cluster["server"])
        self._target = (str(server.hostname), server.port or 443)
        self._open: set[socket.socket] = set()
        self._mutex = threading.Lock()
        self._listener = self._listen(0)
        self.port = self._listener.getsockname()[1]
        cluster |= {"server": f"https://127.0.0.1:{self.port}", "tls-server-name": server.hostname}
        path = folder / "broken-line.kubeconfig"
        path.write_text(yaml.safe_dump(plain))
        self.kubeconfig = str(path)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=64)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self._target)
                with self._mutex:
                    self._open |= {near, far}
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                sink.sendall(data)
        self._close(source, sink)

    def _close(self, *ends: socket.socket) -> None:
        with self._mutex:
            self._open -= set(ends)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut(self) -> None:
        """End every connection; new ones go through."""
        with self._mutex:
            ends = tuple(self._open)
        self._close(*ends)

    def down(self) -> None:
        """End every connection and refuse new ones."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def up(self) -> None:
        """Take connections again."""
        self._listener = self._listen(self.port)
