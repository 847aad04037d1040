"""Features of frozen encoders, kept on disk under a hash of everything they depend on.

Vectors lie in sharded safetensors files, what they are in one JSON index; both appear by an atomic rename, so a reader
never sees half of one, and several processes may write at once. An entry that is damaged or does not fit is computed
again and counted, never used. No pickle, no torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from stageline.config import canonical_json
from stageline.errors import DataError

SCHEMA = "stageline-features/1"
INDEX = "index.json"
SHARD_ENTRIES = 4096
"""Most vectors in one shard file."""
VERIFY_FRACTION = 0.01
COSINE_TOLERANCE = 1e-2
"""Largest cosine distance between a cached vector and a fresh one; room for another machine's arithmetic."""

Vector = NDArray[np.float32]


def feature_key(
    pixels: NDArray[np.uint8] | None, prompt: str, encoder: Mapping[str, Any], box: Sequence[int] | None = None
) -> str:
    """SHA-256 (hex) over all that a feature depends on.

    pixels: canonical picture, (H, W, 3) uint8 after the encoder's own resize; None where no picture is read.
    encoder: its identity (name, revision, dtype, preprocessing version, source, input mode, scope).
    box: (top, left, height, width) of a crop under `vlm_scope: crop`.
    """
    digest = hashlib.sha256()
    shape = list(pixels.shape) if pixels is not None else None
    about = {"encoder": dict(encoder), "prompt": prompt, "box": list(box) if box else None, "shape": shape}
    digest.update(canonical_json(about).encode())
    if pixels is not None:
        if pixels.dtype != np.uint8:
            raise DataError(f"pixels of type {pixels.dtype} under a feature key, expected uint8")
        digest.update(b"\x00" + np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


@dataclass
class CacheCounts:
    """What the cache did: entries found, not found, recomputed because damaged, written."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    written: int = 0


@dataclass(frozen=True)
class Entry:
    """One feature as the cache knows it. vector: (F,) float32, already rounded.  present: there is a condition."""

    key: str
    name: str
    vector: Vector
    present: bool = True


@dataclass
class FeatureCache:
    """The features under one folder.

    dtype: number format on disk, float16 or float32; what comes out is float32 with exactly those values.
    """

    folder: Path
    dtype: str = "float16"
    counts: CacheCounts = field(default_factory=CacheCounts)
    _known: tuple[tuple[int, int, int], dict[str, Any]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise DataError(f"feature cache of type {self.dtype!r}, expected float16 or float32")

    def lookup(self, keys: Sequence[str], width: int) -> dict[str, Entry]:
        """The entries at hand among `keys`; a damaged one, or one that is not `width` long, counts and is left out."""
        index = self._read_index()["entries"]
        wanted = list(dict.fromkeys(keys))
        by_shard: dict[str, list[str]] = {}
        for key in wanted:
            if key in index:
                by_shard.setdefault(str(index[key].get("shard")), []).append(key)
        found: dict[str, Entry] = {}
        for shard, members in by_shard.items():
            vectors = self._read_shard(shard, members)
            for key in members:
                entry = self._checked(key, index[key], vectors.get(key), width)
                if entry is None:
                    self.counts.damaged += 1
                else:
                    found[key] = entry
        self.counts.hits += len(found)
        self.counts.misses += len(wanted) - len(found)
        return found

    def store(self, entries: Sequence[Entry], about: Mapping[str, Any]) -> None:
        """Add or replace entries. about: how they were made, kept with each. Durable and visible on return."""
        for start in range(0, len(entries), SHARD_ENTRIES):
            self._store_shard(entries[start : start + SHARD_ENTRIES], about)

    def encoders(self) -> dict[str, Any]:
        """What was noted about encoders when they were loaded, by identity."""
        noted: dict[str, Any] = self._read_index()["encoders"]
        return noted

    def note_encoder(self, identity: str, about: Mapping[str, Any]) -> None:
        """Note what is needed to ask the cache without loading this encoder (its resize, its vector size)."""
        if self.encoders().get(identity) == dict(about):
            return
        with self._locked():
            index = self._read_index()
            index["encoders"][identity] = dict(about)
            self._write_index(index)

    def statistics(self) -> dict[str, Any]:
        """Numbers for people: entries, shards, bytes, entries per encoder."""
        index = self._read_index()
        shards = {str(entry.get("shard")) for entry in index["entries"].values()}
        made: dict[str, int] = {}
        for entry in index["entries"].values():
            name = str(entry.get("made", {}).get("encoder", "unknown"))
            made[name] = made.get(name, 0) + 1
        size = sum(path.stat().st_size for path in self.folder.glob("*.safetensors")) if self.folder.is_dir() else 0
        return {"entries": len(index["entries"]), "shards": len(shards), "bytes": size, "encoders": made}

    def _store_shard(self, entries: Sequence[Entry], about: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {entry.key: np.ascontiguousarray(entry.vector.astype(self.dtype)) for entry in entries}
        shard = f"shard-{uuid4().hex}.safetensors"
        partial = self.folder / f".{shard}.partial"
        save_file(arrays, partial, metadata={"schema": SCHEMA})
        _sync_rename(partial, self.folder / shard)
        created = int(time.time())
        with self._locked():
            index = self._read_index()
            for entry in entries:
                index["entries"][entry.key] = {
                    "id": entry.name,
                    "present": entry.present,
                    "shape": list(entry.vector.shape),
                    "dtype": self.dtype,
                    "shard": shard,
                    "sha256": hashlib.sha256(arrays[entry.key].tobytes()).hexdigest(),
                    "created": created,
                    "made": dict(about),
                }
            self._write_index(index)
        self.counts.written += len(entries)

    def _checked(self, key: str, about: Mapping[str, Any], stored: NDArray[Any] | None, width: int) -> Entry | None:
        """The entry, if its bytes are those that were written and it has the asked size and type."""
        if stored is None or str(stored.dtype) != self.dtype or stored.shape != (width,):
            return None
        if hashlib.sha256(stored.tobytes()).hexdigest() != about.get("sha256"):
            return None
        if not isinstance(about.get("present"), bool):
            return None
        return Entry(key, str(about.get("id", "")), stored.astype(np.float32), about["present"])

    def _read_shard(self, shard: str, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The vectors of one shard that can be read; none from a file that is missing or damaged."""
        path = self.folder / shard
        if Path(shard).name != shard or not path.is_file():
            return {}
        try:
            with safe_open(path, framework="numpy") as opened:
                names = set(opened.keys())
                return {key: opened.get_tensor(key) for key in keys if key in names}
        except (SafetensorError, OSError, ValueError):
            return {}

    def _read_index(self) -> dict[str, Any]:
        """The index; an unreadable one counts as damaged and empty, so that everything is made again."""
        empty: dict[str, Any] = {"schema": SCHEMA, "entries": {}, "encoders": {}}
        path = self.folder / INDEX
        if not path.is_file():
            return empty
        status = path.stat()
        state = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._known is not None and self._known[0] == state:
            return {part: dict(value) if isinstance(value, dict) else value for part, value in self._known[1].items()}
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            index = None
        if not isinstance(index, dict) or index.get("schema") != SCHEMA:
            self.counts.damaged += 1
            return empty
        if not all(isinstance(index.get(part), dict) for part in ("entries", "encoders")):
            self.counts.damaged += 1
            return empty
        index["entries"] = {key: value for key, value in index["entries"].items() if isinstance(value, dict)}
        self._known = (state, index)
        return {**index, "entries": dict(index["entries"]), "encoders": dict(index["encoders"])}

    def _write_index(self, index: Mapping[str, Any]) -> None:
        partial = self.folder / f".{INDEX}.{uuid4().hex}.partial"
        partial.write_text(json.dumps(index, sort_keys=True), encoding="utf-8")
        _sync_rename(partial, self.folder / INDEX)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process at a time adds to the index; the lock goes with the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)


def _sync_rename(partial: Path, final: Path) -> None:
    """Flush a finished file to disk, then let it appear under its name."""
    with partial.open("rb") as opened:
        os.fsync(opened.fileno())
    partial.replace(final)


def cosine_distance(a: Vector, b: Vector) -> float:
    """1 - cosine of two vectors; 0 for two zero vectors, 1 if one of them is zero."""
    norms = float(np.linalg.norm(a.astype(np.float64)) * np.linalg.norm(b.astype(np.float64)))
    if norms == 0:
        return 0.0 if not a.any() and not b.any() else 1.0
    return float(1 - np.dot(a.astype(np.float64), b.astype(np.float64)) / norms)
