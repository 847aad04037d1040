"""An API server that keeps objects, for tests of who makes what in which order: no admission, no operator, no pods.

It answers as Kubernetes does where launchers rely on it: conflicts, preconditions, merge patches, refusals, and on
demand the garbage collector.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stageline.kube.client import Api

from .serving import serving

Plain = dict[str, Any]
VERBS = {"POST": "create", "GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class ObjectServer(ThreadingHTTPServer):
    """objects: (plural, name) -> object.  denied: (verb, plural) that the account may not.

    hooks: (verb, plural) -> called once before such a request is answered.  requests: (verb, plural, name).
    quota: plurals of which nothing more may be made.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[tuple[str, str], Plain] = {}
        self.denied: set[tuple[str, str]] = set()
        self.quota: set[str] = set()
        self.hooks: dict[tuple[str, str], Callable[[], None]] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.mutex = threading.RLock()

    def put(self, plural: str, item: Plain) -> Plain:
        metadata = {"uid": str(uuid.uuid4()), **item["metadata"], "resourceVersion": uuid.uuid4().hex}
        kept = self.objects[plural, metadata["name"]] = {**item, "metadata": metadata}
        return kept

    def collect(self) -> None:
        """What the garbage collector does: an object all of whose owners are gone goes."""
        for _ in range(3):
            there = {item["metadata"]["uid"] for item in self.objects.values()}
            for key, item in list(self.objects.items()):
                owners = item["metadata"].get("ownerReferences") or []
                if owners and not any(owner["uid"] in there for owner in owners):
                    del self.objects[key]

    def of(self, plural: str) -> list[str]:
        return sorted(name for kind, name in self.objects if kind == plural)

    def asked(self, plural: str) -> list[str]:
        return [verb for verb, kind, _ in self.requests if kind == plural]


def merged(old: Any, change: Any) -> Any:
    """RFC 7396."""
    if not isinstance(change, dict):
        return change
    base = dict(old) if isinstance(old, dict) else {}
    for key, value in change.items():
        if value is None:
            base.pop(key, None)
        else:
            base[key] = merged(base.get(key), value)
    return base


class Handler(BaseHTTPRequestHandler):
    server: ObjectServer

    def answer(self, status: int, body: Plain) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, reason: str, message: str) -> None:
        self.answer(status, {"kind": "Status", "reason": reason, "message": message})

    def handle_request(self) -> None:
        path = urlsplit(self.path).path.split("/")
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        if path[-1] == "selfsubjectaccessreviews":
            asked = body["spec"]["resourceAttributes"]
            denied = (asked["verb"], asked["resource"]) in self.server.denied
            self.answer(201, {**body, "status": {"allowed": not denied}})
            return
        if "namespaces" not in path:  # discovery of a kind of others
            self.refuse(404, "NotFound", "the server could not find the requested resource")
            return
        rest = path[path.index("namespaces") + 2 :]
        group = path[2] if path[1] == "apis" else ""
        plural, name = rest[0], rest[1] if len(rest) > 1 else body.get("metadata", {}).get("name", "")
        verb = "list" if self.command == "GET" and not name else VERBS[self.command]
        hook = self.server.hooks.pop((verb, plural), None)
        if hook is not None:
            hook()
        with self.server.mutex:
            self.server.requests.append((verb, plural, name))
            if (verb, plural) in self.server.denied:
                who = f'{plural} is forbidden: User "jane" cannot {verb} resource "{plural}" in API group "{group}"'
                self.refuse(403, "Forbidden", f'{who} in the namespace "train"')
            else:
                self.serve(verb, plural, name, body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_request

    def serve(self, verb: str, plural: str, name: str, body: Plain) -> None:
        objects, key = self.server.objects, (plural, name)
        if verb == "list":
            self.answer(200, {"items": [item for (kind, _), item in objects.items() if kind == plural]})
        elif verb == "create":
            if key in objects:
                self.refuse(409, "AlreadyExists", f'{plural} "{name}" already exists')
            elif plural in self.server.quota:
                self.refuse(403, "Forbidden", f'"{name}" is forbidden: exceeded quota: count, used: 1, limited: 1')
            else:
                self.answer(201, self.server.put(plural, body))
        elif key not in objects:
            self.refuse(404, "NotFound", f'{plural} "{name}" not found')
        elif verb == "get":
            self.answer(200, objects[key])
        else:
            found = objects[key]["metadata"]
            conditions = body.get("preconditions") or body.get("metadata") or {}
            if any(conditions.get(field, found[field]) != found[field] for field in ("uid", "resourceVersion")):
                self.refuse(409, "Conflict", "the object has been modified")
            elif verb == "delete":
                del objects[key]
                self.answer(200, {"kind": "Status", "status": "Success"})
            else:
                self.answer(200, self.server.put(plural, merged(objects[key], body) if verb == "patch" else body))

    def log_message(self, *_: Any) -> None:
        """Nothing to say."""


@contextmanager
def served_objects(folder: Path) -> Iterator[tuple[ObjectServer, Api]]:
    """The server, and a connection to its namespace `train`. folder: for the kubeconfig."""
    server = ObjectServer()
    with serving(server, folder) as kubeconfig:
        yield server, Api.connect("train", kubeconfig=str(kubeconfig))
