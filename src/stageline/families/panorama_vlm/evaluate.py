"""A checkpoint's answers to the questions of a split, and what they are worth.

Rows are answered in a fixed partition by number, greedily, and kept as soon as their batch is finished. A batch
with a row that is not answered yet is answered whole, so that its texts do not depend on where an evaluation was
interrupted. Rows that were set aside when the data were prepared stand in `predictions.csv` with their status.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stageline.contract import Emit, Evaluation, Row, RowKey
from stageline.data.prepared import PreparedData
from stageline.data.shown import notable
from stageline.families.panorama_vlm.config.stages import STAGES
from stageline.families.panorama_vlm.data.sets import Batch, Questions, collate_questions, open_questions
from stageline.families.panorama_vlm.features import TowerPace, batch_features, batch_tokens
from stageline.families.panorama_vlm.metrics import SampleScorer, score
from stageline.families.panorama_vlm.model.assembly import PanoramaModel
from stageline.families.panorama_vlm.panels import panorama_pictures
from stageline.families.panorama_vlm.predictions import PREDICTIONS, Answers, predictions_text
from stageline.families.panorama_vlm.task import prompt_builder
from stageline.families.panorama_vlm.words import WORDS
from stageline.layers.memory import peak_memory_bytes

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig

Progress = Callable[[int, int, str], None]
PLAIN, SHUFFLED, ROLLED = "", "shuffled", "rolled"
"""Modes: the question about its own picture; about another row's; about its own, turned by a quarter."""
ROLL_PART = 4
"""A rolled panorama is turned by its width divided by this."""


def evaluate(
    config: PanoramaVlmConfig,
    model: nn.Module,
    data: PreparedData,
    finished: Mapping[RowKey, Row],
    emit: Emit,
    progress: Progress,
) -> Evaluation:
    """Answer every question of `config.evaluate.split` and score the answers.

    Metrics of the plain mode bear plain names, those of a control a suffix (`exact_match_rolled`).
    """
    assert isinstance(model, PanoramaModel)
    work = _Evaluator(config, model, data, finished, emit)
    total = len(work.numbers) * len(work.modes)
    for done, (mode, numbers) in enumerate(work.batches()):
        progress(min(total, done * config.evaluate.batch_size), total, f"answering {mode or 'questions'}")
        work.answer(mode, numbers)
    progress(total, total, "answered")
    return work.result()


class _Evaluator:
    """What one evaluation gathers."""

    def __init__(
        self,
        config: PanoramaVlmConfig,
        model: PanoramaModel,
        data: PreparedData,
        finished: Mapping[RowKey, Row],
        emit: Emit,
    ) -> None:
        self.config, self.model, self.emit = config, model.eval(), emit
        self.builder = prompt_builder(config, STAGES["finetune"], model)
        self.questions: Questions = open_questions(data, config.evaluation_split, self.builder)
        count = len(self.questions)
        if config.evaluate.max_samples is not None:
            count = min(count, config.evaluate.max_samples)
        self.numbers = range(count)
        panels = min(count, config.evaluate.num_panels)
        # Spread over the rows: neighbours ask about one picture.
        self.shown = {place * count // panels for place in range(panels)}
        self.modes = (PLAIN, *config.evaluate.controls)
        self.fields = [self.questions.rows.fields(number) for number in self.numbers]
        self.references = [list(fields["references"]) for fields in self.fields]
        self.scorer = SampleScorer(self.references, config.metrics.tokenize)
        self.rows: dict[RowKey, dict[str, Any]] = {key: dict(row) for key, row in finished.items()}
        self.finished = frozenset(finished)
        self.pace, self.seconds, self.num_answers, self.num_new_tokens = TowerPace(), 0.0, 0, 0

    def batches(self) -> list[tuple[str, list[int]]]:
        """(mode, numbers of rows) of every batch, in order."""
        size = self.config.evaluate.batch_size
        parts = [list(self.numbers[start : start + size]) for start in range(0, len(self.numbers), size)]
        return [(mode, part) for mode in self.modes for part in parts]

    def answer(self, mode: str, numbers: Sequence[int]) -> None:
        """Answer one batch and hand its rows over, unless all are there."""
        if all((str(self.fields[number]["id"]), mode) in self.finished for number in numbers):
            return
        began = time.monotonic()
        batch, fields = collate_questions(self.questions, numbers, self.builder.special.pad)
        batch = self._controlled(batch, mode, numbers).to(next(self.model.parameters()).device)
        ids = generate(self.config, self.model, batch, self.builder.special, self.pace)
        seconds = time.monotonic() - began
        self.seconds += seconds
        self.num_answers += len(numbers)
        assert batch.text is not None
        lengths = batch.text.attention_mask.sum(dim=1).tolist()
        for place, (number, row) in enumerate(zip(numbers, fields, strict=True)):
            if (str(row["id"]), mode) in self.finished:
                continue
            text, finish, new_tokens = self.builder.read_answer(ids[place].tolist())
            self.num_new_tokens += new_tokens
            found = self.scorer.score(number, text)
            made = {
                "id": str(row["id"]),
                **({"mode": mode} if mode else {}),
                "row": row["row"],
                "image": row["image"],
                "query": row["query"],
                "reference": self.references[number][0],
                "prediction": text,
                "finish": finish,
                "prompt_tokens": int(lengths[place]),
                "vision_tokens": self.builder.num_image_tokens,
                "new_tokens": new_tokens,
                "latency_ms": round(1000 * seconds / len(numbers), 3),
                "exact_match": found.exact_match,
                "rouge_l": found.rouge_l,
                "bleu_4": found.bleu_4,
                "cider": found.cider,
                "meteor_es": found.meteor_es,
                "content_f1": found.content_f1,
            }
            self.rows[made["id"], mode] = made
            is_shown = not mode and (number in self.shown or self.emit.in_full)
            self.emit(made, self._pictures(number) if is_shown else {})
        self.emit.end_batch()

    def _pictures(self, number: int) -> dict[str, Any]:
        picture = self.questions.pictures.pixels(self.questions.number(number))
        assert picture.pixels is not None
        return panorama_pictures(picture.pixels, self.config.image_processing.plan, number)

    def _notable_pictures(self) -> dict[str, Any]:
        """Those of the best, median and worst row by the main metric, where they are not shown yet."""
        metric = WORDS.main_metrics[0]
        values = {str(n): float(self.rows[str(self.fields[n]["id"]), PLAIN][metric]) for n in self.numbers}
        is_shown = bool(self.shown) and not self.emit.in_full
        names = notable(values, higher_is_better=metric in WORDS.higher_is_better) if is_shown else {}
        return {k: v for name in names if int(name) not in self.shown for k, v in self._pictures(int(name)).items()}

    def _controlled(self, batch: Batch, mode: str, numbers: Sequence[int]) -> Batch:
        """The batch with other rows' pictures, or with its pictures turned."""
        pictures = self.questions.pictures
        if mode == SHUFFLED:
            half = max(1, len(self.numbers) // 2)
            others = [self.questions.number((number + half) % len(self.numbers)) for number in numbers]
            return Batch([pictures.pixels(o) for o in others], torch.arange(len(others)), batch.text)
        if mode == ROLLED:
            turned = []
            for picture in batch.pictures:
                assert picture.pixels is not None
                columns = picture.pixels.shape[-1] // ROLL_PART
                seen = None if picture.seen is None else picture.seen.roll(columns, -1)
                turned.append(replace(picture, pixels=picture.pixels.roll(columns, -1), seen=seen))
            return Batch(turned, batch.rows, batch.text)
        return batch

    def result(self) -> Evaluation:
        """Metrics over all rows, the table of predictions, and how they were made."""
        metrics: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        samples: dict[str, int] = {}
        for mode in self.modes:
            suffix = f"_{mode}" if mode else ""
            rows = [self.rows[str(fields["id"]), mode] for fields in self.fields]
            answers = Answers([row["prediction"] for row in rows], self.references, [row["finish"] for row in rows])
            tokenize = self.config.metrics.tokenize
            found = score(answers.predictions, self.references, tokenize) if mode else answers.measure(tokenize)
            names = {name: f"{name}{suffix}" for name in found}
            metrics |= {names[name]: value for name, value in found.items()}
            reasons |= {names[name]: why for name, why in found.reasons.items()}
            samples |= dict.fromkeys([name for name in metrics if name not in samples], len(rows))
        return Evaluation(
            metrics=metrics,
            num_samples=samples,
            rows=(),
            panels=self._notable_pictures(),
            provenance=self._provenance(),
            reasons=reasons,
            files={PREDICTIONS: self._predictions().encode()},
            measured=self._measured(),
        )

    def _measured(self) -> dict[str, float]:
        """Speeds and memory while rows were answered; nothing where all were there already."""
        if not self.pace.views:
            return {}
        return {
            "tower_seconds_per_panorama": self.pace.seconds
            / self.pace.views
            * self.config.image_processing.plan.num_views,
            "tower_views_per_second": self.pace.views / self.pace.seconds,
            "samples_per_second": self.num_answers / self.seconds,
            "new_tokens_per_second": self.num_new_tokens / self.seconds,
            "peak_memory_bytes": peak_memory_bytes(next(self.model.parameters()).device),
        }

    def _provenance(self) -> dict[str, Any]:
        config, facts = self.config, self.questions.rows.facts
        plan = config.image_processing.plan
        return {
            "split": config.evaluation_split,
            "weights": config.evaluate.weights,
            "plan": plan.describe(),
            "plan_id": plan.plan_id,
            "views": plan.num_views,
            "stitching": config.image_processing.stitching_mode,
            "image_tokens": self.builder.num_image_tokens,
            "resampler": config.model.resampler_type,
            "rows": facts["rows_read"],
            "scored": len(self.numbers),
            "quarantined": facts["quarantined"],
            "limited": len(self.numbers) < len(self.questions),
            "profile_tiny": config.model.is_tiny,
            "max_new_tokens": config.generation.max_new_tokens,
            "tokenize": config.metrics.tokenize,
        }

    def _predictions(self) -> str:
        """The text of `predictions.csv`: every row of the CSV files, those that were set aside too."""
        rows = [self.rows[str(fields["id"]), PLAIN] for fields in self.fields]
        aside = [(row.row, row.file) for row in self.questions.rows.set_aside]
        return predictions_text(rows, self.references, aside)


@torch.no_grad()
def generate(
    config: PanoramaVlmConfig, model: PanoramaModel, batch: Batch, special: Any, pace: TowerPace | None = None
) -> Tensor:
    """New ids (B, N) of greedy answers, stop and padding included.

    special: ids of the tokenizer.  pace: measures the tower.
    """
    assert batch.text is not None
    assert model.language is not None
    features = batch_features(config, model, batch.pictures, pace=pace)
    tokens = batch_tokens(model, batch.pictures, features)[batch.rows]
    found: Tensor = model.language.generate(  # type: ignore[operator]
        inputs_embeds=model.inputs(tokens, batch.text, special.image),
        attention_mask=batch.text.attention_mask,
        max_new_tokens=config.generation.max_new_tokens,
        do_sample=False,
        eos_token_id=list(special.stops),
        pad_token_id=special.pad,
    )
    return found
