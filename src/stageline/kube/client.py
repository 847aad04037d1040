"""The one door to the Kubernetes API server: plain dicts in and out, every failure an error with sentence and remedy.

The `kubernetes` client gives what is tedious: reading kubeconfigs, in-cluster credentials, exec plugins, TLS. Requests
go through `Api.send` alone, over that client's connection pool; nothing is retried here but one refused login.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

import yaml

from stageline.config.bounds import read_json
from stageline.errors import ClusterError, MissingPartError
from stageline.kube.keys import PODS
from stageline.kube.refusals import explain
from stageline.kube.responses import Response, unreachable

Plain = dict[str, Any]

CLUSTER_WIDE = frozenset(
    {
        *("nodes", "namespaces", "customresourcedefinitions", "storageclasses", "subjectaccessreviews"),
        *("priorityclasses", "runtimeclasses", "selfsubjectreviews"),
    }
)
"""Resources that live in no namespace."""
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its namespace and token."""
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0


class Api:
    """One API server, one namespace. Make it with `Api.connect`; use it from any thread."""

    def __init__(self, load: Any, namespace: str, where: str) -> None:
        self._load = load
        self.namespace = namespace
        self.where = where
        self._mutex = threading.Lock()
        self._client = load()

    @classmethod
    def connect(cls, namespace: str = "", context: str = "", kubeconfig: str = "") -> Api:
        """Read the credentials; sends nothing yet.

        kubeconfig: a file; "" is $KUBECONFIG, else the pod's own account, else ~/.kube/config.
        namespace: "" is the context's, the pod's own, or `default`.
        """
        try:
            from kubernetes import client, config
        except ImportError as e:
            raise MissingPartError(
                "talking to a cluster needs the `kubernetes` package", remedy="pip install 'stageline[cluster]'"
            ) from e
        named = kubeconfig or os.environ.get("KUBECONFIG", "")
        pod = not named and not context and "KUBERNETES_SERVICE_HOST" in os.environ

        def load() -> Any:
            settings = client.Configuration()
            settings.retries = False
            settings.connection_pool_maxsize = 256  # each pod's log is a connection
            if pod:
                config.load_incluster_config(client_configuration=settings)
                settings.proxy = None  # a proxy for the store outside does not know the cluster's own addresses
            else:
                config.load_kube_config(named or None, context=context or None, client_configuration=settings)
            return client.ApiClient(settings)

        try:
            own = own_namespace() if pod else _context_namespace(config, named or None, context)
            self = cls(load, namespace or own, "")
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError) as e:
            if pod:
                raise ClusterError(
                    f"this pod has no usable service account token: {e}",
                    remedy="set automountServiceAccountToken: true on the launcher's pod",
                    code="E_NO_CLUSTER",
                ) from e
            raise ClusterError(
                f"no cluster to talk to: {named or '~/.kube/config'}: {' '.join(str(e).split())}",
                remedy="name a kubeconfig: export KUBECONFIG=<file>; kubectl config get-contexts lists contexts",
                code="E_NO_CLUSTER",
            ) from e
        self.where = self._client.configuration.host
        return self

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        seconds: float = ANSWER_SECONDS,
    ) -> Response:
        """The transport: every request goes through here. seconds: how long the server may stay silent."""
        import urllib3

        client = self._client
        headers = {"Accept": "application/json, */*", "Content-Type": content_type, "User-Agent": "stageline"}
        try:
            client.update_params_for_auth(headers, [], ["BearerToken"])
            raw = client.rest_client.pool_manager.request(
                method,
                client.configuration.host + path + (f"?{urlencode(query)}" if query else ""),
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout=urllib3.Timeout(connect=min(CONNECT_SECONDS, seconds), read=seconds),
                preload_content=False,
                retries=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as e:
            raise unreachable(e, f"no answer from {client.configuration.host}") from e
        return Response(raw)

    def open(self, method: str, path: str, verb: str, what: str, **options: Any) -> Response:
        """`send`, with refusals raised and a login that is refused (401) renewed once."""
        for again in (True, False):
            client = self._client
            response = self.send(method, path, **options)
            if response.status < 300:
                return response
            text = response.text()
            if response.status != 401 or not again:
                break
            with self._mutex:
                if self._client is client:
                    self._client = self._load()
        raise explain(response.status, text, verb=verb, what=what, namespace=self.namespace)

    def ask(self, method: str, path: str, verb: str, what: str, **options: Any) -> Plain:
        """`open`, and the whole answer as a dict."""
        text = self.open(method, path, verb, what, **options).text()
        try:
            plain = read_json(text)
        except ValueError:
            return {"text": text}
        return plain if isinstance(plain, dict) else {"value": plain}

    def path(self, resource: str, name: str = "", namespace: str = "") -> str:
        """resource: `plural[.group]/version`."""
        kind, version = resource.split("/")
        plural, _, group = kind.partition(".")
        base = f"/apis/{group}/{version}" if group else f"/api/{version}"
        space = "" if plural in CLUSTER_WIDE else f"/namespaces/{quote(namespace or self.namespace)}"
        return f"{base}{space}/{plural}" + (f"/{quote(name)}" if name else "")

    def get(self, resource: str, name: str, *, namespace: str = "", seconds: float = ANSWER_SECONDS) -> Plain:
        """One object; AbsentError where it is not."""
        return self.ask("GET", self.path(resource, name, namespace), "get", _what(resource, name), seconds=seconds)

    def list(self, resource: str, *, labels: str = "", fields: str = "") -> Plain:
        """A list object: `items`, and in `metadata` the resourceVersion to watch from."""
        query = {k: v for k, v in (("labelSelector", labels), ("fieldSelector", fields)) if v}
        return self.ask("GET", self.path(resource), "list", _what(resource), query=query)

    def create(self, resource: str, manifest: Plain, *, dry_run: bool = False) -> Plain:
        """Create an object; dry_run: let the server check it and keep nothing. ExistsError where it is there."""
        name = str(manifest.get("metadata", {}).get("name", ""))
        query = {"dryRun": "All"} if dry_run else {}
        query["fieldValidation"] = "Strict"
        return self.ask("POST", self.path(resource), "create", _what(resource, name), query=query, body=manifest)

    def patch(self, resource: str, name: str, change: Plain) -> Plain:
        """Merge `change`; with a resourceVersion in its metadata: ConflictError if the object has another by now."""
        return self.ask(
            "PATCH",
            self.path(resource, name),
            "patch",
            _what(resource, name),
            body=change,
            content_type="application/merge-patch+json",
        )

    def replace(self, resource: str, manifest: Plain, *, seconds: float = ANSWER_SECONDS) -> Plain:
        """Put an object in place of the one with its name and resourceVersion."""
        name = str(manifest["metadata"]["name"])
        return self.ask(
            "PUT", self.path(resource, name), "update", _what(resource, name), body=manifest, seconds=seconds
        )

    def delete(
        self,
        resource: str,
        name: str,
        *,
        uid: str = "",
        version: str = "",
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
        seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Delete an object, and only the one with this uid (and version); ConflictError if it is another one."""
        precondition = {k: v for k, v in (("uid", uid), ("resourceVersion", version)) if v}
        body: Plain = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if precondition:
            body["preconditions"] = precondition
        self.ask("DELETE", self.path(resource, name), "delete", _what(resource, name), body=body, seconds=seconds)

    def watch(self, resource: str, version: str, *, labels: str = "", fields: str = "", seconds: int = 30) -> Response:
        """The changes after `version`, a JSON line each, for `seconds`; ExpiredError where it is too old."""
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        query |= {k: v for k, v in (("labelSelector", labels), ("fieldSelector", fields)) if v}
        return self.open("GET", self.path(resource), "watch", _what(resource), query=query, seconds=seconds + 10.0)

    def log(self, pod: str, query: Mapping[str, str], *, seconds: float = 3600.0) -> Response:
        """A container's log as a stream of lines. query: follow, container, sinceTime, timestamps, previous, …."""
        return self.open(
            "GET", self.path(PODS, pod) + "/log", "get", f'the log of pod "{pod}"', query=query, seconds=seconds
        )

    def review(self, verb: str, resource: str, *, name: str = "", user: str = "", groups: tuple[str, ...] = ()) -> bool:
        """Whether we, or another user (a LocalSubjectAccessReview), may `verb` `plural[.group][/subresource]` here.

        name: of the one object it is about.
        """
        kind, _, subresource = resource.partition("/")
        plural, _, group = kind.partition(".")
        attributes = {"verb": verb, "resource": plural, "group": group, "subresource": subresource, "name": name}
        spec: Plain = {"resourceAttributes": {**attributes, "namespace": self.namespace}}
        review = "selfsubjectaccessreviews" if not user else "localsubjectaccessreviews"
        base = "/apis/authorization.k8s.io/v1" + (f"/namespaces/{self.namespace}" if user else "")
        body: Plain = {"apiVersion": "authorization.k8s.io/v1", "spec": spec}
        body["kind"] = "SelfSubjectAccessReview" if not user else "LocalSubjectAccessReview"
        if user:
            spec |= {"user": user, "groups": [*groups]}
            body["metadata"] = {"namespace": self.namespace}
        answer = self.ask("POST", f"{base}/{review}", "create", review, body=body)
        return bool(answer.get("status", {}).get("allowed"))

    def is_served(self, resource: str) -> bool:
        """Whether the API server serves `plural[.group]/version`: by discovery, which everybody may read."""
        kind, version = resource.split("/")
        plural, _, group = kind.partition(".")
        path = f"/apis/{group}/{version}" if group else f"/api/{version}"
        response = self.send("GET", path)
        text = response.text()
        if response.status == 404:
            return False
        if response.status >= 300:
            raise explain(response.status, text, verb="discover", what=path, namespace="")
        return any(entry.get("name") == plural for entry in read_json(text).get("resources", []))

    def user(self) -> str:
        """Who the API server takes us for."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = self.ask(
            "POST", self.path("selfsubjectreviews.authentication.k8s.io/v1"), "create", "selfsubjectreviews", body=body
        )
        return str(answer.get("status", {}).get("userInfo", {}).get("username", "unknown"))

    def date(self) -> str:
        """The API server's clock, as its answers give it (an HTTP date)."""
        response = self.send("GET", "/version")
        response.text()
        return response.date

    def version(self) -> str:
        """The API server's version, `v1.33.2`."""
        return str(self.ask("GET", "/version", "get", "the API server's version").get("gitVersion", "unknown"))


def _what(resource: str, name: str = "") -> str:
    kind = resource.split("/")[0]
    return f'{kind} "{name}"' if name else kind


def own_namespace() -> str:
    path = ACCOUNT / "namespace"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else "default"


def _context_namespace(config: Any, kubeconfig: str | None, context: str) -> str:
    contexts, active = config.list_kube_config_contexts(kubeconfig)
    chosen = next((c for c in contexts if c["name"] == context), None) if context else active
    return str(((chosen or {}).get("context") or {}).get("namespace") or "default")
