"""The header of a safetensors file, read and written without torch (format: huggingface.co/docs/safetensors).

Layout: 8 bytes little-endian length n, n bytes JSON `{name: {dtype, shape, data_offsets}, "__metadata__": {str: str}}`,
then the data without gaps. A header that does not describe its file exactly is refused.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stageline.checkpoint.metadata import CheckpointMetadata, TensorRecord
from stageline.config import canonical_json
from stageline.config.bounds import TooLargeError, is_count, open_regular, read_json, shape_fault
from stageline.errors import CheckpointError, difference
from stageline.store import Store

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
MAX_HEADER_BYTES = 32 * 2**20
"""Chosen here: about 300,000 tensors. The safetensors library takes 100 MB, which cost gigabytes as JSON."""
RESERVED = ("format", "schema", "family", "stage", "step", "fingerprint", "role")
SHARDING_KEY = "DCP_SHARDING_INFO"
"""Where torch's distributed writer says which part of a tensor a shard holds."""


@dataclass(frozen=True)
class Span:
    """Where a tensor lies in its file: bytes [start, end) after the header."""

    record: TensorRecord
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """size: bytes before the data.  spans: in the order of the file."""

    size: int
    texts: Mapping[str, str]
    spans: Mapping[str, Span]

    @property
    def data_bytes(self) -> int:
        return max((span.end for span in self.spans.values()), default=0)

    @property
    def records(self) -> dict[str, TensorRecord]:
        return {name: span.record for name, span in self.spans.items()}

    def offsets(self, name: str) -> tuple[int, ...]:
        """At which index of the full tensor this file's part begins."""
        if SHARDING_KEY not in self.texts:
            return (0,) * len(self.spans[name].record.shape)
        try:
            offsets = read_json(self.texts[SHARDING_KEY])[name]["saved_offsets"]
            known = len(offsets) == len(self.spans[name].record.shape) and all(map(is_count, offsets))
        except (ValueError, TypeError, KeyError):
            known = False
        if not known:
            raise CheckpointError(f"the header of a shard does not say where its part of {name!r} begins")
        return tuple(offsets)


def num_bytes(record: TensorRecord) -> int:
    return math.prod(record.shape) * ITEM_BYTES[record.dtype]


def build_header(records: Mapping[str, TensorRecord], texts: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The header's bytes and the order of the data: wide items first, so that everything is aligned."""
    order = sorted(records, key=lambda name: (-ITEM_BYTES[records[name].dtype], name))
    plain: dict[str, Any] = {"__metadata__": dict(texts)}
    start = 0
    for name in order:
        end = start + num_bytes(records[name])
        plain[name] = {
            "dtype": records[name].dtype,
            "shape": list(records[name].shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, order


def parse_header(data: bytes, size_bytes: int, where: str) -> Header:
    """The header at the start of `data`, checked against the file's size. CheckpointError if they disagree."""
    remedy = "the file is damaged; use another checkpoint"
    try:
        (length,) = struct.unpack("<Q", data[:8])
        if length > MAX_HEADER_BYTES:
            raise TooLargeError(f"it has {length} bytes, at most {MAX_HEADER_BYTES} are read (MAX_HEADER_BYTES)")
        plain = read_json(data[8 : 8 + length], max_bytes=MAX_HEADER_BYTES)
        texts = plain.pop("__metadata__", {})
        spans = {name: _span(name, item) for name, item in plain.items()}
        spans = dict(sorted(spans.items(), key=lambda pair: (pair[1].start, pair[1].end)))
        position = 0
        for name, span in spans.items():
            if span.start != position or span.end - span.start != num_bytes(span.record):
                raise CheckpointError(f"{where}: the header misplaces tensor {name!r}", remedy=remedy)
            position = span.end
    except (struct.error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{where}: no readable safetensors header ({error})", remedy=remedy) from error
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise CheckpointError(f"{where}: the header's __metadata__ are no texts", remedy=remedy)
    if 8 + length + position != size_bytes:
        raise CheckpointError(
            f"{where}: {size_bytes} bytes, the header describes {8 + length + position}", remedy=remedy
        )
    return Header(8 + length, texts, spans)


def _span(name: str, item: Any) -> Span:
    """What a header says of one tensor; ValueError where no tensor is like that."""
    kind, shape, (start, end) = item["dtype"], item["shape"], item["data_offsets"]
    if kind not in ITEM_BYTES:
        raise ValueError(f"tensor {name!r:.80} is of type {kind!r:.40}")
    fault = shape_fault(shape, ITEM_BYTES[kind])
    if fault or not (is_count(start) and is_count(end)):
        raise ValueError(f"tensor {name!r:.80}: {fault or 'the header misplaces it'}")
    return Span(TensorRecord(dtype=kind, shape=tuple(shape)), start, end)


def read_header(store: Store, key: str) -> Header:
    """The header of a safetensors file in a store; reads no more than it must."""
    where = f"{store.uri}/{key}"
    info = store.stat(key)
    if info is None:
        raise CheckpointError(f"{where}: the file is missing", remedy="the checkpoint is damaged; use another one")
    data = b""
    for chunk in store.stream(key, 2**18):
        data += chunk
        if len(data) >= 8:
            length = struct.unpack("<Q", data[:8])[0]
            if length > MAX_HEADER_BYTES or len(data) >= 8 + length:
                break
    return parse_header(data, info.size, where)


def read_local_header(path: Path) -> Header:
    """The header of a local safetensors file of anybody, checked; OSError where it cannot be read."""
    with open_regular(path) as file:
        first = file.read(8)
        length = min(int.from_bytes(first, "little"), MAX_HEADER_BYTES)
        return parse_header(first + file.read(length), path.stat().st_size, path.name)


def header_texts(metadata: CheckpointMetadata | Mapping[str, Any], role: str) -> dict[str, str]:
    """What every file of a checkpoint repeats of its metadata, as strings; facts as JSON.

    metadata: the checkpoint's, or its fields before it exists.  role: raw, ema or training.
    """
    fields = metadata if isinstance(metadata, Mapping) else vars(metadata)
    clash = sorted(set(fields["facts"]) & set(RESERVED))
    assert not clash, f"facts may not be called {clash}"
    return {
        "format": "pt",
        "schema": str(fields["schema_version"]),
        "family": str(fields["family"]),
        "stage": str(fields["stage"]),
        "step": str(fields["step"]),
        "fingerprint": str(fields["stage_fingerprint"]),
        "role": role,
        **{name: canonical_json(value) for name, value in fields["facts"].items()},
    }


def header_faults(header: Header, metadata: CheckpointMetadata, role: str, where: str) -> list[str]:
    """In what a file's header contradicts the metadata; shards carry only torch's own header."""
    if SHARDING_KEY in header.texts:
        return []
    expected = header_texts(metadata, role)
    own = {name: header.texts[name] for name in expected if name in header.texts}
    return [f"{where}: header against metadata: {line}" for line in difference(own, expected)]
