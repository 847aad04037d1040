"""Pictures in, probability and mask out: what `stageline predict` does for film_flow.

Pictures are read, brought to [-1, 1] and conditioned exactly as in preparing data, and predicted through the one
sampling path, one by one, at any size. Noise is a function of the seed and the decoded pixels: a picture that is
renamed, or stored otherwise without loss, is predicted alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stageline.contract import PredictedFile
from stageline.data.arrays import ArrayInput
from stageline.data.pictures import (
    SUFFIXES,
    PictureFile,
    Pixels,
    as_pixels,
    conversions,
    list_pictures,
    pixel_hash,
    read_file,
    read_picture,
)
from stageline.errors import ConfigError, DataError, Faults
from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.conditions.features import FeatureSource
from stageline.families.film_flow.conditions.feedback import feedback_condition, open_feedback
from stageline.families.film_flow.config import FilmFlowConfig, check_evaluation
from stageline.families.film_flow.data.pictures import encoder_picture, find_levels, normalise
from stageline.families.film_flow.data.preparation import is_per_crop, open_features
from stageline.families.film_flow.data.prompts import find_prompt
from stageline.families.film_flow.data.windows import Window
from stageline.families.film_flow.measures.panels import maps_of
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.families.film_flow.sampling import (
    Probability,
    WindowCondition,
    evaluation_sampling,
    predict_probability,
    switch_off,
)

Progress = Callable[[int, int, str], None]
Source = Path | ArrayInput


def predict(
    config: FilmFlowConfig, model: nn.Module, inputs: Sequence[str | Path | ArrayInput], progress: Progress
) -> Iterator[dict[str, Any]]:
    """Pictures `probability` and `mask` (and `spread`, `junctions`) of every picture, (H, W) uint8.

    inputs: picture files, folders for every picture in them, and pictures that lie in no file.
    probability: 0..255 is [0, 1].  mask: 0 and 255.  spread: standard deviation over the ensemble, 255 is 0.5.
    Yields one mapping per picture: its path, the pictures, prompt, share of foreground, network evaluations, and what
    was converted, if anything.
    Raises DataError that lists every picture that cannot be read, before any is predicted.
    """
    assert isinstance(model, FilmFlowModel)
    check_evaluation(config, model.plan.stages)
    sources = picture_sources(inputs)
    _check_pictures(sources, config.model.image_channels, config.data.max_pixels)
    work = _Predictor(config, model.eval())
    for done, (source, name) in enumerate(zip(sources, _names(sources), strict=True)):
        progress(done, len(sources), f"predicting {source.name}")
        file, channels = _read(source, config.data.max_pixels), config.model.image_channels
        pixels, converted = as_pixels(file, channels), conversions(file, channels)
        found = work.run(pixels, _stem(source))
        yield {
            "image": source.name if isinstance(source, ArrayInput) else str(source),
            **{kind: PredictedFile(f"{name}-{kind}.png", level) for kind, level in work.maps(found).items()},
            "prompt": work.prompt,
            "size": list(pixels.shape[:2]),
            "foreground_fraction": float((found.mean > config.evaluate.threshold).float().mean()),
            "nfe": work.nfe,
            **({"converted": converted} if converted else {}),
        }
    progress(len(sources), len(sources), "predicted")


class _Predictor:
    """Everything that is the same for all pictures."""

    def __init__(self, config: FilmFlowConfig, model: FilmFlowModel) -> None:
        self.config, self.model = config, model
        self.sampling = evaluation_sampling(config)
        self.features: FeatureSource | None = open_features(config) if model.plan.stages else None
        self.feedback = open_feedback(config)
        self.prompt = self._prompt()
        self.nfe = 0
        if config.evaluate.film_mode == "shuffle":
            raise ConfigError(
                "evaluate.film_mode 'shuffle' needs other cases to take conditions from",
                remedy="use it with `stageline evaluate`; here say on or off",
            )

    def _prompt(self) -> str:
        config = self.config
        prompt = config.evaluate.prompt or find_prompt(config, "")
        if not prompt and self.model.plan.stages and "text" in config.model.cond_source:
            raise ConfigError(
                f"the model is conditioned by {config.model.cond_source!r} and there is no prompt",
                remedy="say evaluate.prompt='dark branches' (or what the model was trained with)",
            )
        return prompt

    def run(self, pixels: Pixels, name: str) -> Probability:
        """The probability of one picture (H, W, C). name: by which precomputed features are found."""
        device, noise = next(self.model.parameters()).device, [pixel_hash(pixels)]
        levels = find_levels(pixels, self.config.data.image_norm)
        image = torch.from_numpy(normalise(pixels, *levels))[None].to(device)
        seen = encoder_picture(pixels, *levels)
        found = predict_probability(self.model, image, self._condition(seen, name), noise, self.sampling)
        self.nfe = found.nfe
        if self.feedback is not None and self.config.evaluate.film_mode == "on":
            threshold = self.config.evaluate.threshold
            again = feedback_condition(self.feedback, [seen], [self.prompt], [name], found.mean, threshold)
            found = predict_probability(self.model, image, again, noise, self.sampling)
            self.nfe += found.nfe
        return found

    def maps(self, found: Probability) -> dict[str, NDArray[np.uint8]]:
        """Kind -> picture of it, (H, W)."""
        return maps_of(found.mean, self.config.evaluate.threshold, found.std, found.junction)

    def _condition(self, seen: NDArray[np.uint8], name: str) -> ConditionBundle | WindowCondition | None:
        features = self.features
        if features is None:
            return None

        def of_window(window: Window) -> ConditionBundle:
            part = np.ascontiguousarray(window.cut(torch.from_numpy(seen).permute(2, 0, 1)).permute(1, 2, 0).numpy())
            box = (window.top, window.left, *part.shape[:2])
            vectors, present = features.features([part], [self.prompt], [name], [box])
            own = ConditionBundle(torch.from_numpy(vectors), torch.from_numpy(present), source=features.settings.source)
            return switch_off(own) if self.config.evaluate.film_mode == "off" else own

        return of_window if is_per_crop(features.settings) else of_window(Window(0, 0, *seen.shape[:2]))


def picture_sources(inputs: Sequence[str | Path | ArrayInput]) -> list[Source]:
    """The pictures that are named, folders replaced by those in them. DataError lists what is not there."""
    faults = Faults(DataError, "pictures to predict", "name pictures or folders of them")
    sources: list[Source] = []
    for given in inputs:
        if isinstance(given, ArrayInput):
            sources.append(given)
            continue
        path = Path(given)
        inside = list_pictures(path) if path.is_dir() else [path]
        if not inside:
            faults.add(f"{str(path)!r}: no pictures in it ({', '.join(SUFFIXES)})")
        elif not inside[0].is_file():
            faults.add(f"{str(path)!r}: there is no such file")
        sources += inside
    if not inputs:
        faults.add("none were named")
    faults.raise_if_any()
    return sources


def _read(source: Source, max_pixels: int) -> PictureFile:
    return source.file if isinstance(source, ArrayInput) else read_file(source, max_pixels)


def _stem(source: Source) -> str:
    return source.name if isinstance(source, ArrayInput) else source.stem


def _check_pictures(sources: Sequence[Source], channels: int, max_pixels: int) -> None:
    faults = Faults(DataError, "pictures to predict", "mend or leave out these files")
    for source in sources:
        if isinstance(source, ArrayInput):
            continue
        try:
            read_picture(source, channels, max_pixels)
        except DataError as error:
            faults.add(error.message)
    faults.raise_if_any()


def _names(sources: Sequence[Source]) -> list[str]:
    """A file name per picture; pictures of one stem get -2, -3 in their order."""
    seen: dict[str, int] = {}
    names = []
    for stem in map(_stem, sources):
        seen[stem] = seen.get(stem, 0) + 1
        names.append(stem if seen[stem] == 1 else f"{stem}-{seen[stem]}")
    return names
