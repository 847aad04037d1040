"""What following a job takes, asked before it is made: a launcher that may create and not watch leaves it half-made."""

from __future__ import annotations

from stageline.errors import ClusterError, StagelineError
from stageline.kube.client import Api
from stageline.kube.keys import JOBS

NEEDED = (
    (JOBS.partition("/")[0], ("create", "watch", "patch", "delete")),
    ("pods", ("watch",)),
    ("pods/log", ("get",)),
)
"""What has not been used yet when a job is created; the rest was, and would have been refused by then."""


def refuse_without_permission(api: Api) -> None:
    """ClusterError naming every rule that is missing; says nothing where the API server will not tell."""
    missing = []
    for resource, verbs in NEEDED:
        try:
            lacking = [verb for verb in verbs if not api.review(verb, resource)]
        except StagelineError:
            return
        if lacking:
            plural, _, subresource = resource.partition("/")
            name, _, group = plural.partition(".")
            words = ", ".join(f'"{verb}"' for verb in lacking)
            kind = f"{name}/{subresource}" if subresource else name
            missing.append(f'{{apiGroups: ["{group}"], resources: ["{kind}"], verbs: [{words}]}}')
    if missing:
        raise ClusterError(
            f"this account may not do in namespace {api.namespace!r} what following a job takes; no job was made",
            remedy="add to its Role, or install the chart, which brings it: " + ", ".join(missing),
            code="E_FORBIDDEN",
        )
