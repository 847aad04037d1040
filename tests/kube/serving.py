"""A server of a test on loopback, and the kubeconfig by which stageline takes it for an API server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import yaml


@contextmanager
def serving(server: ThreadingHTTPServer, folder: Path) -> Iterator[Path]:
    """Serve until the end; gives a kubeconfig of namespace `train`. server: bound.  folder: for the kubeconfig."""
    path = folder / "config"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "train"}}],
    }
    path.write_text(yaml.safe_dump(config))
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield path
        finally:
            server.shutdown()
