"""A small HTTP server that answers as a Kubeflow Pipelines backend does; no test of ours needs more of it.

The real one was watched to see what it says; which states a run goes through is the test's to choose.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RUN_ID = "11111111-2222-3333-4444-555555555555"


@dataclass
class BackendServer:
    """states: what a run says at each look, the last one for ever.  refusal: (status, message) for every request."""

    states: list[dict[str, Any]] = field(default_factory=list)
    refusal: tuple[int, str] | None = None
    endpoint: str = ""
    created: dict[str, Any] = field(default_factory=dict)
    looks: int = 0
    terminated: threading.Event = field(default_factory=threading.Event)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.refusal:
            return self.refusal[0], {"error": self.refusal[1], "message": self.refusal[1]}
        if path.endswith("/healthz"):
            return 200, {"multi_user": False}
        if path.endswith("/experiments"):
            return 200, {"experiment_id": "e", "display_name": "stageline"} if method == "POST" else {}
        if path.endswith("/runs") and method == "POST":
            self.created = body
            return 200, {"run_id": RUN_ID, "state": "PENDING"}
        if path.endswith(":terminate"):
            self.terminated.set()
            return 200, {}
        if path.endswith(f"/runs/{RUN_ID}"):
            state = self.states[min(self.looks, len(self.states) - 1)]
            self.looks += 1
            return 200, {"run_id": RUN_ID, **state}
        return 404, {"message": f"no {path}"}


def run_state(state: str, **tasks: str) -> dict[str, Any]:
    """A run as the backend shows it. tasks: name in the pipeline, with underscores -> state."""
    details = [{"display_name": name.replace("_", "-"), "state": own} for name, own in tasks.items()]
    noise = [{"display_name": name, "state": "RUNNING"} for name in ("root", "root-driver", "executor(0)", "film-x(0)")]
    return {"state": state, "run_details": {"task_details": [*noise, *details, {"display_name": "report"}]}}


@contextmanager
def backend_server() -> Iterator[BackendServer]:
    """The server, on a port of its own."""
    backend = BackendServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, plain = backend.answer(self.command, self.path.partition("?")[0], json.loads(data or b"{}"))
            text = json.dumps(plain).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *words: Any) -> None:  # noqa: A002  # the base class's name
            """Nothing: pytest shows what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    backend.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield backend
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
