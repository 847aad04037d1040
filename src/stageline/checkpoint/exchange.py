"""What processes of one group tell each other: JSON in byte tensors of a bounded size, which nobody unpickles.

torch's own object collectives (`all_gather_object`, `broadcast_object_list`, ...) run code of whoever takes part.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist

from stageline.config.bounds import MAX_JSON_BYTES, read_json
from stageline.errors import PeerLostError, StagelineError

Group = dist.ProcessGroup | None
_TOO_LONG = -1


def gather_json(value: Any, device: torch.device | str = "cpu", group: Group = None) -> list[Any]:
    """A JSON value from every rank of a group, in the order of ranks, on every rank.

    device: one that the group's backend moves tensors of.  group: None is all ranks; without any, the value alone.
    StagelineError on every rank where one says more than MAX_JSON_BYTES; PeerLostError for what is no JSON.
    """
    if not dist.is_initialized():
        return [value]
    said = json.dumps(value).encode()
    length = torch.tensor([len(said) if len(said) <= MAX_JSON_BYTES else _TOO_LONG], device=device)
    size = dist.get_world_size(group)
    lengths = [torch.zeros_like(length) for _ in range(size)]
    dist.all_gather(lengths, length, group=group)
    counts = [int(item) for item in lengths]
    for rank, count in enumerate(counts):
        if not 0 <= count <= MAX_JSON_BYTES:
            raise StagelineError(
                f"rank {rank} has more to say to the others than {MAX_JSON_BYTES} bytes (MAX_JSON_BYTES)",
                remedy="this should not happen; see the log of that rank",
            )
    padded = torch.zeros(max(counts), dtype=torch.uint8, device=device)
    padded[: len(said)] = torch.frombuffer(bytearray(said), dtype=torch.uint8).to(device)
    blocks = [torch.zeros_like(padded) for _ in range(size)]
    dist.all_gather(blocks, padded, group=group)
    return [_read(block[:count], rank) for rank, (block, count) in enumerate(zip(blocks, counts, strict=True))]


def _read(block: torch.Tensor, rank: int) -> Any:
    try:
        return read_json(block.cpu().numpy().tobytes())
    except ValueError as error:
        raise PeerLostError(f"what rank {rank} says is no JSON: {error}", remedy="start all ranks again") from error
