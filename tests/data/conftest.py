"""A split of made pictures in any store, and a store that counts what is read from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stageline.data.pod_cache import SplitFiles
from stageline.data.reading import SplitReader
from stageline.data.shards import SplitWriter
from stageline.data.splits import MANIFEST, SplitManifest, make_manifest, parse_manifest
from stageline.store import Store

from ..store.conftest import BUCKET, s3_endpoint, s3_environment

__all__ = ["BUCKET", "CountingStore", "open_split", "read_count", "s3_endpoint", "s3_environment", "write_split"]


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

    def get(self, key: str) -> bytes:
        data = super().get(key)
        self._note(key, len(data))
        return data

    def stream(self, key: str, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        for chunk in super().stream(key, chunk_bytes):
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


def picture(row: int, side: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 255, (side, side, 3), dtype=np.uint8)


def write_split(store: Store, scratch: Path, rows: int, side: int = 32, shard_bytes: int = 64 << 10) -> SplitManifest:
    """A committed split of `rows` pictures of side x side x 3 bytes. store: its folder."""
    scratch.mkdir(exist_ok=True)
    with SplitWriter(scratch, lambda path, name: store.put(f"data/{name}", path), shard_bytes) as writer:
        for row in range(rows):
            writer.add({"pixels": picture(row, side)}, {"id": f"picture {row}"}, {"height": side, "level": row / 2})
        written = writer.finish()
    data = make_manifest({"family": "toy", "split": "train", "facts": {"rows": rows}, "folder": "data", **written})
    store.put(MANIFEST, data)
    return parse_manifest(data, store.uri)


def open_split(store: Store, manifest: SplitManifest, cache: Path, cache_bytes: int | None = None) -> SplitReader:
    cache.mkdir(exist_ok=True)
    return SplitReader(manifest, SplitFiles(store.child("data"), cache, cache_bytes))


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty folder on local disk, and one in an object store."""
    from stageline.store import open_store

    if request.param == "disk":
        return open_store(tmp_path / "root" / "abc")
    request.getfixturevalue("s3_environment")
    return open_store(f"s3://{BUCKET}/{tmp_path.name}/abc")
