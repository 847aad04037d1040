"""What passes between the door and the stores behind it: keys, object facts, the backend contract."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stageline.errors import StoreError

HIDDEN = ".stageline-"
"""File names a store keeps for itself on local disk (unfinished writes, locks); no listing shows them."""

NO_FILE = -1
"""Size of what a listing of local disk names though it is no file: a link, a pipe. Whoever opens it is told."""

MAX_GET_BYTES = 2**30
"""Of an object that is read whole, chosen here; larger ones are streamed."""

Names = list[str]

Data = bytes | Path | Iterable[bytes | memoryview]


class NotFoundError(StoreError):
    """There is nothing under this key."""


@dataclass(frozen=True)
class ObjectInfo:
    """key: relative to the store that was asked.  size: bytes, or NO_FILE.  token: changes whenever the object does."""

    key: str
    size: int
    token: str


Infos = list[ObjectInfo]


class Backend(Protocol):
    """One kind of store. Keys are absolute within it and already checked."""

    def put(self, key: str, data: Data) -> None: ...
    def copy(self, source: str, target: str) -> None: ...
    def create(self, key: str, data: bytes) -> bool: ...
    def replace(self, key: str, data: bytes, token: str) -> bool: ...
    def get(self, key: str) -> tuple[bytes, str]: ...
    def stream(self, key: str, chunk_bytes: int, start: int, size: int | None) -> Iterator[bytes]: ...
    def stat(self, key: str) -> ObjectInfo | None: ...
    def list(self, prefix: str) -> Infos: ...
    def files(self, prefix: str) -> Infos: ...
    def folders(self, prefix: str) -> Names: ...
    def delete(self, keys: Iterable[str]) -> None: ...
    def delete_tree(self, prefix: str) -> None: ...
    def tidy(self, prefix: str) -> None: ...
    def free_bytes(self, key: str) -> int | None: ...


def check_key(key: str, *, empty: bool = False) -> str:
    """The key, if it is one: relative, `/` between non-empty parts, no `.` or `..`, nothing unprintable."""
    parts = key.split("/")
    wrong = any(part in ("", ".", "..") or part.startswith(HIDDEN) for part in parts)
    if (key == "" and empty) or (not wrong and key.isprintable() and "\\" not in key):
        return key
    raise StoreError(
        f"{key!r:.200} is no key of a store", remedy="keys look like runs/a/b.json: relative, without . or .."
    )


def refuse_large(size: int, where: object) -> None:
    """StoreError for an object that is not read whole. size: in bytes.  where: its place, for the message."""
    if size > MAX_GET_BYTES:
        raise StoreError(
            f"{str(where)!r} has {size} bytes, at most {MAX_GET_BYTES} are read (MAX_GET_BYTES)",
            remedy="nothing that is read there is so large: find out who wrote it",
        )


def path_below(folder: Path, name: str) -> Path:
    """Where a file of a name that an object says lies below a folder; StoreError before anything is opened elsewhere.

    name: as `check_key` wants it: no absolute path, no `..`.
    """
    return folder / check_key(name)
