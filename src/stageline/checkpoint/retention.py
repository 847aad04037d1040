"""Which checkpoints of a stage stay: the last N, the best N, every K steps. Loads no torch.

Never deleted, whatever the numbers say: what a pointer names, what any run below the same root has as a parent, and a
save that is running. A checkpoint is deleted metadata first, so that a half-deleted one does not exist for readers.
Links from runs below other roots are not known here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from stageline.checkpoint.fencing import close_step, empty_step, is_emptied
from stageline.checkpoint.layout import CHECKPOINTS, OTHER_FOLDERS, PARENTS_NAME, POINTERS, CheckpointRef, StageDir
from stageline.checkpoint.lease import StageLease, held_by
from stageline.checkpoint.metadata import METADATA_NAME
from stageline.config import RetentionConfig
from stageline.errors import CheckpointError
from stageline.store import Store

NEVER_COMMITTED = "never committed"


@dataclass(frozen=True)
class Decision:
    """What happens to one step directory, and why."""

    name: str
    uri: str
    action: Literal["keep", "delete"]
    reason: str


def stage_dirs(root: Store) -> list[StageDir]:
    """Every stage directory (with or without variant) below a root."""
    found = []
    for run in root.folders("runs"):
        pending = [root.child("runs", run, name) for name in root.folders(f"runs/{run}") if name not in OTHER_FOLDERS]
        for store in pending:
            folders = store.folders()
            if CHECKPOINTS in folders or store.exists(PARENTS_NAME):
                found.append(StageDir.at(store))
            else:
                found.extend(StageDir.at(store.child(name)) for name in folders)
    return found


def linked_digests(root: Store) -> dict[str, str]:
    """Digests of all checkpoints that something below the root has as a parent: digest -> who."""
    links: dict[str, str] = {}
    for directory in stage_dirs(root):
        for reference in directory.recorded_parents():
            links.setdefault(reference.digest, directory.uri)
        try:
            refs = directory.committed()
        except CheckpointError:
            # Damaged, but its writer put every link on record before it saved anything.
            if directory.store.exists(PARENTS_NAME):
                continue
            raise
        for ref in refs:
            for parent in ref.metadata.parents.values():
                links.setdefault(parent.digest, ref.uri)
    return links


def decide(refs: list[CheckpointRef], keep: RetentionConfig, protected: dict[str, str]) -> list[Decision]:
    """What the three numbers and the protected digests say about committed checkpoints, given in the order of saving.

    Only checkpoints of the newest one's settings count for the numbers: older settings are superseded.
    """
    if not refs:
        return []
    current = [r for r in refs if r.metadata.stage_fingerprint == refs[-1].metadata.stage_fingerprint]
    reasons: dict[str, str] = {}
    for ref in current[-keep.last :]:
        reasons[ref.digest] = f"one of the last {keep.last}"
    for ref in _ranked(current)[: keep.best]:
        reasons.setdefault(ref.digest, f"one of the best {keep.best}")
    for ref in current:
        if keep.every_steps and ref.metadata.step % keep.every_steps == 0:
            reasons.setdefault(ref.digest, f"its step is a multiple of {keep.every_steps}")
    reasons |= {ref.digest: protected[ref.digest] for ref in refs if ref.digest in protected}
    return [
        Decision(ref.name, ref.uri, "keep", reasons[ref.digest])
        if ref.digest in reasons
        else Decision(ref.name, ref.uri, "delete", "nothing asks for it")
        for ref in refs
    ]


def _ranked(refs: Iterable[CheckpointRef]) -> list[CheckpointRef]:
    """Those with a finite value of the declared metric, best first, newer first among equals."""
    ranked = []
    for ref in refs:
        best = ref.metadata.best
        value = ref.metadata.metrics.get(best.metric) if best else None
        if best is not None and value is not None and math.isfinite(value):
            ranked.append((value if best.direction == "min" else -value, -ref.metadata.sequence, ref))
    return [ref for *_, ref in sorted(ranked, key=lambda item: item[:2])]


def protected_digests(directory: StageDir) -> dict[str, str]:
    """What of a stage directory may never be deleted: digest -> why."""
    if directory.root is None:
        raise CheckpointError(
            f"{directory.uri!r} does not lie in runs/<run>/ below a root, so nobody can say who refers to it",
            remedy="prune stage directories of a run only",
        )
    protected = {digest: f"a parent of {who}" for digest, who in linked_digests(directory.root).items()}
    for name in POINTERS:
        ref = directory.pointer(name)
        if ref is not None:
            protected[ref.digest] = f"{name}.ckpt names it"
    return protected


def leftovers(directory: StageDir, running: Collection[str] = ()) -> list[str]:
    """Names of step directories that were never committed and that nobody is writing, with something to remove."""
    names = [name for name in directory.step_dirs() if name not in running]
    return [name for name in names if not directory.is_committed(name) and not is_emptied(directory, name)]


def delete_checkpoint(directory: StageDir, name: str) -> None:
    """Remove a step directory so that no moment leaves a readable half of it."""
    store = directory.step_store(name)
    store.delete(METADATA_NAME)
    directory.store.delete_tree(f"{CHECKPOINTS}/{name}")


def sweep(
    directory: StageDir, keep: RetentionConfig, lease: StageLease, running: Collection[str] = ()
) -> list[Decision]:
    """Delete leftovers and what retention does not keep. For the holder of the lease, after a commit.

    running: names of step directories that this process is writing.
    """
    lease.check()
    directory.store.tidy()
    decisions = [
        Decision(name, directory.step_store(name).uri, "delete", NEVER_COMMITTED)
        for name in leftovers(directory, running)
    ]
    refs = directory.committed()
    # Asking every run for its parents costs; only done when there is something to delete.
    kept = decide(refs, keep, {})
    if any(d.action == "delete" for d in kept):
        try:
            kept = decide(refs, keep, protected_digests(directory))
        except CheckpointError as error:
            # A run may not end because another one's files are damaged; but then nobody knows what may go.
            kept = [Decision(r.name, r.uri, "keep", f"links can't be read: {error.message}") for r in refs]
    decisions += kept
    for decision in decisions:
        if decision.action == "delete":
            lease.check()
            if decision.reason != NEVER_COMMITTED:
                delete_checkpoint(directory, decision.name)
            elif close_step(directory, decision.name, lease):
                empty_step(directory, decision.name)
    return decisions


def prune(directory: StageDir, keep: RetentionConfig, *, dry_run: bool) -> list[Decision]:
    """What goes and why the rest stays, for people; deletes unless `dry_run`, and then needs the stage's lease.

    BusyError if a stage is running in the directory (a dry run only reports its saves).
    """
    if not dry_run:
        with StageLease.acquire(directory, "stageline checkpoint prune") as lease:
            return sweep(directory, keep, lease)
    holder = held_by(directory)
    decisions = [
        Decision(name, directory.step_store(name).uri, "keep", f"{holder} may be writing it")
        if holder
        else Decision(name, directory.step_store(name).uri, "delete", NEVER_COMMITTED)
        for name in leftovers(directory)
    ]
    return decisions + decide(directory.committed(), keep, protected_digests(directory))
