"""A tiny real image registry: open, with anonymous tokens, or private; plain HTTP on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DIGEST = "sha256:" + "ab" * 32
KNOWN = ("/v2/team/trainer/manifests/1.0", f"/v2/team/trainer/manifests/{DIGEST}")


class Registry(ThreadingHTTPServer):
    """mode: open, token, private or broken.  asked: (verb, path, authorization) of every request."""

    daemon_threads = True
    mode = "open"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, str]] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that tries TLS is no event."""


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_HEAD(self) -> None:
        mode, authorization = self.server.mode, self.headers.get("Authorization", "")
        self.server.asked.append(("HEAD", self.path, authorization))
        if mode == "broken":
            self.send_response(500)
        elif mode == "private" or (mode == "token" and authorization != "Bearer given"):
            self.send_response(401)
            realm = (
                f'Bearer realm="http://{self.server.host}/token",service="here",scope="repository:team/trainer:pull"'
            )
            self.send_header("WWW-Authenticate", realm)
        elif self.path in KNOWN and "oci.image.index" in self.headers.get("Accept", ""):
            self.send_response(200)
            self.send_header("Docker-Content-Digest", DIGEST)
        else:
            self.send_response(404)
        self.end_headers()

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path, ""))
        body = json.dumps({"token": "given"} if self.server.mode == "token" else {}).encode()
        self.send_response(200 if self.server.mode == "token" else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def registry() -> Iterator[Registry]:
    with Registry() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(30)
