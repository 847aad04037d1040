"""What tests of data and the processes they start have in common: a store that counts, features, a split opened."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stageline.data.features import FeatureStore
from stageline.data.pod_cache import StoredFiles
from stageline.data.reading import SplitReader
from stageline.data.splits import SplitManifest
from stageline.store import Store
from stageline.store.local import Local

PARTS = {"owner": "a" * 64, "settings": {"views": 8}}


def named(number: int | str) -> str:
    """The id of a made feature."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def vector(name: str, size: int = 16) -> np.ndarray:
    """What is computed for an id."""
    return np.random.default_rng(int(name[:8], 16)).standard_normal(size, dtype=np.float32)


def write_features(store: FeatureStore, names: Iterable[str], shard_bytes: int = 1 << 20) -> None:
    """Add made features to a store."""
    with store.writer(shard_bytes=shard_bytes) as writer:
        for name in names:
            writer.add(name, vector(name))


class CountedFile(io.FileIO):
    """An open file that tells how many bytes are read of it."""

    def __init__(self, handle: int, note: Callable[[int], None]) -> None:
        super().__init__(handle)
        self.note = note

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        if count:
            self.note(count)
        return count


class CountingStore(Store):
    """A store that notes in a file, which processes may share, how many bytes of which object were read."""

    log: Path

    @classmethod
    def over(cls, store: Store, log: Path) -> CountingStore:
        own = cls(store._backend, store.uri, store._prefix)
        own.log = log
        return own

    def child(self, *parts: str) -> Store:
        return CountingStore.over(super().child(*parts), self.log)

    @property
    def local(self) -> Local | None:
        local = super().local
        if local is None:
            return None
        open_file = local.open

        def opened(key: str) -> io.BufferedReader:
            with open_file(key) as file:
                return io.BufferedReader(CountedFile(os.dup(file.fileno()), lambda size: self._note(key, size)))

        local.open = opened  # type: ignore[method-assign]
        return local

    def get(self, key: str) -> bytes:
        data = super().get(key)
        self._note(key, len(data))
        return data

    def stream(self, key: str, chunk_bytes: int = 1 << 20, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        for chunk in super().stream(key, chunk_bytes, start, size):
            self._note(key, len(chunk))
            yield chunk

    def _note(self, key: str, size: int) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps([key, size]) + "\n")


def read_count(log: Path) -> dict[str, int]:
    """Object -> bytes read since the log was begun."""
    counts: dict[str, int] = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        key, size = json.loads(line)
        counts[key] = counts.get(key, 0) + size
    return counts


def open_split(store: Store, manifest: SplitManifest, cache: Path, cache_bytes: int | None = None) -> SplitReader:
    cache.mkdir(exist_ok=True)
    return SplitReader(manifest, StoredFiles(store.child("data"), cache, cache_bytes))
