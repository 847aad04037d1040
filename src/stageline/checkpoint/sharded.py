"""Checkpoints of a model that is spread over ranks (FSDP2): every rank writes its shards, rank 0 commits.

Shards go through torch's distributed checkpoint with its safetensors writer; no `.metadata` and no other pickle is
written. Its own exchange of plans is not used, since that pickles them: each rank plans its part alone, and what the
parts cover is compared. What that library does not notice on loading (extra names, another dtype, a flipped bit, a
missing shard) is checked here before it is asked. All functions are collective: every rank of the group calls them, on
one thread.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.tensor import DTensor

from stageline.checkpoint.admission import account
from stageline.checkpoint.commit import CheckpointWriter, Snapshot, prune_command
from stageline.checkpoint.derived import write_derived
from stageline.checkpoint.exchange import Group, gather_json
from stageline.checkpoint.layout import CheckpointRef, StageDir, open_checkpoint
from stageline.checkpoint.metadata import FileRecord
from stageline.checkpoint.tensors import CHUNK_BYTES, DAMAGED, records_of
from stageline.errors import CheckpointError, DiskFullError, PeerLostError, StagelineError
from stageline.store import NotFoundError, Store
from stageline.store.below import open_local
from stageline.store.disk import FULL
from stageline.store.keys import path_below
from stageline.store.local import path_of
from stageline.store.scratch import scratch_folder

T = TypeVar("T")


@dataclass(frozen=True)
class _Peers:
    """The ranks that save or load together. device: from which their backend sends."""

    group: Group
    device: torch.device

    @classmethod
    def of(cls, group: Group, tensors: Iterable[Tensor]) -> _Peers:
        found = {_local(tensor).device for tensor in tensors}
        moved = dist.is_initialized() and dist.get_backend(group) == "nccl"
        devices = [device for device in found if device.type == "cuda"]
        return cls(group, devices[0] if moved and devices else torch.device("cpu"))

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group) if dist.is_initialized() else 0

    def gather(self, value: Any) -> list[Any]:
        """What every rank says (JSON), in the order of ranks."""
        return gather_json(value, self.device, self.group)


def _together(work: Callable[[], Any], peers: _Peers) -> list[Any]:
    """Do something on every rank; if it failed on one, all raise: that one its own error, the others PeerLostError.

    work: what it returns is JSON, and goes to all ranks.
    """
    value: Any = None
    failure: StagelineError | None = None
    try:
        value = work()
    except CheckpointException as error:
        # It derives from BaseException and wraps what happened on each rank.
        failure = _unwrapped(error)
    except StagelineError as error:
        failure = error
    except (OSError, RuntimeError, ValueError) as error:
        failure = CheckpointError(f"{type(error).__name__}: {_first_line(error)}")
    told = peers.gather([value, str(failure) if failure else ""])
    if failure is not None:
        raise failure
    others = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(told) if text]
    if others:
        raise PeerLostError(f"a checkpoint failed on another rank: {'; '.join(others)}")
    return [item for item, _ in told]


def _own(work: Callable[[], T], peers: _Peers) -> T:
    """The same for what is this rank's own; it is not told to the others."""
    made: list[T] = []
    _together(lambda: made.append(work()), peers)
    return made[0]


def _unwrapped(error: CheckpointException) -> StagelineError:
    """What torch's writer or reader met on this rank."""
    own = next(cause for cause, _ in error.failures.values())
    if isinstance(own, OSError) and own.errno in FULL:
        return DiskFullError(
            f"no room to write a shard: {own.strerror}",
            remedy=f"{prune_command('<stage directory>')}, or keep fewer checkpoints (trainer.keep); what was "
            "committed before is intact",
        )
    return CheckpointError(f"a shard can't be written or read: {_first_line(own)}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def save_sharded(
    stage_dir: StageDir,
    writer: CheckpointWriter | None,
    snapshot: Snapshot,
    groups: Mapping[str, Mapping[str, Tensor]],
    group: Group = None,
) -> CheckpointRef:
    """Commit a checkpoint whose tensors are spread over ranks; the same reference on every rank.

    writer: on rank 0, None elsewhere.  snapshot: everything but tensors (`tensors={}`).  groups: `model`, `ema` and
    `training/optimizer`, each names to DTensors or (equal on all ranks) plain tensors; nothing else.
    """
    every = [tensor for part in groups.values() for tensor in part.values()]
    peers = _Peers.of(group, every)
    is_first = peers.rank == 0
    assert is_first == (writer is not None), "rank 0 and only rank 0 has the writer"
    total = sum(peers.gather(sum(_local(tensor).numel() * tensor.element_size() for tensor in every)))

    def claim() -> str:
        if writer is None:
            return ""
        writer.check_snapshot(snapshot)
        writer.check_room(total)
        return writer.claim(snapshot.step)

    name = str(_together(claim, peers)[0])
    store = stage_dir.step_store(name)
    try:
        written: dict[str, FileRecord] = {}
        for folder, tensors in groups.items():
            written |= _write_shards(store, folder, tensors, peers)
        if snapshot.exports is not None:
            exports = snapshot.exports
            own = _whole({**groups["model"], **groups.get("ema", {})}, keep=writer is not None, peers=peers)
            derived = _together(lambda: _to_json(write_derived(store, exports(own))) if writer else {}, peers)
            written |= _from_json(derived[0])
        records = {folder: records_of(tensors) for folder, tensors in groups.items()}
        digests = _together(lambda: writer.commit(name, snapshot, written, records).digest if writer else "", peers)
    except StagelineError:
        if writer is not None:
            writer.abandon(name)
        raise
    return open_checkpoint(store, str(digests[0]))


def _to_json(records: Mapping[str, FileRecord]) -> dict[str, Any]:
    return {name: record.model_dump() for name, record in records.items()}


def _from_json(plain: Any) -> dict[str, FileRecord]:
    return {name: FileRecord.model_validate(record) for name, record in plain.items()}


def _whole(tensors: Mapping[str, Tensor], *, keep: bool, peers: _Peers) -> dict[str, Tensor]:
    """Whole tensors in host memory on the rank that keeps them; every rank takes part."""

    def gather() -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            full = getattr(tensor, "full_tensor", None)
            whole = full() if full else tensor
            if keep:
                found[name] = whole.detach().to("cpu", copy=True).contiguous()
        return found

    held: dict[str, Tensor] = {}
    _together(lambda: held.update(gather()), peers)
    return held


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if to_local else tensor


def _write_shards(store: Store, folder: str, tensors: Mapping[str, Tensor], peers: _Peers) -> dict[str, FileRecord]:
    """Write all shards of one group durably; name -> size and hash of every rank's files.

    CheckpointError on every rank where the parts of all together are not the whole of each tensor.
    """
    local = store.child(folder).local
    with ExitStack() as stack:

        def open_scratch() -> Path:
            purpose = f"shards-{peers.rank}"
            return stack.enter_context(scratch_folder(purpose) if local is None else local.scratch(purpose))

        target = _own(open_scratch, peers)
        planner = _OwnPart(peers.rank)

        def write() -> list[int]:
            storage = _OwnShard(target, peers.rank)
            with _alone_is_meant():
                save_distributed(dict(tensors), storage_writer=storage, planner=planner, no_dist=True)
            return [planner.elements.get(name, 0) for name in sorted(tensors)]

        def finish() -> dict[str, Any]:
            records = {}
            for path in sorted(target.glob(f"shard-{peers.rank + 1:05d}-*.safetensors")):
                with os.fdopen(open_local(path), "rb") as file:
                    records[f"{folder}/{path.name}"] = _record(file)
                if local is None:
                    store.put(f"{folder}/{path.name}", path)
                else:
                    local.adopt(path, path.name)
            return _to_json(records)

        counts = [sum(parts) for parts in zip(*_together(write, peers), strict=True)]
        wrong = [name for name, count in zip(sorted(tensors), counts, strict=True) if count != tensors[name].numel()]
        if wrong:
            raise CheckpointError(f"the shards of {', '.join(wrong[:3])} do not make a whole: the ranks do not agree")
        return {name: record for part in _together(finish, peers) for name, record in _from_json(part).items()}


class _OwnPart(DefaultSavePlanner):
    """A plan of what this rank writes of every tensor, by its placements alone; of whole ones rank 0 writes all.

    elements: tensor -> how many of them this rank writes.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.elements: dict[str, int] = {}

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        own = [item for item in plan.items if self._is_own(item.index.fqn)]
        for item in own:
            assert item.tensor_data is not None, "only tensors are saved so"
            name = item.index.fqn
            self.elements[name] = self.elements.get(name, 0) + item.tensor_data.chunk.sizes.numel()
        self.plan = replace(plan, items=own)
        return self.plan

    def _is_own(self, name: str) -> bool:
        tensor = self.state_dict[name]
        if not isinstance(tensor, DTensor):
            return self.rank == 0
        place = list(tensor.device_mesh.get_coordinate() or ())
        return all(at == 0 for at, placement in zip(place, tensor.placements, strict=True) if not placement.is_shard())

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return all_plans, Metadata({})


class _OwnShard(HuggingFaceStorageWriter):
    """Writes the shard of this rank, under its number."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._number = rank + 1

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [replace(plan, storage_data={"shard_index": self._number}) for plan in plans]


@contextmanager
def _alone_is_meant() -> Iterator[None]:
    """One process without a group may read and write shards too; torch warns that it might be an accident."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _record(file: BufferedReader) -> FileRecord:
    total, size = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        total.update(chunk)
        size += len(chunk)
    return FileRecord(bytes=size, sha256=total.hexdigest())


def load_sharded(ref: CheckpointRef, folder: str, tensors: Mapping[str, Tensor], group: Group = None) -> None:
    """Fill DTensors (or plain tensors) in place from the shards of one group, whatever the number of ranks was.

    folder: `model`, `ema` or `training/optimizer`. Every name, dtype and shape must be the file's, every byte must be
    the metadata's; otherwise CheckpointError and nothing is touched.
    """
    peers = _Peers.of(group, tensors.values())
    names = sorted(name for name in ref.metadata.files if name.startswith(f"{folder}/shard-"))

    def check() -> None:
        if not names:
            raise CheckpointError(f"{ref.uri!r} has no shards of {folder}", remedy="load it as a whole checkpoint")
        account(records_of(tensors), ref.metadata.tensors.get(folder, {}), where=f"{ref.uri}/{folder}")

    _together(check, peers)
    with ExitStack() as stack:
        source = _own(lambda: stack.enter_context(scratch_folder("shards")), peers)
        _together(lambda: _verify(ref, folder, names, source, stack), peers)

        def load() -> None:
            storage = HuggingFaceStorageReader(str(source))
            with _alone_is_meant():
                load_distributed(dict(tensors), storage_reader=storage, no_dist=True)

        _together(load, peers)


def _verify(ref: CheckpointRef, folder: str, names: list[str], source: Path, stack: ExitStack) -> None:
    """Bring shards into a folder of ours and compare every byte with the metadata; strangers among them are refused.

    On local disk nothing is copied: the names there lead to the opened files that were compared.
    """
    local = ref.store.local
    for name in names:
        path = path_below(source, name.rsplit("/", 1)[-1])
        try:
            if local is None:
                ref.store.download(name, path)
                file = stack.enter_context(path.open("rb"))
            else:
                file = stack.enter_context(local.open(name))
                path.symlink_to(path_of(file, local.path(name)))
            record = _record(file)
        except NotFoundError as error:
            raise CheckpointError(f"{ref.uri}/{name}: missing", remedy=DAMAGED) from error
        if not record.is_same(ref.metadata.files[name]):
            raise CheckpointError(f"{ref.uri}/{name}: truncated or changed", remedy=DAMAGED)
    there = {info.key for info in ref.store.files(folder)} if local is not None else set()
    strangers = {name for name in there if name.endswith(".safetensors")} - set(names)
    if strangers:
        raise CheckpointError(f"{ref.uri}: shards the metadata does not know: {sorted(strangers)}", remedy=DAMAGED)
