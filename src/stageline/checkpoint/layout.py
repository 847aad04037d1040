"""Where checkpoints lie and how one is named. Loads no torch.

`resolve` is the one reader of names: it takes a step directory, a pointer file, a stage directory, a run directory of
one stage, each also with `@sha256:<digest>`. `steps` holds what a step directory is, `stage_dir` what a stage's is.

A config names a checkpoint by a URI, an absolute path, or a path relative to its root; so it means the same on every
machine. `name_typed` makes such a name of what somebody types in a folder, `resolve_named` finds what it stands for.
"""

from __future__ import annotations

import os
from pathlib import Path

from stageline.checkpoint.metadata import METADATA_NAME
from stageline.checkpoint.stage_dir import (
    OTHER_FOLDERS,
    PARENTS_NAME,
    POINTERS,
    Pointer,
    StageDir,
    Survey,
    best_of,
    ranked,
)
from stageline.checkpoint.steps import (
    CHECKPOINTS,
    RUN_FILE,
    STEP_PATTERN,
    CheckpointRef,
    Damaged,
    open_checkpoint,
    step_name,
    step_order,
)
from stageline.errors import CheckpointError, ConfigError, StoreError
from stageline.store import Reference, Store, open_below, open_store

__all__ = [
    "CHECKPOINTS",
    "OTHER_FOLDERS",
    "PARENTS_NAME",
    "POINTERS",
    "STEP_PATTERN",
    "CheckpointRef",
    "Damaged",
    "Pointer",
    "StageDir",
    "Survey",
    "best_of",
    "name_typed",
    "open_checkpoint",
    "parse_reference",
    "ranked",
    "resolve",
    "resolve_named",
    "stage_dirs_in",
    "step_name",
    "step_order",
]


def parse_reference(text: str) -> tuple[str, str | None]:
    """(URI, digest or None) of `<uri>` or `<uri>@sha256:<digest>`."""
    if "@sha256:" in text.rpartition("/")[2]:
        try:
            reference = Reference.parse(text)
        except StoreError as error:
            raise CheckpointError(
                f"{text!r} names no checkpoint", remedy="write <uri>@sha256:<64 hex digits>"
            ) from error
        return reference.uri, reference.digest
    return text, None


def stage_dirs_in(store: Store) -> list[StageDir]:
    """The stage directories that a store is or holds: a stage directory, its variants, those of a run."""
    own = StageDir.at(store)
    if own.step_dirs() or any(store.exists(f"{p}.ckpt") for p in POINTERS):
        return [own]
    is_run = store.exists(RUN_FILE)
    found = []
    for name in store.folders():
        child = store.child(name)
        if is_run and name not in OTHER_FOLDERS:
            found += [child] if CHECKPOINTS in child.folders() else [child.child(v) for v in child.folders()]
        elif not is_run and own.root is not None:
            found.append(child)
    return [StageDir.at(child, own.root) for child in found if CHECKPOINTS in child.folders()]


def resolve(name: str | Reference, prefer: Pointer = "best") -> CheckpointRef:
    """The committed checkpoint a name stands for.

    name: URI of a step directory, a pointer file, a stage directory or a run directory of one stage (for both `prefer`
    says which pointer); with `@sha256:<digest>` the checkpoint must be that one. CheckpointError if there is none, it
    is uncommitted, damaged, set aside, an export, or another one, or if a run or stage holds several.
    """
    uri, digest = parse_reference(str(name))
    if not uri.strip("/") or uri.endswith("://"):
        raise CheckpointError(f"{uri!r} names no checkpoint", remedy="name a step directory or a stage directory")
    uri = uri.rstrip("/")
    folder, _, last = uri.rpartition("/")
    if last in (f"{p}.ckpt" for p in POINTERS):
        pointer: Pointer = "best" if last == "best.ckpt" else "last"
        ref = _pointed(StageDir.at(open_below(folder or ("/" if uri.startswith("/") else "."))), pointer)
    elif last.endswith((".ckpt", ".pt", ".pth", ".bin")) and not open_below(uri).list():
        raise CheckpointError(
            f"{uri!r} is a file of another program", remedy="bring it in once with `stageline checkpoint import`"
        )
    else:
        store = open_below((folder or ".") if last == METADATA_NAME else uri)
        if STEP_PATTERN.fullmatch(store.uri.rsplit("/", 1)[-1]):
            return open_checkpoint(store, digest)
        directories = stage_dirs_in(store)
        if len(directories) > 1:
            raise CheckpointError(
                f"{store.uri!r} holds several stage directories, and only one checkpoint is asked for",
                remedy=f"name one of them: {', '.join(directory.uri for directory in directories)}",
            )
        if not directories:
            _refuse_folder(store)
            return open_checkpoint(store, digest)
        ref = _pointed(directories[0], prefer)
    if digest is not None and ref.digest != digest:
        raise CheckpointError(
            f"{uri!r} now names {ref.uri!r} with digest {ref.digest}, expected {digest}",
            remedy="name the step directory, pointers move",
        )
    return ref


FROM_HERE = ("./", "../", "~")
"""How a typed path begins that lies in the working folder, above it or in somebody's home."""


def name_typed(text: str, root: str) -> str:
    """What somebody types for a checkpoint, as a config of that root may name it: nothing in it depends on a folder.

    text: a URI, an absolute path, one that begins with `./`, `../` or `~`, or one that is looked for below the root and
    then in the working folder. What lies in neither stays as it is. ConfigError where both hold something of that name.
    root: a folder or the URI of a store.
    """
    name, digest = parse_reference(text)
    if "://" in name or name.startswith("/") or not name:
        return text
    here = Path(os.path.abspath(os.path.expanduser(name)))  # noqa: PTH100, PTH111  # links stay, unknown users too
    top = open_store(root).local_path()
    if not name.startswith(FROM_HERE) and name not in (".", ".."):
        below = f"{root.rstrip('/')}/{name}" if top is None else os.path.normpath(top / name)
        if str(here) == below or not here.exists() or (top is not None and _is_same(here, Path(below))):
            return text
        if _is_there(below):
            raise ConfigError(
                f"the checkpoint {text!r} could be {below!r} or {str(here)!r}",
                remedy=f"write ./{text} for the one in the working folder, or all of the path",
            )
    own = here.relative_to(top) if top is not None and top in here.parents else here
    return f"{own}@sha256:{digest}" if digest else str(own)


def resolve_named(name: str, root: str, prefer: Pointer = "best") -> CheckpointRef:
    """The committed checkpoint that a config names. name: as `name_typed` gives it.  root: the config's.

    CheckpointError as of `resolve`; where nothing is there at all it tells where that was looked for.
    """
    if "://" in name or name.startswith("/"):
        return resolve(name, prefer)
    uri = f"{root.rstrip('/')}/{name}"
    try:
        return resolve(uri, prefer)
    except CheckpointError as error:
        below = parse_reference(uri)[0]
        if _is_there(below):
            raise
        here = Path.cwd() / parse_reference(name)[0]
        if str(here) == open_store(below).uri:
            raise
        raise CheckpointError(
            f"{name!r}: there is no checkpoint at {open_store(below).uri!r}, "
            f"{'but something' if here.exists() else 'nor anything'} at {str(here)!r}",
            remedy="a path in a config is relative to its root; type ./ before one that lies in the working folder",
        ) from error


def _is_there(uri: str) -> bool:
    """Whether there is a file or a folder."""
    folder, _, last = uri.rpartition("/")
    store = open_store(uri)
    local = store.local_path()
    return local.exists() if local is not None else bool(store.folders() or open_store(folder).exists(last))


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _pointed(directory: StageDir, pointer: Pointer) -> CheckpointRef:
    """What a pointer names. `last` without a pointer file is the newest committed one, which is what it means."""
    ref = directory.pointer(pointer)
    if ref is None and pointer == "last":
        ref = directory.newest()
    if ref is None:
        some = directory.newest()
        if some is None:
            aside = "".join(f"; {item.name} was set aside: {item.reason}" for item in directory.survey().aside)
            raise CheckpointError(
                f"stage directory {directory.uri!r} has no committed checkpoint{aside}",
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
    if store.exists(RUN_FILE):
        raise CheckpointError(f"{store.uri!r} is a run without a checkpoint", remedy="train one of its stages first")
    local = store.local_path()
    if local is not None and local.is_file():
        raise CheckpointError(
            f"{store.uri!r} is a file, a checkpoint is a directory",
            remedy="name a step directory, a stage directory, best.ckpt or last.ckpt",
        )
