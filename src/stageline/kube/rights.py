"""Who may do what: every request that stageline makes, as rules of a Role. The one list of them.

The chart grants what stands here, which a test holds; `doctor` asks for all of it, a launcher for the part that it
could find out about too late. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from stageline.kube.keys import KUBEFLOW, KUEUE, NETWORKING

Part = Literal["launch", "network", "doctor", "kfp"]


@dataclass(frozen=True)
class Rule:
    """Verbs on one resource of one API group.

    part: who needs it; `network` is what a launcher needs for NetworkPolicies.  name: of the one object it is for.
    once_made: those of its verbs that are first used when the job is there already, so that a launcher asks for them
    before it makes one.
    """

    part: Part
    group: str
    resource: str
    verbs: tuple[str, ...]
    name: str = ""
    once_made: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """`resource[.group][/subresource]`, as kubectl writes it."""
        plural, slash, sub = self.resource.partition("/")
        return plural + (f".{self.group}" if self.group else "") + slash + sub

    @property
    def text(self) -> str:
        """The rule as a line of a Role."""
        return rule_text(self.group, self.resource, self.verbs)


DEFAULTS = "stageline"
"""Name of the ConfigMap with the defaults of a namespace in `RULES`; `cluster.defaults` may give another."""

RULES = (
    Rule(
        "launch",
        KUBEFLOW,
        "pytorchjobs",
        ("create", "get", "list", "watch", "patch", "delete"),
        once_made=("create", "watch", "patch", "delete"),
    ),
    Rule("launch", "", "pods", ("get", "list", "watch"), once_made=("watch",)),
    Rule("launch", "", "pods/log", ("get",), once_made=("get",)),
    Rule("launch", "", "events", ("get", "list", "watch")),
    Rule("launch", "coordination.k8s.io", "leases", ("create", "get", "update")),
    Rule("launch", "", "configmaps", ("get",), DEFAULTS),
    Rule("network", NETWORKING, "networkpolicies", ("create", "get", "patch", "delete"), once_made=("patch", "delete")),
    Rule("doctor", NETWORKING, "networkpolicies", ("list",)),
    Rule("doctor", "", "persistentvolumeclaims", ("get",)),
    Rule("doctor", "", "serviceaccounts", ("get",)),
    Rule("doctor", "", "namespaces", ("get",)),
    Rule("doctor", KUEUE, "localqueues", ("get",)),
    Rule("kfp", "", "configmaps", ("get",), "kfp-launcher"),
    Rule("kfp", "argoproj.io", "workflowtaskresults", ("create", "patch")),
)
"""KFP also reads the Secret of its artifact store, whose name is the installation's own. Without events less can be
explained, without NetworkPolicies jobs have none (`cluster.network_policy`), and all else goes on."""


def rules_of(part: Part, defaults: str = DEFAULTS) -> list[Rule]:
    """The rules that a part needs. defaults: name of the ConfigMap with those of the namespace."""
    return [replace(rule, name=defaults if rule.name == DEFAULTS else rule.name) for rule in RULES if rule.part == part]


def rules_of_following(part: Part = "launch") -> list[Rule]:
    """What a launcher asks for before it makes a job: the rest was used by then, and would have been refused."""
    return [replace(rule, verbs=rule.once_made, once_made=()) for rule in RULES if rule.part == part and rule.once_made]


def missing_rules(rules: Iterable[Rule], may: Callable[[str, Rule], bool]) -> list[Rule]:
    """The rules with those of their verbs that are not allowed. may: whether a verb of a rule is."""
    lacking = [(rule, tuple(verb for verb in rule.verbs if not may(verb, rule))) for rule in rules]
    return [replace(rule, verbs=verbs, once_made=()) for rule, verbs in lacking if verbs]


def rule_text(group: str, resource: str, verbs: Iterable[str]) -> str:
    """A rule as a line of a Role, in YAML. resource: `plural[/subresource]`."""
    words = ", ".join(f'"{verb}"' for verb in verbs)
    return f'{{apiGroups: ["{group}"], resources: ["{resource}"], verbs: [{words}]}}'


def chart_command(namespace: str, defaults: str, *values: str) -> str:
    """helm's command that brings the chart, or changes what is there of it and keeps its values.

    defaults: name of the ConfigMap with those of the namespace, which is the chart's name there.  values: `key=value`.
    """
    named = () if defaults == DEFAULTS else (f"nameOverride={defaults}",)
    sets = f" --set {','.join((*named, *values))}" if named or values else ""
    return f"helm upgrade --install {defaults} helm/stageline -n {namespace} --reset-then-reuse-values{sets}"


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
