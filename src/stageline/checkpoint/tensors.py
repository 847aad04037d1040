"""Tensors in and out of safetensors files, in one pass and without a second copy in memory.

Writing hashes what it writes; reading hashes what it reads and hands nothing out before the hash is right. Names,
dtypes and shapes are compared with the metadata. Tensors are written contiguous; two that share memory are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from stageline.checkpoint.admission import account
from stageline.checkpoint.header import MAX_HEADER_BYTES, Header, build_header, header_faults, num_bytes, parse_header
from stageline.checkpoint.layout import CheckpointRef
from stageline.checkpoint.metadata import EMA_FILE, MODEL_FILE, FileRecord, TensorRecord
from stageline.checkpoint.steps import open_owner
from stageline.errors import CheckpointError, Faults, difference
from stageline.store import NotFoundError, Store

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK_BYTES = 8 * 2**20
Weights = Literal["raw", "ema"]
Into = Mapping[str, Tensor]
NOWHERE: Into = {}
DAMAGED = "the checkpoint is damaged; use another one (`stageline checkpoint verify` tells which are whole)"


def record_of(name: str, tensor: Tensor) -> TensorRecord:
    """dtype and shape of a tensor in safetensors' words."""
    if tensor.dtype not in NAMES:
        raise CheckpointError(f"tensor {name!r} has dtype {tensor.dtype}, which safetensors has not")
    return TensorRecord(dtype=NAMES[tensor.dtype], shape=tuple(tensor.shape))


def records_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorRecord]:
    """dtype and shape of every tensor; works on the meta device too."""
    return {name: record_of(name, tensor) for name, tensor in tensors.items()}


def check_writable(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse what a safetensors file can't hold truly: tensors off the CPU, sparse, or sharing memory."""
    faults = Faults(CheckpointError, where, "clone tied tensors or leave one of them out of the state dict")
    ends: list[tuple[int, int, int, str]] = []
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            faults.add(f"{name}: {tensor.layout} on {tensor.device}, expected a dense tensor on the CPU")
        elif tensor.numel():
            # A view with gaps spans from its first to its last element.
            reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            begin = tensor.data_ptr()
            storage = tensor.untyped_storage().data_ptr()
            ends.append((storage, begin, begin + (reach + 1) * tensor.element_size(), name))
    ends.sort()
    reached: dict[int, tuple[int, str]] = {}
    for storage, begin, end, name in ends:
        furthest, before = reached.get(storage, (begin, ""))
        if begin < furthest:
            faults.add(f"{before} and {name} share memory")
        reached[storage] = max((furthest, before), (end, name))
    faults.raise_if_any()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    flat = tensor.detach().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def file_chunks(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> Iterator[memoryview]:
    """The bytes of a safetensors file in pieces; only a tensor that is not contiguous is copied, one at a time."""
    header, order = build_header(records_of(tensors), texts)
    yield memoryview(header)
    for name in order:
        view = _bytes_of(tensors[name].detach().contiguous())
        for start in range(0, len(view), CHUNK_BYTES):
            yield view[start : start + CHUNK_BYTES]


class Hashed:
    """Chunks that are counted and hashed while somebody consumes them."""

    def __init__(self, chunks: Iterable[bytes | memoryview]) -> None:
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self._count = 0

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for chunk in self._chunks:
            self._hash.update(chunk)
            self._count += len(chunk)
            yield chunk

    @property
    def record(self) -> FileRecord:
        return FileRecord(bytes=self._count, sha256=self._hash.hexdigest())


def write_tensors(store: Store, key: str, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> FileRecord:
    """Write a safetensors file; durable on return. texts: the header's own strings."""
    check_writable(tensors, f"{store.uri}/{key}")
    chunks = Hashed(file_chunks(tensors, texts))
    store.put(key, chunks)
    return chunks.record


class _Pieces:
    """A stream read in pieces of the reader's own sizes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def fill(self, target: memoryview) -> int:
        """Fill the target as far as the stream goes; how many bytes that were."""
        done = 0
        while done < len(target):
            if not self._rest:
                self._rest = memoryview(next(self._chunks, b""))
                if not self._rest:
                    break
            count = min(len(self._rest), len(target) - done)
            target[done : done + count] = self._rest[:count]
            self._rest = self._rest[count:]
            done += count
        return done

    def skip(self, count: int) -> None:
        """Read past so many bytes."""
        scratch = memoryview(bytearray(min(count, CHUNK_BYTES)))
        while count > 0:
            done = self.fill(scratch[: min(count, len(scratch))])
            if not done:
                return
            count -= done

    def drain(self) -> None:
        for _ in self._chunks:
            pass


def read_file(
    store: Store, key: str, record: FileRecord, names: Collection[str] | None = None, into: Into = NOWHERE
) -> tuple[dict[str, Tensor], Header]:
    """The tensors of a safetensors file whose bytes are exactly those of `record`, else CheckpointError.

    names: which of them are wanted, None for all; every byte is read and hashed either way.  into: see `read_tensors`.
    """
    where = f"{store.uri}/{key}"
    info = store.stat(key)
    if info is None or info.size != record.bytes:
        found = "missing" if info is None else f"{info.size} bytes"
        raise CheckpointError(f"{where}: {found}, expected {record.bytes} bytes", remedy=DAMAGED)
    chunks = Hashed(store.stream(key))
    pieces = _Pieces(iter(bytes(chunk) if isinstance(chunk, memoryview) else chunk for chunk in chunks))
    try:
        length = bytearray(8)
        pieces.fill(memoryview(length))
        text = bytearray(min(int.from_bytes(length, "little"), record.bytes, MAX_HEADER_BYTES))
        pieces.fill(memoryview(text))
        header = parse_header(bytes(length + text), record.bytes, where)
        tensors = {}
        for name, span in header.spans.items():
            if names is not None and name not in names:
                pieces.skip(span.end - span.start)
                continue
            tensor = _place(into.get(name), span.record)
            pieces.fill(_bytes_of(tensor))
            tensors[name] = tensor
    except NotFoundError as error:
        raise CheckpointError(f"{where}: it vanished while it was read", remedy=DAMAGED) from error
    pieces.drain()
    if not chunks.record.is_same(record):
        raise CheckpointError(
            f"{where}: its bytes changed: SHA-256 {chunks.record.sha256}, expected {record.sha256}",
            remedy=DAMAGED,
        )
    return tensors, header


def _place(own: Tensor | None, record: TensorRecord) -> Tensor:
    """Memory for a tensor of a file: that of `own` where it is alike, else its own."""
    if own is not None and own.device.type == "cpu" and own.is_contiguous() and record == record_of("", own):
        return own
    return torch.empty(record.shape, dtype=DTYPES[record.dtype], device="cpu")


def read_named(
    ref: CheckpointRef, key: str, group: str, role: str, names: Collection[str] | None = None, into: Into = NOWHERE
) -> dict[str, Tensor]:
    """One file of a checkpoint: hash, header and tensor names agree with the metadata, or CheckpointError.

    names: which tensors are wanted, None for all.
    """
    record = ref.metadata.files.get(key)
    if record is None:
        raise CheckpointError(f"{ref.uri!r} has no {key}", remedy="use a checkpoint that has it")
    tensors, header = read_file(ref.store, key, record, names, into)
    faults = Faults(CheckpointError, f"{ref.uri}/{key}", DAMAGED)
    faults.extend(header_faults(header, ref.metadata, role, key))
    faults.extend(record_faults(header.records, ref.metadata.tensors.get(group, {}), key))
    faults.raise_if_any()
    return tensors


def record_faults(found: Mapping[str, TensorRecord], expected: Mapping[str, TensorRecord], where: str) -> list[str]:
    """In what a file's tensors differ from what the metadata says it holds."""
    shown = [{name: f"{r.dtype} {list(r.shape)}" for name, r in side.items()} for side in (found, expected)]
    return [f"{where}: file against metadata: {line}" for line in difference(*shown)]


def read_tensors(
    ref: CheckpointRef, weights: Weights = "raw", names: Collection[str] | None = None, into: Into = NOWHERE
) -> dict[str, Tensor]:
    """The model's tensors of a checkpoint, but for external ones; verified before anything is handed out.

    weights: raw, or ema for the averaged tensors in place of the trained ones.  names: which are wanted, None for all.
    into: tensors of a model that is to hold them: those that are alike are read into its memory and no second copy is
    made; after a CheckpointError nobody may use that model.
    What it leaves to a parent is read there; a parent that is missing is refused by name.
    """
    tensors = read_own(ref, weights, names, into)
    for role, owner in ref.metadata.referenced.items():
        wanted = set(owner.tensors) if names is None else set(owner.tensors) & set(names)
        if wanted:
            found = read_tensors(open_owner(ref, role), owner.weights, wanted, into)
            faults = Faults(CheckpointError, f"{ref.uri}: tensors of {role!r}", DAMAGED)
            faults.extend(record_faults(records_of(found), {n: owner.tensors[n] for n in wanted}, owner.uri))
            faults.raise_if_any()
            tensors |= found
    return tensors


def read_own(
    ref: CheckpointRef, weights: Weights = "raw", names: Collection[str] | None = None, into: Into = NOWHERE
) -> dict[str, Tensor]:
    """The tensors that a checkpoint's own files hold, one file or shards; averaged ones in place of trained ones."""
    if not ref.metadata.has_weights(weights):
        raise CheckpointError(
            f"{ref.uri!r} holds no {weights} weights", remedy="ask for weights=raw, or train with trainer.use_ema"
        )
    wanted = set(ref.metadata.tensors["model"])
    if names is not None:
        wanted &= set(names)
    if weights == "raw":
        return _read_group(ref, MODEL_FILE, "model", "raw", wanted, into)
    averaged = wanted & set(ref.metadata.tensors["ema"])
    tensors = _read_group(ref, EMA_FILE, "ema", "ema", averaged, into)
    return tensors | _read_group(ref, MODEL_FILE, "model", "raw", wanted - averaged, into)


def read_group(ref: CheckpointRef, group: Literal["model", "ema"]) -> dict[str, Tensor]:
    """Exactly what the file or shards of one group hold."""
    key, role = (MODEL_FILE, "raw") if group == "model" else (EMA_FILE, "ema")
    return _read_group(ref, key, group, role, set(ref.metadata.tensors[group]))


def _read_group(
    ref: CheckpointRef, key: str, group: str, role: str, names: Collection[str], into: Into = NOWHERE
) -> dict[str, Tensor]:
    if not names:
        return {}
    if key in ref.metadata.files:
        return read_named(ref, key, group, role, names, into)
    return {name: tensor for name, tensor in join_shards(ref, group).items() if name in names}


def join_shards(ref: CheckpointRef, group: str) -> dict[str, Tensor]:
    """Whole tensors out of the shards under `<group>/`, each element exactly once, or CheckpointError."""
    expected = ref.metadata.tensors[group]
    held = sum(record.bytes for name, record in ref.metadata.files.items() if name.startswith(f"{group}/"))
    strange = [name for name, record in expected.items() if record.dtype not in DTYPES]
    asked = sum(num_bytes(record) for name, record in expected.items() if name not in strange)
    if strange:
        raise CheckpointError(f"{ref.uri}: the metadata give {strange[0]!r} no known type", remedy=DAMAGED)
    if asked > held:
        raise CheckpointError(
            f"{ref.uri}: the metadata name {asked} bytes of tensors in {group}, its files have {held}", remedy=DAMAGED
        )
    whole = {name: torch.empty(r.shape, dtype=DTYPES[r.dtype], device="cpu") for name, r in expected.items()}
    covered = dict.fromkeys(expected, 0)
    faults = Faults(CheckpointError, f"{ref.uri}/{group}", DAMAGED)
    boxes: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {name: [] for name in expected}
    for key in sorted(name for name in ref.metadata.files if name.startswith(f"{group}/")):
        tensors, header = read_file(ref.store, key, ref.metadata.files[key])
        for name, part in tensors.items():
            offsets = header.offsets(name)
            ends = tuple(o + s for o, s in zip(offsets, part.shape, strict=True))
            if name not in whole:
                faults.add(f"{key}: unknown tensor {name!r}")
            elif part.dtype != whole[name].dtype or any(
                end > size for end, size in zip(ends, whole[name].shape, strict=True)
            ):
                faults.add(f"{key}: {name!r} is {part.dtype} up to {list(ends)}, expected {expected[name]}")
            elif any(_overlap(offsets, ends, *box) for box in boxes[name]) and part.numel():
                faults.add(f"{key}: {name!r} holds elements of another shard again")
            else:
                boxes[name].append((offsets, ends))
                whole[name][tuple(slice(o, e) for o, e in zip(offsets, ends, strict=True))] = part
                covered[name] += part.numel()
    faults.extend(
        f"{name!r}: {covered[name]} of {tensor.numel()} elements"
        for name, tensor in whole.items()
        if covered[name] != tensor.numel()
    )
    faults.raise_if_any()
    return whole


def _overlap(a: tuple[int, ...], b: tuple[int, ...], c: tuple[int, ...], d: tuple[int, ...]) -> bool:
    """Whether the boxes [a, b) and [c, d) share an element."""
    return all(max(lo, other) < min(hi, high) for lo, hi, other, high in zip(a, b, c, d, strict=True))


def load_state(
    module: nn.Module, tensors: Mapping[str, Tensor], *, where: str, external: Collection[str] = ()
) -> tuple[str, ...]:
    """Copy tensors into a module's own, all of them, after both sides were compared; the names that were copied.

    where: names the source.  external: tensors of the module that have another source.
    """
    own = module.state_dict()
    names = account(records_of(own), records_of(tensors), where=where, external=external)
    fill(own, {name: tensors[name] for name in names})
    return names


def fill(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors in place over those of the same names, where they are not the same memory already."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            if own[name].data_ptr() != tensor.data_ptr():
                own[name].copy_(tensor)
