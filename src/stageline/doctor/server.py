"""The cluster as a whole: its API server, its clock, the kinds of objects it serves, what we may do in a namespace."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

from stageline.config import ClusterConfig
from stageline.doctor.line import Check, Line, ok, unknown, wrong
from stageline.errors import StagelineError
from stageline.kube.client import Api
from stageline.kube.keys import KUBEFLOW, QUEUES
from stageline.kube.refusals import INSTALL_OPERATOR, AbsentError
from stageline.kube.rights import Rule, chart_command, grant_command, missing_rules, rules_of

OLDEST = (1, 29)
SKEW_SECONDS = 20.0
"""A stage's lease lasts 60 s and is read off the reader's clock: a third of that is too much. Chosen here."""
OPERATOR, OPERATOR_NAMESPACE = "training-operator", "kubeflow"
"""As its own manifests name them."""
OPTIONAL_KINDS = {
    f"trainjobs.trainer.{KUBEFLOW}/v1alpha1": "Trainer v2, which stageline does not use",
    QUEUES: "Kueue, for `cluster.queue`",
    "podmonitors.monitoring.coreos.com/v1": "the Prometheus operator, for metrics of training pods",
}


def server_checks(api: Api, jobs: str, launcher: str, cluster: ClusterConfig) -> list[Check]:
    """jobs: `plural.group/version` of the jobs.  launcher: service account of the pipeline's steps."""
    defaults = cluster.defaults
    return [
        Check("api", lambda: _version(api)),
        Check("clock", lambda: _clock(api)),
        Check("pytorchjob", lambda: _jobs(api, jobs)),
        Check("operator", lambda: _operator(api)),
        Check("optional kinds", lambda: _optional(api)),
        Check("rights", lambda: _own_rights(api, defaults)),
        Check("rights of the launcher", lambda: _launcher_rights(api, launcher, cluster)),
        Check("rights of kfp steps", lambda: _kfp_rights(api, launcher, defaults)),
    ]


def _version(api: Api) -> Line:
    try:
        found = api.version()
    except StagelineError as error:
        return wrong("api", error.message, error.remedy)
    numbers = re.match(r"v?(\d+)\.(\d+)", found)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST:
        return wrong("api", f"{api.where} is Kubernetes {found}; 1.29 or newer is needed", "upgrade the cluster")
    return ok("api", f"{api.where} is Kubernetes {found}; namespace {api.namespace!r}")


def _clock(api: Api) -> Line:
    began = time.time()
    text = api.date()
    here = (began + time.time()) / 2
    try:
        skew = here - parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return unknown("clock", "the API server says no time")
    if abs(skew) > SKEW_SECONDS:
        return wrong(
            "clock",
            f"this machine is {skew:+.0f} s off the API server; leases of stages are read off the clock",
            "timedatectl set-ntp true (or chronyc makestep) on the machine that is wrong",
        )
    return ok("clock", f"within {max(1.0, abs(skew)):.0f} s of the API server")


def _jobs(api: Api, jobs: str) -> Line:
    if api.is_served(jobs):
        return ok("pytorchjob", f"{jobs} is served")
    return wrong("pytorchjob", f"the API server does not serve {jobs}", INSTALL_OPERATOR)


def _operator(api: Api) -> Line:
    """The training-operator's version and health, where its own namespace may be read."""
    try:
        found = api.get("deployments.apps/v1", OPERATOR, namespace=OPERATOR_NAMESPACE)
    except AbsentError:
        return unknown("operator", f"there is no {OPERATOR} in namespace {OPERATOR_NAMESPACE!r}; it may run elsewhere")
    image = found["spec"]["template"]["spec"]["containers"][0]["image"]
    if not found.get("status", {}).get("readyReplicas"):
        remedy = f"kubectl -n {OPERATOR_NAMESPACE} describe deployment {OPERATOR}"
        return wrong("operator", f"{image} has no pod that is ready", remedy)
    return ok("operator", f"{image} is ready")


def _optional(api: Api) -> Line:
    there = {kind: api.is_served(kind) for kind in OPTIONAL_KINDS}
    words = [
        f"{kind.split('/')[0]} {'served' if served else f'not installed ({OPTIONAL_KINDS[kind]})'}"
        for kind, served in there.items()
    ]
    return ok("optional kinds", "; ".join(words))


def _own_rights(api: Api, defaults: str) -> Line:
    missing = _missing(api, rules_of("launch", defaults))
    user = api.user()
    if not missing:
        return ok("rights", f"{user} may do all that is needed in {api.namespace!r}")
    text = f"{user} may not {_words(missing)} in {api.namespace!r}"
    return wrong("rights", text, grant_command(missing, api.namespace, user))


def _launcher_rights(api: Api, launcher: str, cluster: ClusterConfig) -> Line:
    """The same for the account that pipeline steps run under, as far as we may ask."""
    name, user = "rights of the launcher", _account_user(api, launcher)
    if api.user() == user:
        return ok(name, "the account we are, see `rights`")
    needed = rules_of("launch", cluster.defaults)
    missing = _missing(api, needed, user)
    if missing and len(missing) == len(needed):
        text = f"service account {launcher!r} may do nothing in {api.namespace!r}; steps of a pipeline run under it"
        return unknown(name, text, chart_command(api.namespace, cluster.defaults))
    policies = [] if cluster.network_policy == "off" else _missing(api, rules_of("network"), user)
    if missing or policies:
        text = f"{launcher!r} may not {_words([*missing, *policies])} in {api.namespace!r}"
        command = grant_command([*missing, *policies], api.namespace, user)
        if missing or cluster.network_policy == "require":
            return wrong(name, text, command)
        return unknown(name, f"{text}: jobs of pipelines have no NetworkPolicy", command)
    return ok(name, f"{launcher!r} may do all that is needed in {api.namespace!r}")


def _kfp_rights(api: Api, launcher: str, defaults: str) -> Line:
    """What KFP itself does under that account: nobody else needs it."""
    name, user = "rights of kfp steps", _account_user(api, launcher)
    missing = _missing(api, rules_of("kfp"), "" if api.user() == user else user)
    if not missing:
        return ok(name, f"{launcher!r} may do what KFP does in a step")
    text = f"{launcher!r} may not {_words(missing)} in {api.namespace!r}; only steps of KFP need it"
    return unknown(name, text, chart_command(api.namespace, defaults, "kfp.enabled=true"))


def _account_user(api: Api, account: str) -> str:
    return f"system:serviceaccount:{api.namespace}:{account}"


def _missing(api: Api, needed: list[Rule], user: str = "") -> list[Rule]:
    """Which of these rules lack. user: of a service account in the namespace; "" is oneself."""
    all_accounts = ("system:serviceaccounts", f"system:serviceaccounts:{api.namespace}", "system:authenticated")
    groups = all_accounts if user else ()
    return missing_rules(
        needed, lambda verb, rule: api.review(verb, rule.what, name=rule.name, user=user, groups=groups)
    )


def _words(rules: list[Rule]) -> str:
    return "; ".join(
        f"{', '.join(rule.verbs)} {rule.what}" + (f" {rule.name!r}" if rule.name else "") for rule in rules
    )
