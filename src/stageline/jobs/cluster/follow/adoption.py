"""What to do about a job that is already there under our name: nothing, adopt, replace, wait, or refuse. Pure.

Identity is the name, the labels that say run, item and variant, and the fingerprint. Who launches it now stands in an
annotation, which is moved by a patch with the resourceVersion that was read: the lock between two launchers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from stageline.errors import BusyError, ClusterError, PlanError, StagelineError
from stageline.kube.keys import ANNOTATION_FINGERPRINT, ANNOTATION_LAUNCHER, IDENTITY_LABELS, Plain, annotation, is_ours


@dataclass(frozen=True)
class Decision:
    """create: there is none.  adopt: it runs and is ours.  replace: it ended and its result is not in the store.
    wait: it is being deleted.  nothing: its result is in the store."""

    action: Literal["create", "adopt", "replace", "wait", "nothing"]
    why: str = ""


def decide(live: Plain | None, wanted: Plain, *, finished: bool) -> Decision:
    """What to do. live: the job under the wanted one's name.  finished: whether its final result is in the store.

    Raises PlanError where the name is another run's or fingerprint's, ClusterError where it is not ours at all.
    """
    if live is not None:
        refuse_foreign(live, wanted)
    ended = outcome(live) if live is not None else ""
    if finished and (live is None or ended):
        return Decision("nothing", "its result is in the store")
    if live is None:
        return Decision("create")
    if live["metadata"].get("deletionTimestamp"):
        return Decision("wait", "the job before is being deleted")
    mine, its = annotation(wanted, ANNOTATION_FINGERPRINT), annotation(live, ANNOTATION_FINGERPRINT)
    if ended:
        what = "without leaving its result" if ended == "Succeeded" else "badly"
        other = "" if mine == its else f", with another fingerprint ({its[:12]})"
        return Decision("replace", f"the job before ended {what}{other}")
    if mine != its:
        raise _other_fingerprint(live, mine, its)
    return Decision("adopt", "the job runs already, with the same fingerprint")


def refuse_foreign(live: Plain, wanted: Plain) -> None:
    """Raise where the job under our name is somebody else's."""
    found, expected = live["metadata"].get("labels") or {}, wanted["metadata"].get("labels") or {}
    name, namespace = live["metadata"]["name"], live["metadata"].get("namespace", "")
    if not is_ours(live):
        raise ClusterError(
            f"there is a PyTorchJob {name!r} in namespace {namespace!r} that stageline did not make",
            remedy="choose another run name: run=<name>; or delete it: "
            f"kubectl -n {namespace} delete pytorchjob {name}",
            code="E_FOREIGN_JOB",
        )
    differing = [
        f"{key.split('/')[1]} {found.get(key, 'none')!r} instead of {expected.get(key, 'none')!r}"
        for key in IDENTITY_LABELS
        if found.get(key) != expected.get(key)
    ]
    if differing:
        raise PlanError(
            f"the job {name!r} in namespace {namespace!r} belongs to {', '.join(differing)}",
            remedy="two runs need two names: run=<another name>",
            code="E_OTHER_RUN",
        )


def _other_fingerprint(live: Plain, mine: str, its: str) -> StagelineError:
    name, namespace = live["metadata"]["name"], live["metadata"].get("namespace", "")
    return PlanError(
        f"the job {name!r} in namespace {namespace!r} runs with other settings: "
        f"its fingerprint is {its[:16] or 'missing'}, the one wanted is {mine[:16]}",
        remedy=f"let it end, or end it: stageline job cancel {name} (kubectl -n {namespace} delete pytorchjob {name}); "
        "or choose another run name",
        code="E_OTHER_FINGERPRINT",
    )


def outcome(job: Plain) -> Literal["", "Succeeded", "Failed"]:
    """How a job ended; "" while it has not."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition.get("status") == "True" and condition.get("type") in ("Succeeded", "Failed"):
            ended: Literal["Succeeded", "Failed"] = condition["type"]
            return ended
    return ""


def is_suspended(job: Plain) -> bool:
    """Whether a queue holds the job back."""
    return bool(((job.get("spec") or {}).get("runPolicy") or {}).get("suspend"))


def executed_parts(job: Plain) -> dict[str, str]:
    """What must not change while a job runs, as text: number of pods and, of each container, what it executes.

    Not the whole spec: queues rewrite node selectors and suspension of running jobs, rightly.
    """
    parts: dict[str, str] = {}
    for kind, replica in sorted(((job.get("spec") or {}).get("pytorchReplicaSpecs") or {}).items()):
        parts[f"{kind.lower()} replicas"] = str(replica.get("replicas", 1))
        for container in ((replica.get("template") or {}).get("spec") or {}).get("containers") or []:
            for key in ("image", "command", "args", "env"):
                value = container.get(key)
                parts[f"{container.get('name')} {key}"] = json.dumps(value or None, sort_keys=True)
    return parts


def spec_digest(job: Plain) -> str:
    """A short digest of `executed_parts`."""
    return hashlib.sha256(json.dumps(executed_parts(job), sort_keys=True).encode()).hexdigest()[:16]


def adoption_patch(live: Plain, *, launcher: str, owner: Plain | None) -> dict[str, Any]:
    """The change that makes a job ours: its launcher, and the pod it goes with instead of the launcher's before."""
    metadata = live["metadata"]
    others = [ref for ref in metadata.get("ownerReferences") or [] if ref.get("kind") != "Pod"]
    return {
        "metadata": {
            "resourceVersion": metadata["resourceVersion"],
            "uid": metadata["uid"],
            "annotations": {ANNOTATION_LAUNCHER: launcher},
            "ownerReferences": others + ([dict(owner)] if owner else []),
        }
    }


def lost_to(job: Plain, launcher: str) -> StagelineError | None:
    """The error for a job that another launcher took over."""
    now = annotation(job, ANNOTATION_LAUNCHER)
    if now == launcher:
        return None
    return BusyError(
        f"the job {job['metadata']['name']!r} is now followed by another launcher, {now or 'none'}; it runs on",
        remedy="follow it there: stageline job logs " + str(job["metadata"]["name"]),
        code="E_TAKEN_OVER",
    )
