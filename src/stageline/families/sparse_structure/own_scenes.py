"""A user's own data set of scenes and own network as something the loop can train; `stageline.verbs.train.scenes` does.

The data set is a `SceneDataset` or a subclass that reads its scenes elsewhere; the network any module with
`forward(x_t, t, *conditions, d=None, **conditions)` over modalities. Each scene is a micro-batch by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stageline.contract import ParameterGroup, SampleKey
from stageline.families.sparse_structure.data.order import scene_order
from stageline.families.sparse_structure.data.scene_dataset import Scene, SceneDataset, scene_collate_fn
from stageline.families.sparse_structure.shortcut.shortcut import ShortCut
from stageline.layers.parameter_groups import group_parameters
from stageline.objectives.step import StageLoss, StepContext, ValidationContext
from stageline.stage import Stage

OWN_SCENES = Stage(
    "own_scenes", objective="ShortCut, whole scenes", trains=("*",), metric="val_loss", direction="min", epochs=100
)
"""What the loop is told of such a training; no run has this stage."""


class OwnNetwork(nn.Module):
    """A network below `reverse_fn`, called through one door."""

    def __init__(self, reverse_fn: nn.Module) -> None:
        super().__init__()
        self.reverse_fn = reverse_fn

    def forward(self, call: Callable[..., Any], *args: Any) -> Any:
        """`call(self, *args)`, inside of whatever wraps this module for ranks and precision."""
        return call(self, *args)


class OwnScenesTask:
    """See `stageline.contract.StageTask` for the promises.

    train_set, val_set: scenes.  reverse_fn: the network; what is frozen in it stays so.  shortcut: the objective.
    seed: of the order.  group: scenes of a step over all ranks.
    """

    def __init__(
        self,
        train_set: SceneDataset,
        val_set: SceneDataset,
        reverse_fn: nn.Module,
        shortcut: ShortCut,
        *,
        seed: int,
        group: int,
    ) -> None:
        self.train_set, self.val_set, self.shortcut = train_set, val_set, shortcut
        self.model: nn.Module = OwnNetwork(reverse_fn)
        self.trained = tuple(name for name, p in self.model.named_parameters() if p.requires_grad)
        self._seed, self._group, self._counts = seed, group, train_set.object_counts()

    def collate(self, samples: Sequence[Scene]) -> Scene:
        """The one scene of a micro-batch."""
        return scene_collate_fn(samples)

    def batch_items(self, epoch: int) -> Sequence[SampleKey] | None:
        """Scenes of about equally many objects together, in whole steps."""
        return [(epoch, scene) for scene in scene_order(self._counts, self._seed, epoch, self._group)]

    def loss(self, model: nn.Module, batch: Scene, context: StepContext) -> StageLoss:
        """ShortCut of one scene."""
        return StageLoss(*model(self._loss, batch, context))

    def _loss(self, network: OwnNetwork, batch: Scene, context: StepContext) -> tuple[Tensor, float, Any]:
        found = self.shortcut.step_loss(
            batch["latents"], context, reverse_fn=network.reverse_fn, **batch["conditionals"]
        ).stage_loss()
        return found.sum, found.weight, dict(found.parts)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """No weight decay on norms and biases."""
        return group_parameters(self.model)

    def set_train_mode(self, model: nn.Module) -> None:
        """Train mode; modules in which nothing trains are put into eval mode by the loop."""
        model.train()

    def advance(self, step: int, steps: int) -> None:
        """There are no schedules in the model."""

    def validation_key(self, index: int) -> Any:
        """Each scene is a batch."""
        return index

    def validate(self, model: nn.Module, batch: Scene, context: ValidationContext) -> Mapping[str, tuple[float, float]]:
        """The flow-matching loss of a scene, at times that are its own."""
        with torch.no_grad():
            return {"val_loss": (float(model(self._measure, batch, context.rng(0))), 1.0)}

    def _measure(self, network: OwnNetwork, batch: Scene, rng: torch.Generator) -> Tensor:
        x1, asked = batch["latents"], network.reverse_fn
        draws = self.shortcut.sample_draws(x1, rng=rng, reverse_fn=asked, self_consistent=False, guided=False)
        return self.shortcut.loss_terms(x1, draws, reverse_fn=asked, **batch["conditionals"]).total

    def shard_units(self) -> Sequence[nn.Module]:
        """None: nothing is known of the network's parts."""
        return ()

    def facts(self) -> dict[str, Any]:
        """There is no checkpoint to say something."""
        return {}
