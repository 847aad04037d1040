"""A film_flow checkpoint's metrics: per case and pooled, FiLM on, off and shuffled side by side, with provenance.

A number without how it was made is worth nothing: decoder stages and their origin, plan fingerprint, real network
evaluations, modes and gate stand beside the metrics. Predictions go through `sampling.predict_probability` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stageline.contract import Emit, Evaluation, Row, RowKey
from stageline.data.batches import equal_batches
from stageline.data.prepared import PreparedData
from stageline.data.shown import compared, notable, outlines
from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.conditions.feedback import feedback_condition, open_feedback
from stageline.families.film_flow.config import FilmFlowConfig, check_evaluation
from stageline.families.film_flow.data.junctions import find_peaks
from stageline.families.film_flow.data.preparation import is_per_crop
from stageline.families.film_flow.data.sets import Batch, CaseSet, open_data, window_condition
from stageline.families.film_flow.measures.metrics import BETTI_MATCHING, case_metrics, junction_scores, pool_metrics
from stageline.families.film_flow.measures.modes import Comparison, Mode, conditions_of, plan_comparison
from stageline.families.film_flow.measures.panels import grey, junctions, maps_of, picture
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
from stageline.families.film_flow.words import WORDS

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
HEAD_COUNTS = ("num_junctions_matched", "num_junctions_found", "num_junctions_true")


def evaluate(
    config: FilmFlowConfig,
    model: nn.Module,
    data: PreparedData,
    finished: Mapping[RowKey, Row],
    emit: Emit,
    progress: Progress,
) -> Evaluation:
    """Measure `model` on a split of prepared data; `config.evaluate` says how.

    Metrics of the mode that was asked for bear plain names (`dice`), those of the others a suffix (`dice_off`).
    finished: rows that are measured already. A batch with one that is not is predicted whole, so that its numbers do
    not depend on where an evaluation was interrupted.
    """
    assert isinstance(model, FilmFlowModel)
    check_evaluation(config, model.plan.stages)
    work = _Evaluator(config, model, data, finished, emit)
    done, total = 0, len(work.cases) * len(work.comparison.modes)
    for index in work.batches():
        if work.is_finished(index):
            done += len(index) * len(work.comparison.modes)
            continue
        batch = work.data.collate([work.cases[n] for n in index])
        batch = batch.to(next(model.parameters()).device)
        found = {}
        for mode in work.comparison.modes:
            found[mode] = work.measure(mode, index, batch)
            done += len(index)
            progress(done, total, f"evaluating ({MODE_WORDS[mode]})")
        work.judge_junctions(index, batch)
        work.hand_over(index, batch, found)
    return work.result()


class _Evaluator:
    """What one evaluation gathers."""

    def __init__(
        self,
        config: FilmFlowConfig,
        model: FilmFlowModel,
        data: PreparedData,
        finished: Mapping[RowKey, Row],
        emit: Emit,
    ) -> None:
        self.config, self.model = config, model.eval()
        self.data = open_data(config, data)
        self.per_crop = is_per_crop(self.data.features.settings)
        self.feedback = open_feedback(config)
        with_pictures = self.per_crop or self.feedback is not None
        self.cases = CaseSet(self.data.case_set(config.evaluate.split).split, with_pictures=with_pictures)
        self.conditions = conditions_of(self.cases, self.data.source) if model.plan.stages else None
        self.comparison: Comparison = plan_comparison(
            config, self.cases, has_film=bool(model.plan.stages), per_crop=self.per_crop
        )
        self.sampling = evaluation_sampling(config)
        self.rows: dict[RowKey, dict[str, Any]] = {key: dict(row) for key, row in finished.items()}
        self.finished, self.emit = frozenset(finished), emit
        self.facts = self.cases.split.pictures.facts
        self.label_word = "pseudo_label" if "pseudo" in str(self.facts.get("labels", "")) else "truth"

    def batches(self) -> list[list[int]]:
        """Numbers of cases of one size each, in order."""
        return equal_batches(range(len(self.cases)), self.cases.size, self.config.evaluate.batch_size)

    def is_finished(self, index: list[int]) -> bool:
        """Whether every row of these cases is there already."""
        ids = [self.cases.case(n).id for n in index]
        return all((name, mode) in self.finished for name in ids for mode in self.comparison.modes)

    def _condition(self, mode: Mode, index: list[int], batch: Batch) -> ConditionBundle | WindowCondition | None:
        if not self.model.plan.stages:
            return None
        if self.per_crop:
            of_window = window_condition(batch, self.data.features)
            return (lambda window: switch_off(of_window(window))) if mode == "off" else of_window
        assert self.conditions is not None
        own = take(self.conditions, self.comparison.sources(mode, index))
        return switch_off(own) if mode == "off" else own

    def predict(self, mode: Mode, index: list[int], batch: Batch) -> tuple[Probability, int]:
        """A batch in one mode, and its network evaluations."""
        condition = self._condition(mode, index, batch)
        found = predict_probability(self.model, batch.image, condition, batch.ids, self.sampling, heat=batch.heat)
        if self.feedback is None or mode != "on":
            return found, found.nfe
        pictures = [p for p in batch.pictures if p is not None]
        threshold = self.config.evaluate.threshold
        again = feedback_condition(self.feedback, pictures, batch.prompts, batch.ids, found.mean, threshold)
        second = predict_probability(self.model, batch.image, again, batch.ids, self.sampling, heat=batch.heat)
        return second, found.nfe + second.nfe

    def measure(self, mode: Mode, index: list[int], batch: Batch) -> Probability:
        """Predict a batch in one mode and note every metric of every case, with its network evaluations."""
        found, nfe = self.predict(mode, index, batch)
        masks, truths = self._masks(found, batch)
        for row, (mask, truth) in enumerate(zip(masks, truths, strict=True)):
            scores = case_metrics(
                mask, truth, degree_threshold=self.config.model.junction_gating_config.degree_threshold
            )
            extra = {} if found.std is None else {"ensemble_std": float(found.std[row].mean())}
            name = batch.ids[row]
            named = {"id": name, "prompt": batch.prompts[row], "mode": mode}
            self.rows[name, mode] = {**named, **scores, **extra, "nfe": nfe}
        return found

    def _masks(self, found: Probability, batch: Batch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        threshold = self.config.evaluate.threshold
        return (found.mean[:, 0] > threshold).cpu().numpy(), (batch.mask[:, 0] > 0.5).cpu().numpy()

    def judge_junctions(self, index: list[int], batch: Batch) -> None:
        """Nodes of the junction head against the picture's own, noted in the row of the picture's first case."""
        if self.model.junction is None:
            return
        maps = head_junctions(self.model, batch.image, self.sampling)[:, 0].cpu().numpy()
        for row, heat in enumerate(maps):
            if self.is_first_of_picture(index[row]):
                peaks = find_peaks(heat, threshold=PEAK_THRESHOLD)
                scores = junction_scores(peaks, batch.nodes[row], NODE_TOLERANCE_PIXELS)
                asked = self.rows[batch.ids[row], self.comparison.modes[0]]
                asked |= {f"head_{name}": scores[name] for name in HEAD_COUNTS}

    def is_first_of_picture(self, number: int) -> bool:
        """Whether no case before this one shows the same part of the same picture."""
        case, split = self.cases.case(number), self.cases.split
        return all(n >= number or split.cases[n].box != case.box for n in split.cases.of(case.image))

    def hand_over(self, index: list[int], batch: Batch, found: Mapping[Mode, Probability]) -> None:
        """Emit every new row of a batch, a case's pictures with its first."""
        asked = self.comparison.modes[0]
        for mode in self.comparison.modes:
            for row, number in enumerate(index):
                key = batch.ids[row], mode
                if key in self.finished:
                    continue
                is_shown = mode == asked and (number < self.config.evaluate.num_panels or self.emit.in_full)
                shown = self.draw(number, row, batch, found) if is_shown else {}
                self.emit(
                    self.rows[key], (self.maps(number, row, mode, found[mode]) if self.emit.in_full else {}) | shown
                )

    def maps(self, number: int, row: int, mode: Mode, found: Probability) -> dict[str, NDArray[np.uint8]]:
        """Everything that was predicted of one case in one mode, as `predict` gives it. number, row: as for `draw`."""
        suffix = "" if mode == self.comparison.modes[0] else f"_{mode}"
        one = [None if of is None else of[row : row + 1] for of in (found.std, found.junction)]
        made = maps_of(found.mean[row : row + 1], self.config.evaluate.threshold, *one)
        return {f"{kind}{suffix}-{number:03d}": pixels for kind, pixels in made.items()}

    def draw(
        self, number: int, row: int, batch: Batch, found: Mapping[Mode, Probability]
    ) -> dict[str, NDArray[np.uint8]]:
        """The pictures of one case: image, truth, outlines, each mode, probability, spread, junctions.

        number: of the case, which stands in their names.  row: where it is in the batch.
        """
        asked, image = self.comparison.modes[0], picture(batch.image[row].cpu().numpy())
        masks = {mode: result.mean[row, 0].cpu().numpy() for mode, result in found.items()}
        predicted = {mode: mean > self.config.evaluate.threshold for mode, mean in masks.items()}
        truth = batch.mask[row, 0].cpu().numpy() > 0.5
        made = {"image": image, self.label_word: grey(truth), "outlines": outlines(image, truth, predicted[asked])}
        for mode, mask in predicted.items():
            made["prediction" if mode == asked else f"prediction_{mode}"] = compared(mask, truth)
        chosen = found[asked]
        made["probability"] = grey(masks[asked])
        if chosen.std is not None:
            made["spread"] = grey(chosen.std[row, 0].cpu().numpy(), 0.0, 0.5)
        heat = self._junction_map(batch, chosen)
        if heat is not None:
            made["junctions"] = junctions(image, heat[row, 0].cpu().numpy(), batch.nodes[row])
        return {f"{name}-{number:03d}": pixels for name, pixels in made.items()}

    def draw_notable(self) -> dict[str, NDArray[np.uint8]]:
        """The pictures of the best, median and worst case by the main metric, where they are not drawn yet.

        They are predicted again: which ones they are is known at the end only.
        """
        count, metric = self.config.evaluate.num_panels, WORDS.main_metrics[0]
        if not count or self.emit.in_full:
            return {}
        numbers = {self.cases.case(n).id: n for n in range(len(self.cases))}
        values = {row["id"]: row[metric] for row in self.rows_of(self.comparison.modes[0])}
        made: dict[str, NDArray[np.uint8]] = {}
        for name in notable(values, higher_is_better=metric in WORDS.higher_is_better):
            if (number := numbers[name]) >= count:
                batch = self.data.collate([self.cases[number]]).to(next(self.model.parameters()).device)
                found = {mode: self.predict(mode, [number], batch)[0] for mode in self.comparison.modes}
                made |= self.draw(number, 0, batch, found)
        return made

    def _junction_map(self, batch: Batch, found: Probability) -> torch.Tensor | None:
        if found.junction is not None:
            return found.junction
        return head_junctions(self.model, batch.image, self.sampling) if self.model.junction is not None else None

    def rows_of(self, mode: Mode) -> list[dict[str, Any]]:
        """The rows of one mode in the order of the cases."""
        return [self.rows[self.cases.case(n).id, mode] for n in range(len(self.cases))]

    def result(self) -> Evaluation:
        """Means, pooled values and provenance of all rows."""
        metrics: dict[str, float | None] = {}
        for place, mode in enumerate(self.comparison.modes):
            suffix = "" if place == 0 else f"_{mode}"
            metrics |= {f"{name}{suffix}": value for name, value in pool_metrics(self.rows_of(mode)).items()}
        counts = {name: len(self.cases) for name in metrics}
        head = [row for row in self.rows_of(self.comparison.modes[0]) if f"head_{HEAD_COUNTS[0]}" in row]
        if head:
            metrics |= _head_metrics(head)
            counts |= {f"head_{name}": len(head) for name in HEAD_METRICS}
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
        return Evaluation(metrics, counts, (), self.draw_notable(), self._provenance(warnings))

    def _likeness(self) -> float | None:
        if self.conditions is None or self.per_crop:
            return None
        return condition_likeness(self.model, self.conditions)

    def _provenance(self, warnings: list[str]) -> dict[str, Any]:
        """How the numbers were made; every field is required by whoever shows them."""
        plan, asked, schedule = self.model.plan, self.config.evaluate, self.model.schedule
        active = plan.stages if asked.film_active is None else tuple(sorted(asked.film_active))
        gate = self.config.model.junction_gating_config
        nfe = {mode: max(row["nfe"] for row in self.rows_of(mode)) for mode in self.comparison.modes}
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
            "nfe": nfe[self.comparison.modes[0]],
            "nfe_by_mode": nfe,
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
            "labels": self.facts.get("labels", ""),
            "pictures": "masks and outlines: white found, orange missed, blue found where there is nothing",
            "junctions": self.facts.get("junctions", ""),
            "betti_matching": BETTI_MATCHING,
            "warnings": warnings,
        }


def _head_metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Precision, recall and F1 of the junction head over pictures. rows: of the first case of each picture."""
    matched, found, true = (sum(row[f"head_{name}"] for row in rows) for name in HEAD_COUNTS)
    values = (matched / found if found else 1.0, matched / true if true else 1.0)
    f1 = 2 * matched / (found + true) if found + true else 1.0
    return {f"head_{name}": value for name, value in zip(HEAD_METRICS, (*values, f1), strict=True)}
