"""Questions about panoramas in, answers out: what `stageline predict` does for panorama_vlm.

An input is a picture and a question, `picture.jpg?What is on the left?`, a CSV file of rows as in training, or an array
with a question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stageline.contract import PredictedFile
from stageline.data.arrays import ArrayInput
from stageline.errors import DataError, Faults
from stageline.families.panorama_vlm.config.stages import STAGES
from stageline.families.panorama_vlm.data.panorama import check_panorama, read_reduced
from stageline.families.panorama_vlm.data.rows import read_rows
from stageline.families.panorama_vlm.data.sets import Batch, picture_of
from stageline.families.panorama_vlm.data.text import collate_prompts
from stageline.families.panorama_vlm.evaluate import generate
from stageline.families.panorama_vlm.model.assembly import PanoramaModel
from stageline.families.panorama_vlm.task import prompt_builder

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Question:
    """picture: its file, or its pixels.  query: the whole sentence.  hfov, vfov: degrees that a part of one shows."""

    picture: Path | ArrayInput
    query: str
    hfov: float | None = None
    vfov: float | None = None


def predict(
    config: PanoramaVlmConfig, model: nn.Module, inputs: Sequence[str | Path | ArrayInput], progress: Progress
) -> Iterator[dict[str, Any]]:
    """The answer to each question, also as a text file.

    inputs: `<picture>?<question>`, CSV files, or arrays with a question.
    Yields one mapping per question: picture, query, answer, finish, and the file of the answer.
    Raises DataError that lists every input that can't be read, before any is answered.
    """
    assert isinstance(model, PanoramaModel)
    questions = read_questions(config, inputs)
    builder = prompt_builder(config, STAGES["finetune"], model.eval())
    device = next(model.parameters()).device
    for number, question in enumerate(questions):
        progress(number, len(questions), f"answering about {question.picture.name}")
        found = read_reduced(
            question.picture,
            plan=config.image_processing.plan,
            size=config.tile_size,
            antialias=config.image_processing.antialias,
            erp_hfov_deg=question.hfov,
            erp_vfov_deg=question.vfov,
            max_pixels=config.data.max_pixels,
        )
        picture = picture_of(found.pixels, found.seen)
        text = collate_prompts([builder.prompt(question.query)], builder.special.pad)
        batch = Batch([picture], torch.zeros(1, dtype=torch.int64), text).to(device)
        ids = generate(config, model, batch, builder.special)
        answer, finish, _ = builder.read_answer(ids[0].tolist())
        yield {
            "image": _named(question.picture),
            "query": question.query,
            "answer": answer,
            "finish": finish,
            "file": PredictedFile(f"answer-{number}.txt", answer + "\n"),
        }
    progress(len(questions), len(questions), "answered")


def _named(picture: Path | ArrayInput) -> str:
    return picture.name if isinstance(picture, ArrayInput) else str(picture)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith("?") else f"{text}?"


def read_questions(config: PanoramaVlmConfig, inputs: Sequence[str | Path | ArrayInput]) -> list[Question]:
    """The questions of all inputs. DataError with every input that is none, and every picture that can't be read."""
    faults = Faults(
        DataError, "questions", "give `picture.jpg?question`, or a CSV file with a picture and a query per row"
    )
    found: list[Question] = []
    for source in inputs:
        if isinstance(source, ArrayInput):
            found.append(Question(source, _sentence(source.text)))
            continue
        given = str(source)
        if given.lower().endswith(".csv"):
            found += _of_csv(config, Path(given), faults)
            continue
        name, mark, query = given.partition("?")
        if not mark or not query.strip():
            faults.add(f"{given!r}: no question behind a `?`")
        else:
            found.append(Question(Path(name), _sentence(query)))
    if not inputs:
        faults.add("none were given")
    for question in found:
        fault = check_panorama(
            question.picture,
            erp_hfov_deg=question.hfov,
            erp_vfov_deg=question.vfov,
            max_pixels=config.data.max_pixels,
        )
        if fault is not None:
            faults.add(f"{_named(question.picture)!r}: {fault.kind}: {fault.message}")
    faults.raise_if_any()
    return found


def _of_csv(config: PanoramaVlmConfig, path: Path, faults: Faults) -> list[Question]:
    try:
        table = read_rows(
            [path],
            lambda *_: None,
            image_root=Path(config.data.image_root) if config.data.image_root else None,
            url_cache=Path(config.data.url_cache) if config.data.url_cache else None,
            query_template=config.data.query_template,
        )
    except DataError as error:
        faults.add(error.message)
        return []
    for aside in table.set_aside:
        faults.add(f"{path.name} row {aside.row.number}: {aside.kind}: {aside.message}")
    return [Question(row.path, row.query, row.erp_hfov_deg, row.erp_vfov_deg) for row in table.rows]
