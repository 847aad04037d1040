"""Everything a stage needs to go on exactly where a checkpoint stands: weights, average, optimizer, counters.

A checkpoint of one file fits a sharded model and the other way round: strategy is no part of what a result depends on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from stageline.checkpoint.admission import account
from stageline.checkpoint.layout import CheckpointRef
from stageline.checkpoint.metadata import OPTIMIZER_FILE, STATE_FILE
from stageline.checkpoint.sharded import load_sharded
from stageline.checkpoint.tensors import fill, join_shards, read_group, read_named, read_tensors, record_of, records_of
from stageline.checkpoint.verify import group_of
from stageline.errors import CheckpointError
from stageline.trainer.assembly import Parts
from stageline.trainer.parameters import fill_optimizer
from stageline.trainer.state import TrainingState, state_from_json

OPTIMIZER_GROUP = group_of(OPTIMIZER_FILE)


def restore(parts: Parts, ref: CheckpointRef) -> TrainingState:
    """Load an admitted checkpoint of this very stage into the parts; the state to go on from.

    Every tensor on both sides is accounted for; CheckpointError otherwise. What the checkpoint leaves to parents and
    externals must be in the model already (`load_referenced`).
    """
    state = read_state(ref)
    own = parts.own.state_dict()
    others = set(ref.metadata.whole) - set(ref.metadata.tensors["model"])
    _restore_group(parts, ref, "model", {name: tensor for name, tensor in own.items() if name not in others})
    if parts.ema is not None:
        _restore_group(parts, ref, "ema", parts.ema.state_dict(parts.own))
        parts.ema.updates = state.ema_updates
    names = sorted(ref.metadata.tensors.get(OPTIMIZER_GROUP, {}))
    if names:
        _restore_group(parts, ref, OPTIMIZER_GROUP, fill_optimizer(parts.optimizer, parts.own, names))
    if (parts.ranks.scaler is None) != (state.scaler is None):
        raise CheckpointError(f"{ref.uri}: made with another precision", remedy="start a new run: run=<new name>")
    if parts.ranks.scaler is not None and state.scaler is not None:
        parts.ranks.scaler.load_state_dict(state.scaler)
    return state


def load_referenced(model: nn.Module, ref: CheckpointRef) -> None:
    """Copy into a model what a checkpoint of its stage leaves to its parents; before it is wrapped and cast."""
    names = {name for owner in ref.metadata.referenced.values() for name in owner.tensors}
    if names:
        own = model.state_dict()
        account(
            {name: record_of(name, own[name]) for name in names if name in own},
            {name: record for name, record in ref.metadata.whole.items() if name in names},
            where=f"{ref.uri}: tensors of its parents",
        )
        fill(own, read_tensors(ref, "raw", names, into=own))


def read_state(ref: CheckpointRef) -> TrainingState:
    """The counters of a checkpoint, verified."""
    record = ref.metadata.files.get(STATE_FILE)
    if record is None:
        raise CheckpointError(f"{ref.uri}: holds no training state", remedy="it can seed a stage, not be resumed")
    data = ref.store.get(STATE_FILE)
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise CheckpointError(f"{ref.uri}/{STATE_FILE}: its bytes changed", remedy="use another checkpoint")
    return state_from_json(data, f"{ref.uri}/{STATE_FILE}")


def _restore_group(parts: Parts, ref: CheckpointRef, group: str, own: Mapping[str, Tensor]) -> None:
    """Fill tensors in place from one group of a checkpoint, sharded or whole on either side."""
    if parts.ranks.sharded and ref.metadata.is_sharded:
        load_sharded(ref, group, own)
        return
    whole = _read_whole(ref, group)
    account(records_of(own), records_of(whole), where=f"{ref.uri}/{group}")
    with torch.no_grad():
        for name, tensor in own.items():
            if isinstance(tensor, DTensor):
                part = whole[name].to(tensor.device)
                tensor.copy_(distribute_tensor(part, tensor.device_mesh, tensor.placements))
            else:
                tensor.copy_(whole[name])


def _read_whole(ref: CheckpointRef, group: str) -> dict[str, Tensor]:
    if group in ("model", "ema"):
        return read_group(ref, "model" if group == "model" else "ema")
    if ref.metadata.is_sharded:
        return join_shards(ref, group)
    return read_named(ref, OPTIMIZER_FILE, group, "training")
