"""Checkpoints of a model that is spread over ranks (FSDP2): every rank writes its shards, rank 0 commits.

Shards go through torch's distributed checkpoint with its safetensors writer; no `.metadata` and no other pickle is
written. What that library does not notice on loading (extra names, another dtype, a flipped bit, a missing shard) is
checked here before it is asked. All functions are collective: every rank of the group calls them, on one thread.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from stageline.checkpoint.admission import account
from stageline.checkpoint.commit import CheckpointWriter, Snapshot, prune_command
from stageline.checkpoint.derived import write_derived
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
Group = dist.ProcessGroup | None


def _rank(group: Group) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def _gather(value: Any, group: Group) -> list[Any]:
    """What every rank says, in the order of ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def _together(work: Callable[[], T], group: Group) -> list[T]:
    """Do something on every rank; if it failed on one, all raise: that one its own error, the others PeerLostError."""
    value: T | None = None
    failure: StagelineError | None = None
    try:
        value = work()
    except CheckpointException as error:
        # It derives from BaseException and wraps what happened on each rank.
        failure = _unwrapped(error, group)
    except StagelineError as error:
        failure = error
    except (OSError, RuntimeError, ValueError) as error:
        failure = CheckpointError(f"{type(error).__name__}: {_first_line(error)}")
    told = _gather((value, str(failure) if failure else ""), group)
    if failure is not None:
        raise failure
    others = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(told) if text]
    if others:
        raise PeerLostError(f"a checkpoint failed on another rank: {'; '.join(others)}")
    return [item for item, _ in told]


def _own(work: Callable[[], T], group: Group) -> T:
    """The same for what is this rank's own; it is not told to the others."""
    made: list[T] = []
    _together(lambda: made.append(work()), group)
    return made[0]


def _unwrapped(error: CheckpointException, group: Group) -> StagelineError:
    """What the distributed writer or reader met: on the rank it happened to, its own error."""
    causes = {rank: cause for rank, (cause, _) in error.failures.items()}
    own = causes.get(_rank(group))
    if own is None:
        return PeerLostError(f"a checkpoint failed on rank {', '.join(map(str, sorted(causes)))}")
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
    is_first = _rank(group) == 0
    assert is_first == (writer is not None), "rank 0 and only rank 0 has the writer"
    num_bytes = sum(_local(t).numel() * t.element_size() for part in groups.values() for t in part.values())
    total = sum(_gather(num_bytes, group))

    def claim() -> str:
        if writer is None:
            return ""
        writer.check_snapshot(snapshot)
        writer.check_room(total)
        return writer.claim(snapshot.step)

    name = _together(claim, group)[0]
    store = stage_dir.step_store(name)
    try:
        written: dict[str, FileRecord] = {}
        for folder, tensors in groups.items():
            written |= _write_shards(store, folder, tensors, group)
        if snapshot.exports is not None:
            exports = snapshot.exports
            own = _whole({**groups["model"], **groups.get("ema", {})}, keep=writer is not None, group=group)
            derived = _together(lambda: write_derived(store, exports(own)) if writer else {}, group)
            written |= derived[0]
        records = {folder: records_of(tensors) for folder, tensors in groups.items()}
        digests = _together(lambda: writer.commit(name, snapshot, written, records).digest if writer else "", group)
    except StagelineError:
        if writer is not None:
            writer.abandon(name)
        raise
    return open_checkpoint(store, digests[0])


def _whole(tensors: Mapping[str, Tensor], *, keep: bool, group: Group) -> dict[str, Tensor]:
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
    _together(lambda: held.update(gather()), group)
    return held


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if to_local else tensor


def _write_shards(store: Store, folder: str, tensors: Mapping[str, Tensor], group: Group) -> dict[str, FileRecord]:
    """Write all shards of one group durably; name -> size and hash of every rank's files.

    The parts are done together one by one: a rank that failed before the distributed writer's own collectives would
    leave the others waiting in them.
    """
    rank, local = _rank(group), store.child(folder).local
    with ExitStack() as stack:

        def open_scratch() -> Path:
            purpose = f"shards-{rank}"
            return stack.enter_context(scratch_folder(purpose) if local is None else local.scratch(purpose))

        target = _own(open_scratch, group)

        def write() -> None:
            storage = HuggingFaceStorageWriter(str(target), save_distributed=True)
            with _alone_is_meant():
                save_distributed(dict(tensors), storage_writer=storage, process_group=group)

        def finish() -> dict[str, FileRecord]:
            records = {}
            for path in sorted(target.glob(f"shard-{rank + 1:05d}-*.safetensors")):
                with os.fdopen(open_local(path), "rb") as file:
                    records[f"{folder}/{path.name}"] = _record(file)
                if local is None:
                    store.put(f"{folder}/{path.name}", path)
                else:
                    local.adopt(path, path.name)
            return records

        _together(write, group)
        return {name: record for part in _together(finish, group) for name, record in part.items()}


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
    names = sorted(name for name in ref.metadata.files if name.startswith(f"{folder}/shard-"))

    def check() -> None:
        if not names:
            raise CheckpointError(f"{ref.uri!r} has no shards of {folder}", remedy="load it as a whole checkpoint")
        account(records_of(tensors), ref.metadata.tensors.get(folder, {}), where=f"{ref.uri}/{folder}")

    _together(check, group)
    with ExitStack() as stack:
        source = _own(lambda: stack.enter_context(scratch_folder("shards")), group)
        _together(lambda: _verify(ref, folder, names, source, stack), group)

        def load() -> None:
            storage = HuggingFaceStorageReader(str(source))
            with _alone_is_meant():
                load_distributed(dict(tensors), storage_reader=storage, process_group=group)

        _together(load, group)


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
