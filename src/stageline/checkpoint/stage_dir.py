"""The directory of one stage of one run: its checkpoints, its pointers, what it starts from. Loads no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stageline.checkpoint.metadata import METADATA_NAME, CheckpointMetadata, is_continuable, is_fence
from stageline.checkpoint.steps import (
    ASIDE_NAME,
    CHECKPOINTS,
    STEP_PATTERN,
    CheckpointRef,
    Damaged,
    absolute_uri,
    find_root,
    look,
    open_checkpoint,
    relative_uri,
    step_order,
)
from stageline.config.bounds import read_json
from stageline.errors import CheckpointError
from stageline.store import NotFoundError, Reference, Store, open_store

Pointer = Literal["best", "last"]
POINTERS: tuple[Pointer, ...] = ("best", "last")
OTHER_FOLDERS = frozenset({"pipeline", "evaluations", "comparisons", "jobs", "code", "quarantine"})
"""Folders of a run that are no stages."""
PARENTS_NAME = "parents.json"


@dataclass(frozen=True)
class Survey:
    """All that a stage directory holds at one look, in the order of saving.

    refs: checkpoints whose metadata, seal and sizes are right.  damaged: those where they are not.  aside: those that
    were set aside.
    """

    refs: tuple[CheckpointRef, ...]
    damaged: tuple[Damaged, ...]
    aside: tuple[Damaged, ...]

    def of(self, fingerprint: str) -> tuple[CheckpointRef, ...]:
        """What may be continued or reused of one stage fingerprint."""
        return tuple(ref for ref in self.refs if _is_of(ref.metadata, fingerprint))

    def damaged_of(self, fingerprint: str) -> tuple[Damaged, ...]:
        """What of one stage fingerprint is damaged, as far as its metadata can still be read."""
        return tuple(item for item in self.damaged if item.metadata is not None and _is_of(item.metadata, fingerprint))

    def is_known(self, fingerprint: str) -> bool:
        """Whether anything was saved under a stage fingerprint, damaged or not."""
        return bool(self.of(fingerprint) or self.damaged_of(fingerprint))

    def is_finished(self, fingerprint: str) -> bool:
        """Whether a stage fingerprint was trained to its end, be it that the checkpoint which says so is damaged."""
        said = [*(ref.metadata for ref in self.of(fingerprint)), *(d.metadata for d in self.damaged_of(fingerprint))]
        return any(metadata is not None and metadata.final for metadata in said)

    def to_continue(self, fingerprint: str) -> CheckpointRef | None:
        """The intact checkpoint of one stage fingerprint that went furthest; None where there is none."""
        return max(self.of(fingerprint), key=lambda ref: (ref.metadata.step, ref.metadata.sequence), default=None)


def _is_of(metadata: CheckpointMetadata, fingerprint: str) -> bool:
    return metadata.stage_fingerprint == fingerprint and is_continuable(metadata)


class StageDir:
    """The directory of one stage of one run: `runs/<run>/<stage>[/<variant>]` below the root."""

    def __init__(self, root: Store | str, run: str, stage: str, variant: str = "") -> None:
        base = root if isinstance(root, Store) else open_store(root)
        self.store = base.child("runs", run, stage, variant)
        self.root: Store | None = base

    @classmethod
    def at(cls, store: Store, root: Store | None = None) -> StageDir:
        """The stage directory that a store is. root: where it is known already; else looked for upward."""
        self = cls.__new__(cls)
        self.store = store
        self.root = root or find_root(store)
        return self

    @property
    def uri(self) -> str:
        return self.store.uri

    def step_dirs(self) -> list[str]:
        """Names of all step directories, committed or not, in the order of step and attempt."""
        names = [name for name in self.store.folders(CHECKPOINTS) if STEP_PATTERN.fullmatch(name)]
        return sorted(names, key=step_order)

    def step_store(self, name: str) -> Store:
        return self.store.child(CHECKPOINTS, name)

    def is_committed(self, name: str) -> bool:
        """Whether a step directory holds a checkpoint; what it says is not looked at."""
        try:
            return not is_fence(self.step_store(name).get(METADATA_NAME))
        except NotFoundError:
            return False

    def survey(self) -> Survey:
        """Look at every step directory once: what is whole, what is damaged, what was set aside."""
        refs: list[CheckpointRef] = []
        damaged: list[Damaged] = []
        aside: list[Damaged] = []
        for name in self.step_dirs():
            found = look(self.step_store(name))
            if isinstance(found, CheckpointRef):
                refs.append(found)
            elif found is not None:
                (aside if found.store.exists(ASIDE_NAME) else damaged).append(found)
        refs.sort(key=lambda ref: (ref.metadata.sequence, *step_order(ref.name)))
        return Survey(tuple(refs), tuple(damaged), tuple(aside))

    def committed(self) -> list[CheckpointRef]:
        """Every checkpoint in the order of saving, but for those that were set aside.

        A damaged one raises: nothing is skipped; `survey` tells them apart. The last one need not have the highest
        step: a stage that was started over begins at 0 again.
        """
        found = self.survey()
        if found.damaged:
            first = found.damaged[0]
            raise CheckpointError(f"{first.uri!r} is damaged: {first.reason}", remedy=first.remedy)
        return list(found.refs)

    def newest(self) -> CheckpointRef | None:
        """The checkpoint committed last, or None."""
        refs = self.committed()
        return refs[-1] if refs else None

    def pointer(self, name: Pointer) -> CheckpointRef | None:
        """The checkpoint a pointer names, or None where there is no such pointer."""
        key = f"{name}.ckpt"
        before = b""
        while True:
            try:
                data = self.store.get(key)
            except NotFoundError:
                return None
            try:
                return self._target(key, data)
            except CheckpointError as error:
                # The writer may have moved the pointer and deleted what it named while we were reading.
                if data == before:
                    raise CheckpointError(
                        f"{self.uri}/{key} names no checkpoint of this stage: {error.message}",
                        remedy=f"delete {self.uri}/{key}: the checkpoints themselves say which is {name}; or, if it is "
                        "a file of another program, bring it in with `stageline checkpoint import`",
                    ) from error
                before = data

    def names(self, name: Pointer, ref: CheckpointRef) -> bool:
        """Whether a pointer names a checkpoint; False too where there is no pointer or what it names is damaged."""
        try:
            found = self.pointer(name)
        except CheckpointError:
            return False
        return found is not None and found.digest == ref.digest

    def handed_on(self, name: Pointer, fingerprint: str, survey: Survey | None = None) -> CheckpointRef | None:
        """The best or last checkpoint of one stage fingerprint; None where nothing of that may be reused.

        survey: a look at this directory, where there is one already. The checkpoints themselves say which it is, by
        fingerprint, whatever was written last. CheckpointError if that one is damaged or gone. Where the best was set
        aside it is the best of the others by the stage's metric.
        """
        found = survey or self.survey()
        same: list[CheckpointRef | Damaged] = [*found.of(fingerprint), *found.damaged_of(fingerprint)]
        same.sort(key=_sequence)
        if not same:
            return None
        newest = same[-1].metadata
        assert newest is not None
        wanted: CheckpointRef | Damaged | None = same[-1]
        if name == "best" and newest.best is not None:
            at = [item for item in same if item.metadata is not None and item.metadata.step == newest.best.step]
            aside = any(step_order(item.name)[0] == newest.best.step for item in found.aside)
            wanted = at[-1] if at else None
            if wanted is None and aside:
                wanted = next(iter(ranked(found.of(fingerprint))), same[-1])
        if wanted is None:
            assert newest.best is not None
            raise CheckpointError(
                f"the best checkpoint of {self.uri!r}, of step {newest.best.step} by {newest.best.metric}, is gone",
                remedy=f"restore it, or delete {self.uri}/{CHECKPOINTS} to train the stage again",
            )
        if isinstance(wanted, Damaged):
            raise CheckpointError(
                f"{wanted.uri!r} would be handed on and is damaged: {wanted.reason}", remedy=wanted.remedy
            )
        return wanted

    def _target(self, key: str, data: bytes) -> CheckpointRef | None:
        """The checkpoint that a pointer file's bytes name; None where that was set aside."""
        where = f"{self.uri}/{key}"
        try:
            plain = read_json(data)
            target, digest = plain["target"], plain["digest"]
            usable = isinstance(target, str) and isinstance(digest, str)
        except (ValueError, TypeError, KeyError):
            usable = False
        if not usable or not re.fullmatch(rf"{CHECKPOINTS}/{STEP_PATTERN.pattern}", target):
            raise CheckpointError(f"{where!r} is no pointer: expected JSON with `target` and `digest`")
        store = self.store.child(target)
        return None if store.exists(ASIDE_NAME) else open_checkpoint(store, digest)

    def set_pointer(self, name: Pointer, ref: CheckpointRef, check: Callable[[], None] = lambda: None) -> bool:
        """Let a pointer name a committed checkpoint of this directory; atomic.

        check: raises where this process may not write here any more. False, and nothing is changed, where the pointer
        was moved by another since before that check.
        """
        key = f"{name}.ckpt"
        plain = {"target": f"{CHECKPOINTS}/{ref.name}", "digest": ref.digest}
        data = (json.dumps(plain) + "\n").encode()
        try:
            before, token = self.store.get_with_token(key)
        except NotFoundError:
            check()
            return self.store.create(key, data) or self.store.get(key) == data
        check()
        if before == data:
            return True
        return self.store.replace(key, data, token) or self.store.get(key) == data

    def recorded_parents(self) -> list[Reference]:
        """Everything this stage ever said it starts from."""
        try:
            plain = read_json(self.store.get(PARENTS_NAME))
            return [Reference(absolute_uri(item["uri"], self.root, self.uri), item["digest"]) for item in plain]
        except NotFoundError:
            return []
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{self.uri}/{PARENTS_NAME} is damaged: {error}",
                remedy="mend it (a list of objects with uri and digest); until then nothing is pruned",
            ) from error

    def record_parents(self, parents: Mapping[str, Reference]) -> None:
        """Say durably what this stage starts from, before it reads it: retention keeps what is named here.

        What lies below the same root is written relative to it.
        """
        known = self.recorded_parents()
        links = [*known, *(ref for ref in parents.values() if ref not in known)]
        if links != known or not self.store.exists(PARENTS_NAME):
            plain = [{"uri": relative_uri(ref.uri, self.root), "digest": ref.digest} for ref in links]
            self.store.put(PARENTS_NAME, (json.dumps(plain, indent=1) + "\n").encode())


def _sequence(item: CheckpointRef | Damaged) -> tuple[int, int, int]:
    return (0 if item.metadata is None else item.metadata.sequence, *step_order(item.name))


def ranked(refs: Iterable[CheckpointRef]) -> list[CheckpointRef]:
    """Those with a finite value of the declared metric, best first, newer first among equals."""
    found = []
    for ref in refs:
        best = ref.metadata.best
        value = ref.metadata.metrics.get(best.metric) if best else None
        if best is not None and value is not None and math.isfinite(value):
            found.append((value if best.direction == "min" else -value, -ref.metadata.sequence, ref))
    return [ref for *_, ref in sorted(found, key=lambda item: item[:2])]


def best_of(refs: Sequence[CheckpointRef]) -> CheckpointRef | None:
    """The one that the newest of some checkpoints calls the best so far, in the order of saving; None if it is gone."""
    best = refs[-1].metadata.best if refs else None
    found = [ref for ref in refs if best is not None and ref.metadata.step == best.step]
    return found[-1] if found else None
