"""Where checkpoints lie and how one is named: stage directories, step directories, pointers. Loads no torch.

A step directory without `checkpoint_metadata.json` does not exist for any reader. `resolve` is the one reader of names:
it takes a step directory, a stage directory, a pointer file, each also with `@sha256:<digest>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stageline.checkpoint.metadata import METADATA_NAME, CheckpointMetadata, digest_of, is_fence, parse_metadata
from stageline.errors import CheckpointError
from stageline.store import NotFoundError, Reference, Store, open_store

Pointer = Literal["best", "last"]
POINTERS: tuple[Pointer, ...] = ("best", "last")
STEP_PATTERN = re.compile(r"step-(\d{8,})(?:-(\d+))?")
CHECKPOINTS = "checkpoints"
OTHER_FOLDERS = frozenset({"pipeline", "evaluations", "jobs"})
"""Folders of a run that are no stages."""
PARENTS_NAME = "parents.json"


@dataclass(frozen=True)
class CheckpointRef:
    """A committed checkpoint: where it lies, which one it is, what it says."""

    store: Store
    digest: str
    metadata: CheckpointMetadata

    @property
    def uri(self) -> str:
        return self.store.uri

    @property
    def reference(self) -> Reference:
        return Reference(self.uri, self.digest)

    @property
    def content(self) -> str:
        return self.metadata.content

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[-1]


def open_checkpoint(store: Store, digest: str | None = None) -> CheckpointRef:
    """The checkpoint in a step directory; CheckpointError if it is uncommitted, damaged or not the one of `digest`."""
    try:
        data = store.get(METADATA_NAME)
    except NotFoundError as error:
        if store.list():
            if not STEP_PATTERN.fullmatch(store.uri.rsplit("/", 1)[-1]):
                raise CheckpointError(
                    f"{store.uri!r} is no checkpoint: it has no {METADATA_NAME}",
                    remedy="name a step directory, a stage directory, best.ckpt or last.ckpt",
                ) from error
            raise CheckpointError(
                f"{store.uri!r} was never committed: it has no {METADATA_NAME}",
                remedy="use another checkpoint; the next save of this stage sweeps the leftover",
            ) from error
        raise CheckpointError(
            f"there is no checkpoint at {store.uri!r}", remedy="`stageline runs show <run>` lists what there is"
        ) from error
    if is_fence(data):
        raise CheckpointError(
            f"{store.uri!r} was never committed: its writer had lost the stage's lease",
            remedy="use another checkpoint; the stage's next one sweeps the leftover",
        )
    found = digest_of(data)
    if digest is not None and found != digest:
        raise CheckpointError(
            f"{store.uri!r} is another checkpoint than the one named: digest {found}, expected {digest}",
            remedy="name the checkpoint anew, or find out who replaced it",
        )
    metadata = parse_metadata(data, store.uri)
    if metadata.export_of:
        raise CheckpointError(
            f"{store.uri!r} is an export of checkpoint {metadata.export_of}, for other programs",
            remedy="name the checkpoint itself, not its export",
        )
    return CheckpointRef(store, found, metadata)


class StageDir:
    """The directory of one stage of one run: `runs/<run>/<stage>[/<variant>]` below the root."""

    def __init__(self, root: Store | str, run: str, stage: str, variant: str = "") -> None:
        base = root if isinstance(root, Store) else open_store(root)
        self.store = base.child("runs", run, stage, variant)
        self.root: Store | None = base

    @classmethod
    def at(cls, store: Store) -> StageDir:
        """The stage directory that a store is. Its root is known where the URI has the usual form."""
        self = cls.__new__(cls)
        self.store = store
        match = re.fullmatch(r"(?P<root>.+?)/runs/[^/]+/[^/]+(?:/[^/]+)?", store.uri)
        self.root = open_store(match["root"]) if match else None
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

    def committed(self) -> list[CheckpointRef]:
        """Every committed checkpoint in the order of saving. Damaged metadata raises: nothing is skipped.

        The last one need not have the highest step: a stage that was started over begins at 0 again.
        """
        refs = []
        for name in self.step_dirs():
            store = self.step_store(name)
            try:
                data = store.get(METADATA_NAME)
            except NotFoundError:
                # Uncommitted, or deleted by its writer a moment ago: either way it does not exist.
                continue
            if is_fence(data):
                continue
            refs.append(CheckpointRef(store, digest_of(data), parse_metadata(data, store.uri)))
        return sorted(refs, key=lambda ref: (ref.metadata.sequence, *step_order(ref.name)))

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

    def handed_on(self, name: Pointer, fingerprint: str) -> CheckpointRef | None:
        """The best or last checkpoint of one stage fingerprint; None where nothing of that is committed.

        Where the pointer is missing or names something older, the checkpoints themselves say which it is.
        CheckpointError if that one is gone.
        """
        ref = self.pointer(name)
        if ref is not None and ref.metadata.stage_fingerprint == fingerprint:
            return ref
        same = [ref for ref in self.committed() if ref.metadata.stage_fingerprint == fingerprint]
        if not same:
            return None
        best = same[-1].metadata.best
        if name == "last" or best is None:
            return same[-1]
        found = best_of(same)
        if found is None:
            raise CheckpointError(
                f"the best checkpoint of {self.uri!r}, of step {best.step} by {best.metric}, is gone",
                remedy=f"restore it, or delete {self.uri}/{CHECKPOINTS} to train the stage again",
            )
        return found

    def _target(self, key: str, data: bytes) -> CheckpointRef:
        """The checkpoint that a pointer file's bytes name."""
        where = f"{self.uri}/{key}"
        try:
            plain = json.loads(data)
            target, digest = plain["target"], plain["digest"]
            usable = isinstance(target, str) and isinstance(digest, str)
        except (ValueError, TypeError, KeyError):
            usable = False
        if not usable or not re.fullmatch(rf"{CHECKPOINTS}/{STEP_PATTERN.pattern}", target):
            raise CheckpointError(f"{where!r} is no pointer: expected JSON with `target` and `digest`")
        return open_checkpoint(self.store.child(target), digest)

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
            plain = json.loads(self.store.get(PARENTS_NAME))
            return [Reference(item["uri"], item["digest"]) for item in plain]
        except NotFoundError:
            return []
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{self.uri}/{PARENTS_NAME} is damaged: {error}",
                remedy="mend it (a list of objects with uri and digest); until then nothing is pruned",
            ) from error

    def record_parents(self, parents: Mapping[str, Reference]) -> None:
        """Say durably what this stage starts from, before it reads it: retention keeps what is named here."""
        known = self.recorded_parents()
        links = [*known, *(ref for ref in parents.values() if ref not in known)]
        if links != known or not self.store.exists(PARENTS_NAME):
            plain = [{"uri": ref.uri, "digest": ref.digest} for ref in links]
            self.store.put(PARENTS_NAME, (json.dumps(plain, indent=1) + "\n").encode())


def best_of(refs: Sequence[CheckpointRef]) -> CheckpointRef | None:
    """The one that the newest of some checkpoints calls the best so far, in the order of saving; None if it is gone."""
    best = refs[-1].metadata.best if refs else None
    found = [ref for ref in refs if best is not None and ref.metadata.step == best.step]
    return found[-1] if found else None


def step_name(step: int, attempt: int = 1) -> str:
    return f"step-{step:08d}" + (f"-{attempt}" if attempt > 1 else "")


def step_order(name: str) -> tuple[int, int]:
    """(step, attempt) of a step directory's name."""
    match = STEP_PATTERN.fullmatch(name)
    assert match is not None, name
    return int(match[1]), int(match[2] or 1)


def parse_reference(text: str) -> tuple[str, str | None]:
    """(URI, digest or None) of `<uri>` or `<uri>@sha256:<digest>`."""
    if "@sha256:" in text:
        try:
            reference = Reference.parse(text)
        except Exception as error:
            raise CheckpointError(
                f"{text!r} names no checkpoint", remedy="write <uri>@sha256:<64 hex digits>"
            ) from error
        return reference.uri, reference.digest
    return text, None


def resolve(name: str | Reference, prefer: Pointer = "best") -> CheckpointRef:
    """The committed checkpoint a name stands for.

    name: URI of a step directory, a stage directory (then `prefer` says which pointer) or a pointer file; with
    `@sha256:<digest>` the checkpoint must be that one. CheckpointError if there is none, it is uncommitted, damaged,
    an export, or another one.
    """
    uri, digest = parse_reference(str(name))
    if not uri.strip("/") or uri.endswith("://"):
        raise CheckpointError(f"{uri!r} names no checkpoint", remedy="name a step directory or a stage directory")
    uri = uri.rstrip("/")
    folder, _, last = uri.rpartition("/")
    if last in (f"{p}.ckpt" for p in POINTERS):
        pointer: Pointer = "best" if last == "best.ckpt" else "last"
        ref = _pointed(StageDir.at(open_store(folder or ".")), pointer)
    elif last.endswith((".ckpt", ".pt", ".pth", ".bin")):
        raise CheckpointError(
            f"{uri!r} is a file of another program", remedy="bring it in once with `stageline checkpoint import`"
        )
    else:
        store = open_store(folder if last == METADATA_NAME else uri)
        directory = StageDir.at(store)
        if STEP_PATTERN.fullmatch(store.uri.rsplit("/", 1)[-1]):
            return open_checkpoint(store, digest)
        if any(store.exists(f"{p}.ckpt") for p in POINTERS) or directory.step_dirs():
            ref = _pointed(directory, prefer)
        else:
            _refuse_folder(store)
            return open_checkpoint(store, digest)
    if digest is not None and ref.digest != digest:
        raise CheckpointError(
            f"{uri!r} now names {ref.uri!r} with digest {ref.digest}, expected {digest}",
            remedy="name the step directory, pointers move",
        )
    return ref


def _pointed(directory: StageDir, pointer: Pointer) -> CheckpointRef:
    """What a pointer names. `last` without a pointer file is the newest committed one, which is what it means."""
    ref = directory.pointer(pointer)
    if ref is None and pointer == "last":
        ref = directory.newest()
    if ref is None:
        some = directory.newest()
        if some is None:
            raise CheckpointError(
                f"stage directory {directory.uri!r} has no committed checkpoint",
                remedy="train the stage first; leftovers without metadata do not count",
            )
        raise CheckpointError(
            f"stage directory {directory.uri!r} has no pointer {pointer}.ckpt",
            remedy=f"name last.ckpt or a step directory, for example {some.uri}",
        )
    return ref


def _refuse_folder(store: Store) -> None:
    """Say what a folder is, if it is something else than a checkpoint."""
    if store.exists(METADATA_NAME):
        return
    if store.exists("run.json"):
        stages = [name for name in store.folders() if name not in OTHER_FOLDERS]
        raise CheckpointError(
            f"{store.uri!r} is a run, not a checkpoint",
            remedy=f"name one of its stages: {', '.join(f'{store.uri}/{name}' for name in stages) or 'it has none'}",
        )
    local = store.local_path()
    if local is not None and local.is_file():
        raise CheckpointError(
            f"{store.uri!r} is a file, a checkpoint is a directory",
            remedy="name a step directory, a stage directory, best.ckpt or last.ckpt",
        )
