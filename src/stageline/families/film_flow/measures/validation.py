"""Metrics of one validation batch as sums and counts: masks, junctions, and how strongly FiLM acts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.data.shown import outlines
from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.film_flow.data.junctions import find_peaks, match_nodes
from stageline.families.film_flow.data.sets import Batch
from stageline.families.film_flow.data.windows import Padding, Window
from stageline.families.film_flow.measures.metrics import centreline_scores, overlap_scores
from stageline.families.film_flow.measures.panels import grey, picture
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.families.film_flow.sampling import (
    Sampling,
    WindowCondition,
    head_junctions,
    move,
    padding_of,
    predict_probability,
)
from stageline.objectives.step import ValidationContext

PEAK_THRESHOLD = 0.2
"""A junction is a peak of J above this, picked in a 5 x 5 window."""
NODE_TOLERANCE_PIXELS = 4.0
DIAGNOSTIC_TIME = 0.5
"""Time at which FiLM's diagnostics are taken: between noise and data."""

Sums = dict[str, tuple[float, float]]


@torch.no_grad()
def validate_batch(
    config: FilmFlowConfig,
    model: FilmFlowModel,
    forward: nn.Module,
    batch: Batch,
    condition: ConditionBundle | WindowCondition | None,
    sampling: Sampling,
    conditions: ConditionBundle | None,
    context: ValidationContext,
) -> Sums:
    """name -> (sum, count): `dice`, `iou`, `cldice` per case; `head_junction_f1` pooled over nodes; FiLM's diagnostics.

    forward: the wrapped model.  condition: of the batch; a function of the window under `vlm_scope: crop`.
    conditions: of the whole validation set, for `condition_cosine`; None where they belong to windows.
    context: shows outlines and probability of the rows of which pictures are wanted.
    `film_<s>_gamma_spread` and `film_<s>_change_p50`, `_p95` describe the batch as a whole; nothing else depends on it.
    """
    condition = condition if model.plan.stages else None
    found = predict_probability(model, batch.image, condition, batch.ids, sampling, forward=forward, heat=batch.heat)
    masks = (found.mean[:, 0] > config.evaluate.threshold).cpu().numpy()
    truths = (batch.mask[:, 0] > 0.5).cpu().numpy()
    sums = {"dice": 0.0, "iou": 0.0, "cldice": 0.0}
    for mask, truth in zip(masks, truths, strict=True):
        counts = [float(n) for n in ((mask & truth).sum(), (mask & ~truth).sum(), (~mask & truth).sum(), 0)]
        scores = overlap_scores(*counts) | centreline_scores(mask, truth)
        for name in sums:
            sums[name] += scores[name]
    for row in range(context.num_shown):
        image = picture(batch.image[row].cpu().numpy())
        context.show(row, "outlines", outlines(image, truths[row], masks[row]))
        context.show(row, "probability", grey(found.mean[row, 0].cpu().numpy()))
    result: Sums = {name: (value, float(len(batch.ids))) for name, value in sums.items()}
    if model.junction is not None:
        result["head_junction_f1"] = _node_f1(head_junctions(model, batch.image, sampling), batch)
    if condition is not None:
        whole = Window(0, 0, *batch.image.shape[-2:])
        bundle = condition(whole) if callable(condition) else condition
        result |= _film(forward, batch, move(bundle, batch.image.device), padding_of(batch.image, sampling))
        likeness = None if conditions is None else condition_likeness(model, conditions)
        if likeness is not None:
            result["condition_cosine"] = (likeness * len(batch.ids), float(len(batch.ids)))
    return result


def _node_f1(junction: Tensor, batch: Batch) -> tuple[float, float]:
    """(2 x matched, found + true) over the batch: their ratio is the pooled F1 of the junction head."""
    matched, total = 0, 0
    for heat, nodes in zip(junction[:, 0].cpu().numpy(), batch.nodes, strict=True):
        peaks = find_peaks(heat, threshold=PEAK_THRESHOLD)
        matched += len(match_nodes(peaks, nodes, NODE_TOLERANCE_PIXELS))
        total += len(peaks) + len(nodes)
    return 2.0 * matched, float(total)


def _film(forward: nn.Module, batch: Batch, condition: ConditionBundle, padding: Padding) -> Sums:
    """Size of FiLM's changes per decoder stage, over the padded pictures."""
    count = float(len(batch.ids))
    t = torch.full((len(batch.ids),), DIAGNOSTIC_TIME, device=batch.image.device)
    x_t = DIAGNOSTIC_TIME * padding.grow(batch.target)
    image, heat = padding.grow(batch.image), padding.grow(batch.heat)
    out = forward(x_t, t, image, condition, heat, full=True, diagnostics=True)
    result: Sums = {}
    for s, site in out.diagnostics.items():
        result |= {f"film_{s}_{name}": (float(value) * count, count) for name, value in site._asdict().items()}
    return result


@torch.no_grad()
def condition_likeness(model: FilmFlowModel, conditions: ConditionBundle) -> float | None:
    """Mean cosine of all pairs of projected conditions; near 1 says that they have collapsed. None without a pair.

    conditions: features (N, F) of a whole split; samples without one are left out.
    """
    if model.cond is None:
        return None
    there = move(conditions, next(model.cond.parameters()).device)
    unit = functional.normalize(model.cond(there.vec)[there.present].float(), dim=1)
    count = len(unit)
    if count < 2:
        return None
    total = float(unit.sum(dim=0).square().sum()) - float(unit.square().sum())
    return total / (count * (count - 1))
