"""A split of made pictures in any store, and a store that counts what is read from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stageline.data.shards import SplitWriter
from stageline.data.splits import MANIFEST, SplitManifest, make_manifest, parse_manifest
from stageline.store import Store

from ..store.conftest import BUCKET, s3_endpoint, s3_environment
from .case import CountingStore, open_split, read_count

__all__ = ["BUCKET", "CountingStore", "open_split", "read_count", "s3_endpoint", "s3_environment", "write_split"]


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


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty folder on local disk, and one in an object store."""
    from stageline.store import open_store

    if request.param == "disk":
        return open_store(tmp_path / "root" / "abc")
    request.getfixturevalue("s3_environment")
    return open_store(f"s3://{BUCKET}/{tmp_path.name}/abc")
