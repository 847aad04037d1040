"""Preparing data: sources -> checked, normalised, annotated splits on disk, with condition features computed once.

Afterwards training needs neither the source files nor the encoder (under `vlm_scope: image`). What is written depends
on the config and the source files alone, not on what a feature cache happened to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stageline.config import flatten
from stageline.data.features import FEATURES as FEATURES_FOLDER
from stageline.data.prepared import PreparedData
from stageline.data.reading import SplitReader
from stageline.data.shards import SplitWriter
from stageline.data.splits import Split
from stageline.errors import DataError
from stageline.families.film_flow.conditions.encoder import EncoderSettings, encoder_settings
from stageline.families.film_flow.conditions.features import FeatureSource
from stageline.families.film_flow.data import sources
from stageline.families.film_flow.data.origin import FEATURES, has_features
from stageline.families.film_flow.data.pictures import encoder_picture
from stageline.families.film_flow.data.prepared import (
    Case,
    PreparedImage,
    PreparedSplit,
    cases_of,
    write_feature,
    write_picture,
)
from stageline.families.film_flow.data.sources import Source
from stageline.store import open_store

if TYPE_CHECKING:
    from stageline.families.film_flow.config import FilmFlowConfig

Progress = Callable[[int, int, str], None]
CHUNK_IMAGES = 64
"""Pictures held in memory between two calls of the encoder."""


def open_features(config: FilmFlowConfig) -> FeatureSource:
    """The features of a config's encoder, cached in the config's folder, else below the root. Loads nothing yet."""
    given = config.model.vlm_film_config.cache_dir
    place = open_store(given) if given else open_store(config.root).child(FEATURES_FOLDER)
    return FeatureSource(encoder_settings(config), place, cache_bytes=config.data.cache_bytes)


def is_per_crop(settings: EncoderSettings) -> bool:
    """Whether training asks the encoder anew for every crop."""
    return settings.scope == "crop" and settings.source != "text" and settings.encoder != "none"


def check_sources(config: FilmFlowConfig, splits: Sequence[Split], progress: Progress) -> None:
    """Every fault of every source file of these splits, at once."""
    sources.check_sources(config, {split.name.removesuffix(FEATURES) for split in splits}, progress)


def prepare(config: FilmFlowConfig, split: Split, writer: SplitWriter, progress: Progress) -> dict[str, Any]:
    """Write the rows of a split, pictures or features; returns facts for its manifest."""
    if split.name.endswith(FEATURES):
        source = sources.open_source(config, split.name.removesuffix(FEATURES))
        return _write_features(config, source, writer, progress)
    return _write_pictures(config, sources.open_source(config, split.name), writer, progress)


def _write_pictures(config: FilmFlowConfig, source: Source, writer: SplitWriter, progress: Progress) -> dict[str, Any]:
    num_cases, pixels, vessel, sizes, num_nodes = 0, 0, 0, set(), 0
    for number in range(source.num_images):
        progress(number, source.num_images, f"preparing {source.split}")
        image = source.make(number, True)
        num_cases += len(write_picture(writer, image))
        sizes.add(image.pixels.shape[:2])
        pixels += sum(mask.size for mask in image.masks)
        vessel += sum(int(mask.sum()) for mask in image.masks)
        num_nodes += len(image.nodes)
    progress(source.num_images, source.num_images, f"prepared {source.split}")
    return {
        "data": config.data.name,
        "labels": source.label_origin,
        "junctions": source.junction_origin,
        "image_norm": config.data.image_norm,
        "image_channels": config.model.image_channels,
        "target_kind": config.model.target_kind,
        "images": source.num_images,
        "cases": num_cases,
        "sizes": sorted(f"{height}x{width}" for height, width in sizes),
        "foreground_fraction": round(vessel / pixels, 6) if pixels else 0.0,
        "num_junctions": num_nodes,
        **({} if source.read is None else source.read.facts()),
    }


def _write_features(config: FilmFlowConfig, source: Source, writer: SplitWriter, progress: Progress) -> dict[str, Any]:
    features = open_features(config)
    chunk: list[tuple[PreparedImage, list[Case]]] = []
    num_present = 0
    for number in range(source.num_images):
        progress(number, source.num_images, f"encoding {source.split}")
        image = source.make(number, False)
        chunk.append((image, cases_of(image, number)))
        if len(chunk) < CHUNK_IMAGES and number < source.num_images - 1:
            continue
        vectors, present = _features_of(chunk, features)
        cases = [case for _, members in chunk for case in members]
        for case, vector, there in zip(cases, vectors, present, strict=True):
            dtype = config.model.vlm_film_config.embedding_dtype
            write_feature(writer, case, vector, present=bool(there), dtype=dtype)
        num_present += int(present.sum())
        chunk = []
    progress(source.num_images, source.num_images, f"encoded {source.split}")
    return {
        "condition": features.settings.identity(),
        "feature_dim": features.settings.width,
        "cases": writer.num_rows,
        "conditions_present": num_present,
    }


def _features_of(
    chunk: list[tuple[PreparedImage, list[Case]]], features: FeatureSource
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Features of the cases of some pictures: of the whole picture, or of a case's box under scope `crop`."""
    per_crop = is_per_crop(features.settings)
    pictures, prompts, ids, boxes = [], [], [], []
    for image, cases in chunk:
        whole = encoder_picture(image.pixels, image.low, image.high)
        height, width = whole.shape[:2]
        for case in cases:
            box = case.box if case.box is not None and per_crop else (0, 0, height, width)
            top, left, rows, columns = box
            pictures.append(whole[top : top + rows, left : left + columns] if per_crop else whole)
            prompts.append(case.prompt)
            ids.append(case.id)
            boxes.append(box)
    return features.features(pictures, prompts, ids, boxes)


def check_facts(split: SplitReader, expected: Mapping[str, Any], where: str) -> None:
    """Refuse a split that was made for another config. expected: dotted fact -> value."""
    found = flatten(split.facts)
    wrong = [
        f"{key}: {found.get(key, 'absent')!r} -> {value!r}"
        for key, value in expected.items()
        if found.get(key) != value
    ]
    if wrong:
        lines = "\n".join(f"  - {line}" for line in wrong)
        raise DataError(
            f"the split {split.name!r} of the prepared data at {where!r} was made for another config "
            f"(prepared -> config):\n{lines}",
            remedy="prepare the data again with this config",
        )


def open_split(config: FilmFlowConfig, data: PreparedData, name: str) -> PreparedSplit:
    """A split with the features that the config asks for. DataError where it is absent or of another config."""
    pictures = data.split(name)
    expected = {
        "data": config.data.name,
        "image_norm": config.data.image_norm,
        "image_channels": config.model.image_channels,
        "target_kind": config.model.target_kind,
    }
    check_facts(pictures, expected, data.uri)
    if not has_features(config, name):
        return PreparedSplit(pictures)
    features = data.split(f"{name}{FEATURES}")
    identity = encoder_settings(config).identity()
    check_facts(features, {f"condition.{key}": value for key, value in identity.items()}, data.uri)
    return PreparedSplit(pictures, features)
