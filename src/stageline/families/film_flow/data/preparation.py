"""Preparing data: sources -> checked, normalised, annotated splits on disk, with condition features computed once.

Afterwards training needs neither the source files nor the encoder (under `vlm_scope: image`). What is written depends
on the config and the source files alone, not on what a feature cache happened to hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stageline.errors import DataError
from stageline.families.film_flow.conditions.cache import FeatureCache
from stageline.families.film_flow.conditions.encoder import EncoderSettings, encoder_settings
from stageline.families.film_flow.conditions.features import FeatureSource
from stageline.families.film_flow.data.pictures import encoder_picture
from stageline.families.film_flow.data.prepared import Case, PreparedImage, SplitWriter
from stageline.families.film_flow.data.sources import Source, open_sources

if TYPE_CHECKING:
    from stageline.families.film_flow.config import FilmFlowConfig

Progress = Callable[[int, int, str], None]
RECORD = "prepared.json"
CHUNK_IMAGES = 64
"""Pictures held in memory between two calls of the encoder."""


def cache_folder(config: FilmFlowConfig) -> Path | None:
    """Where features are cached: the config's folder, else under a local root; None under a root elsewhere."""
    given = config.model.vlm_film_config.cache_dir
    if given:
        return Path(given)
    root = config.root.removeprefix("file://")
    return None if "://" in root else Path(root) / "cache" / "features"


def open_features(config: FilmFlowConfig) -> FeatureSource:
    """The features of a config's encoder, cached where there is a place for it. Loads nothing yet."""
    settings = encoder_settings(config)
    folder = cache_folder(config)
    cache = FeatureCache(folder, settings.embedding_dtype) if folder is not None and has_cache(settings) else None
    return FeatureSource(settings, cache)


def has_cache(settings: EncoderSettings) -> bool:
    """Whether features of this encoder are worth keeping: those without work of their own are not."""
    return settings.encoder not in ("none", "precomputed")


def is_per_crop(settings: EncoderSettings) -> bool:
    """Whether training asks the encoder anew for every crop."""
    return settings.scope == "crop" and settings.source != "text" and settings.encoder != "none"


def prepare(config: FilmFlowConfig, target: Path, progress: Progress) -> dict[str, Any]:
    """Write all splits of a config into the empty local folder `target`; returns facts for the manifest.

    Raises DataError with every fault of every source file before the first byte is written.
    """
    if target.is_dir() and any(target.iterdir()):
        raise DataError(f"{str(target)!r} is not empty", remedy="prepare into an empty folder")
    features = open_features(config)
    sources = open_sources(config, progress)
    target.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {
        "data": config.data.name,
        "labels": sources.label_origin,
        "junctions": sources.junction_origin,
        "image_norm": config.data.image_norm,
        "image_channels": config.model.image_channels,
        "target_kind": config.model.target_kind,
        "condition": features.settings.identity() if features.settings.encoder != "none" else None,
        "feature_dim": features.settings.width,
        "splits": {},
    }
    for source in sources.splits:
        facts["splits"][source.split] = _write_split(config, source, target, features, progress)
    (target / RECORD).write_text(json.dumps(facts, sort_keys=True, indent=1) + "\n", encoding="utf-8")
    return facts


def _write_split(
    config: FilmFlowConfig, source: Source, target: Path, features: FeatureSource, progress: Progress
) -> dict[str, Any]:
    """Write one split; returns its numbers."""
    writer = SplitWriter(target, source.split)
    # Random crops of training have features of their own, made when they are drawn.
    wanted = features.settings.encoder != "none" and not (is_per_crop(features.settings) and source.split == "train")
    vectors: list[NDArray[np.float32]] = []
    present: list[NDArray[np.bool_]] = []
    chunk: list[tuple[PreparedImage, list[Case]]] = []
    pixels, vessel, sizes, num_nodes = 0, 0, set(), 0
    for number in range(source.num_images):
        progress(number, source.num_images, f"preparing {source.split}")
        image = source.make(number)
        chunk.append((image, writer.add(image)))
        sizes.add(image.pixels.shape[:2])
        pixels += sum(mask.size for mask in image.masks)
        vessel += sum(int(mask.sum()) for mask in image.masks)
        num_nodes += len(image.nodes)
        if wanted and (len(chunk) == CHUNK_IMAGES or number == source.num_images - 1):
            part_vectors, part_present = _features_of(chunk, features)
            vectors.append(part_vectors)
            present.append(part_present)
            chunk = []
        elif not wanted:
            chunk = []
    progress(source.num_images, source.num_images, f"prepared {source.split}")
    made = (np.concatenate(vectors), np.concatenate(present)) if wanted else None
    writer.finish(made, config.model.vlm_film_config.embedding_dtype)
    return {
        "images": source.num_images,
        "cases": len(writer.cases),
        "sizes": sorted(f"{height}x{width}" for height, width in sizes),
        "foreground_fraction": round(vessel / pixels, 6) if pixels else 0.0,
        "junctions": num_nodes,
        "conditions_present": int(made[1].sum()) if made else 0,
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


def read_record(folder: Path) -> dict[str, Any]:
    """The facts written beside the splits."""
    path = folder / RECORD
    if not path.is_file():
        raise DataError(
            f"{str(folder)!r} holds no prepared data ({RECORD} is missing)", remedy="run `stageline prepare`"
        )
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def check_record(record: dict[str, Any], config: FilmFlowConfig, folder: Path) -> None:
    """Refuse prepared data that were made for another config; a stage without FiLM reads data with features too."""
    settings = encoder_settings(config)
    expected = {
        "data": config.data.name,
        "image_norm": config.data.image_norm,
        "image_channels": config.model.image_channels,
        "target_kind": config.model.target_kind,
    }
    if settings.encoder != "none":
        expected |= {f"condition.{key}": value for key, value in settings.identity().items()}
    condition = record.get("condition") or {}
    found = {**record, **{f"condition.{key}": value for key, value in condition.items()}}
    wrong = [
        f"{key}: {found.get(key, 'absent')!r} -> {value!r}"
        for key, value in expected.items()
        if found.get(key) != value
    ]
    if wrong:
        lines = "\n".join(f"  - {line}" for line in wrong)
        raise DataError(
            f"the prepared data at {str(folder)!r} were made for another config (prepared -> config):\n{lines}",
            remedy="prepare the data again with this config",
        )
