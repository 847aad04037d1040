"""The commit protocol: how a snapshot becomes a checkpoint, so that dying at any moment leaves the last one loadable.

Order: claim a fresh step directory (conditional create) -> look for room -> files, hashed while they are written, each
durable -> lease still ours? -> metadata, the commit marker -> pointers -> retention. Nothing is written over.

Only the holder of the lease commits. The check leaves at least half of the lease's length; should this process stand
still after it for longer than that, the next holder has put a fence where the metadata would be created (`fencing`),
and the commit fails. Pointers move by conditional replacement of what was read before the lease was checked.
"""

from __future__ import annotations

import json
import math
import shlex
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from stageline.checkpoint.admission import NameFacts, name_fact_faults
from stageline.checkpoint.derived import Exports, show_best, write_derived
from stageline.checkpoint.fencing import fence_leftovers
from stageline.checkpoint.header import header_texts
from stageline.checkpoint.index import record_finished
from stageline.checkpoint.layout import (
    CHECKPOINTS,
    CheckpointRef,
    Pointer,
    StageDir,
    best_of,
    open_checkpoint,
    step_name,
)
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import (
    CLAIM_NAME,
    CONFIG_FILE,
    EMA_FILE,
    METADATA_NAME,
    MODEL_FILE,
    OPTIMIZER_FILE,
    SCHEMA,
    STATE_FILE,
    BestRecord,
    CheckpointMetadata,
    FileRecord,
    Provenance,
    TensorRecord,
    digest_of,
    kind_of,
)
from stageline.checkpoint.retention import Decision, sweep
from stageline.checkpoint.steps import absolute_uri
from stageline.checkpoint.tensors import Hashed, records_of, write_tensors
from stageline.checkpoint.verify import group_of
from stageline.config import RetentionConfig
from stageline.errors import BusyError, CheckpointError, DiskFullError, Faults, StagelineError, difference
from stageline.store import Reference, Store
from stageline.store.holder import this_process

ROOM_BYTES = 4 * 2**20
"""Asked for besides the tensors: metadata, headers, state, what the file system adds."""
MAX_ATTEMPTS = 1000


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What one save holds. All tensors on the CPU and no longer changed by anybody.

    step, steps: done and planned.  final: the stage ends here.  tensors: the model.  ema: its averaged weights.
    training_tensors, training_state: what an exact resume needs (optimizer, schedules, counters); JSON values.
    header: further strings for the files' headers.  facts: what the model says about itself; must equal the
    provenance's.  metrics: of the validation at this step.  best: best so far.  is_best: this one is it.
    config_yaml: the resolved stage config, saved beside the weights.  timing: seconds.  notes: anything JSON.
    peak_memory_bytes: most memory that was in use, 0 where nobody looked.
    exports: makes files for other programs from the weights, averaged ones where there are such; written at commit.
    """

    step: int
    steps: int
    final: bool
    tensors: Mapping[str, Tensor]
    ema: Mapping[str, Tensor] | None = None
    training_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    training_state: Mapping[str, Any] | None = None
    header: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: BestRecord | None = None
    is_best: bool = False
    config_yaml: str = ""
    timing: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)
    exports: Exports | None = None


def prune_command(stage_dir: str) -> str:
    """What frees room, for an error. stage_dir: URI of the stage directory."""
    return f"see what can go with `stageline checkpoint prune --superseded {shlex.quote(stage_dir)}`"


class CheckpointWriter:
    """Saves checkpoints into one stage directory. Made by the lease's holder; mends what a dead writer left.

    keep: retention after each save.  name_facts: what tensor names prove about the facts; checked at every save.
    """

    def __init__(
        self,
        stage_dir: StageDir,
        lease: StageLease,
        provenance: Provenance,
        keep: RetentionConfig | None = None,
        *,
        name_facts: NameFacts | None = None,
    ) -> None:
        self.stage_dir = stage_dir
        self.lease = lease
        self.provenance = provenance
        self.keep = keep or RetentionConfig()
        self.name_facts = name_facts
        self._mutex = threading.Lock()
        fence_leftovers(stage_dir, lease)
        stage_dir.record_parents(
            {
                role: Reference(absolute_uri(p.uri, stage_dir.root, stage_dir.uri), p.digest)
                for role, p in provenance.parents.items()
            }
        )
        refs = stage_dir.survey().refs
        self._sequence = max((ref.metadata.sequence for ref in refs), default=0)
        if refs:
            self._mend_pointers(refs[-1])
        self.decisions: list[Decision] = sweep(stage_dir, self.keep, lease)
        """What retention did last, for the log."""

    def save(self, snapshot: Snapshot) -> CheckpointRef:
        """Commit a snapshot. One save at a time; on an error nothing of it is left and the last checkpoint is intact.

        DiskFullError before the first byte where there is no room, CheckpointError for a snapshot that contradicts
        itself, BusyError if the lease was lost.
        """
        with self._mutex:
            self.check_snapshot(snapshot)
            sets = [snapshot.tensors, snapshot.ema or {}, snapshot.training_tensors]
            self.check_room(sum(t.numel() * t.element_size() for tensors in sets for t in tensors.values()))
            name = self.claim(snapshot.step)
            try:
                files = self._write_tensor_files(self.stage_dir.step_store(name), snapshot)
                if snapshot.exports is not None:
                    own = {**snapshot.tensors, **(snapshot.ema or {})}
                    files |= write_derived(self.stage_dir.step_store(name), snapshot.exports(own))
                tensors = {"model": records_of(snapshot.tensors)}
                if snapshot.ema is not None:
                    tensors["ema"] = records_of(snapshot.ema)
                if snapshot.training_tensors:
                    tensors[group_of(OPTIMIZER_FILE)] = records_of(snapshot.training_tensors)
                return self.commit(name, snapshot, files, tensors)
            except Exception:
                self.abandon(name)
                raise

    def save_again(self, before: CheckpointRef, snapshot: Snapshot) -> CheckpointRef:
        """Commit the tensors of a checkpoint of ours once more, with what is known of them now: metrics, best, final.

        before: of the same step, saved by this writer.  snapshot: its tensors are not looked at; no byte of them is
        written again where the store can copy. Raises what `save` raises.
        """
        with self._mutex:
            self.check_snapshot(snapshot)
            self.check_room(0)
            name = self.claim(snapshot.step)
            try:
                same = {key: r for key, r in before.metadata.files.items() if key not in (CONFIG_FILE, STATE_FILE)}
                for key in same:
                    self.stage_dir.store.copy(f"{CHECKPOINTS}/{before.name}/{key}", f"{CHECKPOINTS}/{name}/{key}")
                return self.commit(name, snapshot, same, before.metadata.tensors)
            except Exception:
                self.abandon(name)
                raise

    def check_room(self, data_bytes: int) -> None:
        """DiskFullError if that many bytes will not fit; nothing was written then."""
        free = self.stage_dir.store.free_bytes()
        needed = data_bytes + ROOM_BYTES
        if free is not None and free < needed:
            raise DiskFullError(
                f"no room for a checkpoint in {self.stage_dir.uri!r}: {free / 2**20:.0f} MiB free, "
                f"{math.ceil(needed / 2**20)} MiB needed",
                remedy=f"{prune_command(self.stage_dir.uri)}, or keep fewer checkpoints (trainer.keep); the last one "
                "is intact",
            )

    def claim(self, step: int) -> str:
        """The name of a fresh step directory that is now ours alone."""
        self.lease.check()
        plain = {"holder": self.lease.holder, "lease": self.lease.id, "id": uuid.uuid4().hex, **this_process()}
        data = json.dumps(plain).encode()
        for attempt in range(1, MAX_ATTEMPTS):
            name = step_name(step, attempt)
            store = self.stage_dir.step_store(name)
            if store.list():
                continue
            # A creation whose answer got lost was repeated and found itself there.
            if store.create(CLAIM_NAME, data) or store.get(CLAIM_NAME) == data:
                return name
        raise CheckpointError(
            f"{self.stage_dir.uri}: step {step} was saved {MAX_ATTEMPTS} times", remedy="run=<new name>"
        )

    def abandon(self, name: str) -> None:
        """Remove a claimed directory after a failed save; a sweep does it later where the store refuses now."""
        with suppress(StagelineError):
            if not self.stage_dir.is_committed(name):
                self.stage_dir.store.delete_tree(f"{CHECKPOINTS}/{name}")

    def commit(
        self,
        name: str,
        snapshot: Snapshot,
        files: Mapping[str, FileRecord],
        tensors: Mapping[str, Mapping[str, TensorRecord]],
    ) -> CheckpointRef:
        """Make a claimed directory whose tensor files are written a checkpoint, then move pointers and tidy up.

        files, tensors: of the tensor files; config and training state are written here.
        """
        store = self.stage_dir.step_store(name)
        metadata = self._metadata(snapshot, {**files, **_write_texts(store, snapshot)}, tensors)
        if self.name_facts is not None:
            faults = Faults(CheckpointError, f"step {snapshot.step} can't be saved", "a fault in the family's code")
            faults.extend(name_fact_faults(metadata, self.name_facts))
            faults.raise_if_any()
        data = metadata.to_bytes()
        self.lease.check()
        if not store.create(METADATA_NAME, data) and store.get(METADATA_NAME) != data:
            self.lease.check()
            raise BusyError(
                f"{store.uri!r} was closed by the stage's next writer before it could be committed",
                remedy="another process writes this stage now; follow that one",
            )
        ref = open_checkpoint(store, digest_of(data))
        self._sequence = metadata.sequence
        if metadata.final:
            record_finished(self.stage_dir, metadata)
        self._move_pointers(ref, is_best=snapshot.is_best)
        self.decisions = sweep(self.stage_dir, self.keep, self.lease, running=(name,))
        return ref

    def check_snapshot(self, snapshot: Snapshot) -> None:
        """CheckpointError if the facts of model and config differ."""
        if snapshot.facts is None:
            return
        plain = json.loads(json.dumps(dict(snapshot.facts)))
        lines = difference(plain, json.loads(json.dumps(self.provenance.facts)))
        faults = Faults(CheckpointError, f"step {snapshot.step} can't be saved", "a fault in the family's code")
        faults.extend(f"facts of the model against those of the config: {line}" for line in lines)
        faults.raise_if_any()

    def _metadata(
        self,
        snapshot: Snapshot,
        files: Mapping[str, FileRecord],
        tensors: Mapping[str, Mapping[str, TensorRecord]],
    ) -> CheckpointMetadata:
        return CheckpointMetadata(
            **dict(self.provenance),
            step=snapshot.step,
            steps=snapshot.steps,
            final=snapshot.final,
            files={name: record.as_kind(record.kind or kind_of(name)) for name, record in files.items()},
            tensors={group: dict(records) for group, records in tensors.items()},
            metrics={k: float(v) if math.isfinite(v) else None for k, v in snapshot.metrics.items()},
            best=snapshot.best,
            timing=dict(snapshot.timing),
            peak_memory_bytes=snapshot.peak_memory_bytes,
            notes=dict(snapshot.notes),
            sequence=self._sequence + 1,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )

    def _write_tensor_files(self, store: Store, snapshot: Snapshot) -> dict[str, FileRecord]:
        fields = {**dict(self.provenance), "schema_version": SCHEMA, "step": snapshot.step}
        sets = [(MODEL_FILE, "raw", snapshot.tensors), (OPTIMIZER_FILE, "training", snapshot.training_tensors)]
        if snapshot.ema is not None:
            sets.append((EMA_FILE, "ema", snapshot.ema))
        return {
            key: write_tensors(store, key, tensors, {**snapshot.header, **header_texts(fields, role)})
            for key, role, tensors in sets
            if tensors or role != "training"
        }

    def _move_pointers(self, ref: CheckpointRef, *, is_best: bool) -> None:
        """`last` follows every commit; `best` too where nothing is measured or what it named has other settings."""
        self._set_pointer("last", ref)
        best, wanted = ref, ref.metadata.stage_fingerprint
        if not is_best and ref.metadata.best is not None:
            before = self.stage_dir.pointer("best")
            if before is not None and before.metadata.stage_fingerprint == wanted:
                return
            same = [other for other in self.stage_dir.survey().refs if other.metadata.stage_fingerprint == wanted]
            best = best_of(same) or ref
        self._set_pointer("best", best)
        show_best(self.stage_dir, best)

    def _set_pointer(self, name: Pointer, ref: CheckpointRef) -> None:
        if not self.stage_dir.set_pointer(name, ref, self.lease.check):
            self.lease.check()
            raise BusyError(
                f"{self.stage_dir.uri}/{name}.ckpt was moved by somebody else",
                remedy="another process writes this stage now; follow that one",
            )

    def _mend_pointers(self, newest: CheckpointRef) -> None:
        """Do what a writer that died between commit and pointers had left to do."""
        last = self.stage_dir.pointer("last")
        if last is None or last.digest != newest.digest:
            best = newest.metadata.best
            self._move_pointers(newest, is_best=best is not None and best.step == newest.metadata.step)


def _write_texts(store: Store, snapshot: Snapshot) -> dict[str, FileRecord]:
    """Config and training state of a snapshot, as files."""
    texts = {}
    if snapshot.config_yaml:
        texts[CONFIG_FILE] = snapshot.config_yaml.encode()
    if snapshot.training_state is not None:
        try:
            texts[STATE_FILE] = (json.dumps(snapshot.training_state, allow_nan=False) + "\n").encode()
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"the training state is not JSON: {error}",
                remedy="keep finite numbers, texts, lists and mappings in it",
            ) from error
    records = {}
    for key, data in texts.items():
        chunks = Hashed([data])
        store.put(key, chunks)
        records[key] = chunks.record
    return records
