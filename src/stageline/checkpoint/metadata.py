"""What a checkpoint says about itself: the schema of `checkpoint_metadata.json`. Loads no torch.

The file is written last and is the commit marker. **digest** is SHA-256 of its bytes (which checkpoint is this),
**content** a hash over the model's files and of what they leave to others (is it the same weights). `seal` covers all
other fields, so that a file that was edited is found out even where nobody remembers its digest.

Every tensor of the model is own (in the files), referenced (in a parent below the same root) or external (in files of
others); the metadata names all three. New saves are `stageline/2`; `stageline/1` is read, but not continued.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from stageline.config import Settings, canonical_json, is_sealed, seal
from stageline.config.bounds import read_json, shape_fault
from stageline.errors import CheckpointError, StoreError
from stageline.store.keys import check_key

SCHEMA = "stageline/2"
READABLE_SCHEMAS = ("stageline/1", SCHEMA)
"""Schemas this version reads. A newer one is refused, never guessed at."""

METADATA_NAME = "checkpoint_metadata.json"
CLAIM_NAME = "claim.json"
MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
OPTIMIZER_FILE = "training/optimizer.safetensors"
STATE_FILE = "training/state.json"
CONFIG_FILE = "config.yaml"
CONTENT_PATTERNS = ("model*.safetensors", "ema*.safetensors")
"""Files that hold the weights: what `content` is made of. Shards lie under `model/` and `ema/`."""
FileKind = Literal["weights", "training", "derived"]

HASH = r"^[0-9a-f]{64}$"
RESERVED = frozenset(
    {METADATA_NAME, CLAIM_NAME, CONFIG_FILE, "set_aside.json", "best.ckpt", "last.ckpt", "lease.json", "parents.json"}
)
RESERVED_FOLDERS = frozenset({"checkpoints", "training", "model", "ema", "tensorboard", "wandb", "failures", "events"})
"""Keys, and first parts of keys, that are ours in a step directory or in a stage directory: derived files of the best
checkpoint are copied into the latter, and removed from it."""


class Record(Settings):
    """Base of the parts of the metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class FileRecord(Record):
    """One file of a checkpoint: its size and SHA-256.

    kind: weights; training (what an exact resume needs, config included); derived (made from the weights for other
    programs, no source of ours, checked by hash alone). Empty in schema `stageline/1`, where the name says it.
    """

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=HASH)
    kind: FileKind | Literal[""] = ""

    def as_kind(self, kind: FileKind) -> FileRecord:
        """The record with its kind."""
        return self.model_copy(update={"kind": kind})

    def is_same(self, other: FileRecord) -> bool:
        """Whether two records are of the same bytes."""
        return (self.bytes, self.sha256) == (other.bytes, other.sha256)


class TensorRecord(Record):
    """dtype in safetensors' spelling (F32, BF16, …) and the full shape, also where the file holds shards of it."""

    dtype: str
    shape: tuple[int, ...]

    @field_validator("shape")
    @classmethod
    def _possible(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        fault = shape_fault(value)
        if fault:
            raise ValueError(fault)
        return value


class ParentRecord(Record):
    """A checkpoint this one started from, and what became of each of its sections.

    uri: relative to the root where it lies below the same one; `CheckpointRef.locate` makes it whole.
    """

    uri: str
    digest: str = Field(pattern=HASH)
    content: str = Field(pattern=HASH)
    stage: str
    step: int = Field(ge=0)
    weights: Literal["raw", "ema"]
    sections: list[dict[str, Any]] = Field(default_factory=list)
    """`Inheritance.to_json()` of each section."""


class OwnerRecord(Record):
    """The parent that holds tensors this checkpoint uses unchanged and does not hold itself.

    uri: relative to the root both lie below.  weights: which of the owner's.  tensors: what is taken of it.
    """

    uri: str
    digest: str = Field(pattern=HASH)
    content: str = Field(pattern=HASH)
    weights: Literal["raw", "ema"]
    tensors: dict[str, TensorRecord]


class ExternalRecord(Record):
    """Weights that are not ours and not in the files.

    source: hub id or path.  digest: of the files they were read from.  tensors: those of the model that they supply.
    """

    name: str
    source: str = ""
    revision: str = ""
    digest: str = ""
    tensors: dict[str, TensorRecord] = Field(default_factory=dict)


class GroupRecord(Record):
    """How much a group of tensors holds."""

    tensors: int = Field(ge=0)
    parameters: int = Field(ge=0)


class BestRecord(Record):
    """The best value of the stage's metric so far, and at which step it was."""

    metric: str
    direction: Literal["max", "min"]
    value: float
    step: int = Field(ge=0)


class Provenance(Record):
    """What stays the same over all checkpoints of one stage of one run."""

    family: str
    stage: str
    variant: str = ""
    run: str
    identity: str
    """Fingerprint of the run's identity."""
    stage_fingerprint: str
    settings: dict[str, Any] = Field(default_factory=dict)
    """The stage's settings, flat, so that a plan can name the field that changed."""
    parents: dict[str, ParentRecord] = Field(default_factory=dict)
    referenced: dict[str, OwnerRecord] = Field(default_factory=dict)
    """role -> whose tensors are used unchanged and not copied into the files."""
    externals: dict[str, ExternalRecord] = Field(default_factory=dict)
    code: dict[str, str] = Field(default_factory=dict)
    """The user's own code by file name: SHA-256."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """What the family says about the model (decoder stages, channels, …), JSON values."""
    trained: dict[str, GroupRecord] = Field(default_factory=dict)
    frozen: dict[str, GroupRecord] = Field(default_factory=dict)
    data_digest: str = ""
    """Of the prepared data that were read; what they were made from is in `data_inputs`."""
    data_inputs: dict[str, str] = Field(default_factory=dict)
    """Split -> fingerprint of what it was made from."""
    data_set_aside: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Split -> class -> how many rows of its sources could not be used."""
    environment: dict[str, Any] = Field(default_factory=dict)
    stageline_version: str = ""
    image: str = ""
    command: str = ""


class CheckpointMetadata(Provenance):
    """The whole of `checkpoint_metadata.json`."""

    schema_version: str = Field(default=SCHEMA, alias="schema")
    step: int = Field(ge=0)
    """Optimizer steps done."""
    steps: int = Field(ge=0)
    """Optimizer steps planned for the stage."""
    final: bool
    """Whether the stage is finished with this checkpoint."""
    files: dict[str, FileRecord]
    tensors: dict[str, dict[str, TensorRecord]]
    """Per file (or folder of shards) the names it holds. `model` are the own tensors, `ema` those that are averaged."""
    metrics: dict[str, float | None] = Field(default_factory=dict)
    """Validation metrics at this step; null for a value that is not finite."""
    best: BestRecord | None = None
    timing: dict[str, float] = Field(default_factory=dict)
    """Seconds: what was measured when this was saved."""
    peak_memory_bytes: int = Field(default=0, ge=0)
    """Most memory in use in the process that saved it: allocated on a CUDA device, or all of the process on a CPU."""
    notes: dict[str, Any] = Field(default_factory=dict)
    """What an import or another origin has to say."""
    sequence: int = Field(default=0, ge=0)
    """The how-manieth save of its stage directory: the order in which checkpoints came, whatever clocks say."""
    created: str
    """ISO 8601, UTC."""
    export_of: str = ""
    """Digest of the checkpoint this is an export of; empty for a checkpoint."""
    seal: str = ""

    @field_validator("files")
    @classmethod
    def _named(cls, value: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name, record in value.items():
            try:
                check_key(name)
            except StoreError as error:
                raise ValueError(error.message) from error
            if record.kind == "derived" and is_reserved(name):
                raise ValueError(f"{name!r} is called derived, and is a name of ours")
        return value

    def to_bytes(self) -> bytes:
        """The bytes of the file, sealed."""
        plain = seal(self.model_dump(mode="json", by_alias=True))
        return (json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @property
    def content(self) -> str:
        return content_of(self.files, self.referenced, self.externals)

    @property
    def whole(self) -> dict[str, TensorRecord]:
        """Every tensor of the model: own, referenced and external."""
        others: list[OwnerRecord | ExternalRecord] = [*self.referenced.values(), *self.externals.values()]
        return {**self.tensors.get("model", {}), **{n: r for other in others for n, r in other.tensors.items()}}

    @property
    def external_names(self) -> frozenset[str]:
        """The tensors of the model that files of others hold."""
        return frozenset(name for external in self.externals.values() for name in external.tensors)

    @property
    def file_kinds(self) -> dict[str, FileKind]:
        """What each file is for; by name where the schema did not say it yet."""
        return {name: record.kind or kind_of(name) for name, record in self.files.items()}

    @property
    def is_sharded(self) -> bool:
        return MODEL_FILE not in self.files

    def has_weights(self, weights: Literal["raw", "ema"]) -> bool:
        return ("model" if weights == "raw" else "ema") in self.tensors


def record_fault(name: str, own: TensorRecord, other: TensorRecord | None, file: str) -> str | None:
    """In what a tensor of the model differs from the one in a file; None where they are alike. file: words for it."""
    if other is None:
        return f"{name}: in the model, not in {file}"
    if own.dtype != other.dtype:
        return f"{name}: dtype {other.dtype} in {file}, {own.dtype} in the model"
    if own.shape != other.shape:
        return f"{name}: shape {list(other.shape)} in {file}, {list(own.shape)} in the model"
    return None


def is_fence(data: bytes) -> bool:
    """Whether what stands in a metadata file's place says that nothing may be committed there (`fencing`)."""
    return data.startswith(b'{"fenced":')


def digest_of(data: bytes) -> str:
    """SHA-256 (hex) of a metadata file's bytes."""
    return hashlib.sha256(data).hexdigest()


def is_continuable(metadata: CheckpointMetadata) -> bool:
    """Whether a checkpoint may be continued, or reused as the result of its stage: those of this version's schema."""
    return metadata.schema_version == SCHEMA


def kind_of(name: str) -> FileKind:
    """What a file of ours is for, by its name."""
    return "weights" if any(fnmatch.fnmatchcase(name, pattern) for pattern in CONTENT_PATTERNS) else "training"


def is_reserved(name: str) -> bool:
    """Whether a key may not be that of a derived file."""
    ours = name in RESERVED or name.split("/")[0] in RESERVED_FOLDERS or kind_of(name) == "weights"
    return ours or name.endswith((".jsonl", ".json.tmp"))


def content_of(
    files: Mapping[str, FileRecord],
    referenced: Mapping[str, OwnerRecord] | None = None,
    externals: Mapping[str, ExternalRecord] | None = None,
) -> str:
    """Hash over names and hashes of the files that hold weights, and of what they leave to others.

    Per owner its content, per external its digest, each with the names that are taken of it. Where lies what, and when
    it was made, does not count.
    """
    weights = {name: record.sha256 for name, record in files.items() if (record.kind or kind_of(name)) == "weights"}
    plain: Any = weights
    if referenced or externals:
        owners = [[o.content, o.weights, sorted(o.tensors)] for o in (referenced or {}).values()]
        others = [[e.name, e.revision, e.digest, sorted(e.tensors)] for e in (externals or {}).values()]
        plain = {"files": weights, "referenced": sorted(owners), "externals": sorted(others)}
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def parse_metadata(data: bytes, where: str) -> CheckpointMetadata:
    """Read a metadata file; the same bytes give the same record, read once. where: its URI, for the error.

    Raises CheckpointError for what is no JSON, has another schema, lacks a field, or does not match its seal.
    """
    try:
        return _parse(data)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error.message}", remedy=error.remedy) from error


@lru_cache(maxsize=32)
def _parse(data: bytes) -> CheckpointMetadata:
    remedy = "use another checkpoint, and move this directory away if it is in the way"
    try:
        plain = read_json(data)
    except ValueError as error:
        raise CheckpointError(f"damaged metadata, not JSON: {error}", remedy=remedy) from error
    if not isinstance(plain, dict):
        raise CheckpointError(f"damaged metadata, holds a {type(plain).__name__}", remedy=remedy)
    schema = plain.get("schema")
    if schema not in READABLE_SCHEMAS:
        raise CheckpointError(
            f"schema {schema!r}, this version reads {', '.join(READABLE_SCHEMAS)}",
            remedy="use the version of stageline that wrote it, or a checkpoint of this one",
        )
    try:
        metadata = CheckpointMetadata.model_validate_json(data)
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise CheckpointError(f"damaged metadata: {lines}", remedy=remedy) from error
    if not is_sealed(plain):
        raise CheckpointError("the metadata was changed after it was written (seal broken)", remedy=remedy)
    return metadata
