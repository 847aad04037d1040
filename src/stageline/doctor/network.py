"""NetworkPolicies of jobs: whether one would be made, and what killed launchers left of them.

Whether the cluster's network heeds a policy can't be seen from here, and the line says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from stageline.config import ClusterConfig
from stageline.doctor.line import Line, ok, unknown, wrong
from stageline.errors import StagelineError
from stageline.jobs.cluster.explain.describe import timestamp
from stageline.jobs.cluster.render.network_policy import render_policy
from stageline.jobs.environment import PORT
from stageline.jobs.job import Job
from stageline.kube.client import Api
from stageline.kube.keys import JOBS, POLICIES, SELECTOR
from stageline.kube.rights import grant_command, missing_rules, rules_of

LEFT_SECONDS = 600.0
"""From a policy's creation to its job's a launcher takes seconds; what has no job later has none coming."""
OPEN = "whoever reaches the ports of a job's pods can take part in it as a rank"
UNSEEN = (
    "whether the network of this cluster heeds it can't be seen from here, and pods on the host's network and RDMA go "
    "past it"
)


def policy_line(name: str, api: Api, job: Job, cluster: ClusterConfig) -> Line:
    """What a job's NetworkPolicy would be worth here. job: one to ask about, as a dry run."""
    policy = render_policy(job, cluster)
    left = _leftovers(api)
    if left:
        text = f"launchers that were killed left {', '.join(left)}, without a job"
        return wrong(name, text, f"kubectl -n {api.namespace} delete networkpolicy {' '.join(left)}")
    if policy is None:
        return ok(name, f"none is asked for: {OPEN}")
    rules = rules_of("network")
    missing = missing_rules(rules, lambda verb, rule: api.review(verb, rule.what, name=rule.name))
    if missing:
        verbs = ", ".join(verb for rule in missing for verb in rule.verbs)
        text = f"this account may not {verbs} {rules[0].what}, so that "
        remedy = grant_command(missing, api.namespace, api.user())
        if cluster.network_policy == "require":
            return wrong(name, text + "no job is made (cluster.network_policy is `require`)", remedy)
        return unknown(name, f"{text}jobs have none: {OPEN}", remedy)
    api.create(POLICIES, policy, dry_run=True)
    probe = f"kubectl run probe --rm -i --restart=Never --image=busybox -- nc -zvw3 <IP of a job's pod> {PORT}"
    return unknown(name, f"the API server takes the one of a job; {UNSEEN}", f"in another namespace, to fail: {probe}")


def _leftovers(api: Api) -> list[str]:
    """Names of policies of ours that no job owns and none is there for; none where they may not be listed."""
    try:
        found = api.list(POLICIES, labels=SELECTOR).get("items") or []
        without = [policy for policy in found if not policy["metadata"].get("ownerReferences") and _is_old(policy)]
        if not without:
            return []
        jobs = {job["metadata"]["name"] for job in api.list(JOBS, labels=SELECTOR).get("items") or []}
    except StagelineError:
        return []
    return sorted(policy["metadata"]["name"] for policy in without if policy["metadata"]["name"] not in jobs)


def _is_old(policy: Mapping[str, Any]) -> bool:
    made = timestamp(policy["metadata"].get("creationTimestamp"))
    return made is not None and time.time() - made > LEFT_SECONDS
