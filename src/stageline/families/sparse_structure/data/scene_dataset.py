"""Scenes of latents: the guide's folders, checked, one scene a sample. Source: the scene-level ShortCut guide.

    <data_root>/<split>/<scene>/latents.pt        modality -> (N, tokens, channels)
    <data_root>/<split>/<scene>/conditionals.pt   optional: name -> tensor or plain value
    <data_root>/<split>/<scene>/metadata.json     optional: num_objects, shape_layout, per_object
    <data_root>/<split>/scenes.txt                optional: one scene a line

Torch files are read with `weights_only=True`. `metadata.json` may say `shape_layout` (`channels_last`, or
`tokens_last` for shapes that lie (N, channels, tokens)) and `per_object`, the names of conditions with a row per
object; without it those are the tensors whose leading size is the number of objects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stageline.families.sparse_structure.data.latent_rules import (
    LatentRules,
    MixedFaultsError,
    check_conditionals,
    check_metadata,
    read_torch_file,
)
from stageline.families.sparse_structure.data.origin import CONDITIONALS, LATENTS, METADATA
from stageline.families.sparse_structure.data.scene_files import list_scenes, read_json
from stageline.objectives.step import seeded

Scene = dict[str, Any]
"""`latents`: modality -> (N, tokens, channels); `conditionals`; `scene_id`; `num_objects`."""


def chosen_objects(count: int, most: int, seed: int, epoch: int, index: int) -> Tensor | None:
    """Which objects of a scene are seen in an epoch, (most,) sorted; None for all of at most `most`."""
    if count <= most:
        return None
    generator = seeded("objects of a scene", seed, epoch, index)
    return torch.randperm(count, generator=generator)[:most].sort().values


def choose(scene: Scene, keep: Tensor | None, per_object: Collection[str]) -> Scene:
    """A scene with some of its objects. keep: their numbers; None is all.  per_object: conditions with their rows."""
    if keep is None:
        return scene
    latents = {name: value[keep] for name, value in scene["latents"].items()}
    conditions = {k: v[keep] if k in per_object else v for k, v in scene["conditionals"].items()}
    return {**scene, "latents": latents, "conditionals": conditions, "num_objects": len(keep)}


def _checked(wrong: list[KeyError | ValueError], check: Callable[..., Any], *given: Any) -> Any:
    """What a check gives; None where it refuses, which `wrong` then has."""
    try:
        return check(*given)
    except (KeyError, ValueError) as error:
        wrong.append(error)
        return None


class SceneDataset(Dataset[Scene]):
    """Scenes of one split of a folder; a sample is a `Scene`, indexed by a number or by (epoch, number).

    data_root: folder of splits.  split: `train`, `val` or another sub-folder.
    max_objects_per_scene: larger scenes are shown in part, other objects in each epoch: f(seed, epoch, scene).
    modalities: those of the network.  latent_spec: modality -> (tokens, channels).
    allow_extra: whether further modalities are left out.  seed: of the choice of objects.
    zero_filled: modalities that may be missing and are zero then, since their loss has no weight.
    FileNotFoundError without the split's folder, ValueError where it holds no scene.

    Subclasses may override `_load_scene_latents`, `_load_scene_conditionals` and `_load_scene_metadata`; what they give
    is checked like a file's. A folder needs no `latents.pt` where the first is overridden.
    """

    def __init__(
        self,
        data_root: str | Path,
        split: str = "train",
        max_objects_per_scene: int = 32,
        modalities: Iterable[str] | None = None,
        latent_spec: Mapping[str, tuple[int, int]] | None = None,
        allow_extra: bool = False,
        seed: int = 0,
        *,
        zero_filled: Iterable[str] = (),
    ) -> None:
        if max_objects_per_scene < 1:
            raise ValueError(f"max_objects_per_scene is {max_objects_per_scene}; expected at least 1")
        self.data_root, self.split, self.seed = Path(data_root), split, seed
        self.max_objects_per_scene, self.epoch = max_objects_per_scene, 0
        named = None if modalities is None else tuple(modalities)
        self.rules = LatentRules(named, latent_spec, allow_extra, tuple(zero_filled))
        self.scene_ids = self._list_scene_ids()
        if not self.scene_ids:
            raise ValueError(f"there is no scene in {str(self.data_root / split)!r}; expected folders with {LATENTS}")

    def _list_scene_ids(self) -> list[str]:
        has_files = type(self)._load_scene_latents is SceneDataset._load_scene_latents
        return list_scenes(self.data_root / self.split, LATENTS if has_files else None)

    def _folder(self, scene_id: str) -> Path:
        return self.data_root / self.split / scene_id

    def _load_scene_latents(self, scene_id: str) -> dict[str, Tensor]:
        """Modality -> (N, tokens, channels) of a scene."""
        loaded: dict[str, Tensor] = read_torch_file(self._folder(scene_id) / LATENTS, what=f"scene {scene_id!r}")
        return loaded

    def _load_scene_conditionals(self, scene_id: str) -> dict[str, Any]:
        """Keyword conditions of a scene; {} where there are none."""
        path = self._folder(scene_id) / CONDITIONALS
        loaded: dict[str, Any] = read_torch_file(path, what=f"scene {scene_id!r}") if path.exists() else {}
        return loaded

    def _load_scene_metadata(self, scene_id: str) -> dict[str, Any]:
        """What is told of a scene; {} where nothing is."""
        path = self._folder(scene_id) / METADATA
        if not path.is_file():
            return {}
        try:
            plain: dict[str, Any] = read_json(path)
        except ValueError as error:
            raise ValueError(f"scene {scene_id!r}: {METADATA}: {error}") from error
        return plain

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose objects are shown of large scenes."""
        self.epoch = epoch

    def whole_scene(self, scene_id: str) -> tuple[Scene, frozenset[str]]:
        """A scene with all of its objects, checked, and the names of conditions with a row per object.

        One error with every fault of its latents, conditions and metadata.
        """
        told = self._load_scene_metadata(scene_id)
        values, loaded = self._load_scene_latents(scene_id), self._load_scene_conditionals(scene_id)
        wrong: list[KeyError | ValueError] = []
        metadata: dict[str, Any] = _checked(wrong, check_metadata, told, scene_id) or {}
        latents: dict[str, Tensor] = _checked(wrong, self.rules.check, values, scene_id, metadata) or {}
        count: int | None = len(next(iter(latents.values()))) if latents else metadata.get("num_objects")
        if metadata.get("num_objects", count) != count:
            wrong.append(ValueError(f"scene {scene_id!r}: {count} objects, {METADATA} says {metadata['num_objects']}"))
        checked = _checked(wrong, check_conditionals, loaded, count, scene_id, metadata)
        if len(wrong) > 1:
            start, first, *others = f"scene {scene_id!r}: ", *(str(error.args[0]) for error in wrong)
            kind = MixedFaultsError if any(isinstance(error, KeyError) for error in wrong) else ValueError
            raise kind("; ".join([first, *(text.removeprefix(start) for text in others)])) from wrong[0]
        if wrong:
            raise wrong[0]
        conditions, rows = checked
        scene = {"latents": latents, "conditionals": conditions, "scene_id": scene_id, "num_objects": count}
        return scene, rows

    def object_counts(self) -> list[int]:
        """How many objects are shown of each scene; from the metadata where they say it, else from the latents."""
        counts = []
        for scene_id in self.scene_ids:
            count = check_metadata(self._load_scene_metadata(scene_id), scene_id).get("num_objects")
            counts.append(count or self.whole_scene(scene_id)[0]["num_objects"])
        return [min(count, self.max_objects_per_scene) for count in counts]

    def __len__(self) -> int:
        return len(self.scene_ids)

    def __getitem__(self, item: Any, /) -> Scene:
        epoch, index = item if isinstance(item, tuple) else (self.epoch, item)
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        index %= len(self)
        scene, rows = self.whole_scene(self.scene_ids[index])
        keep = chosen_objects(scene["num_objects"], self.max_objects_per_scene, self.seed, epoch, index)
        return choose(scene, keep, rows)


def scene_collate_fn(batch: Sequence[Scene]) -> Scene:
    """The one scene of a batch, unchanged: its objects are the batch axis. ValueError for any other number."""
    if len(batch) != 1:
        raise ValueError(f"{len(batch)} scenes in a batch: batch_size must be 1, since a scene's objects are its batch")
    return batch[0]


def multi_scene_collate_fn(batch: Sequence[Scene]) -> Scene:
    """Several scenes as one batch of objects, with `scene_sizes`, their object counts.

    Condition tensors get a row per object; plain values must be equal in all scenes. ValueError where scenes do not go
    together.
    """
    if not batch:
        raise ValueError("no scene in the batch")
    sizes = [scene["num_objects"] for scene in batch]
    for part in ("latents", "conditionals"):
        names = [set(scene[part]) for scene in batch]
        if any(own != names[0] for own in names):
            raise ValueError(f"scenes have different {part}: {[sorted(own) for own in names]}")
    latents = {name: torch.cat([scene["latents"][name] for scene in batch]) for name in batch[0]["latents"]}
    conditions = {
        name: _joined(name, [scene["conditionals"][name] for scene in batch], sizes)
        for name in batch[0]["conditionals"]
    }
    return {
        "latents": latents,
        "conditionals": conditions,
        "scene_id": [scene["scene_id"] for scene in batch],
        "num_objects": sum(sizes),
        "scene_sizes": sizes,
    }


def _joined(name: str, values: Sequence[Any], sizes: Sequence[int]) -> Any:
    if not any(isinstance(value, Tensor) for value in values):
        if any(value != values[0] for value in values):
            raise ValueError(f"condition {name!r} differs between scenes: {values!r:.200}")
        return values[0]
    rows = []
    for value, size in zip(values, sizes, strict=True):
        if not isinstance(value, Tensor) or not value.ndim or len(value) not in (1, size):
            raise ValueError(f"condition {name!r} is no tensor with a row for each of {size} objects, or one")
        rows.append(value.expand(size, *value.shape[1:]))
    if len({row.shape[1:] for row in rows}) > 1:
        raise ValueError(f"condition {name!r} has different sizes: {[tuple(row.shape) for row in rows]}")
    return torch.cat(rows)
