"""Metrics of one validation batch as sums and counts: masks, junctions, and how strongly FiLM acts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.film_flow.data.junctions import find_peaks, match_nodes
from stageline.families.film_flow.data.sets import Batch
from stageline.families.film_flow.data.windows import Window
from stageline.families.film_flow.measures.metrics import centreline_scores, overlap_scores
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.families.film_flow.sampling import Sampling, WindowCondition, move, predict_probability

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
) -> Sums:
    """name -> (sum, count): `dice`, `iou`, `cldice` per case; `head_junction_f1` pooled over nodes; FiLM's diagnostics.

    forward: the wrapped model.  condition: of the batch; a function of the window under `vlm_scope: crop`.
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
    result: Sums = {name: (value, float(len(batch.ids))) for name, value in sums.items()}
    if model.junction is not None:
        result["head_junction_f1"] = _node_f1(model.junction_map(batch.image), batch)
    if condition is not None:
        whole = Window(0, 0, *batch.image.shape[-2:])
        bundle = condition(whole) if callable(condition) else condition
        result |= _film(model, forward, batch, move(bundle, batch.image.device))
    return result


def _node_f1(junction: Tensor, batch: Batch) -> tuple[float, float]:
    """(2 x matched, found + true) over the batch: their ratio is the pooled F1 of the junction head."""
    matched, total = 0, 0
    for heat, nodes in zip(junction[:, 0].cpu().numpy(), batch.nodes, strict=True):
        peaks = find_peaks(heat, threshold=PEAK_THRESHOLD)
        matched += len(match_nodes(peaks, nodes, NODE_TOLERANCE_PIXELS))
        total += len(peaks) + len(nodes)
    return 2.0 * matched, float(total)


def _film(model: FilmFlowModel, forward: nn.Module, batch: Batch, condition: ConditionBundle) -> Sums:
    """Size of FiLM's changes per decoder stage, and how alike the conditions of the batch are."""
    count = float(len(batch.ids))
    t = torch.full((len(batch.ids),), DIAGNOSTIC_TIME, device=batch.image.device)
    x_t = DIAGNOSTIC_TIME * batch.target
    out = forward(x_t, t, batch.image, condition, batch.heat, full=True, diagnostics=True)
    result: Sums = {}
    for s, site in out.diagnostics.items():
        result |= {f"film_{s}_{name}": (float(value) * count, count) for name, value in site._asdict().items()}
    assert model.cond is not None
    cosine, pairs = condition_likeness(model.cond(condition.vec)[condition.present])
    result["condition_cosine"] = (cosine, pairs)
    return result


def condition_likeness(vectors: Tensor) -> tuple[float, float]:
    """(sum, number) of the cosines of all pairs of conditions (B, D); a mean near 1 says that they have collapsed."""
    unit = functional.normalize(vectors.detach().float(), dim=1)
    count = len(unit)
    total = float(unit.sum(dim=0).square().sum()) - float(unit.square().sum())
    return total / 2, count * (count - 1) / 2
