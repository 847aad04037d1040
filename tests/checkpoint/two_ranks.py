"""What two ranks do in `test_sharded`: save a model spread over both, load it back, meet damage. Run under torchrun.

python -m torch.distributed.run --nproc-per-node 2 two_ranks.py ROOT
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).parents[1]))

from guards import HANG_SECONDS

from stageline.checkpoint.commit import CheckpointWriter, Snapshot
from stageline.checkpoint.layout import CheckpointRef, StageDir, resolve
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import Provenance
from stageline.checkpoint.sharded import load_sharded, save_sharded
from stageline.checkpoint.tensors import read_tensors
from stageline.config import RetentionConfig
from stageline.errors import StagelineError

PROVENANCE = Provenance(
    family="film_flow", stage="film", run="a", identity="i", stage_fingerprint="f", facts={"decoder_channels": [8, 4]}
)


class Model(nn.Module):
    """Odd sizes, so that shards are unequal (3 rows on two ranks; 1 row: one rank has none) and a scalar buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 3)
        self.two = nn.Linear(3, 1, bias=False)
        self.register_buffer("strength", torch.tensor(0.25))
        self.register_buffer("seen", torch.arange(4))


def build(seed: int) -> Model:
    torch.manual_seed(seed)
    model = Model()
    fully_shard(model.one, mesh=MESH)
    fully_shard(model, mesh=MESH)
    return model


def save(directory: StageDir, writer: CheckpointWriter | None, step: int) -> CheckpointRef:
    """Commit the model of a seed, with an average and optimizer state of the same distribution."""
    state = build(step).state_dict()
    groups: dict[str, dict[str, Tensor]] = {
        "model": state,
        "ema": {name: tensor * 2 for name, tensor in state.items()},
        "training/optimizer": {f"exp_avg.{name}": tensor * 3 for name, tensor in state.items() if "." in name},
    }
    snapshot = Snapshot(step=step, steps=9, final=False, tensors={}, training_state={"step": step})
    return save_sharded(directory, writer, snapshot, groups)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal as whole tensors, on this rank's part."""

    def local(tensor: Tensor) -> Tensor:
        to_local = getattr(tensor, "to_local", None)
        return to_local() if to_local else tensor

    return one.keys() == other.keys() and all(torch.equal(local(one[name]), local(other[name])) for name in one)


def refused(ref: CheckpointRef, model: Model) -> str:
    """The name of the error a load ends with, and the model must be as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        load_sharded(ref, "model", model.state_dict())
    except StagelineError as error:
        assert same(model.state_dict(), before)
        return error.kind
    return "loaded"


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("an object collective unpickles what other ranks send")


def main(root: str) -> dict[str, object]:
    rank = dist.get_rank()
    for name in dist.__all__ if hasattr(dist, "__all__") else dir(dist):
        if "object" in name:
            setattr(dist, name, refuse)
    directory = StageDir(root, "a", "film")
    lease = StageLease.acquire(directory, "rank 0", keep_renewed=False) if rank == 0 else None
    writer = CheckpointWriter(directory, lease, PROVENANCE, RetentionConfig(last=9)) if lease else None
    first, second = save(directory, writer, 1), save(directory, writer, 2)
    found: dict[str, object] = {"files": sorted(info.key for info in second.store.list())}

    fresh = build(77)
    load_sharded(resolve(directory.uri, prefer="last"), "model", fresh.state_dict())
    found["loaded equals saved"] = same(fresh.state_dict(), build(2).state_dict())
    optimizer = {f"exp_avg.{n}": torch.zeros_like(t) for n, t in fresh.state_dict().items() if "." in n}
    load_sharded(second, "training/optimizer", optimizer)
    tripled = {f"exp_avg.{n}": t * 3 for n, t in build(2).state_dict().items() if "." in n}
    found["optimizer equals saved"] = same(optimizer, tripled)

    extra = build(5)
    extra.register_buffer("more", torch.zeros(1))
    found["key missing in the file"] = refused(second, extra)
    fewer = build(5)
    del fewer.seen
    found["key missing in the model"] = refused(second, fewer)
    other = build(5)
    other.seen = other.seen.to(torch.int32)
    found["other dtype"] = refused(second, other)
    other.seen = torch.arange(4).reshape(2, 2)
    found["other shape"] = refused(second, other)

    shards = sorted(name for name in second.metadata.files if name.startswith("model/"))
    path = second.store.local_path(shards[1])
    source = first.store.local_path(shards[1])
    if path is not None and source is not None:
        good = path.read_bytes()
        for name, bad in {
            "mixture of steps": source.read_bytes(),
            "flipped bit": good[:-1] + bytes([good[-1] ^ 1]),
            "truncated": good[:-3],
        }.items():
            dist.barrier()
            if rank == 0:
                path.write_bytes(bad)
            dist.barrier()
            found[name] = refused(second, build(5))
            dist.barrier()
            path.write_bytes(good) if rank == 0 else None
        dist.barrier()
        found["mended"] = refused(second, build(5))
        dist.barrier()

    # One rank can't write: nobody commits, everybody is told, the last checkpoint stays.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    broken = build(3).state_dict()
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        save_sharded(directory, writer, Snapshot(step=3, steps=9, final=False, tensors={}), {"model": broken})
        found["a rank without room"] = "committed"
    except StagelineError as error:
        found["a rank without room"] = error.kind
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dist.barrier()
    found["left"] = [ref.metadata.step for ref in directory.committed()]
    if rank == 0:
        whole = read_tensors(second)
        found["whole"] = {name: list(tensor.shape) for name, tensor in whole.items()}
    if lease:
        lease.release()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    ROOT, RANK = sys.argv[1], int(sys.argv[2])
    # The process group's own timeout is the hang guard: no rank outlives the test.
    TIMEOUT = timedelta(seconds=HANG_SECONDS)
    dist.init_process_group("gloo", init_method=f"file://{ROOT}/meeting", rank=RANK, world_size=2, timeout=TIMEOUT)
    MESH = init_device_mesh("cpu", (2,))
    result = main(ROOT)
    Path(ROOT, f"rank{RANK}.json").write_text(json.dumps(result), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
