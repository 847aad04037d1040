"""The NetworkPolicy of a job: made before the job, and then owned by it, so that it goes when the job goes.

In between it belongs to the launcher's pod where there is one, and to nobody on a laptop: a launcher that is killed
there leaves it behind; the next launch of the job takes it away, and `doctor` shows it. Pods outlive a deleted job by
their grace: while a launcher follows, they own the policy too, so that it outlives them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from stageline.config import ClusterConfig
from stageline.errors import ClusterError, ClusterUnavailableError, StagelineError
from stageline.jobs.cluster.follow.job_lease import reference
from stageline.jobs.cluster.render.network_policy import render_policy
from stageline.jobs.cluster.render.pytorchjob import metrics_port
from stageline.jobs.job import Job
from stageline.kube.client import Api
from stageline.kube.keys import API_VERSION, KIND, POLICIES, Plain, is_ours
from stageline.kube.refusals import AbsentError, ConflictError, ExistsError
from stageline.kube.rights import missing_rules, rules_of_following

OWNER_SECONDS = 60.0
"""How long an API server that does not answer is asked to make a job the owner."""
DELETE_SECONDS = 10.0
"""How long a leftover may take to go."""
UNFENCED = "whoever reaches the ports of its pods can take part in it as a rank"
UNREAD = (
    "note: the job's NetworkPolicy lets no Prometheus read its metrics: name its namespace in "
    "cluster.network.metrics_from (chart: networkPolicy.metricsFrom)"
)


class JobPolicy:
    """The policy of one job.

    api: the job's API server and namespace.
    job, cluster: what it is of.
    launcher: reference to the launcher's pod, its owner until the job is there; None for none.
    say: told where there is none, or where it could not be given to the job.
    is_cancelled: whether to wait for nothing any more.
    """

    def __init__(
        self,
        api: Api,
        job: Job,
        cluster: ClusterConfig,
        launcher: Mapping[str, Any] | None,
        say: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        self._api = api
        self._name = job.name
        self._required = cluster.network_policy == "require"
        self._launcher = [dict(launcher)] if launcher else []
        self._say = say
        self._is_cancelled = is_cancelled
        self._unread = bool(metrics_port(job)) and not cluster.network.metrics_from
        self._wanted = render_policy(job, cluster)
        self._made: Plain = {}
        self._owners: list[dict[str, Any]] = []

    def make(self) -> None:
        """Make it anew, before the job. ClusterError where it is required and may not be made."""
        if self._wanted is None:
            return
        try:
            self._refuse_without_owner()
            self._made = self._create_anew(self._wanted)
            if self._unread:
                self._say(UNREAD)
        except ClusterUnavailableError:
            raise
        except StagelineError as error:
            self._lack(error)

    def give(self, job: Plain) -> None:
        """Make a job that is there its owner, and it what is wanted. ClusterError as `make`."""
        if self._wanted is None:
            return
        end = time.monotonic() + OWNER_SECONDS
        while True:
            try:
                self._give(self._wanted, job)
            except ClusterUnavailableError as error:
                if time.monotonic() < end and not self._is_cancelled():
                    time.sleep(1.0)
                    continue
                self._stays(error)
            except StagelineError as error:
                if self._made:
                    self._stays(error)
                else:
                    self._lack(error)
            return

    def keep(self, pods: Iterable[Plain]) -> None:
        """Have these pods own it beside the job; an object goes when the last of its owners has gone. Never fails."""
        if not self._owners:
            return
        living = sorted((pod["metadata"]["name"], pod["metadata"]["uid"]) for pod in pods)
        owners = [self._owners[0], *(reference("v1", "Pod", name, uid) for name, uid in living)]
        if owners == self._owners:
            return
        try:
            self._api.patch(POLICIES, self._name, {"metadata": {"ownerReferences": owners}})
        except ClusterUnavailableError:
            return  # asked again with the next look at the pods
        except StagelineError:
            pass
        self._owners = owners

    def withdraw(self) -> None:
        """Take away what `make` made, where no job came of it; never fails."""
        if self._made:
            with suppress(StagelineError):
                self._api.delete(POLICIES, self._name, uid=self._made["metadata"]["uid"], seconds=5.0)
            self._made = {}

    def clear(self) -> None:
        """Take away what a launcher left that was killed before its job was there; never fails."""
        if self._wanted is not None:
            with suppress(StagelineError):
                self._clear()

    def _refuse_without_owner(self) -> None:
        """ClusterError where a policy could be made that nothing would ever take away."""
        try:
            missing = missing_rules(
                rules_of_following("network"), lambda verb, rule: self._api.review(verb, rule.what, name=rule.name)
            )
        except StagelineError:  # who may do what is not told here
            return
        for rule in missing:
            raise ClusterError(
                f"this account may not {', '.join(rule.verbs)} {rule.what}",
                remedy=f"add to its Role, or install the chart, which brings it: {rule.text}",
                code="E_FORBIDDEN",
            )

    def _create_anew(self, wanted: Plain) -> Plain:
        end = time.monotonic() + DELETE_SECONDS
        while True:
            try:
                return self._create(wanted, self._launcher)
            except ExistsError:
                if time.monotonic() > end:
                    raise
                self._clear()
                time.sleep(0.05)

    def _clear(self) -> None:
        """Without a job of its name, one of ours is a leftover."""
        found = self._read()
        if found:
            with suppress(AbsentError, ConflictError):
                self._api.delete(POLICIES, self._name, uid=found["metadata"]["uid"])

    def _read(self) -> Plain:
        """The one that is there, empty for none; ClusterError for somebody else's."""
        try:
            found = self._api.get(POLICIES, self._name)
        except AbsentError:
            return {}
        if not is_ours(found):
            space = self._api.namespace
            raise ClusterError(
                f"there is a NetworkPolicy {self._name!r} in namespace {space!r} that stageline did not make",
                remedy=f"choose another run name: run=<name>; or kubectl -n {space} delete networkpolicy {self._name}",
                code="E_FOREIGN_POLICY",
            )
        return found

    def _create(self, wanted: Plain, owners: list[dict[str, Any]]) -> Plain:
        metadata = {**wanted["metadata"], "namespace": self._api.namespace, "ownerReferences": owners}
        return self._api.create(POLICIES, {**wanted, "metadata": metadata})

    def _give(self, wanted: Plain, job: Plain) -> None:
        owner = reference(API_VERSION, KIND, self._name, job["metadata"]["uid"])
        while True:
            self._made = self._made or self._read()
            with suppress(AbsentError, ConflictError, ExistsError):
                if not self._made:
                    self._made = self._create(wanted, [owner])
                else:
                    metadata = {"uid": self._made["metadata"]["uid"], "ownerReferences": [owner]}
                    spec = {"egress": None, **wanted["spec"]}  # rules that are no longer wanted go
                    self._api.patch(POLICIES, self._name, {"metadata": metadata, "spec": spec})
                self._owners = [owner]
                return
            self._made = {}  # somebody took it away, or made another one, this very moment

    def _stays(self, error: StagelineError) -> None:
        self._say(f"the job's NetworkPolicy is there, and stays when the job goes: {error.message}")

    def _lack(self, error: StagelineError) -> None:
        if self._required:
            raise ClusterError(
                f"the job {self._name!r} would run without its NetworkPolicy, which is required: {error.message}",
                remedy=f"{error.remedy}; or cluster.network_policy=prefer",
                code="E_NO_POLICY",
            ) from error
        self._wanted = None
        self._say(f"warning: the job has no NetworkPolicy, so that {UNFENCED}: {error.message} ({error.remedy})")
