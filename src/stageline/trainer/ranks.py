"""Processes of one stage and what they agree on: device, precision, strategy, and small exchanges of numbers and JSON.

Built on Lightning Fabric (`lightning_fabric`). Exchanges are JSON in byte tensors or plain sums, so that nothing is
pickled. A peer that goes away shows up here as a collective that fails: that is `PeerLostError`, never our own fault.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn

from stageline.checkpoint.exchange import gather_json
from stageline.config import TrainerConfig
from stageline.errors import ConfigError, PeerLostError, StagelineError, difference
from stageline.trainer.precision import precision_of

T = TypeVar("T")

_LOST = ("gloo", "nccl", "processgroup", "tcpstore", "connection closed by peer", "connection reset by peer")
"""Words in the errors of torch's collectives; they are plain RuntimeErrors on gloo."""
_LOST_EARLY = ("connectfullmesh failed", "connection closed", "connection reset", "connection refused", "timed out")
"""The same while the group is formed, when gloo also says what is wrong with this machine's own network."""


def _started_by() -> ClusterEnvironment:
    """Who started this rank: torchrun or nobody. Variables that SLURM, LSF or MPI left in a shell say nothing here."""
    return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()


class _OurFabric(Fabric):
    """Fabric with no callbacks but those it is given: none come from whatever other package is installed."""

    @staticmethod
    def _configure_callbacks(callbacks: Any) -> list[Any]:
        """What it is given. Fabric would read the metadata of every installed package for more, at every start."""
        return list(callbacks or ())


class Ranks:
    """This process among the others.

    rank, size: of the whole job.  scaler: fp16's loss scaler, None otherwise.  sharded: whether FSDP2 is on.
    shard: what FSDP2 does to the model; set before the model is wrapped.
    """

    def __init__(self, settings: TrainerConfig) -> None:
        # What Fabric tells at its info level, the recorder says in our words.
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        size = int(os.environ.get("WORLD_SIZE") or "1")
        local = int(os.environ.get("LOCAL_WORLD_SIZE") or str(size))
        if size != settings.world_size or local not in (settings.processes, settings.world_size):
            raise ConfigError(
                f"trainer.nodes={settings.nodes} and trainer.processes={settings.processes} make "
                f"{settings.world_size} ranks, but this process is one of {size}, {local} of them on this node",
                remedy=f"start it with torchrun --nnodes {settings.nodes} --nproc-per-node {settings.processes}, "
                "or through `stageline run`; where nobody started several, unset WORLD_SIZE and LOCAL_WORLD_SIZE",
            )
        self.shard: Callable[[nn.Module, Any], nn.Module] | None = None
        self.sharded = settings.strategy == "fsdp2"
        self.timeout_seconds = settings.process_group_timeout_seconds
        half = precision_of(settings)
        self.scaler = half.scaler if half else None
        self.fabric = _OurFabric(
            accelerator=settings.accelerator,
            devices=local,
            num_nodes=max(1, size // local),
            strategy=self._strategy(size),
            precision="32-true" if half is None else None,
            plugins=[plugin for plugin in (_started_by(), half) if plugin is not None],
        )
        with lost_peers("starting"):
            self.fabric.launch()
        self.rank, self.size = self.fabric.global_rank, self.fabric.world_size
        self.device = self.fabric.device

    def seed_torch(self, value: int) -> None:
        """Seed torch's own generators that this rank computes with, as `torch.manual_seed` seeds those of all devices.

        value: in [0, 2**63). That function notes a stack trace for every kind of device that is absent, at each call.
        """
        torch.default_generator.manual_seed(value)
        if self.is_cuda:
            torch.cuda.manual_seed(value)

    def _parallelise(self, model: nn.Module, mesh: Any) -> nn.Module:
        assert self.shard is not None
        return self.shard(model, mesh)

    def _strategy(self, size: int) -> Any:
        timeout = timedelta(seconds=self.timeout_seconds)
        if self.sharded:
            return ModelParallelStrategy(
                self._parallelise, data_parallel_size=size, tensor_parallel_size=1, timeout=timeout
            )
        if size == 1:
            return "auto"
        # Unused parameters happen (a head whose loss part is absent in a batch) and would otherwise hang the ranks.
        # Buffers are ours to keep equal: DDP's own broadcast would count forward passes of validation, too.
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        return DDPStrategy(find_unused_parameters=True, forward_sync_buffers=False, timeout=timeout)

    @property
    def is_first_of_node(self) -> bool:
        """Whether this is the first rank of its machine or pod."""
        return int(self.fabric.local_rank) == 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_cuda(self) -> bool:
        return bool(self.device.type == "cuda")

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each number summed over all ranks, in float64; the same list everywhere."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        with lost_peers("adding numbers over ranks"):
            dist.all_reduce(tensor)
            summed: list[float] = tensor.tolist()
        return summed

    def gather(self, value: Any) -> list[Any]:
        """A JSON value from every rank, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        with lost_peers("gathering from ranks"):
            return gather_json(value, self.device)

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """(n, ...) of every rank as (sum of all n, ...) in the order of ranks, with gradient; n may differ."""
        if self.size == 1:
            return tensor
        with lost_peers("gathering rows from ranks"):
            gathered: Tensor = _GatherRows.apply(tensor, self.rank, self.size)  # type: ignore[no-untyped-call]
        return gathered

    def first(self, make: Callable[[], T]) -> T:
        """Rank 0's result (a JSON value) on every rank; where it raises, the others learn that they lost it."""
        if self.size == 1:
            return make()
        answer: dict[str, Any] = {}
        failure: BaseException | None = None
        if self.is_first:
            try:
                answer = {"value": make()}
            except BaseException as error:  # noqa: BLE001  # raised again below, after the others know
                failure = error
                answer = {"failed": error.message if isinstance(error, StagelineError) else repr(error)}
        answer = self.gather(answer)[0]
        if failure is not None:
            raise failure
        if "failed" in answer:
            raise PeerLostError(f"rank 0 ended: {answer['failed']}", remedy="see the record of rank 0")
        value: T = answer["value"]
        return value

    def agree(self, what: str, value: Mapping[str, Any]) -> None:
        """Raise on every rank unless all have the same JSON mapping."""
        values = self.gather(value)
        for rank, found in enumerate(values):
            lines = difference(values[0], found)
            if lines:
                raise ConfigError(
                    f"{what} differs among ranks, rank 0 -> rank {rank}: {'; '.join(lines)}",
                    remedy="start every rank with the same config, data and version",
                )

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank rank 0's floating buffers (running statistics differ by the samples each rank saw)."""
        if self.size == 1:
            return
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point() and buffer.numel()]
        with lost_peers("sharing buffers"):
            for dtype in sorted({buffer.dtype for buffer in buffers}, key=str):
                same = [buffer for buffer in buffers if buffer.dtype == dtype]
                flat = torch.cat([buffer.detach().reshape(-1) for buffer in same])
                dist.broadcast(flat, 0)
                parts = torch.split_with_sizes(flat, [buffer.numel() for buffer in same])
                for buffer, part in zip(same, parts, strict=True):
                    buffer.detach().copy_(part.view_as(buffer))

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; the gradient of a rank's own rows is what all ranks' shares of the loss say of them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rank: int, size: int) -> Tensor:
        own = torch.tensor([len(tensor)], device=tensor.device)
        counts = [torch.zeros_like(own) for _ in range(size)]
        dist.all_gather(counts, own)
        ctx.counts, ctx.rank = [int(count) for count in counts], rank
        widest = max(ctx.counts)
        padded = torch.zeros((widest, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
        padded[: len(tensor)] = tensor.detach()
        blocks = [torch.zeros_like(padded) for _ in range(size)]
        dist.all_gather(blocks, padded)
        return torch.cat([block[:count] for block, count in zip(blocks, ctx.counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        total = gradient.float().contiguous()  # sums of half numbers over ranks would lose digits
        with lost_peers("adding gradients of gathered rows"):
            dist.all_reduce(total)
        own = torch.split(total, ctx.counts)[ctx.rank]
        return own.to(gradient.dtype), None, None


@contextmanager
def lost_peers(doing: str) -> Iterator[None]:
    """Turn the failure of a collective into PeerLostError; everything else passes."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        known = any(word in text.lower() for word in (_LOST if dist.is_initialized() else _LOST_EARLY))
        if known or isinstance(error, dist.DistError):
            line = text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
            raise PeerLostError(
                f"another rank went away while {doing}: {line}",
                remedy="see the record of the rank that ended first; start again to continue from the last checkpoint",
            ) from error
        raise


def sum_pairs(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, tuple[float, float]]:
    """Named (sum, count) pairs added up, in the order given."""
    total: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (value, count) in part.items():
            before = total.get(name, (0.0, 0.0))
            total[name] = (before[0] + value, before[1] + count)
    return total
