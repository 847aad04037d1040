"""What an API server's refusal means, in words: a status and a message in, an error with sentence and remedy out. Pure.

The message of a refusal is Kubernetes' own text; what it names (verb, resource, account, quota, webhook) is read out
of it, so that the remedy can be pasted. Texts as of Kubernetes 1.29-1.33.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stageline.config.bounds import read_json
from stageline.errors import ClusterError, ClusterUnavailableError, StagelineError
from stageline.kube.keys import KUBEFLOW
from stageline.kube.rights import rule_text

INSTALL_OPERATOR = (
    "install the training-operator: kubectl apply --server-side -k "
    "'github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref=v1.9.4'"
)
TRY_AGAIN = frozenset({429, 500, 502, 503, 504})
"""Statuses under which the same request may succeed later."""

_DENIED = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]*)")?'
)
QUOTA = r"exceeded quota: (?P<quota>[^,]+), (?P<amounts>.*)"
SECURITY = r'violates PodSecurity "(?P<level>[^"]+)": (?P<why>.*)'
WEBHOOK = r'admission webhook "(?P<name>[^"]+)" denied the request:? ?(?P<why>.*)'
POLICY = r"ValidatingAdmissionPolicy '(?P<name>[^']+)'.* denied request:? ?(?P<why>.*)"
SILENT_WEBHOOK = r'failed calling webhook "(?P<name>[^"]+)": (?P<why>.*)'
"""Why an object is not created, in the words of a response and of an Event alike; `jobs` explains Events by them."""
NO_LOG = ("is waiting to start", "is not available", "ContainerCreating", "previous terminated container", "not found")
"""What the API server says of a container that has no log yet, or none any more."""


def _find(pattern: str, message: str) -> re.Match[str] | None:
    return re.search(pattern, message, re.IGNORECASE | re.DOTALL)


def is_silent_webhook(error: StagelineError) -> bool:
    """Whether a webhook did not answer: its server is at fault, not the API server."""
    return isinstance(error, ClusterUnavailableError) and "the webhook " in error.message


class AbsentError(ClusterError):
    """There is no such object."""


class ExistsError(ClusterError):
    """An object of that name is there already."""


class ConflictError(ClusterError):
    """The object was changed since it was read, or is not the one meant."""


class ExpiredError(ClusterError):
    """The resourceVersion to continue from is too old: list again."""


def explain(status: int, body: str, *, verb: str, what: str, namespace: str) -> StagelineError:
    """The error for a response that refuses.

    status: of HTTP.  body: as sent, a Status object or text.  verb: what we wanted: get, create, ….
    what: the object in words, `pytorchjobs.kubeflow.org "octa-film"`.
    """
    message, reason, details = _read(body)
    head = f"could not {verb} {what} in namespace {namespace!r}" if namespace else f"could not {verb} {what}"
    if status == 401:
        return ClusterError(
            f"{head}: the API server does not accept our credentials (401)",
            remedy="the token has expired or was revoked: log in again, or look at the service account's token volume",
            code="E_UNAUTHORIZED",
        )
    if status == 404:
        return _absent(head, message, details, namespace)
    if status == 409:
        kind = ExistsError if reason == "AlreadyExists" else ConflictError
        return kind(f"{head}: {message}", remedy="look again and start again")
    if status == 410:
        return ExpiredError(f"{head}: {message}", remedy="list again")
    if called := _find(SILENT_WEBHOOK, message):
        return ClusterUnavailableError(
            f"{head}: the webhook {called['name']!r} does not answer: {called['why']}",
            remedy="its server must run before anything is created: kubectl get deployments --all-namespaces",
        )
    if refused := _find(WEBHOOK, message) or _find(POLICY, message):
        return ClusterError(
            f"{head}: the admission webhook {refused['name']!r} refuses it: {refused['why']}",
            remedy="change what it objects to, or ask whoever runs the cluster for an exception",
            code="E_WEBHOOK",
        )
    if status == 403:
        return _forbidden(head, message, namespace)
    if status in TRY_AGAIN:
        return ClusterUnavailableError(
            f"{head}: the API server answers {status}: {message}", remedy="start it again later"
        )
    return ClusterError(
        f"{head}: {message} ({status})", remedy="the API server's words name the field", code="E_REFUSED"
    )


def _read(body: str) -> tuple[str, str, Mapping[str, Any]]:
    """(message, reason, details) of a Status object, or the text itself."""
    try:
        plain = read_json(body)
    except ValueError:
        return body.strip()[:1000] or "no reason given", "", {}
    if not isinstance(plain, dict):
        return str(plain)[:1000], "", {}
    return str(plain.get("message") or "no reason given"), str(plain.get("reason") or ""), plain.get("details") or {}


def _absent(head: str, message: str, details: Mapping[str, Any], namespace: str) -> StagelineError:
    if details.get("kind") == "namespaces" or message.startswith("namespaces "):
        return ClusterError(
            f"{head}: there is no such namespace",
            remedy=f"kubectl create namespace {namespace}, or set cluster.namespace to one that exists",
            code="E_NAMESPACE",
        )
    if "could not find the requested resource" in message or "page not found" in message:
        kubeflow = KUBEFLOW in head
        return ClusterError(
            f"{head}: the API server does not serve this kind (its CRD is not installed)",
            remedy=INSTALL_OPERATOR if kubeflow else "install what brings that CRD",
            code="E_CRD",
        )
    return AbsentError(f"{head}: it does not exist", remedy="look at what is there: stageline job list")


def _forbidden(head: str, message: str, namespace: str) -> StagelineError:
    if quota := _find(QUOTA, message):
        return ClusterError(
            f"{head}: the quota {quota['quota']!r} is exceeded ({quota['amounts']})",
            remedy=f"wait for other work to end, ask for less, or raise it: kubectl -n {namespace} describe quota",
            code="E_QUOTA",
        )
    if "violates PodSecurity" in message:
        return ClusterError(
            f"{head}: the namespace's pod security refuses it: {message}",
            remedy=f"kubectl get namespace {namespace} --show-labels tells the level enforced",
            code="E_POD_SECURITY",
        )
    if "being terminated" in message:
        return ClusterError(
            f"{head}: the namespace is being deleted", remedy="wait until it is gone, or use another one"
        )
    if denied := _DENIED.search(message):
        return _no_permission(denied)
    return ClusterError(f"{head}: forbidden: {message}", remedy="ask whoever runs the cluster", code="E_FORBIDDEN")


def _no_permission(denied: re.Match[str]) -> ClusterError:
    user, verb, resource = denied["user"], denied["verb"], denied["resource"]
    namespace = denied["namespace"] or ""
    who = f"user {user!r}"
    account = re.fullmatch(r"system:serviceaccount:([^:]+):([^:]+)", user)
    if account:
        who = f"service account {account[2]!r} of namespace {account[1]!r}"
    where = f"in namespace {namespace!r}" if namespace else "in the whole cluster"
    rule = rule_text(denied["group"], resource, [verb])
    kind = "Role" if namespace else "ClusterRole"
    return ClusterError(
        f"the {who} may not {verb} {resource} {where}",
        remedy=f"add this rule to its {kind}, or install the chart, which brings it: {rule}",
        code="E_FORBIDDEN",
    )
