"""Prepared rows as samples: whole scenes for the flows, single objects for the shape VAE.

Pure: a sample is a function of (epoch, index) in any process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stageline.data.reading import SplitReader
from stageline.data.rng import numpy_rng
from stageline.families.sparse_structure.data.latent_rules import CONDITION_NAME
from stageline.families.sparse_structure.data.poses import PoseStatistics
from stageline.families.sparse_structure.data.preparation import BFLOAT16, CONDITION, LATENT, POSE_PARTS
from stageline.families.sparse_structure.data.scene_dataset import Scene, choose, chosen_objects

Array = NDArray[Any]


@lru_cache(maxsize=256)
def class_tokens(kind: str, num_tokens: int, channels: int) -> Tensor:
    """(num_tokens, channels) float32 that stand for a class, of unit variance: a function of its name alone."""
    numbers = numpy_rng("class tokens", kind).standard_normal((num_tokens, channels))
    return torch.from_numpy(numbers.astype(np.float32))


class PreparedScenes:
    """The scenes of a split; a sample is a `Scene`, indexed by (epoch, number) or a number, which is epoch 0.

    rows: the split.  statistics: by which poses are standardised, of the training split that the model knows.
    tokens: number and channels of the tokens that stand for an object's class.
    max_objects: larger scenes are shown in part, f(seed, epoch, scene).
    shuffled: in the place of each object stands one of its class from anywhere in the split, with its size, f(seed,
        epoch, scene): nothing is left of what objects of a scene have in common.

    Of made-up scenes and own meshes a sample has `voxels` (N, R, R, R) uint8, and `latents` holds poses alone; the
    condition `cond` has a row of class tokens per object. `row` are the scene's further fields. Of latents, `latents`
    and `conditionals` are as they were prepared.
    """

    def __init__(
        self,
        rows: SplitReader,
        *,
        statistics: PoseStatistics | None = None,
        tokens: tuple[int, int] = (1, 16),
        max_objects: int = 32,
        seed: int = 0,
        shuffled: bool = False,
    ) -> None:
        self.rows, self.statistics, self.tokens = rows, statistics, tokens
        self.max_objects, self.seed, self.shuffled = max_objects, seed, shuffled

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def object_counts(self) -> list[int]:
        """How many objects are shown of each scene."""
        return [min(int(count), self.max_objects) for count in self.rows.numbers("num_objects")] if len(self) else []

    def __getitem__(self, item: Any, /) -> Scene:
        epoch, index = item if isinstance(item, tuple) else (0, item)
        fields = self.rows.fields(index)
        count = int(self.rows.numbers("num_objects")[index])
        keep = chosen_objects(count, self.max_objects, self.seed, epoch, index)
        if "modalities" in fields:
            return self._latents(index, fields, count, keep)
        arrays = self.rows.arrays(index)
        if self.shuffled:
            arrays = self._exchanged(arrays, fields["classes"], epoch, index)
        return self._voxels(fields, arrays, count, keep)

    @cached_property
    def _of_class(self) -> Mapping[str, list[tuple[int, int]]]:
        """Class -> (scene, place) of all objects of the split."""
        found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for row in range(len(self)):
            for place, kind in enumerate(self.rows.fields(row)["classes"]):
                found[kind].append((row, place))
        return found

    def _exchanged(
        self, arrays: Mapping[str, Array], classes: Sequence[str], epoch: int, index: int
    ) -> dict[str, Array]:
        """Arrays of a scene with shapes and sizes of other scenes' objects."""
        rng = numpy_rng(self.seed, "shuffled", epoch, index)
        shown = {name: array.copy() for name, array in arrays.items()}
        for place, kind in enumerate(classes):
            row, other = self._of_class[kind][int(rng.integers(len(self._of_class[kind])))]
            for name in ("voxels", POSE_PARTS["scale"]):
                shown[name][place] = self.rows.array(row, name)[other]
        return shown

    def _voxels(self, fields: Mapping[str, Any], arrays: Mapping[str, Array], count: int, keep: Tensor | None) -> Scene:
        if self.statistics is None:
            raise ValueError("scenes of voxels need the statistics of poses of the training split")
        poses = self.statistics.standardise({modality: arrays[part] for modality, part in POSE_PARTS.items()})
        tokens = torch.stack([class_tokens(kind, *self.tokens) for kind in fields["classes"]])
        scene: Scene = {
            "latents": {modality: torch.from_numpy(value)[:, None] for modality, value in poses.items()},
            "conditionals": {CONDITION_NAME: tokens},
            "scene_id": fields["id"],
            "num_objects": count,
            "voxels": torch.from_numpy(arrays["voxels"].astype(np.uint8)),
            "row": {key: value for key, value in fields.items() if key != "id"},
        }
        shown = choose(scene, keep, {CONDITION_NAME})
        if keep is not None:
            kept = keep.tolist()
            lists = {k: [v[place] for place in kept] for k, v in scene["row"].items() if isinstance(v, list)}
            shown |= {"voxels": scene["voxels"][keep], "row": scene["row"] | lists}
        return shown

    def _latents(self, index: int, fields: Mapping[str, Any], count: int, keep: Tensor | None) -> Scene:
        def tensor(name: str) -> Tensor:
            array = self.rows.array(index, name)
            return torch.from_numpy(array if array.flags.writeable else np.array(array))

        conditions = dict(fields["plain_conditions"])
        for place, told in enumerate(fields["conditions"]):
            value = tensor(f"{CONDITION}-{place}")
            conditions[told["name"]] = value.view(torch.bfloat16) if told["view"] == BFLOAT16 else value
        scene: Scene = {
            "latents": {name: tensor(f"{LATENT}-{place}") for place, name in enumerate(fields["modalities"])},
            "conditionals": conditions,
            "scene_id": fields["id"],
            "num_objects": count,
        }
        return choose(scene, keep, {told["name"] for told in fields["conditions"] if told["per_object"]})


class PreparedObjects:
    """The objects of all scenes of a split, for the shape VAE: a sample is (R, R, R) uint8.

    rows: a split with voxels. Indexed by (epoch, number) or a number.
    """

    def __init__(self, rows: SplitReader) -> None:
        self.rows = rows
        counts = rows.numbers("num_objects") if len(rows) else np.zeros(0, np.int64)
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, item: Any, /) -> Tensor:
        number = item[1] if isinstance(item, tuple) else item
        if not 0 <= number < len(self):
            raise IndexError(f"object {number} of {len(self)}")
        row = int(np.searchsorted(self.ends, number, side="right"))
        place = number - (int(self.ends[row - 1]) if row else 0)
        return torch.from_numpy(self.rows.array(row, "voxels")[place].astype(np.uint8))


def collate_objects(objects: Sequence[Tensor]) -> Tensor:
    """(B, R, R, R) uint8."""
    return torch.stack(list(objects))
