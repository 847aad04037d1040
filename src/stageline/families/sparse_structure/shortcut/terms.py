"""What one loss is made of: details for people, sums and counts for the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ShortCutLoss:
    """One loss and what it is made of.

    total: scalar with a graph.  details: what `ShortCut.loss` returns beside it, detached.
    weight: what `StageLoss` divides by. 1 for a scene, whatever its number of objects, so that a step may be split in
        any way; N for a batch of objects, so that a split step is a mean of its micro-batches' estimates.
    parts: name -> (sum, count): of scenes in scene mode, of objects otherwise; a part that the batch lacks has count 0.
    """

    total: Tensor
    details: Mapping[str, Tensor]
    weight: float
    parts: Mapping[str, tuple[Tensor, float]] = field(default_factory=dict)


def assembled(
    total: Tensor,
    losses: Mapping[str, Tensor],
    each: Mapping[str, Mapping[str, Tensor]],
    counts: Mapping[str, int],
    *,
    names: Sequence[str],
    scene: bool,
) -> ShortCutLoss:
    """The loss with its parts.

    total: with a graph.  losses: branch -> loss with the modalities' weights, 0 where `counts` says so.
    each: branch that the batch has -> modality -> loss without weight.  counts: branch -> its objects.
    names: the modalities.  scene: whether the batch is one scene, whose parts count 1.
    """
    zero = torch.zeros_like(total)
    details: dict[str, Tensor] = {}
    parts: dict[str, tuple[Tensor, float]] = {}
    for branch, value in losses.items():
        found = {f"{branch}_loss": value.detach()} | {f"{branch}/{m}": each.get(branch, {}).get(m, zero) for m in names}
        count = float(bool(counts[branch]) if scene else counts[branch])
        details |= found
        parts |= {name: (number * count, count) for name, number in found.items()}
    details |= {"num_fm": torch.tensor(counts["flow_matching"]), "num_sc": torch.tensor(counts["self_consistency"])}
    return ShortCutLoss(total=total, details=details, weight=1.0 if scene else float(sum(counts.values())), parts=parts)
