"""The store everybody uses: `open_store(uri)` and the few verbs on it; also `Reference`, a URI with a digest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from stageline.errors import StoreError
from stageline.store.disk import Disk
from stageline.store.keys import HIDDEN, Backend, Data, Infos, Names, NotFoundError, ObjectInfo, check_key
from stageline.store.local import Local
from stageline.store.objects import open_gs, open_memory
from stageline.store.s3 import open_s3

__all__ = ["NotFoundError", "ObjectInfo", "Reference", "Store", "open_below", "open_store"]

CHUNK_BYTES = 8 * 2**20

RUN_NAME = "run.json"
"""What tells a run among the folders of a path; what it says is `checkpoint.identity`'s."""
OPENERS = {"s3": open_s3, "gs": open_gs, "memory": open_memory}


@dataclass(frozen=True)
class Reference:
    """An immutable thing by name and hash: `<uri>@sha256:<64 hex>`."""

    uri: str
    digest: str

    def __str__(self) -> str:
        return f"{self.uri}@sha256:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference; a text without a digest is refused."""
        match = re.fullmatch(r"(?P<uri>.+)@sha256:(?P<digest>[0-9a-f]{64})", text, re.DOTALL)
        if match is None:
            raise StoreError(f"{text!r} is no reference", remedy="references look like <uri>@sha256:<64 hex digits>")
        return cls(match["uri"], match["digest"])


class Store:
    """A folder of objects anywhere. Keys are relative, with `/` between parts.

    uri: normalised, without a trailing slash; a path for local disk.
    """

    def __init__(self, backend: Backend, uri: str, prefix: str = "") -> None:
        self._backend = backend
        self._prefix = prefix
        self.uri = uri

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    @property
    def in_process(self) -> bool:
        """Whether no other process can see this store."""
        return self.uri.startswith("memory://")

    def _key(self, key: str, *, empty: bool = False) -> str:
        check_key(key, empty=empty)
        return "/".join(part for part in (self._prefix, key) if part)

    def _own(self, info: ObjectInfo) -> ObjectInfo:
        return ObjectInfo(info.key[len(self._prefix) + 1 :] if self._prefix else info.key, info.size, info.token)

    def put(self, key: str, data: Data) -> None:
        """Write an object whole: bytes, a local file, or chunks of bytes. Durable on return."""
        self._backend.put(self._key(key), data)

    def copy(self, source: str, target: str) -> None:
        """Write an object with the bytes of another one; they do not pass through here where the store can copy."""
        self._backend.copy(self._key(source), self._key(target))

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless it exists; of any number of writers exactly one gets True."""
        return self._backend.create(self._key(key), data)

    def replace(self, key: str, data: bytes, token: str) -> bool:
        """Write an object if it is unchanged since `token`; False otherwise. Data must differ from what was there."""
        return self._backend.replace(self._key(key), data, token)

    def get(self, key: str) -> bytes:
        """The object's bytes; NotFoundError if there is none."""
        return self._backend.get(self._key(key))[0]

    def get_with_token(self, key: str) -> tuple[bytes, str]:
        """The object's bytes and the token `replace` wants."""
        return self._backend.get(self._key(key))

    def stream(
        self, key: str, chunk_bytes: int = CHUNK_BYTES, start: int = 0, size: int | None = None
    ) -> Iterator[bytes]:
        """The object's bytes in chunks.

        start: first byte that is wanted.  size: how many, None is all to the end; nothing else is fetched.
        """
        return self._backend.stream(self._key(key), chunk_bytes, start, size)

    def exists(self, key: str) -> bool:
        return self.stat(key) is not None

    def stat(self, key: str) -> ObjectInfo | None:
        """Size and token of an object, or None."""
        info = self._backend.stat(self._key(key))
        return None if info is None else self._own(info)

    def download(self, key: str, path: Path) -> None:
        """Copy an object into a local file; what was there stays until all of it is here."""
        chunks = self.stream(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{HIDDEN}{uuid4().hex}")
        try:
            with unfinished.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Infos:
        """Every object in and below the folder `prefix`, sorted by key."""
        return [self._own(info) for info in self._backend.list(self._key(prefix, empty=True))]

    def files(self, prefix: str = "") -> Infos:
        """Every object directly in the folder `prefix`, sorted by key."""
        return [self._own(info) for info in self._backend.files(self._key(prefix, empty=True))]

    def folders(self, prefix: str = "") -> Names:
        """Names of the folders directly in `prefix` that hold at least one object, sorted."""
        return self._backend.folders(self._key(prefix, empty=True))

    def delete(self, key: str) -> None:
        """Remove an object; one that is gone already is no error."""
        self._backend.delete([self._key(key)])

    def delete_tree(self, prefix: str) -> None:
        """Remove everything below a folder."""
        self._backend.delete_tree(self._key(prefix))

    def tidy(self) -> None:
        """Remove what writers that died long ago left unfinished directly in this folder; only local disk has such."""
        self._backend.tidy(self._prefix)

    def child(self, *parts: str) -> Store:
        """The store of a folder in this one; empty parts are left out."""
        key = "/".join(part for part in parts if part)
        if not key:
            return self
        return Store(self._backend, f"{self.uri.rstrip('/')}/{key}", self._key(key))

    def local_path(self, key: str = "") -> Path | None:
        """Where an object lies on local disk, for messages and for names that people type; None for other stores.

        Nothing is opened by it: that would follow links. What only disks can do is `local`'s.
        """
        return self._backend.path(self._key(key, empty=True)) if isinstance(self._backend, Disk) else None

    @property
    def local(self) -> Local | None:
        """What can be done with a folder on local disk; None for other stores."""
        return Local(self._backend, self._prefix) if isinstance(self._backend, Disk) else None

    def free_bytes(self) -> int | None:
        """Room left on local disk; None where nobody can say."""
        return self._backend.free_bytes(self._prefix)


def open_store(uri: str | Path) -> Store:
    """The store of a path, file://, s3://bucket/…, gs://bucket/… or memory://name/…; nothing is created or asked.

    On local disk the path is a root: links on the way to it are followed, those below it are not.
    """
    text = str(uri)
    scheme, sign, rest = text.partition("://")
    if not sign or scheme == "file":
        path = Path(rest if sign else text).absolute()
        # normpath and not resolve: a link stays the name its user gave.
        root = Path(*_without_dots(path))
        return Store(Disk(root), str(root))
    if scheme not in OPENERS:
        raise StoreError(f"{scheme!r} is no kind of store (in {_shown(text)!r})", remedy="use a path, s3, gs or memory")
    bucket, _, prefix = rest.strip("/").partition("/")
    if not bucket or "@" in bucket or "?" in rest:
        raise StoreError(
            f"{_shown(text)!r} is no store: expected {scheme}://<name>/<folder>",
            remedy="credentials belong into the environment, not into the URI",
        )
    check_key(prefix, empty=True)
    clean_uri = f"{scheme}://{bucket}" + (f"/{prefix}" if prefix else "")
    return Store(OPENERS[scheme](bucket), clean_uri, prefix)


def open_below(uri: str | Path) -> Store:
    """The same for what lies below a root: a run, a stage, a step, an evaluation, a prepared set.

    On local disk its root is the folder that its `runs` or `cache` lies in: from there on links are not followed. Where
    several folders of these names are on the way, it is the one whose run is there, else the last.
    """
    store = open_store(uri)
    path = store.local_path()
    if path is None:
        return store
    parts = path.parts
    places = [at for at in range(len(parts) - 2, 0, -1) if parts[at] in ("runs", "cache")]
    if not places:
        return store
    found = (at for at in places if parts[at] == "runs" and Path(*parts[: at + 2], RUN_NAME).is_file())
    at = next(found, places[0])
    return Store(Disk(Path(*parts[:at])), store.uri, "/".join(parts[at:]))


def _shown(uri: str) -> str:
    """A URI fit for an error: without what stands before an @ and without a query."""
    return re.sub(r"\?.*$", "?***", re.sub(r"://[^/]*@", "://***@", uri))


def _without_dots(path: Path) -> tuple[str, ...]:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts[1:] = parts[1:-1]
        else:
            parts.append(part)
    return tuple(parts)
