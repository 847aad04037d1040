"""Jobs of a namespace looked at and ended by hand: their rows, logs, deletion, and how they differ from a rendering."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from stageline.errors import ClusterError, ConfigError, StagelineError
from stageline.jobs.cluster.explain.describe import pod_phase
from stageline.jobs.cluster.follow.adoption import outcome
from stageline.jobs.cluster.follow.logs import LogFollower
from stageline.jobs.cluster.inspect.manifest import manifest_difference
from stageline.jobs.cluster.inspect.rows import Row, list_rows
from stageline.jobs.cluster.render.pytorchjob import label_value
from stageline.kube.client import Api
from stageline.kube.keys import (
    ANNOTATION_FINGERPRINT,
    JOBS,
    LABEL_JOB,
    LABEL_RUN,
    PODS,
    POLICIES,
    SELECTOR,
    annotation,
    is_ours,
)
from stageline.kube.refusals import AbsentError, ConflictError
from stageline.kube.watches import Watch

PATIENCE_SECONDS = 300.0
"""How long an API server that answered before may be silent while logs are followed."""
LAST_LINES_SECONDS = 10.0
_AGE = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def find_rows(api: Api, run: str = "") -> list[Row]:
    """The jobs of ours in a namespace. run: only those of this one."""
    labels = SELECTOR + (f",{LABEL_RUN}={label_value(run)}" if run else "")
    jobs = api.list(JOBS, labels=labels).get("items") or []
    pods = api.list(PODS, labels=labels).get("items") or []
    return list_rows(jobs, pods)


def cancel_jobs(api: Api, names: Sequence[str], run: str) -> list[tuple[str, int]]:
    """Delete jobs by name, or all of a run that have not ended; (name, seconds its pods may take) of each.

    ClusterError for a name that is no job of ours; then none is deleted.
    """
    chosen = [_own_job(api, name) for name in names]
    if run:
        found = api.list(JOBS, labels=f"{SELECTOR},{LABEL_RUN}={label_value(run)}").get("items") or []
        chosen += [job for job in found if not outcome(job)]
    done = []
    for job in chosen:
        name = str(job["metadata"]["name"])
        with suppress(AbsentError, ConflictError):  # it ended, or was replaced, this very moment
            api.delete(JOBS, name, uid=str(job["metadata"]["uid"]))
        _delete_policy(api, name)
        pod = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
        done.append((name, int(pod.get("terminationGracePeriodSeconds") or 30)))
    return done


def _delete_policy(api: Api, name: str) -> None:
    """Delete the NetworkPolicy of a deleted job that was applied by hand: no owner takes it along."""
    with suppress(StagelineError):
        policy = api.get(POLICIES, name)
        if is_ours(policy) and not policy["metadata"].get("ownerReferences"):
            api.delete(POLICIES, name, uid=str(policy["metadata"]["uid"]))


def _own_job(api: Api, name: str) -> dict[str, Any]:
    try:
        job = api.get(JOBS, name)
    except AbsentError as error:
        raise AbsentError(
            f"there is no job {name!r} in namespace {api.namespace!r}",
            remedy=f"stageline job list -n {api.namespace} shows those there are",
        ) from error
    if not is_ours(job):
        raise ClusterError(
            f"the PyTorchJob {name!r} in namespace {api.namespace!r} was not made by stageline, and is left alone",
            remedy=f"kubectl -n {api.namespace} delete pytorchjob {name}",
            code="E_FOREIGN_JOB",
        )
    return job


def since_time(text: str, now: float | None = None) -> str:
    """`10m` or a time -> RFC 3339 in UTC; ConfigError for anything else."""
    if not text:
        return ""
    age = _AGE.fullmatch(text)
    if age:
        moment = datetime.fromtimestamp((time.time() if now is None else now) - int(age[1]) * _UNITS[age[2]], UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--since {text!r} is no time", remedy="2026-01-31T12:00:00Z, or 90s, 10m, 2h, 1d") from error
    return f"{(moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def hand_over_logs(
    api: Api,
    name: str,
    on_line: Callable[[str], None],
    say: Callable[[str], None],
    since: str = "",
    *,
    follow: bool,
) -> None:
    """Hand over what the pods of a job wrote; with `follow` until the job has ended or is gone."""
    start = since_time(since)
    job = _own_job(api, name)
    logs = LogFollower(api, on_line, prefixed=True, say=say, since=start, follow=follow)
    try:
        if follow:
            _follow(api, job, logs, say)
        else:
            pods = api.list(PODS, labels=f"{LABEL_JOB}={name}").get("items") or []
            for pod in pods:
                logs.update(pod)
            if not any(pod_phase(pod) != "Pending" for pod in pods):
                say(_nothing_yet(job, pods))
        logs.drain(3600.0 if not follow else LAST_LINES_SECONDS)
    finally:
        logs.close()


def _nothing_yet(job: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> str:
    if not pods and outcome(job):
        return "its pods are gone; their logs lie in the store, under logs/ of the stage"
    return "its pods have not started yet; --follow waits for them"


def _follow(api: Api, job: Mapping[str, Any], logs: LogFollower, say: Callable[[str], None]) -> None:
    """Until the job has ended and its pods have, or it is gone."""
    name, uid = str(job["metadata"]["name"]), job["metadata"]["uid"]
    over = threading.Event()
    faults: list[BaseException] = []
    labels = f"{LABEL_JOB}={name}"
    watches = {
        "pods": Watch(api, PODS, labels=labels, patience_seconds=PATIENCE_SECONDS, say=_once(say)),
        "jobs": Watch(api, JOBS, fields=f"metadata.name={name}", patience_seconds=PATIENCE_SECONDS, say=_once(say)),
    }

    def pump(kind: str) -> None:
        try:
            for change in watches[kind].changes():
                _take(kind, change.kind, change.object, logs, uid, over)
        except Exception as error:  # noqa: BLE001  # told by the caller, who waits for it
            faults.append(error)
            over.set()

    for kind in watches:
        threading.Thread(target=pump, args=(kind,), name=f"look-{kind}", daemon=True).start()
    try:
        while not over.wait(0.5):  # short waits: Ctrl-C is answered at once
            continue
        time.sleep(1.0)  # what the pods' watch has still to tell
    finally:
        for watch in watches.values():
            watch.stop()
    if faults:
        raise faults[0]


def _take(kind: str, change: str, item: dict[str, Any], logs: LogFollower, uid: str, over: threading.Event) -> None:
    if kind == "pods" and change != "synced":
        logs.ended(item) if change == "deleted" else logs.update(item)
    elif (
        kind == "jobs"
        and change != "synced"
        and item["metadata"]["uid"] == uid
        and (change == "deleted" or outcome(item))
    ):
        over.set()


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Say a text once in a row, and nothing for none."""
    last = [""]

    def tell(text: str) -> None:
        if text and text != last[0]:
            say(text)
        last[0] = text

    return tell


def compare_live(api: Api, rendered: Mapping[str, Any]) -> dict[str, Any]:
    """What is there under a rendered job's name: {"state": …, "differences": [...]}."""
    try:
        live = api.get(JOBS, str(rendered["metadata"]["name"]))
    except AbsentError:
        return {"state": "absent", "differences": []}
    state = outcome(live).lower() or "unfinished"
    same = annotation(live, ANNOTATION_FINGERPRINT) == annotation(rendered, ANNOTATION_FINGERPRINT)
    differences = manifest_difference(live, rendered)
    return {"state": state, "same_fingerprint": same, "differences": differences}
