"""A checkpoint's scenes beside the true ones: do the objects of a scene know of each other, and are they like the data?

Each scene of the split is sampled from the same noise in every number of steps, and by the branch of one object alone;
a row is one scene in one mode. The truth is a mode too: what is measured of samples, measured of the autoencoder's
reconstructions in their true places. Scenes are sampled a batch at a time, so that a repeated row has the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stageline.contract import Emit, Evaluation, Progress, Row, RowKey
from stageline.data.prepared import PreparedData
from stageline.families.sparse_structure.assembly import DualModel, SparseModel
from stageline.families.sparse_structure.config.model import POSE
from stageline.families.sparse_structure.data.prepared_scenes import PreparedScenes
from stageline.families.sparse_structure.data.scene_dataset import Scene, multi_scene_collate_fn
from stageline.families.sparse_structure.distances import object_features, project, sliced_distance
from stageline.families.sparse_structure.measures import agreement, agreement_across, facing_error, interpenetration
from stageline.families.sparse_structure.model.scale import SceneScale
from stageline.families.sparse_structure.model.shape_vae import voxel_iou
from stageline.families.sparse_structure.render import Frame, draw, surfaces
from stageline.families.sparse_structure.sampling import DecodedScene, SceneGenerator
from stageline.families.sparse_structure.styles import LEAST_ACCURACY, StyleReader
from stageline.families.sparse_structure.words import ALONE, SAMPLED, TRUTH, mode_of
from stageline.objectives.step import seeded

if TYPE_CHECKING:
    from stageline.families.sparse_structure.config import SparseStructureConfig

NO_VOXELS = "the data are latents; nothing says which voxels they stand for"
NO_STYLES = "the scenes do not say which style their objects have"
NO_POSES = "model.modalities lack a part of a pose"
NOTHING = "no scene has objects to measure it of"
MEASURES = ("agreement", "interpenetration", "facing_error")
"""What is measured of the objects of a scene among each other."""
STYLES = "styles"
"""Column of rows: the styles that were read off a scene's objects."""
FITTED_SCENES = 250
"""Training scenes that the reader of styles is fitted to, at most."""
Array = NDArray[Any]


@dataclass(frozen=True)
class _Mode:
    """name: of the rows.  steps: of the sampler.  alone: by the branch of one object."""

    name: str
    steps: int
    alone: bool = False


def evaluate(
    config: SparseStructureConfig,
    model: nn.Module,
    data: PreparedData,
    finished: Mapping[RowKey, Row],
    emit: Emit,
    progress: Progress,
) -> Evaluation:
    """Sample every scene of `config.evaluate.split` in every mode.

    Metrics of the last number of steps bear plain names, those of the other modes a suffix (`agreement_steps_1`).
    """
    assert isinstance(model, SparseModel | DualModel)
    work = _Evaluator(config, model.eval(), data, emit)
    rows: dict[RowKey, Row] = dict(finished)
    total, done = len(work.numbers) * len(work.modes), 0
    for numbers in work.batches():
        for mode in work.modes:
            progress(done, total, f"sampling scenes ({mode.name})")
            done += len(numbers)
            if any((work.id(number), mode.name) not in rows for number in numbers):
                work.answer(mode, numbers, rows)
        if config.has_vae:
            work.tell_truth(numbers, rows)
        emit.end_batch()
    progress(total, total, "sampled")
    return work.result(rows)


class _Evaluator:
    """What one evaluation needs and gathers."""

    def __init__(
        self, config: SparseStructureConfig, model: SparseModel | DualModel, data: PreparedData, emit: Emit
    ) -> None:
        self.config, self.model, self.emit = config, model, emit
        self.sampler = SceneGenerator(config, model)
        self.scenes, self.training = (self._open(data, name) for name in (config.evaluate.split, "train"))
        self.numbers = range(len(self.scenes))[: config.evaluate.max_scenes]
        *fewer, most = config.evaluate.steps
        self.modes = [_Mode(mode_of(steps), steps) for steps in fewer] + [_Mode(SAMPLED, most)]
        if isinstance(model, DualModel):
            self.modes.append(_Mode(ALONE, most, alone=True))
        self.alone = SceneGenerator(config, model, alone=True)
        self.has_poses = config.has_vae and set(POSE) <= set(config.model.modalities)

    def _open(self, data: PreparedData, name: str) -> PreparedScenes:
        scale, model = self.model.scale, self.config.model
        statistics = scale.poses if isinstance(scale, SceneScale) else None
        tokens = (model.cond_tokens, model.cond_channels)
        most = self.config.data.max_objects_per_scene
        return PreparedScenes(
            data.split(name), statistics=statistics, tokens=tokens, max_objects=most, seed=self.config.seed
        )

    def id(self, number: int) -> str:
        """Of a scene."""
        return str(self.scenes.rows.fields(number)["id"])

    def batches(self) -> list[range]:
        """Scenes that are sampled together; of latents each by itself, since their conditions need not fit."""
        size = self.config.evaluate.batch_size if self.config.has_vae else 1
        return [self.numbers[start : start + size] for start in range(0, len(self.numbers), size)]

    # Style

    @cached_property
    def has_styles(self) -> bool:
        """Whether all scenes tell a style."""
        sets = ((self.scenes, self.numbers), (self.training, range(len(self.training))))
        return self.config.has_vae and all("style" in of.rows.fields(n) for of, where in sets for n in where)

    @cached_property
    def reader(self) -> tuple[StyleReader, float] | None:
        """The reader of styles and its share of right answers; None where scenes tell no styles."""
        if not self.has_styles:
            return None
        reader = StyleReader(*self._labelled(self.training, range(min(FITTED_SCENES, len(self.training)))))
        return reader, reader.accuracy(*self._labelled(self.scenes, self.numbers))

    def _labelled(self, scenes: PreparedScenes, numbers: Sequence[int]) -> tuple[Array, list[str], list[str]]:
        """(reconstructions, classes, styles) of all objects of scenes."""
        occupancy, classes, styles = [], [], []
        for number in numbers:
            scene = scenes[number]
            occupancy.append(self._reconstructed(scene["voxels"]).sigmoid().numpy())
            classes += scene["row"]["classes"]
            styles += [scene["row"]["style"]] * scene["num_objects"]
        return np.concatenate(occupancy), classes, styles

    @torch.no_grad()
    def _reconstructed(self, voxels: Tensor) -> Tensor:
        """Logits (N, R, R, R) of the posterior means of voxels."""
        return self.model.decode(self.model.encode(voxels.to(self.sampler.device))).cpu()

    # Rows

    def answer(self, mode: _Mode, numbers: Sequence[int], rows: dict[RowKey, Row]) -> None:
        """Sample scenes and hand over the rows that are not there. The noise is f(seed, scene), in every mode."""
        scenes = [self.scenes[number] for number in numbers]
        conditions = (multi_scene_collate_fn(scenes) if len(scenes) > 1 else scenes[0])["conditionals"]
        rngs = [seeded("evaluation", self.config.seed, self.id(number)) for number in numbers]
        sizes = [scene["num_objects"] for scene in scenes]
        sampler = self.alone if mode.alone else self.sampler
        made, start = sampler.sample(sizes, conditions, mode.steps, rngs), 0
        for number, scene, size in zip(numbers, scenes, sizes, strict=True):
            latents = {name: x[start : start + size] for name, x in made.items()}
            start += size
            key = (self.id(number), mode.name)
            if key in rows:
                continue
            decoded = self.sampler.decode(latents)
            occupancy = None if decoded is None else decoded.logits.sigmoid()
            overlaps = None if decoded is None else voxel_iou(decoded.voxels, scene["voxels"])
            rows[key] = {
                **{"id": key[0], "mode": mode.name, "objects": size, "steps": mode.steps},
                "iou": None if overlaps is None else float(overlaps.mean()),
                **self._measured(decoded, scene),
                **({"iou_vae": self._overlap(scene)} if mode.name == SAMPLED else {}),
                "projections": project(object_features(latents, occupancy)).tolist(),
            }
            self.emit(rows[key], self._picture(decoded, scene, number, mode.name))

    def tell_truth(self, numbers: Sequence[int], rows: dict[RowKey, Row]) -> None:
        """The rows of scenes as they are, by way of the autoencoder."""
        for number in numbers:
            key = (self.id(number), TRUTH)
            if key in rows:
                continue
            scene = self.scenes[number]
            poses = self.sampler.poses(scene["latents"])
            decoded = DecodedScene(self._reconstructed(scene["voxels"]), poses)
            measured = self._measured(decoded, scene)
            rows[key] = {"id": key[0], "mode": TRUTH, "objects": scene["num_objects"], **measured}
            pictures = self._picture(decoded, scene, number, TRUTH)
            if pictures:
                assert poses is not None
                seen = surfaces(scene["voxels"].numpy(), poses)
                pictures = {f"truth-{number}": draw(seen, Frame.around(poses))} | pictures
            self.emit(rows[key], pictures)

    def _overlap(self, scene: Scene) -> float | None:
        """Of a scene's objects with what the autoencoder makes of them."""
        if not self.config.has_vae:
            return None
        return float(voxel_iou(self._reconstructed(scene["voxels"]) > 0, scene["voxels"]).mean())

    def _measured(self, decoded: DecodedScene | None, scene: Scene) -> dict[str, Any]:
        """What is measured of objects among each other, and their styles; None without voxels or what else it takes."""
        found: dict[str, Any] = dict.fromkeys((*MEASURES, STYLES))
        if decoded is None:
            return found
        classes = scene["row"]["classes"]
        if self.reader is not None and self.reader[1] >= LEAST_ACCURACY:
            styles = self.reader[0].read(decoded.logits.sigmoid().numpy(), classes)
            if None not in styles:
                found[STYLES] = [str(style) for style in styles]
                found["agreement"] = agreement(found[STYLES])
        if decoded.poses is not None:
            found["interpenetration"] = interpenetration(decoded.voxels.numpy(), decoded.poses)
            found["facing_error"] = facing_error(decoded.poses, classes)
        return found

    def _picture(self, decoded: DecodedScene | None, scene: Scene, number: int, mode: str) -> dict[str, Any]:
        """One of the scene as sampled, seen as far as the true one reaches; nothing where none is asked for."""
        is_shown = number < self.config.evaluate.num_panels or self.emit.in_full
        true_poses = self.sampler.poses(scene["latents"]) if is_shown and self.has_poses else None
        if decoded is None or decoded.poses is None or true_poses is None:
            return {}
        meshes = surfaces(decoded.logits.sigmoid().numpy(), decoded.poses)
        name = mode_of(self.config.evaluate.steps[-1]) if mode == SAMPLED else mode
        return {f"scene_{name}-{number}": draw(meshes, Frame.around(true_poses))}

    # Result

    def result(self, rows: Mapping[RowKey, Row]) -> Evaluation:
        """Metrics of every mode: means over the scenes that have a value, and distances over all objects."""
        names = [self.id(number) for number in self.numbers]
        truth = self._true_projections(self.scenes, self.numbers)
        training = self._true_projections(self.training, range(min(len(self.numbers), len(self.training))))
        metrics: dict[str, float | None] = {"distance_floor": sliced_distance(training, truth)}
        samples, reasons = {"distance_floor": len(truth)}, {}
        for name in (*(mode.name for mode in self.modes), *([TRUTH] if self.config.has_vae else [])):
            suffix = "" if name == SAMPLED else f"_{name}"
            found = [rows[scene, name] for scene in names]
            for measure in (*MEASURES, *(() if name == TRUTH else ("iou",)), *(("iou_vae",) if not suffix else ())):
                values = [float(row[measure]) for row in found if row[measure] is not None]
                metrics[measure + suffix] = sum(values) / len(values) if values else None
                samples[measure + suffix] = len(values)
                if not values:
                    reasons[measure + suffix] = self._why_not(measure)
            styles = [row[STYLES] for row in found if row.get(STYLES)]
            across = metrics[f"agreement_across{suffix}"] = agreement_across(styles)
            samples[f"agreement_across{suffix}"] = sum(map(len, styles))
            if across is None:
                reasons[f"agreement_across{suffix}"] = self._why_not("agreement")
            if name != TRUTH:
                sampled = np.concatenate([row["projections"] for row in found])
                metrics[f"distance{suffix}"] = sliced_distance(sampled, truth)
                samples[f"distance{suffix}"] = len(truth)
        accuracy = None if self.reader is None else self.reader[1]
        metrics["reader_accuracy"], samples["reader_accuracy"] = accuracy, len(truth) if accuracy is not None else 0
        if accuracy is None:
            reasons["reader_accuracy"] = self._why_not("agreement")
        return Evaluation(metrics, samples, (), {}, self._provenance(len(truth)), reasons)

    def _why_not(self, measure: str) -> str:
        """Why a measure has no value in any scene."""
        if not self.config.has_vae:
            return NO_VOXELS
        if measure == "agreement":
            if self.reader is None:
                return NO_STYLES
            if self.reader[1] < LEAST_ACCURACY:
                return (
                    f"styles are read right of {self.reader[1]:.3f} of the autoencoder's reconstructions of the truth; "
                    f"what they are read of must reach {LEAST_ACCURACY}"
                )
        return NOTHING if self.has_poses or measure == "agreement" else NO_POSES

    def _true_projections(self, scenes: PreparedScenes, numbers: Sequence[int]) -> Array:
        found = []
        for number in numbers:
            scene = scenes[number]
            latents = {name: x for name, x in scene["latents"].items() if name in self.config.model.modalities}
            occupancy = scene["voxels"].float() if self.config.has_vae else None
            found.append(project(object_features(latents, occupancy)))
        return np.concatenate(found)

    def _provenance(self, objects: int) -> dict[str, Any]:
        asked, rows = self.config.evaluate, self.scenes.rows
        return {
            "styles": len({rows.fields(number)["style"] for number in self.numbers}) if self.has_styles else None,
            "split": asked.split,
            "weights": asked.weights,
            "steps": ", ".join(map(str, asked.steps)),
            **({"scene_strength": asked.scene_strength} if isinstance(self.model, DualModel) else {}),
            "scenes": len(self.numbers),
            "objects": objects,
            "limited": len(self.numbers) < len(self.scenes),
        }
