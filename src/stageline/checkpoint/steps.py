"""Step directories: a committed checkpoint as a value, the root it lies below, and what is wrong with one. No torch.

A step directory without `checkpoint_metadata.json` does not exist for any reader. One that is damaged can be set aside:
a marker file in it, which every reader honours and names; deleting the marker takes that back.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from stageline.checkpoint.metadata import METADATA_NAME, CheckpointMetadata, digest_of, is_fence, parse_metadata
from stageline.config.bounds import read_json
from stageline.errors import CheckpointError, StoreError
from stageline.store import NotFoundError, Reference, Store, open_below, open_store
from stageline.store.keys import NO_FILE, check_key

STEP_PATTERN = re.compile(r"step-(\d{8,})(?:-(\d+))?")
CHECKPOINTS = "checkpoints"
RUN_FILE = "run.json"
ASIDE_NAME = "set_aside.json"
"""The marker of a step directory that no reader takes any more."""


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

    @cached_property
    def root(self) -> Store | None:
        """The root it lies below; None where it lies in no run."""
        stage, mark, _ = self.uri.rpartition(f"/{CHECKPOINTS}/")
        return find_root(open_below(stage)) if mark else None

    def locate(self, uri: str) -> str:
        """The whole URI of what its metadata names, relative to its own root or not."""
        return absolute_uri(uri, self.root, self.uri)


@dataclass(frozen=True)
class Damaged:
    """A step directory whose checkpoint can't be used.

    reason: what is wrong, or why it was set aside.  metadata: what it says about itself, where that can be read.
    """

    store: Store
    reason: str
    metadata: CheckpointMetadata | None = None

    @property
    def uri(self) -> str:
        return self.store.uri

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[-1]

    @property
    def remedy(self) -> str:
        """The command that sets it aside."""
        return f"restore its files, or take it out of use: `stageline checkpoint set-aside {shlex.quote(self.uri)}`"


def step_name(step: int, attempt: int = 1) -> str:
    return f"step-{step:08d}" + (f"-{attempt}" if attempt > 1 else "")


def step_order(name: str) -> tuple[int, int]:
    """(step, attempt) of a step directory's name."""
    match = STEP_PATTERN.fullmatch(name)
    assert match is not None, name
    return int(match[1]), int(match[2] or 1)


def find_root(stage: Store) -> Store | None:
    """The root that a stage directory lies below: `<root>/runs/<run>/<stage>[/<variant>]`; None where it has none.

    The run is the folder above that holds a run.json; where none does, what the form of the URI says.
    """
    parts = stage.uri.split("/")
    for depth in (1, 2):
        if len(parts) > depth + 1 and parts[-depth - 2] == "runs":
            root, run = "/".join(parts[: -depth - 2]) or "/", "/".join(parts[:-depth])
            if not root.endswith(":/") and open_below(run).exists(RUN_FILE):
                return open_store(root)
    match = re.fullmatch(r"(?P<root>.+?)/runs/[^/]+/[^/]+(?:/[^/]+)?", stage.uri)
    return open_store(match["root"]) if match else None


def relative_uri(uri: str, root: Store | None) -> str:
    """A URI as it is recorded: relative to the root where it lies below it."""
    return uri if root is None else uri.removeprefix(f"{root.uri.rstrip('/')}/")


def absolute_uri(uri: str, root: Store | None, where: str) -> str:
    """The whole URI of a recorded one. where: who recorded it, for the error."""
    if "://" in uri or uri.startswith("/"):
        return uri
    if root is None:
        raise CheckpointError(
            f"{where} names {uri!r} below its root, and does not lie in runs/<run>/<stage>/ of one",
            remedy="copy whole roots, or write a self-contained file with `stageline checkpoint export`",
        )
    try:
        check_key(uri)
    except StoreError as error:
        raise CheckpointError(f"{where} names {uri!r:.200}, which lies outside of its root") from error
    return f"{root.uri.rstrip('/')}/{uri}"


def open_checkpoint(store: Store, digest: str | None = None) -> CheckpointRef:
    """The checkpoint in a step directory; CheckpointError if it is uncommitted, damaged or not the one of `digest`."""
    try:
        data = store.get(METADATA_NAME)
    except NotFoundError as error:
        if store.list():
            if not STEP_PATTERN.fullmatch(store.uri.rsplit("/", 1)[-1]):
                raise CheckpointError(
                    f"{store.uri!r} is no checkpoint: it has no {METADATA_NAME}",
                    remedy="name a step directory, a stage directory, a run of one stage, best.ckpt or last.ckpt",
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
    reason = aside_reason(store)
    if reason is not None:
        raise CheckpointError(
            f"{store.uri!r} was set aside: {reason}",
            remedy=f"use another checkpoint; once it is whole again, delete {ASIDE_NAME} in it",
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


def open_owner(ref: CheckpointRef, role: str) -> CheckpointRef:
    """The parent that holds tensors a checkpoint uses; CheckpointError that names it where it is missing or another."""
    owner = ref.metadata.referenced[role]
    uri = ref.locate(owner.uri)
    try:
        return open_checkpoint(open_below(uri), owner.digest)
    except CheckpointError as error:
        raise CheckpointError(
            f"{ref.uri!r} needs {len(owner.tensors)} tensors of its parent {role!r}, {uri}@sha256:{owner.digest}: "
            f"{error.message}",
            remedy="bring that checkpoint back to where it was; copy whole roots, or files made by checkpoint export",
        ) from error


def look(store: Store) -> CheckpointRef | Damaged | None:
    """What a step directory holds: a checkpoint whose metadata, seal and sizes are right, a damaged one, or none.

    Hashes are left to whoever reads the files.
    """
    sizes = {info.key: info.size for info in store.list()}
    if METADATA_NAME not in sizes:
        return None
    try:
        data = store.get(METADATA_NAME)
    except NotFoundError:  # deleted by its writer a moment ago
        return None
    if is_fence(data):
        return None
    try:
        metadata = parse_metadata(data, store.uri)
    except CheckpointError as error:
        reason = aside_reason(store) if ASIDE_NAME in sizes else None
        return Damaged(store, error.message if reason is None else reason)
    if ASIDE_NAME in sizes:
        return Damaged(store, aside_reason(store) or "", metadata)
    faults = size_faults(metadata, sizes)
    if faults and not store.exists(METADATA_NAME):
        return None
    return Damaged(store, "; ".join(faults), metadata) if faults else CheckpointRef(store, digest_of(data), metadata)


def size_faults(metadata: CheckpointMetadata, sizes: Mapping[str, int]) -> list[str]:
    """Which files of a checkpoint are missing or not as long as they were. sizes: what is there, by name."""
    faults = []
    for name, record in sorted(metadata.files.items()):
        if name not in sizes:
            faults.append(f"{name}: missing")
        elif sizes[name] == NO_FILE:
            faults.append(f"{name}: a link, a pipe or the like, expected a regular file")
        elif sizes[name] != record.bytes:
            faults.append(f"{name}: {sizes[name]} bytes, expected {record.bytes}")
    return faults


def aside_reason(store: Store) -> str | None:
    """Why a step directory was set aside; None where it was not."""
    try:
        data = store.get(ASIDE_NAME)
    except NotFoundError:
        return None
    try:
        plain = read_json(data)
        return f"{plain['reason']} (by {plain['by']}, {plain['time']})"
    except (ValueError, TypeError, KeyError):
        return f"its {ASIDE_NAME} does not say why"


def set_aside(store: Store, reason: str, by: str) -> None:
    """Mark a step directory so that no reader takes it any more. For the holder of the stage's lease.

    reason: what is wrong with it.  by: who decided that.
    """
    plain = {"reason": reason, "by": by, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    store.create(ASIDE_NAME, (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode())
