"""A checkpoint's scenes beside the true ones: overlap of voxels, and distance between sampled and true objects.

Each scene of the split is sampled once per number of steps, from the same noise; a row is one scene and one number.
Both numbers are over objects. The distance of training scenes to those of the split is its floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from stageline.contract import Emit, Evaluation, Progress, Row, RowKey
from stageline.data.prepared import PreparedData
from stageline.families.sparse_structure.assembly import DualModel, SparseModel
from stageline.families.sparse_structure.data.prepared_scenes import PreparedScenes
from stageline.families.sparse_structure.data.scene_dataset import Scene
from stageline.families.sparse_structure.distances import object_features, project, sliced_distance
from stageline.families.sparse_structure.model.scale import SceneScale
from stageline.families.sparse_structure.model.shape_vae import voxel_iou
from stageline.families.sparse_structure.sampling import SceneSampler
from stageline.objectives.step import seeded

if TYPE_CHECKING:
    from stageline.families.sparse_structure.config import SparseStructureConfig

NO_VOXELS = "the data are latents; nothing says which voxels they stand for"


def mode_of(steps: int) -> str:
    """How the rows of a number of steps are called."""
    return f"steps_{steps}"


def evaluate(
    config: SparseStructureConfig,
    model: nn.Module,
    data: PreparedData,
    finished: Mapping[RowKey, Row],
    emit: Emit,
    progress: Progress,
) -> Evaluation:
    """Sample every scene of `config.evaluate.split` in every number of steps."""
    assert isinstance(model, SparseModel | DualModel)
    work = _Evaluator(config, model.eval(), data)
    rows: dict[RowKey, Row] = dict(finished)
    total = len(work.numbers) * len(config.evaluate.steps)
    for place, (number, steps) in enumerate((n, s) for n in work.numbers for s in config.evaluate.steps):
        progress(place, total, "sampling scenes")
        key = (work.id(number), mode_of(steps))
        if key not in rows:
            rows[key] = work.row(number, steps)
            emit(rows[key])
        if steps == config.evaluate.steps[-1]:
            emit.end_batch()
    progress(total, total, "sampled")
    return work.result(rows)


class _Evaluator:
    """What one evaluation needs and gathers."""

    def __init__(self, config: SparseStructureConfig, model: SparseModel | DualModel, data: PreparedData) -> None:
        self.config, self.model = config, model
        self.sampler = SceneSampler(config, model)
        self.scenes, self.training = (self._open(data, name) for name in (config.evaluate.split, "train"))
        self.numbers = range(len(self.scenes))[: config.evaluate.max_scenes]

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

    def _truth(self, scene: Scene) -> tuple[dict[str, Tensor], Tensor | None]:
        """(latents but those of shapes where there are voxels, occupancy or None)."""
        latents = {name: x for name, x in scene["latents"].items() if name in self.config.model.modalities}
        return latents, scene["voxels"].float() if self.config.has_vae else None

    def row(self, number: int, steps: int) -> dict[str, Any]:
        """A scene sampled in a number of steps. The noise is f(seed, scene)."""
        scene, name = self.scenes[number], self.id(number)
        latents = self.sampler.sample(
            scene["num_objects"], scene["conditionals"], steps, seeded("evaluation", self.config.seed, name)
        )
        decoded = self.sampler.decode(latents)
        occupancy = None if decoded is None else decoded.logits.sigmoid()
        overlaps = None if decoded is None else voxel_iou(decoded.voxels, scene["voxels"])
        return {
            "id": name,
            "mode": mode_of(steps),
            "objects": scene["num_objects"],
            "iou": None if overlaps is None else float(overlaps.mean()),
            "overlaps": None if overlaps is None else [float(overlap) for overlap in overlaps],
            "projections": project(object_features(latents, occupancy)).tolist(),
        }

    def _projections(self, scenes: PreparedScenes, numbers: Sequence[int]) -> Any:
        found = [project(object_features(*self._truth(scenes[number]))) for number in numbers]
        return np.concatenate(found)

    @torch.no_grad()
    def _reconstruction(self) -> list[float]:
        """Overlap of every object of the split with what the autoencoder makes of it."""
        found: list[float] = []
        for number in self.numbers:
            voxels = self.scenes[number]["voxels"].to(self.sampler.device)
            found += voxel_iou(self.model.decode(self.model.encode(voxels)) > 0, voxels).tolist()
        return found

    def result(self, rows: Mapping[RowKey, Row]) -> Evaluation:
        """Metrics of each number of steps; those of the first bear plain names."""
        asked, names = self.config.evaluate, [self.id(number) for number in self.numbers]
        truth = self._projections(self.scenes, self.numbers)
        training = self._projections(self.training, range(min(len(self.numbers), len(self.training))))
        metrics: dict[str, float | None] = {"distance_floor": sliced_distance(training, truth)}
        samples = {"distance_floor": len(truth)}
        has_voxels = self.config.has_vae
        for place, steps in enumerate(asked.steps):
            suffix = f"_{mode_of(steps)}" if place else ""
            found = [rows[name, mode_of(steps)] for name in names]
            metrics[f"distance{suffix}"] = sliced_distance(np.concatenate([r["projections"] for r in found]), truth)
            overlaps = [overlap for row in found for overlap in row["overlaps"] or ()]
            metrics[f"iou{suffix}"] = sum(overlaps) / len(overlaps) if has_voxels else None
            samples |= {f"distance{suffix}": len(truth), f"iou{suffix}": len(overlaps)}
        reconstructed = self._reconstruction() if has_voxels else []
        metrics["iou_vae"] = sum(reconstructed) / len(reconstructed) if has_voxels else None
        samples["iou_vae"] = len(reconstructed)
        return Evaluation(
            metrics=metrics,
            num_samples=samples,
            rows=(),
            panels={},
            provenance={
                "split": asked.split,
                "weights": asked.weights,
                "steps": ", ".join(map(str, asked.steps)),
                "scenes": len(names),
                "objects": len(truth),
                "limited": len(names) < len(self.scenes),
            },
            reasons={name: NO_VOXELS for name, value in metrics.items() if value is None},
        )
