"""The stages of sparse_structure as the loop sees them: data, loss, parameter groups, validation.

`shape_vae` trains on single objects, the others on scenes. In scene mode (`objective.batch_mode`) a micro-batch takes
one branch of the ShortCut objective, by coins that are equal on all ranks; each of its scenes has its own times, steps
and noise, and weighs 1. Without it objects are samples by themselves, and a step is a mean of micro-batch estimates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stageline.contract import ParameterGroup, Parent, SampleKey, Samples, Workspace
from stageline.data.prepared import PreparedData
from stageline.errors import DataError
from stageline.families.sparse_structure.assembly import DualModel, FlowModel, VaeModel, build_model
from stageline.families.sparse_structure.config.model import SHAPE
from stageline.families.sparse_structure.data.latent_rules import CONDITION_REMEDY, condition_faults
from stageline.families.sparse_structure.data.order import scene_order
from stageline.families.sparse_structure.data.poses import PoseStatistics
from stageline.families.sparse_structure.data.prepared_scenes import PreparedObjects, PreparedScenes, collate_objects
from stageline.families.sparse_structure.data.scene_dataset import Scene, multi_scene_collate_fn
from stageline.families.sparse_structure.facts import facts, has_global, has_sparse
from stageline.families.sparse_structure.model.scale import SceneScale
from stageline.families.sparse_structure.model.shape_vae import ShapeVAE, vae_loss, voxel_iou
from stageline.families.sparse_structure.objective import make_guidance, make_shortcut, scene_draws, scene_mean
from stageline.layers.parameter_groups import group_parameters
from stageline.objectives.step import StageLoss, StepContext, ValidationContext

if TYPE_CHECKING:
    from stageline.families.sparse_structure.config import SparseStructureConfig
    from stageline.stage import Stage

SCALED_OBJECTS = 2048
"""Training objects that the scale of latents is measured over, at most."""
OBJECTS_AT_ONCE = 64
MOST_NAMES = 8
"""Scenes that an error names."""


class SceneTask:
    """What all stages share; see `stageline.contract.StageTask` for the promises."""

    train_set: Samples
    val_set: Samples

    def __init__(self, config: SparseStructureConfig, stage: Stage) -> None:
        self.config, self.stage = config, stage
        self.network = build_model(config, stage)
        self.model: nn.Module = self.network

    def set_train_mode(self, model: nn.Module) -> None:
        """Train mode; modules in which nothing trains are put into eval mode by the loop."""
        model.train()

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """No weight decay on norms, biases, position embeddings and the factor of the global branch."""
        learned = ("*.pos_emb", "*.object_emb.weight")
        names = [name for name, _ in self.model.named_parameters()]
        return group_parameters(self.model, undecayed=[p for p in learned if any(n.endswith(p[1:]) for n in names)])

    def advance(self, step: int, steps: int) -> None:
        """There are no schedules in the model."""

    def facts(self) -> dict[str, Any]:
        """What the model says of itself."""
        return facts(self.config, self.stage)


class VaeTask(SceneTask):
    """Stage `shape_vae`."""

    def __init__(self, config: SparseStructureConfig, stage: Stage, data: PreparedData) -> None:
        super().__init__(config, stage)
        self.train_set, self.val_set = (PreparedObjects(data.split(name)) for name in ("train", "val"))

    def collate(self, samples: Sequence[Any]) -> Tensor:
        """(B, R, R, R) uint8."""
        return collate_objects(samples)

    def batch_items(self, epoch: int) -> Sequence[SampleKey] | None:
        """The loop's own order."""
        del epoch
        return None

    def loss(self, model: nn.Module, batch: Tensor, context: StepContext) -> StageLoss:
        """Cross-entropy of occupancy and divergence of the posterior, per object."""
        total, parts = model(self._loss, batch, context.rng)
        return StageLoss(total, float(len(batch)), parts)

    def _loss(
        self, network: VaeModel, voxels: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        vae = self.config.model.vae
        noise = torch.randn(network.vae.noise_shape(voxels), generator=rng).to(voxels.device)
        parts = vae_loss(network.vae(voxels, noise), voxels, positive_weight=vae.positive_weight)
        total = parts["occupancy"][0] + vae.kl_weight * parts["kl"][0]
        return total, {name: (value.detach(), count) for name, (value, count) in parts.items()}

    def validation_key(self, index: int) -> Any:
        """All objects are alike."""
        del index
        return 0

    def validate(
        self, model: nn.Module, batch: Tensor, context: ValidationContext
    ) -> Mapping[str, tuple[float, float]]:
        """Overlap of the reconstruction by the posterior mean with the truth."""
        del context
        overlap = model(_reconstructed, batch)
        return {"iou": (float(overlap.sum()), float(len(batch)))}

    def shard_units(self) -> Sequence[nn.Module]:
        """Encoder and decoder."""
        assert isinstance(self.network, VaeModel)
        return [self.network.vae.encoder, self.network.vae.decoder]


def _reconstructed(network: VaeModel, voxels: Tensor) -> Tensor:
    mean, _ = network.vae.encode(voxels)
    return voxel_iou(network.vae.decode(mean) > 0, voxels)


class FlowTask(SceneTask):
    """Stages `sparse_flow`, `global_flow` and `joint`."""

    train_set: PreparedScenes
    val_set: PreparedScenes

    def __init__(self, config: SparseStructureConfig, stage: Stage, data: PreparedData) -> None:
        super().__init__(config, stage)
        found = data.split("train").facts.get("pose_statistics")
        statistics = PoseStatistics.from_json(found) if config.has_vae else None
        scale = self.flow.scale
        if isinstance(scale, SceneScale) and statistics is not None:
            scale.set_poses(statistics)
        make = partial(
            PreparedScenes,
            statistics=statistics,
            tokens=(config.model.cond_tokens, config.model.cond_channels),
            max_objects=config.data.max_objects_per_scene,
            seed=config.seed,
        )
        self.train_set = make(data.split("train"), shuffled=config.data.shuffle_objects)
        self.val_set = make(data.split("val"))
        self.val_counts = self.val_set.object_counts
        self.shortcut, self.guidance = make_shortcut(config), make_guidance(config)

    @property
    def flow(self) -> FlowModel:
        """The model, which has a flow."""
        assert not isinstance(self.network, VaeModel)
        return self.network

    @property
    def by_scene(self) -> bool:
        """Whether scenes are samples, not objects."""
        return self.config.objective.batch_mode

    def collate(self, samples: Sequence[Scene]) -> dict[str, Any]:
        """Scenes one after the other, with their voxels."""
        try:
            batch: dict[str, Any] = multi_scene_collate_fn(samples)
        except ValueError as error:
            raise DataError(
                f"scenes {_named([scene['scene_id'] for scene in samples])} do not go together: {error}",
                remedy="say trainer.batch_size: 1; trainer.accumulate_grad_batches makes a step of several scenes",
            ) from error
        if self.config.has_vae:
            batch["voxels"] = torch.cat([scene["voxels"] for scene in samples])
        return batch

    def batch_items(self, epoch: int) -> Sequence[SampleKey] | None:
        """Scenes of about equally many objects next to each other, in whole steps; at random in sight of one object."""
        if not has_global(self.stage):
            return None
        trainer = self.config.trainer
        group = trainer.batch_size * trainer.accumulate_grad_batches * trainer.world_size
        order = scene_order(self.train_set.object_counts, self.config.seed, epoch, group)
        return [(epoch, scene) for scene in order]

    def derive(self, parents: Mapping[str, Parent]) -> None:
        """Blocks of the global branch from the sparse one, and the scale of latents, where they start fresh."""
        own = [parent for role, parent in parents.items() if role != "vae"]
        scale = self.flow.scale
        if isinstance(scale, SceneScale) and not any(parent.facts.get("voxels") for parent in own):
            scale.measure_latents(self._training_latents())
        scene = self.config.model.global_sparse_flow
        fresh = not any(parent.facts.get("global_sparse_flow.num_blocks") for parent in own)
        if isinstance(self.network, DualModel) and fresh and scene.start == "sparse":
            self.network.init_global_from_sparse(scene.block_map)

    def _training_latents(self) -> Iterator[Tensor]:
        """Tokens of the first training objects as the autoencoder gives them."""
        vae = self.flow.vae
        assert isinstance(vae, ShapeVAE)
        objects = PreparedObjects(self.train_set.rows)
        number = min(len(objects), SCALED_OBJECTS)
        with torch.no_grad():
            for start in range(0, number, OBJECTS_AT_ONCE):
                numbers = range(start, min(start + OBJECTS_AT_ONCE, number))
                yield vae.to_tokens(collate_objects([objects[place] for place in numbers]))

    def begin(self, workspace: Workspace) -> None:
        """Poses are standardised by what the model knows: that of a parent, where it has one."""
        del workspace
        scale = self.flow.scale
        if isinstance(scale, SceneScale):
            self.train_set.statistics = self.val_set.statistics = scale.poses

    def loss(self, model: nn.Module, batch: Mapping[str, Any], context: StepContext) -> StageLoss:
        """ShortCut over the scenes or objects of a micro-batch."""
        return StageLoss(*model(self._loss, batch, context))

    def _loss(
        self, network: FlowModel, batch: Mapping[str, Any], context: StepContext
    ) -> tuple[Tensor, float, dict[str, tuple[Tensor, float]]]:
        self.guidance.train()
        asked = self.guidance.around(network.velocity)
        sizes, x1 = batch["scene_sizes"], self._data(network, batch)
        if self.by_scene:
            draws = scene_draws(self.shortcut, x1, sizes, context, asked)
            scenes = float(len(sizes))
        else:
            draws = self.shortcut.sample_draws(
                x1, rng=context.rng, shared=context.shared, progress=context.progress, reverse_fn=asked
            )
            scenes = 1.0
        found = self._terms(x1, draws, batch, asked)
        parts = {name: (value * scenes, count * scenes) for name, (value, count) in found.parts.items()}
        weight = found.weight * scenes
        return found.total * weight, weight, parts

    def _data(self, network: FlowModel, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Modality -> (N, L, ch) of all objects, voxels encoded."""
        latents = {name: value for name, value in batch["latents"].items() if name in self.config.model.modalities}
        if self.config.has_vae:
            latents[SHAPE] = network.encode(batch["voxels"])
        missing = [name for name in self.config.model.modalities if name not in latents]
        if missing:
            raise DataError(f"scenes lack the modalities {missing}", remedy="name in model.modalities what they have")
        count = sum(batch["scene_sizes"])
        if wrong := condition_faults(batch["conditionals"], count, self.config.model.cond_channels):
            raise DataError(f"scenes {_named(batch['scene_id'])}: {'; '.join(wrong)}", remedy=CONDITION_REMEDY)
        return {name: latents[name] for name in self.config.model.modalities}

    def _terms(self, x1: Mapping[str, Tensor], draws: Any, batch: Mapping[str, Any], asked: Any) -> Any:
        sizes = batch["scene_sizes"]
        # With one scene the network may be asked for some of its objects alone, whose number it then takes as it is.
        keywords = {"scene_sizes": sizes} if len(sizes) > 1 else {}
        self.shortcut.loss_fn = scene_mean(sizes) if self.by_scene else nn.functional.mse_loss
        return self.shortcut.loss_terms(x1, draws, reverse_fn=asked, **batch["conditionals"], **keywords)

    def validation_key(self, index: int) -> Any:
        """Scenes of equally many objects go together; of latents each is alone, since their conditions need not fit."""
        return self.val_counts[index] if self.config.has_vae else index

    def validate(
        self, model: nn.Module, batch: Mapping[str, Any], context: ValidationContext
    ) -> Mapping[str, tuple[float, float]]:
        """The loss of both branches of the objective, each over all scenes, with random numbers of each scene's own."""
        found = model(self._measures, batch, context)
        count = float(len(batch["scene_sizes"]))
        return {name: (float(value) * count, count) for name, value in found.items()}

    def _measures(self, network: FlowModel, batch: Mapping[str, Any], context: ValidationContext) -> dict[str, Tensor]:
        self.guidance.eval()
        asked = self.guidance.around(network.velocity)
        sizes, x1 = batch["scene_sizes"], self._data(network, batch)
        kinds = {"val_loss": False}
        if self.config.objective.self_consistency_prob:
            kinds["val_self_consistency"] = True
        found = {}
        for name, consistent in kinds.items():
            generators = [context.rng(row) for row in range(len(sizes))]
            draws = scene_draws(self.shortcut, x1, sizes, generators, asked, self_consistent=consistent)
            found[name] = self._terms(x1, draws, batch, asked).total
        return found

    def shard_units(self) -> Sequence[nn.Module]:
        """Blocks of both branches."""
        branches = [
            getattr(self.flow, name) for name in ("sparse_flow", "global_sparse_flow") if hasattr(self.flow, name)
        ]
        return [block for branch in branches for block in branch.blocks]


def _named(scenes: Sequence[str]) -> str:
    return f"{', '.join(scenes[:MOST_NAMES])}{', ...' if len(scenes) > MOST_NAMES else ''}"


def build_task(config: SparseStructureConfig, stage: Stage, data: PreparedData) -> VaeTask | FlowTask:
    """The task of a stage over prepared data."""
    return FlowTask(config, stage, data) if has_sparse(stage) else VaeTask(config, stage, data)


def derive(task: Any, parents: Mapping[str, Parent]) -> None:
    """What starts fresh from the weights of parents."""
    if isinstance(task, FlowTask):
        task.derive(parents)


def begin(task: Any, workspace: Workspace) -> None:
    """What follows from loaded weights."""
    if isinstance(task, FlowTask):
        task.begin(workspace)
