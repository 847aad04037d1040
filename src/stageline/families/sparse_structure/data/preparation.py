"""Preparing scenes: made-up rooms, own meshes or latents -> one row a scene (`origin` says what is in it).

What is written depends on the source and its files alone. Every fault of every scene is told at once, before a row is
written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stageline.data.shards import SplitWriter
from stageline.errors import DataError, Faults
from stageline.families.sparse_structure.data.latent_rules import condition_faults
from stageline.families.sparse_structure.data.made import make_scene
from stageline.families.sparse_structure.data.meshes import VoxelScene, read_voxels
from stageline.families.sparse_structure.data.origin import CONDITIONALS, SceneSource
from stageline.families.sparse_structure.data.poses import PoseStatistics, encode_poses
from stageline.families.sparse_structure.data.scene_dataset import Scene, SceneDataset
from stageline.families.sparse_structure.data.scene_files import SCENE_FILE, list_scenes, read_scene

Progress = Callable[[int, int, str], None]

REMEDY = "mend these files; docs/sparse_structure.md describes own scenes"
POSE_PARTS = {
    "6drotation_normalized": "rotation",
    "translation": "translation",
    "scale": "scale",
    "translation_scale": "translation_scale",
}
"""Modality -> the array of a row that holds it."""
LATENT, CONDITION = "latent", "condition"
"""Arrays `latent-<place>` and `condition-<place>`, in the order of the fields `modalities` and `conditions`."""
BFLOAT16 = "bfloat16"


def check_sources(source: SceneSource, names: Sequence[str], progress: Progress) -> None:
    """DataError with every fault of the scenes of these splits. names: of the splits."""
    if source.kind == "made":
        return
    faults = Faults(DataError, f"scenes in {str(source.folder)!r}", REMEDY)
    for number, name in enumerate(names):
        progress(number, len(names), f"checking {name}")
        try:
            for scene in _scene_ids(source, name):
                try:
                    _read_scene(source, name, scene)
                except (DataError, FileNotFoundError) as error:
                    faults.add(error.message if isinstance(error, DataError) else str(error))
        except DataError as error:
            faults.add(error.message)
    faults.raise_if_any()


def _scene_ids(source: SceneSource, name: str) -> list[str]:
    try:
        scenes = list_scenes(source.split_folder(name), source.scene_file)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(str(error), remedy=REMEDY) from error
    if not scenes:
        raise DataError(f"there is no scene with a {source.scene_file} in {str(source.split_folder(name))!r}")
    return scenes


def _dataset(source: SceneSource, name: str) -> SceneDataset:
    folder = source.split_folder(name)
    return SceneDataset(
        folder.parent,
        name,
        max_objects_per_scene=1 << 30,
        modalities=source.modalities or None,
        latent_spec=source.modalities or None,
        allow_extra=source.allow_extra,
        zero_filled=source.zero_filled,
    )


def _read_scene(source: SceneSource, name: str, scene: str) -> Any:
    """A scene of the user's own: a `VoxelScene`, or a `Scene` of latents and the conditions with a row per object."""
    if source.kind == "meshes":
        folder = source.split_folder(name)
        path = folder / scene / SCENE_FILE
        if not path.is_file():
            raise DataError(f"scene {scene!r}: there is no file {str(path)!r}", remedy=REMEDY)
        objects = read_scene(path, folder.parent)
        return read_voxels(objects, resolution=source.resolution, fill=source.fill)
    try:
        found, per_object = _dataset(source, name).whole_scene(scene)
    except (KeyError, ValueError, FileNotFoundError) as error:
        raise DataError(str(error.args[0]), remedy=REMEDY) from error
    strange = [
        key for key, value in found["conditionals"].items() if not isinstance(value, Tensor) and not _plain(value)
    ]
    if strange:
        told = (
            f"scene {scene!r}: conditions {', '.join(strange)} are neither tensors nor plain values, as rows hold them"
        )
        raise DataError(told, remedy=REMEDY)
    if source.cond_channels is not None:
        wrong = condition_faults(found["conditionals"], found["num_objects"], source.cond_channels)
        if wrong:
            raise DataError(f"scene {scene!r}: {CONDITIONALS}: {'; '.join(wrong)}", remedy=REMEDY)
    return found, per_object


def _plain(value: Any) -> bool:
    """Whether a condition beside the tensors can stand in a row's fields."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def write_split(source: SceneSource, name: str, writer: SplitWriter, progress: Progress) -> dict[str, Any]:
    """Write the scenes of a split; returns facts for its manifest.

    source: where they come from.  name: `train`, `val` or `test`.
    """
    rows = _made_rows(source, name) if source.kind == "made" else _own_rows(source, name)
    total = source.counts[name] if source.kind == "made" else len(_scene_ids(source, name))
    counts: list[int] = []
    kinds: Counter[str] = Counter()
    styles: Counter[str] = Counter()
    poses: list[dict[str, Any]] = []
    for number, (arrays, fields) in enumerate(rows):
        progress(number, total, f"preparing {name}")
        count = fields.pop("num_objects")
        writer.add(arrays, fields, {"num_objects": count})
        counts.append(count)
        kinds.update(fields.get("classes", ()))
        styles.update([fields["style"]] if "style" in fields else [])
        if source.has_voxels:
            poses.append({modality: arrays[part] for modality, part in POSE_PARTS.items()})
    progress(total, total, f"prepared {name}")
    facts: dict[str, Any] = {
        "rows": len(counts),
        "objects": sum(counts),
        "avg_objects_per_scene": sum(counts) / max(len(counts), 1),
        "classes": dict(sorted(kinds.items())),
        **({"styles": dict(sorted(styles.items()))} if styles else {}),
    }
    if poses and name == "train":
        facts["pose_statistics"] = PoseStatistics.of(poses).to_json()
    return facts | {"told": _told(facts, counts), "warnings": []}


def _told(facts: Mapping[str, Any], counts: Sequence[int]) -> list[list[str]]:
    told = [
        ["scenes", str(facts["rows"])],
        ["objects", f"{facts['objects']} ({min(counts, default=0)} to {max(counts, default=0)} in a scene)"],
    ]
    for words in ("classes", "styles"):
        if facts.get(words):
            told.append([words, ", ".join(f"{word} {number}" for word, number in facts[words].items())])
    return told


Row = tuple[dict[str, Any], dict[str, Any]]
"""Arrays and fields of a row; `num_objects` among the fields."""


def _made_rows(source: SceneSource, name: str) -> Iterator[Row]:
    for index in range(source.counts[name]):
        scene = make_scene(
            name,
            index,
            source.seed,
            resolution=source.resolution,
            num_objects=source.num_objects,
            styles=source.styles,
        )
        voxels = np.stack([thing.voxels for thing in scene.objects])
        kinds = tuple(thing.kind for thing in scene.objects)
        hidden = {"style": scene.style, "parameters": [list(thing.parameters) for thing in scene.objects]}
        yield _voxel_row(VoxelScene(voxels, scene.poses, kinds), scene.name, hidden)


def _own_rows(source: SceneSource, name: str) -> Iterator[Row]:
    for scene in _scene_ids(source, name):
        found = _read_scene(source, name, scene)
        yield _voxel_row(found, scene, {}) if source.kind == "meshes" else _latent_row(*found)


def _voxel_row(scene: VoxelScene, name: str, hidden: Mapping[str, Any]) -> Row:
    encoded = encode_poses(scene.poses)
    arrays = {"voxels": scene.voxels} | {part: encoded[modality] for modality, part in POSE_PARTS.items()}
    return arrays, {"id": name, "classes": list(scene.kinds), "num_objects": len(scene.kinds), **hidden}


def _latent_row(scene: Scene, per_object: frozenset[str]) -> Row:
    """A scene of latents; large conditions stay where they are mapped and are written piece by piece."""
    arrays: dict[str, Any] = {}
    conditions: list[dict[str, Any]] = []
    plain: dict[str, Any] = {}
    for place, tensor in enumerate(scene["latents"].values()):
        arrays[f"{LATENT}-{place}"] = tensor.numpy()
    for name, value in scene["conditionals"].items():
        if not isinstance(value, Tensor):
            plain[name] = value
            continue
        is_bfloat16 = value.dtype == torch.bfloat16
        arrays[f"{CONDITION}-{len(conditions)}"] = (value.view(torch.uint16) if is_bfloat16 else value).numpy()
        kind = BFLOAT16 if is_bfloat16 else ""
        conditions.append({"name": name, "per_object": name in per_object, "view": kind})
    fields = {
        "id": scene["scene_id"],
        "modalities": list(scene["latents"]),
        "conditions": conditions,
        "plain_conditions": plain,
        "num_objects": scene["num_objects"],
    }
    return arrays, fields
