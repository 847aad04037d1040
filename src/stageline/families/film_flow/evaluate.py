"""A film_flow checkpoint's metrics: per case and pooled, FiLM on, off and shuffled side by side, with provenance.

A number without how it was made is worth nothing: decoder stages and their origin, plan fingerprint, real network
evaluations, modes and gate stand beside the metrics. Predictions go through `sampling.predict_probability` alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stageline.contract import Evaluation
from stageline.data.batches import equal_batches
from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.conditions.feedback import feedback_condition, open_feedback
from stageline.families.film_flow.config import FilmFlowConfig, check_evaluation
from stageline.families.film_flow.data.junctions import find_peaks
from stageline.families.film_flow.data.preparation import is_per_crop
from stageline.families.film_flow.data.sets import Batch, CaseSet, open_data, window_condition
from stageline.families.film_flow.measures.metrics import BETTI_MATCHING, case_metrics, junction_scores, pool_metrics
from stageline.families.film_flow.measures.modes import Comparison, Mode, conditions_of, plan_comparison
from stageline.families.film_flow.measures.panels import Rgb, Tile, compared, grey, join_tiles, junctions, picture
from stageline.families.film_flow.measures.validation import NODE_TOLERANCE_PIXELS, PEAK_THRESHOLD, condition_likeness
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.families.film_flow.sampling import (
    Probability,
    WindowCondition,
    evaluation_sampling,
    head_junctions,
    predict_probability,
    switch_off,
    take,
)

Progress = Callable[[int, int, str], None]
COLLAPSE_COSINE = 0.98
"""Mean likeness of conditions above which they carry next to nothing."""
MODE_WORDS: Mapping[Mode, str] = {
    "on": "FiLM on",
    "off": "FiLM off",
    "shuffle": "FiLM shuffled",
    "swapped": "other prompt",
}
HEAD_METRICS = ("junction_precision", "junction_recall", "junction_f1")


def evaluate(config: FilmFlowConfig, model: nn.Module, folder: Path, progress: Progress) -> Evaluation:
    """Measure `model` on a split of the prepared data in `folder`; `config.evaluate` says how.

    Metrics of the mode that was asked for bear plain names (`dice`), those of the others a suffix (`dice_off`).
    """
    assert isinstance(model, FilmFlowModel)
    check_evaluation(config, model.plan.stages)
    work = _Evaluator(config, model, folder)
    done, total = 0, len(work.cases) * len(work.comparison.modes)
    for index in work.batches():
        batch = work.data.collate([work.cases[n] for n in index])
        batch = batch.to(next(model.parameters()).device)
        found = {}
        for mode in work.comparison.modes:
            found[mode] = work.measure(mode, index, batch)
            done += len(index)
            progress(done, total, f"evaluating ({MODE_WORDS[mode]})")
        work.judge_junctions(index, batch)
        work.draw(index, batch, found)
    return work.result()


class _Evaluator:
    """What one evaluation gathers."""

    def __init__(self, config: FilmFlowConfig, model: FilmFlowModel, folder: Path) -> None:
        self.config, self.model = config, model.eval()
        self.data = open_data(config, folder)
        self.per_crop = is_per_crop(self.data.features.settings)
        self.feedback = open_feedback(config)
        with_pictures = self.per_crop or self.feedback is not None
        self.cases = CaseSet(self.data.case_set(config.evaluate.split).split, with_pictures=with_pictures)
        self.conditions = conditions_of(self.cases, self.data.source) if model.plan.stages else None
        self.comparison: Comparison = plan_comparison(
            config, self.cases, has_film=bool(model.plan.stages), per_crop=self.per_crop
        )
        self.sampling = evaluation_sampling(config)
        self.scores: dict[Mode, list[dict[str, float]]] = defaultdict(list)
        self.rows: list[dict[str, Any]] = []
        self.head: list[dict[str, float]] = []
        self.judged: set[tuple[int, Any]] = set()
        self.panels: dict[str, Rgb] = {}
        self.nfe: dict[Mode, int] = {}
        self.label_word = "pseudo-label" if "pseudo" in str(self.data.record.get("labels", "")) else "truth"

    def batches(self) -> list[list[int]]:
        """Numbers of cases of one size each, in order."""
        return equal_batches(range(len(self.cases)), self.cases.size, self.config.evaluate.batch_size)

    def _condition(self, mode: Mode, index: list[int], batch: Batch) -> ConditionBundle | WindowCondition | None:
        if not self.model.plan.stages:
            return None
        if self.per_crop:
            of_window = window_condition(batch, self.data.features)
            return (lambda window: switch_off(of_window(window))) if mode == "off" else of_window
        assert self.conditions is not None
        own = take(self.conditions, self.comparison.sources(mode, index))
        return switch_off(own) if mode == "off" else own

    def measure(self, mode: Mode, index: list[int], batch: Batch) -> Probability:
        """Predict a batch in one mode and note every metric of every case."""
        condition = self._condition(mode, index, batch)
        found = predict_probability(self.model, batch.image, condition, batch.ids, self.sampling, heat=batch.heat)
        nfe = found.nfe
        if self.feedback is not None and mode == "on":
            pictures = [p for p in batch.pictures if p is not None]
            threshold = self.config.evaluate.threshold
            again = feedback_condition(self.feedback, pictures, batch.prompts, batch.ids, found.mean, threshold)
            found = predict_probability(self.model, batch.image, again, batch.ids, self.sampling, heat=batch.heat)
            nfe += found.nfe
        self.nfe[mode] = max(nfe, self.nfe.get(mode, 0))
        masks, truths = self._masks(found, batch)
        for row, (mask, truth) in enumerate(zip(masks, truths, strict=True)):
            scores = case_metrics(
                mask, truth, degree_threshold=self.config.model.junction_gating_config.degree_threshold
            )
            self.scores[mode].append(scores)
            extra = {} if found.std is None else {"ensemble_std": float(found.std[row].mean())}
            self.rows.append({"id": batch.ids[row], "prompt": batch.prompts[row], "mode": mode, **scores, **extra})
        return found

    def _masks(self, found: Probability, batch: Batch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        threshold = self.config.evaluate.threshold
        return (found.mean[:, 0] > threshold).cpu().numpy(), (batch.mask[:, 0] > 0.5).cpu().numpy()

    def judge_junctions(self, index: list[int], batch: Batch) -> None:
        """Nodes of the junction head against the picture's own, once per picture."""
        if self.model.junction is None:
            return
        maps = head_junctions(self.model, batch.image, self.sampling)[:, 0].cpu().numpy()
        for row, heat in enumerate(maps):
            case = self.cases.case(index[row])
            if (case.image, case.box) in self.judged:
                continue
            self.judged.add((case.image, case.box))
            peaks = find_peaks(heat, threshold=PEAK_THRESHOLD)
            self.head.append(junction_scores(peaks, batch.nodes[row], NODE_TOLERANCE_PIXELS))

    def draw(self, index: list[int], batch: Batch, found: Mapping[Mode, Probability]) -> None:
        """Pictures of the first cases: image, truth, each mode, probability, spread, junctions."""
        asked = self.comparison.modes[0]
        for row, number in enumerate(index):
            if number >= self.config.evaluate.num_panels:
                return
            image = picture(batch.image[row].cpu().numpy())
            truth = batch.mask[row, 0].cpu().numpy() > 0.5
            tiles = [Tile("image", image), Tile(self.label_word, grey(truth))]
            for mode, result in found.items():
                mask = result.mean[row, 0].cpu().numpy() > self.config.evaluate.threshold
                dice = self.scores[mode][-len(index) + row]["dice"]
                tiles.append(Tile(f"{MODE_WORDS[mode]}: Dice {dice:.2f}", compared(mask, truth)))
            chosen = found[asked]
            tiles.append(Tile("probability", grey(chosen.mean[row, 0].cpu().numpy())))
            if chosen.std is not None:
                tiles.append(Tile("spread (0 to 0.5)", grey(chosen.std[row, 0].cpu().numpy(), 0.0, 0.5)))
            heat = self._junction_map(batch, chosen)
            if heat is not None:
                tiles.append(Tile("junctions", junctions(image, heat[row, 0].cpu().numpy(), batch.nodes[row])))
            prompt = batch.prompts[row]
            self.panels[f"sample-{number:03d}"] = join_tiles(tiles, f"{batch.ids[row]}   prompt: {prompt or 'none'}")

    def _junction_map(self, batch: Batch, found: Probability) -> torch.Tensor | None:
        if found.junction is not None:
            return found.junction
        return head_junctions(self.model, batch.image, self.sampling) if self.model.junction is not None else None

    def result(self) -> Evaluation:
        """Means, pooled values and provenance of everything gathered."""
        metrics: dict[str, float] = {}
        for place, mode in enumerate(self.comparison.modes):
            suffix = "" if place == 0 else f"_{mode}"
            metrics |= {f"{name}{suffix}": value for name, value in pool_metrics(self.scores[mode]).items()}
        counts = {name: len(self.cases) for name in metrics}
        if self.head:
            metrics |= self._head_metrics()
            counts |= {f"head_{name}": len(self.head) for name in HEAD_METRICS}
        warnings = []
        likeness = self._likeness()
        if likeness is not None:
            metrics["condition_cosine"] = likeness
            counts["condition_cosine"] = len(self.cases)
            if likeness > COLLAPSE_COSINE:
                warnings.append(
                    f"conditions have collapsed: their mean cosine is {likeness:.3f}, above {COLLAPSE_COSINE}; "
                    "FiLM gets next to no information"
                )
        return Evaluation(metrics, counts, self.rows, self.panels, self._provenance(warnings))

    def _head_metrics(self) -> dict[str, float]:
        matched, found, true = (
            sum(score[f"num_junctions_{part}"] for score in self.head) for part in ("matched", "found", "true")
        )
        values = (matched / found if found else 1.0, matched / true if true else 1.0)
        f1 = 2 * matched / (found + true) if found + true else 1.0
        return {f"head_{name}": value for name, value in zip(HEAD_METRICS, (*values, f1), strict=True)}

    def _likeness(self) -> float | None:
        if self.conditions is None or self.per_crop:
            return None
        return condition_likeness(self.model, self.conditions)

    def _provenance(self, warnings: list[str]) -> dict[str, Any]:
        """How the numbers were made; every field is required by whoever shows them."""
        plan, asked, schedule = self.model.plan, self.config.evaluate, self.model.schedule
        active = plan.stages if asked.film_active is None else tuple(sorted(asked.film_active))
        gate = self.config.model.junction_gating_config
        return {
            "film_stages": list(plan.stages),
            "film_stages_active": list(active),
            "film_stages_origin": "metadata",
            "plan_fingerprint": plan.fingerprint if plan.stages else "",
            "ablation": active != plan.stages,
            "film_mode": self.comparison.modes[0],
            "film_strength": float(schedule.film_strength),
            "gate": {
                "stages": list(plan.gate_stages),
                "source": gate.source if plan.gate_stages else "none",
                "value": plan.gate_value if plan.gate_stages else 1.0,
                "strength": float(schedule.gate_strength),
            },
            "oracle": self.sampling.junction == "gt",
            "nfe": self.nfe[self.comparison.modes[0]],
            "nfe_by_mode": dict(self.nfe),
            "steps": self.sampling.steps,
            "solver": self.sampling.solver if self.sampling.mode == "cfm_continuous" else "dfm_binary",
            "ensemble": self.sampling.ensemble,
            "guidance": self.sampling.guidance,
            "mask_feedback": asked.mask_feedback,
            "window": self.sampling.window or 0,
            "split": asked.split,
            "weights": asked.weights,
            "threshold": asked.threshold,
            "seed": self.config.seed,
            "labels": self.data.record.get("labels", ""),
            "pictures": "compared masks: white found, orange missed, blue found where there is nothing",
            "junctions": self.data.record.get("junctions", ""),
            "betti_matching": BETTI_MATCHING,
            "warnings": warnings,
        }
