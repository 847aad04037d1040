"""The toy family's evaluation and prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from stageline.contract import Baselines, BaselineScores, Emit, Evaluation, PredictedFile, Progress, Row, RowKey
from stageline.data.arrays import ArrayInput
from stageline.data.pictures import as_pixels, read_file
from stageline.data.prepared import PreparedData
from stageline.errors import DataError, Faults

from .data import ToySet

if TYPE_CHECKING:
    from .config import ToyConfig

CLIP = b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\x08moov\0\0\0\x0cmdattick"
"""The boxes of an MP4 file: type, an empty table of tracks, media."""


def evaluate(
    config: ToyConfig,
    model: nn.Module,
    data: PreparedData,
    finished: Mapping[RowKey, Row],
    emit: Emit,
    progress: Progress,
) -> Evaluation:
    """The squared error of every test sample."""
    samples = ToySet(config.data.num_test, False, rows=data.split("test"))
    errors = []
    for index in range(len(samples)):
        known = finished.get((str(index), ""))
        if known is None:
            sample = samples[index]
            with torch.no_grad():
                error = float((model(sample["x"][None]) - sample["target"]).square())
            emit({"id": str(index), "error": error}, files={f"clip-{index:02}.mp4": CLIP} if index < 2 else None)
        errors.append(error if known is None else float(known["error"]))
        progress(index + 1, len(samples), "evaluating")
    mean = sum(errors) / len(errors)
    return Evaluation(
        {"error": mean}, {"error": len(errors)}, (), {}, {"weights": "ema", "split": "test"}, measured={"speed": 8.0}
    )


def score(config: ToyConfig, data: PreparedData) -> dict[str, BaselineScores]:
    """The mean target of the training rows, whatever the sample."""
    sets = {name: ToySet(len(data.split(name)), False, rows=data.split(name)) for name in ("train", "test")}
    targets = {name: [float(samples[n]["target"]) for n in range(len(samples))] for name, samples in sets.items()}
    mean = sum(targets["train"]) / len(targets["train"])
    errors = [(target - mean) ** 2 for target in targets["test"][: config.data.num_test]]
    rows = {str(number): {"error": error} for number, error in enumerate(errors)}
    return {"mean": BaselineScores({"error": sum(errors) / len(errors)}, rows, {"mean": mean})}


BASELINES = Baselines(
    version=1,
    splits=lambda _config: ("train", "test"),
    settings=lambda config: {"num_test": config.data.num_test},
    score=score,
)


def read_numbers(given: str | Path | ArrayInput) -> list[float]:
    """The numbers of an input: in a text `1,2,3,4`, or the corners of a picture, whole levels as they are."""
    if isinstance(given, ArrayInput) or str(given).endswith(".png"):
        pixels = as_pixels(given.file if isinstance(given, ArrayInput) else read_file(Path(given)), 1)
        return [float(level) / np.iinfo(pixels.dtype).max for level in pixels[[0, 0, -1, -1], [0, -1, 0, -1], 0]]
    try:
        return [float(part) for part in str(given).split(",")]
    except ValueError:
        return []


def predict(
    config: ToyConfig, model: nn.Module, inputs: Sequence[str | Path | ArrayInput], progress: Progress
) -> Iterator[dict[str, Any]]:
    """Four numbers to the answer: a text, an array, bytes of a kind that the core does not know."""
    faults = Faults(DataError, "inputs", "give four numbers, separated by commas, or a picture")
    rows = [read_numbers(given) for given in inputs]
    for given, row in zip(inputs, rows, strict=True):
        if len(row) != 4:
            faults.add(f"{given!r} is no list of four numbers")
    faults.raise_if_any()
    for number, row in enumerate(rows):
        x = torch.tensor([row])
        with torch.no_grad():
            answer = model(x)[0].numpy()
        yield {
            "input": given.name if isinstance(given := inputs[number], ArrayInput) else str(given),
            "answer": PredictedFile(f"answer-{number}.txt", f"{answer.item()!r}\n"),
            "array": PredictedFile(f"answer-{number}.npy", answer),
            "clip": PredictedFile(f"answer-{number}.clip", answer.tobytes()),
        }
