"""What a job may use up before it is ended and explained: restarts without progress, time to start, time in all. Pure.

Restarts are counted by pod uid in an annotation of the job, so that a launcher that comes later goes on counting;
events are merged and expire, and the operator's own `backoffLimit` does not stop what it should.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from stageline.config.bounds import read_json
from stageline.errors import DeadlineError, PendingTimeoutError, RestartBudgetError

UID_CHARACTERS = 8
"""Kept of each uid: enough to tell apart the few pods of one index, and an annotation of a large gang stays small."""


@dataclass(frozen=True)
class SeenPods:
    """The pods of a job seen since its newest committed checkpoint.

    step: of that checkpoint, -1 before the first.
    pods: index of a worker -> uids of its pods, the oldest first, shortened.
    """

    step: int = -1
    pods: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> SeenPods:
        """From the annotation; what is not one counts as empty, as whoever may write it could have it anyway."""
        try:
            plain = read_json(text)
        except ValueError:
            return cls()
        if not isinstance(plain, dict) or set(plain) != {"step", "pods"} or type(plain["step"]) is not int:
            return cls()
        pods = plain["pods"]
        if not isinstance(pods, dict) or not all(_are_uids(uids) for uids in pods.values()):
            return cls()
        return cls(plain["step"], {index: tuple(uids) for index, uids in pods.items()})

    def text(self) -> str:
        """For the annotation."""
        pods = {index: list(uids) for index, uids in sorted(self.pods.items())}
        return json.dumps({"step": self.step, "pods": pods}, separators=(",", ":"))

    def knows(self, index: str, uid: str) -> bool:
        return uid[:UID_CHARACTERS] in self.pods.get(index, ())

    def with_pod(self, index: str, uid: str, step: int) -> SeenPods:
        """After a new pod at `index`, when `step` was the newest committed one. Progress forgives what was before."""
        if self.knows(index, uid):
            return self
        seen_pods = self
        if step > self.step:
            seen_pods = SeenPods(step, {key: uids[-1:] for key, uids in self.pods.items()})
        uids = (*seen_pods.pods.get(index, ()), uid[:UID_CHARACTERS])
        return replace(seen_pods, pods={**seen_pods.pods, index: uids})

    @property
    def restarts(self) -> int:
        """How often the gang was started again without progress: one restart replaces every pod once."""
        return max((len(uids) for uids in self.pods.values()), default=1) - 1


def _are_uids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(uid, str) and len(uid) <= UID_CHARACTERS for uid in value)


def read_deadline(text: str) -> float | None:
    """Seconds since 1970 of the annotation, None where it is empty or no time."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def over_budget(seen_pods: SeenPods, budget: int, why: str) -> RestartBudgetError | None:
    """The error once there were more restarts than the budget. why: how the last pod ended, "" if unknown."""
    if seen_pods.restarts <= budget:
        return None
    since = (
        f"since the checkpoint of step {seen_pods.step}" if seen_pods.step >= 0 else "without any committed checkpoint"
    )
    return RestartBudgetError(
        f"pods were started again {seen_pods.restarts} times {since}, cluster.restart_budget is {budget}: "
        "the job was ended" + (f"; the last one: {why}" if why else ""),
        remedy="mend what ends them and start again; it continues from the last checkpoint",
        code="E_RESTART_BUDGET",
    )


@dataclass
class StartClock:
    """Since when the pods have not all been running; None while they are, or while a queue holds the job back."""

    since: float | None = None
    ran: bool = False
    was_suspended: bool = False

    def update(self, *, running: bool, suspended: bool, created: float, now: float) -> None:
        """created: when the job was made.  Times are of the wall clock."""
        if running:
            self.since, self.ran = None, True
        elif suspended:
            self.since, self.was_suspended = None, True
        elif self.since is None:
            self.since = now if self.ran or self.was_suspended else min(created, now)

    def is_over(self, limit_seconds: float, now: float) -> bool:
        return self.since is not None and now - self.since >= limit_seconds


def pending_error(running: int, wanted: int, limit_seconds: float, cause: str, remedy: str) -> PendingTimeoutError:
    """The error of a gang that did not start in time. cause, remedy: of a diagnosis, "" if there is none."""
    held = f"; {running} of {wanted} ran meanwhile and held their devices" if running else ""
    return PendingTimeoutError(
        f"not all pods were running within cluster.pending_seconds={limit_seconds:g}: the job was ended{held}"
        + (f". {cause}" if cause else ""),
        remedy=remedy or "kubectl describe the job and its pods; or give it longer: cluster.pending_seconds",
        code="E_PENDING",
    )


def deadline_error(seconds_past: float) -> DeadlineError:
    """The error of a job that was ended because its time was over."""
    return DeadlineError(
        f"the stage was not finished by its deadline (cluster.deadline_seconds), {seconds_past:.0f} s ago",
        remedy="start it again to continue from the last checkpoint, or give it longer: cluster.deadline_seconds",
        code="E_DEADLINE",
    )
