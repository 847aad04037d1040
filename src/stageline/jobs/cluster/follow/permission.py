"""What following a job takes, asked before it is made: a launcher that may create and not watch leaves it half-made."""

from __future__ import annotations

from stageline.errors import ClusterError, StagelineError
from stageline.kube.client import Api
from stageline.kube.rights import missing_rules, rules_of_following


def refuse_without_permission(api: Api) -> None:
    """ClusterError naming every rule that is missing; says nothing where the API server will not tell."""
    try:
        missing = missing_rules(rules_of_following(), lambda verb, rule: api.review(verb, rule.what, name=rule.name))
    except StagelineError:
        return
    if missing:
        raise ClusterError(
            f"this account may not do in namespace {api.namespace!r} what following a job takes; no job was made",
            remedy="add to its Role, or install the chart, which brings it: "
            + ", ".join(rule.text for rule in missing),
            code="E_FORBIDDEN",
        )
