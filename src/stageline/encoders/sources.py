"""Where the files of an external lie on this machine, and whether they are what their names say. No torch.

A source is a folder or a file here, else a hub id, looked up in the local hub cache: its `models--<org>--<name>` holds
`refs/<branch or tag>`, a file with a commit, and `snapshots/<commit>/`, the files. Only `fetch_source` goes to the
network, and only where the environment is not offline. Pickled weights are not taken unless the family names the file;
they are then read with `weights_only=True` (`frozen.read_weights`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import NoReturn

from stageline.checkpoint.header import read_local_header
from stageline.config.bounds import open_regular, read_json, read_whole
from stageline.encoders.external import External, ExternalFile
from stageline.errors import CheckpointError, DataError, Faults, MissingPartError, StoreError
from stageline.store.disk import lfs_pointer
from stageline.store.keys import check_key

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SAFE = ".safetensors"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
TEXTS = (".bpe", ".jinja", ".json", ".model", ".tiktoken", ".txt")
"""Suffixes of configs, tokenizers and processors."""
INDEX = ".safetensors.index.json"
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class Source:
    """The files of an external as they lie here.

    folder: local.  names: relative to it, sorted.  origin: `commit <hash>` of a hub, or the folder's path; another one
    means that other files are meant.
    """

    folder: Path
    names: tuple[str, ...]
    origin: str

    @property
    def stamps(self) -> dict[str, list[int]]:
        """Name -> size and time of its last change (ns)."""
        found = {name: (self.folder / name).stat() for name in self.names}
        return {name: [status.st_size, status.st_mtime_ns] for name, status in found.items()}


def hub_cache() -> Path:
    """The folder that hub clients share on this machine, as huggingface_hub finds it."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return _expanded(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _expanded(path: str | Path) -> Path:
    """A path with its home folder; MissingPartError where none is known, as for a user without name and HOME."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise MissingPartError(
            f"no home folder is known for {str(path)!r}: HOME is not set, or there is no such user",
            remedy="set HF_HOME to the folder of the hub's files, or HOME",
        ) from error


def is_offline() -> bool:
    """Whether the environment forbids hub clients the network."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE_VARIABLES)


def find_source(external: External) -> Source:
    """The files of an external on this machine; nothing is downloaded, no file is opened.

    MissingPartError says where was looked; DataError names patterns without a file, or what a folder holds instead.
    """
    assert not external.generated, f"{external} has no files"
    local = _expanded(external.source)
    if local.is_file():
        return Source(local.parent.absolute(), (local.name,), str(local.absolute()))
    if local.is_dir():
        return Source(local.absolute(), _wanted(local, external), str(local.absolute()))
    if not HUB_ID.fullmatch(external.source):
        raise MissingPartError(
            f"{external}: there is nothing at {str(local)!r}, and that is no hub id",
            remedy="name a folder or file that this machine has, or a hub id like org/name",
        )
    repository = hub_cache() / f"models--{external.source.replace('/', '--')}"
    commit = _commit(repository, external.revision or "main")
    if not commit:
        _refuse_absent(external, local, repository)
    folder = repository / "snapshots" / commit
    return Source(folder.absolute(), _wanted(folder, external), f"commit {commit}")


def fetch_source(external: External) -> Source:
    """The same, downloaded into the hub cache where it is not there; says so where the environment is offline."""
    try:
        return find_source(external)
    except (MissingPartError, DataError):
        if is_offline() or _expanded(external.source).exists() or not HUB_ID.fullmatch(external.source):
            raise
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise MissingPartError(
            f"{external} is not in the hub cache, and huggingface_hub, which would fetch it, is not installed",
            remedy="pip install 'stageline[vlm]', or name a local folder",
        ) from error
    wanted = list(external.files) or [f"*{suffix}" for suffix in (SAFE, *TEXTS)]
    try:
        snapshot_download(external.source, revision=external.revision or None, allow_patterns=wanted)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise MissingPartError(
            f"{external} is not in the hub cache {str(hub_cache())!r} and cannot be fetched: "
            f"{str(error).strip().splitlines()[0]}",
            remedy="check name, revision and network, or name a local folder",
        ) from error
    return find_source(external)


def _commit(repository: Path, revision: str) -> str:
    """The commit that the cache has for a branch, tag or commit; "" for none."""
    if ".." in revision or revision.startswith("/"):
        return ""
    ref = repository / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    return (
        commit if not name_fault(commit) and "/" not in commit and (repository / "snapshots" / commit).is_dir() else ""
    )


def _refuse_absent(external: External, local: Path, repository: Path) -> NoReturn:
    snapshots = repository / "snapshots"
    there = sorted(entry.name for entry in snapshots.iterdir()) if snapshots.is_dir() else []
    other = f" (which has of it: {', '.join(name[:12] for name in there)})" if there else ""
    offline = next((name for name in OFFLINE_VARIABLES if os.environ.get(name)), "") if is_offline() else ""
    raise MissingPartError(
        f"{external}: no folder {str(local)!r} here, and the hub cache {str(repository.parent)!r} lacks revision "
        f"{external.revision or 'main'!r} of it{other}",
        remedy=(f"unset {offline} and run `stageline prepare`" if offline else "run `stageline prepare`")
        + f", fetch it with `hf download {external.source}`, or name a local folder",
    )


def _wanted(folder: Path, external: External) -> tuple[str, ...]:
    """Which files of a folder count; DataError where there are no weights that can be taken."""
    if external.files:
        names = sorted(_names_below(folder))
        empty = [pattern for pattern in external.files if not fnmatch.filter(names, pattern)]
        if empty:
            raise DataError(
                f"{external}: no file in {str(folder)!r} matches {', '.join(empty)}",
                remedy="complete the folder, or fetch the model again",
            )
        return tuple(name for name in names if any(fnmatch.fnmatchcase(name, p) for p in external.files))
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    chosen = tuple(name for name in names if name.endswith((SAFE, *TEXTS)))
    if any(name.endswith((SAFE, INDEX)) for name in chosen):
        return chosen
    pickled = [name for name in names if name.endswith(PICKLES)]
    if pickled:
        raise DataError(
            f"{external}: {str(folder)!r} holds its weights as pickle only ({', '.join(pickled[:3])})",
            remedy="use a revision with .safetensors files, or convert them; no pickle is executed",
        )
    raise DataError(
        f"{external}: {str(folder)!r} holds no weights (*{SAFE}); it has {', '.join(names[:5]) or 'no files'}",
        remedy="complete the folder, or fetch the model again",
    )


def _names_below(folder: Path) -> Iterator[str]:
    """Files below a folder by relative name, hidden ones left out."""
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((Path(place) / name).relative_to(folder).as_posix() for name in names if not name.startswith("."))


def read_files(external: External, source: Source) -> tuple[ExternalFile, ...]:
    """Name, hash and size of every file of a source, after all of them were looked at.

    DataError lists git-lfs pointers, empty and cut-off files, shards that an index names and that are not there.
    """
    faults = Faults(DataError, f"{external} in {str(source.folder)!r}", "fetch the model again")
    for name in source.names:
        faults.extend(f"{name}: {fault}" for fault in _faults_of(source.folder, name))
    faults.raise_if_any()
    return tuple(hash_file(source.folder / name, name) for name in source.names)


def hash_file(path: Path, name: str) -> ExternalFile:
    """What is known of a file. name: relative, as it is to be called."""
    with open_regular(path) as file:
        return hash_open(file, name)


def hash_open(file: BufferedReader, name: str) -> ExternalFile:
    """The same of an open file."""
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ExternalFile(name, sha256, file.tell())


def name_fault(name: str) -> str:
    """Why a name is none of a file below a folder; "" for a good one."""
    try:
        check_key(name)
    except StoreError as error:
        return error.message
    return ""


def _faults_of(folder: Path, name: str) -> list[str]:
    path = folder / name
    if name_fault(name):
        return [name_fault(name)]
    try:
        size = path.stat().st_size
        if not size:
            return ["the file is empty"]
        if pointer := lfs_pointer(path):
            return [pointer]
        if name.endswith(SAFE):
            return _safetensors_faults(path)
        if name.endswith(INDEX):
            return _index_faults(path, folder / name)
    except OSError as error:
        return [f"cannot be read: {error.strerror}"]
    return []


def _safetensors_faults(path: Path) -> list[str]:
    """In what a safetensors file contradicts its own header."""
    try:
        read_local_header(path)
    except CheckpointError as error:
        return [error.message.removeprefix(f"{path.name}: ")]
    return []


def _index_faults(path: Path, index: Path) -> list[str]:
    """The shards that an index names and that are not there."""
    try:
        shards = sorted(set(read_json(read_whole(path))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        return [f"no index of shards ({error})"]
    wrong = [str(shard) for shard in shards if name_fault(str(shard))]
    if wrong:
        return [f"names {wrong[0]!r}, which is no file of this folder"]
    return [f"names shard {shard}, which is missing" for shard in shards if not (index.parent / str(shard)).is_file()]
