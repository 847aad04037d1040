"""Who may do what: every request the launcher makes, as rules of a Role. The chart's Role is held equal by a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from stageline.kube.keys import KUBEFLOW, KUEUE

Part = Literal["launch", "doctor", "kfp"]


@dataclass(frozen=True)
class Rule:
    """Verbs on one resource of one API group. name: of the one object it is for.  part: who needs it."""

    part: Part
    group: str
    resource: str
    verbs: tuple[str, ...]
    name: str = ""

    @property
    def what(self) -> str:
        """`resource[.group]`, as kubectl writes it."""
        plural, slash, sub = self.resource.partition("/")
        return plural + (f".{self.group}" if self.group else "") + slash + sub


RULES = (
    Rule("launch", KUBEFLOW, "pytorchjobs", ("create", "get", "list", "watch", "patch", "delete")),
    Rule("launch", "", "pods", ("get", "list", "watch")),
    Rule("launch", "", "pods/log", ("get",)),
    Rule("launch", "", "events", ("get", "list", "watch")),
    Rule("launch", "coordination.k8s.io", "leases", ("create", "get", "update", "delete")),
    Rule("launch", "", "configmaps", ("get",), "stageline"),
    Rule("doctor", "", "persistentvolumeclaims", ("get",)),
    Rule("doctor", "", "serviceaccounts", ("get",)),
    Rule("doctor", "", "namespaces", ("get",)),
    Rule("doctor", KUEUE, "localqueues", ("get",)),
    Rule("kfp", "", "configmaps", ("get",), "kfp-launcher"),
    Rule("kfp", "argoproj.io", "workflowtaskresults", ("create", "patch")),
)
"""KFP also reads the Secret of its artifact store, whose name is the installation's own."""


def missing_rules(part: Part, may: Callable[[str, Rule], bool]) -> list[Rule]:
    """The rules of a part with the verbs that are not allowed. may: whether a verb of a rule is."""
    missing = []
    for rule in RULES:
        verbs = tuple(verb for verb in rule.verbs if not may(verb, rule)) if rule.part == part else ()
        if verbs:
            missing.append(Rule(rule.part, rule.group, rule.resource, verbs, rule.name))
    return missing


def grant_command(rules: list[Rule], namespace: str, user: str) -> str:
    """kubectl commands that give these rules to a user; the chart brings all of them."""
    name = "stageline-launcher-more"
    commands = []
    for index, rule in enumerate(rules):
        suffix = f"-{index + 1}" if len(rules) > 1 else ""
        only = f" --resource-name={rule.name}" if rule.name else ""
        commands.append(
            f"kubectl -n {namespace} create role {name}{suffix} --verb={','.join(rule.verbs)} "
            f"--resource={rule.what}{only}"
        )
        commands.append(
            f"kubectl -n {namespace} create rolebinding {name}{suffix} --role={name}{suffix} {_subject(user)}"
        )
    return " && ".join(commands)


def _subject(user: str) -> str:
    parts = user.split(":")
    if parts[:2] == ["system", "serviceaccount"] and len(parts) == 4:
        return f"--serviceaccount={parts[2]}:{parts[3]}"
    return f"--user={user}"
