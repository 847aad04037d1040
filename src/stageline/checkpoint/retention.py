"""Which checkpoints of a stage stay: the last N, the best N, every K steps; nothing finished goes. Loads no torch.

The numbers count among checkpoints of the settings that were written last. Of other settings (superseded ones) stays,
where they were trained to the end, what they hand on and their last; of those that were not, the newest. Only
`prune --superseded` frees them.

Never deleted, whatever the numbers say: what a pointer names, what any run below the same root has as a parent, what is
damaged or set aside, and a save that is running. A checkpoint is deleted metadata first, so that a half-deleted one
does not exist for readers. Links from runs below other roots are not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stageline.checkpoint.fencing import close_step, empty_step, is_emptied
from stageline.checkpoint.layout import (
    CHECKPOINTS,
    OTHER_FOLDERS,
    PARENTS_NAME,
    POINTERS,
    STEP_PATTERN,
    CheckpointRef,
    Damaged,
    StageDir,
    best_of,
    ranked,
)
from stageline.checkpoint.lease import StageLease, held_by
from stageline.checkpoint.metadata import METADATA_NAME
from stageline.checkpoint.steps import look, set_aside
from stageline.checkpoint.verify import verify
from stageline.config import RetentionConfig
from stageline.errors import CheckpointError, StoreError
from stageline.store import Store, open_below

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
                found.append(StageDir.at(store, root))
            else:
                found.extend(StageDir.at(store.child(name), root) for name in folders)
    return found


def linked_digests(root: Store) -> dict[str, str]:
    """Digests of all checkpoints that something below the root has as a parent: digest -> who."""
    links: dict[str, str] = {}
    for directory in stage_dirs(root):
        for reference in directory.recorded_parents():
            links.setdefault(reference.digest, directory.uri)
        found = directory.survey()
        unread = [item for item in (*found.damaged, *found.aside) if item.metadata is None]
        # Where metadata can't be read: its writer put every link on record before it saved anything.
        if unread and not directory.store.exists(PARENTS_NAME):
            raise CheckpointError(f"{unread[0].uri!r} is damaged: {unread[0].reason}", remedy=unread[0].remedy)
        items: list[CheckpointRef | Damaged] = [*found.refs, *found.damaged, *found.aside]
        for item in items:
            if item.metadata is not None:
                for parent in item.metadata.parents.values():
                    links.setdefault(parent.digest, item.uri)
    return links


@dataclass(frozen=True)
class Superseded:
    """The checkpoints of one stage directory that were made with other settings than the ones that count now.

    fingerprint: of the stage.  finished: whether it was trained to the end.  step: of its newest checkpoint.
    names: of the step directories.  bytes: what all of them hold.  settings: of its newest checkpoint, flat.
    """

    fingerprint: str
    finished: bool
    step: int
    names: tuple[str, ...]
    bytes: int
    settings: Mapping[str, Any]


def superseded(directory: StageDir, fingerprint: str = "") -> list[Superseded]:
    """What a stage directory keeps of other settings, oldest first; for a plan, and for `prune --superseded`.

    fingerprint: the stage's under the settings that count; "" takes those that were written last.
    """
    refs = directory.survey().refs
    current = fingerprint or (refs[-1].metadata.stage_fingerprint if refs else "")
    rows = []
    for name, group in _by_fingerprint(refs).items():
        if name != current:
            newest = group[-1].metadata
            size = sum(record.bytes for ref in group for record in ref.metadata.files.values())
            names = tuple(ref.name for ref in group)
            rows.append(Superseded(name, _is_finished(group), newest.step, names, size, newest.settings))
    return rows


def _by_fingerprint(refs: Iterable[CheckpointRef]) -> dict[str, list[CheckpointRef]]:
    """Checkpoints by stage fingerprint, in the order in which each was last written."""
    groups: dict[str, list[CheckpointRef]] = {}
    for ref in refs:
        group = groups.pop(ref.metadata.stage_fingerprint, [])
        groups[ref.metadata.stage_fingerprint] = [*group, ref]
    return groups


def _is_finished(group: Iterable[CheckpointRef]) -> bool:
    return any(ref.metadata.final for ref in group)


def decide(refs: list[CheckpointRef], keep: RetentionConfig, protected: dict[str, str]) -> list[Decision]:
    """What the numbers and the protected digests say about committed checkpoints, given in the order of saving.

    `last`, `best` and `every_steps` count among checkpoints of the newest one's settings; `unfinished` counts settings.
    """
    if not refs:
        return []
    *older, current = _by_fingerprint(refs).values()
    current = without_repeated(current)
    reasons: dict[str, str] = {}
    for ref in current[-keep.last :]:
        reasons[ref.digest] = f"one of the last {keep.last}"
    for ref in ranked(current)[: keep.best]:
        reasons.setdefault(ref.digest, f"one of the best {keep.best}")
    for ref in current:
        if keep.every_steps and ref.metadata.step % keep.every_steps == 0:
            reasons.setdefault(ref.digest, f"its step is a multiple of {keep.every_steps}")
    for group in [current, *older]:
        if _is_finished(group):
            finals = [ref for ref in group if ref.metadata.final]
            reasons.setdefault(finals[-1].digest, "its stage ended with it")
            best = best_of(group)
            if best is not None:
                reasons.setdefault(best.digest, "its finished stage hands it on")
    unfinished = [group for group in older if not _is_finished(group)]
    for group in unfinished[len(unfinished) - keep.unfinished :] if keep.unfinished else []:
        reasons.setdefault(group[-1].digest, f"the newest of one of the last {keep.unfinished} unfinished trainings")
    reasons |= {ref.digest: protected[ref.digest] for ref in refs if ref.digest in protected}
    return [
        Decision(ref.name, ref.uri, "keep", reasons[ref.digest])
        if ref.digest in reasons
        else Decision(ref.name, ref.uri, "delete", "nothing asks for it")
        for ref in refs
    ]


def without_repeated(refs: Sequence[CheckpointRef]) -> list[CheckpointRef]:
    """Checkpoints in the order of saving, without those that were saved before a validation and once more after it."""
    kept: list[CheckpointRef] = []
    validated: set[int] = set()
    for ref in reversed(refs):
        if ref.metadata.metrics or ref.metadata.step not in validated:
            kept.insert(0, ref)
        if ref.metadata.metrics:
            validated.add(ref.metadata.step)
    return kept


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
    refs = list(directory.survey().refs)
    # Asking every run for its parents costs; only done when there is something to delete.
    kept = decide(refs, keep, {})
    if any(d.action == "delete" for d in kept):
        try:
            kept = decide(refs, keep, protected_digests(directory))
        except (CheckpointError, StoreError) as error:
            # A run may not end because of what lies in another one; but then nobody knows what may go.
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


def set_aside_step(ref: Store, by: str) -> str:
    """Take a damaged step directory out of use, for people; returns what is wrong with it.

    ref: the step directory.  CheckpointError for one that is whole or no checkpoint, BusyError if its stage is running.
    """
    stage, _, name = ref.uri.rpartition(f"/{CHECKPOINTS}/")
    if not stage or not STEP_PATTERN.fullmatch(name):
        raise CheckpointError(f"{ref.uri!r} is no step directory", remedy="name <stage directory>/checkpoints/step-…")
    directory = StageDir.at(open_below(stage))
    with StageLease.acquire(directory, "stageline checkpoint set-aside") as lease:
        found = look(ref)
        if found is None:
            raise CheckpointError(f"{ref.uri!r} holds no checkpoint", remedy="a leftover is swept by the next save")
        faults = [found.reason] if isinstance(found, Damaged) else verify(found)
        if not faults:
            raise CheckpointError(f"{ref.uri!r} is whole", remedy="delete old checkpoints with checkpoint prune")
        lease.check()
        set_aside(ref, "; ".join(faults), by)
    return "; ".join(faults)


def prune_superseded(directory: StageDir, *, keep: Collection[str] = (), dry_run: bool) -> list[Decision]:
    """Free what was made with other settings than those written last, and what was set aside; deletes unless `dry_run`.

    keep: beginnings of stage fingerprints that stay although they are superseded. What a pointer names or something
    below the root has as a parent stays too. BusyError if a stage is running in the directory.
    """
    if dry_run:
        return _superseded_decisions(directory, keep)
    with StageLease.acquire(directory, "stageline checkpoint prune --superseded") as lease:
        decisions = _superseded_decisions(directory, keep)
        for decision in decisions:
            if decision.action == "delete":
                lease.check()
                delete_checkpoint(directory, decision.name)
        return decisions


def _superseded_decisions(directory: StageDir, keep: Collection[str]) -> list[Decision]:
    rows = superseded(directory)
    aside = directory.survey().aside
    if not rows and not aside:
        return []
    protected = protected_digests(directory)
    digests = {ref.name: ref.digest for ref in directory.survey().refs}
    decisions = []
    for row in rows:
        wanted = any(row.fingerprint.startswith(start) for start in keep)
        what = f"{'finished' if row.finished else 'unfinished'} training {row.fingerprint[:12]}"
        for name in row.names:
            why = protected.get(digests[name]) or (f"--keep names {row.fingerprint[:12]}" if wanted else "")
            uri = directory.step_store(name).uri
            decisions.append(Decision(name, uri, "keep" if why else "delete", f"{what}: {why}" if why else what))
    decisions += [Decision(item.name, item.uri, "delete", f"set aside: {item.reason}") for item in aside]
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
    return decisions + decide(list(directory.survey().refs), keep, protected_digests(directory))
