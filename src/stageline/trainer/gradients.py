"""From summed losses to one step: divide once by the true weight, check, clip.

Every micro-batch is back-propagated as a sum times a constant power of two; ranks' gradients are averaged by DDP or
FSDP2. Afterwards one multiplication makes them the gradient of sum / weight over all micro-batches and ranks, however
unequal their weights were.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from stageline.config import TrainerConfig
from stageline.errors import TrainingError
from stageline.trainer.assembly import Parts
from stageline.trainer.ranks import Ranks

SHOWN_NAMES = 8
"""Names of parameters in one message."""


def summing_scale(settings: TrainerConfig, size: int) -> float:
    """Power of two near 1 / (samples of a step): keeps sums in fp16's range and changes no bit in fp32."""
    samples = settings.batch_size * settings.accumulate_grad_batches * size
    return float(2.0 ** -math.ceil(math.log2(samples)))


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _local(tensor: Tensor) -> Tensor:
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


@torch.no_grad()
def normalise(optimizer: torch.optim.Optimizer, ranks: Ranks, *, scale: float, weight: float) -> float:
    """Make the averaged, scaled sums the gradient of the mean loss; the norm of the whole gradient.

    weight: true weight over all micro-batches and ranks, > 0.  The norm is nan or infinite where a gradient is not
    finite, the same on every rank.
    """
    if ranks.scaler is not None:
        ranks.scaler.unscale_(optimizer)
    gradients = _gradients(optimizer)
    if not gradients:
        return 0.0
    factor = ranks.size / (scale * weight)
    locals_ = [_local(gradient) for gradient in gradients]
    torch._foreach_mul_(locals_, factor)
    if not ranks.sharded:
        return float(torch.nn.utils.get_total_norm(gradients))
    squares = sum(float(torch.linalg.vector_norm(part.double()).square()) for part in locals_ if part.numel())
    return math.sqrt(ranks.sum([float(squares)])[0])


@torch.no_grad()
def clip(optimizer: torch.optim.Optimizer, norm: float, limit: float) -> None:
    """Scale the gradient down to the norm `limit`; 0 leaves it alone. norm: its present, finite norm."""
    if limit <= 0 or norm <= limit:
        return
    torch._foreach_mul_([_local(gradient) for gradient in _gradients(optimizer)], limit / (norm + 1e-6))


def lacking_gradient(parts: Parts) -> list[str]:
    """Trained parameters that had no gradient in any step so far, on any rank, and were not declared so.

    A parameter that had one has a state in the optimizer. Where every step was skipped there is nothing to say.
    """
    parameters = dict(parts.own.named_parameters())
    lacking = [name for name in parts.trained if not parts.optimizer.state.get(parameters[name])]
    everywhere = set.intersection(*map(set, parts.ranks.gather(lacking)))
    if len(everywhere) == len(parts.trained):
        return []
    declared = parts.may_lack_gradient
    return [
        name for name in lacking if name in everywhere and not any(fnmatchcase(name, pattern) for pattern in declared)
    ]


def refuse_without_gradient(parts: Parts, step: int) -> None:
    """TrainingError where a trained parameter never had a gradient: it would stay as it began, unnoticed."""
    lacking = lacking_gradient(parts)
    if lacking:
        shown = ", ".join(lacking[:SHOWN_NAMES]) + (", ..." if len(lacking) > SHOWN_NAMES else "")
        raise TrainingError(
            f"stage {parts.stage.name!r}: {len(lacking)} of {len(parts.trained)} trained parameters had no gradient in "
            f"the first {step} steps: {shown}",
            remedy="let the loss depend on them, freeze them in the stage's `trains`, or let the family declare them "
            "in `may_lack_gradient`",
        )
