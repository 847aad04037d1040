"""The stages of panorama_vlm as the loop sees them: loss, parameter groups, features of the frozen tower, validation.

`vision` trains the tower's last blocks so that neighbouring views agree where they see the same (`vision_loss`).
`resampler` and `finetune` train on the response tokens of questions about panoramas; the loss is a sum over label
tokens, so that a step may be split into any micro-batches. Where the tower is frozen, its features are computed when a
picture is first used and kept below the root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stageline.contract import ParameterGroup, SampleKey, Samples, Workspace
from stageline.data.features import FeatureStore
from stageline.data.prepared import PreparedData
from stageline.families.panorama_vlm.data.sets import (
    Batch,
    Panoramas,
    Questions,
    collate_pictures,
    collate_samples,
    grouped_by_picture,
    open_pictures,
    open_questions,
)
from stageline.families.panorama_vlm.data.text import PromptBuilder, response_loss
from stageline.families.panorama_vlm.externals import trained_tower
from stageline.families.panorama_vlm.facts import facts
from stageline.families.panorama_vlm.features import (
    FeatureKeeper,
    batch_features,
    batch_tokens,
    cut_views,
    kept_format,
)
from stageline.families.panorama_vlm.model.assembly import (
    PanoramaModel,
    build_model,
    build_tokenizer,
    build_tower,
    load_tower,
)
from stageline.families.panorama_vlm.model.tower import block_names
from stageline.families.panorama_vlm.vision_loss import VisionLoss
from stageline.layers.parameter_groups import group_parameters
from stageline.objectives.step import StageLoss, StepContext, ValidationContext

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig
    from stageline.stage import Stage

UNDECAYED = ("*.A_log", "*.dt_bias", "*.D", "*queries*", "resampler.scale")
"""Weights without weight decay beside norms and biases."""


class PanoramaTask:
    """What both kinds of stages share; see `stageline.contract.StageTask` for the promises."""

    train_set: Samples
    val_set: Samples

    def __init__(self, config: PanoramaVlmConfig, stage: Stage) -> None:
        self.config = config
        self.stage = stage
        self.network = build_model(config, stage)
        self.model: nn.Module = self.network

    def batch_items(self, epoch: int) -> Sequence[SampleKey] | None:
        """The loop's own order."""
        del epoch
        return None

    def set_train_mode(self, model: nn.Module) -> None:
        """Train mode; modules in which nothing trains are put into eval mode by the loop."""
        model.train()

    def shard_units(self) -> Sequence[nn.Module]:
        """Blocks of the tower where it trains, and of the language model.

        Ranks need a frozen tower for different numbers of pictures, so it must not be gathered block by block.
        """
        modules = dict(self.network.vision.named_modules())
        units = [modules[name] for name in block_names(self.network.vision)] if trained_tower(self.config) else []
        if self.network.language is not None:
            units += list(self.network.language.model.layers)  # type: ignore[arg-type, union-attr]
        return units

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """No weight decay on norms, biases, queries and the scan; tower and resampler learn at rates of their own."""
        names = [name for name, _ in self.model.named_parameters()]
        factors = {pattern: factor for pattern, factor in self._factors().items() if _any(names, pattern)}
        return group_parameters(
            self.model, undecayed=[pattern for pattern in UNDECAYED if _any(names, pattern)], factors=factors
        )

    def _factors(self) -> dict[str, float]:
        model = self.config.model
        factors = {"vision.*": model.vision_learning_rate_scale}
        if self.stage.name == "finetune":
            factors |= {f"{part}.*": model.resampler_learning_rate_scale for part in ("resampler", "pe")}
        return {pattern: factor for pattern, factor in factors.items() if factor != 1.0}

    def advance(self, step: int, steps: int) -> None:
        """There are no schedules in the model."""

    def validation_key(self, index: int) -> Any:
        """All samples have the same views and tokens."""
        del index
        return 0

    def facts(self) -> dict[str, Any]:
        """What the model says of itself, over what its config says."""
        own: dict[str, Any] = {}
        if self.network.resampler is not None:
            own["image_tokens"] = self.network.resampler.num_tokens
        return {**facts(self.config, self.stage), **own}


def _any(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


class VisionTask(PanoramaTask):
    """Stage `vision`."""

    def __init__(self, config: PanoramaVlmConfig, stage: Stage, data: PreparedData) -> None:
        super().__init__(config, stage)
        self.train_set = Panoramas(open_pictures(data, "train"), config.vicreg.yaw_roll, config.seed)
        self.val_set = Panoramas(open_pictures(data, "val"))
        self.vision_loss = VisionLoss(config)

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Pictures -> one batch."""
        return collate_pictures(samples)

    def begin(self, workspace: Workspace) -> None:
        """Have the tower as its source has it, to measure how far training takes this one from it."""
        del workspace
        if self.config.vicreg.anchor_weight > 0:
            anchor = build_tower(self.config)
            load_tower(self.config, self.stage, anchor)
            self.vision_loss.set_anchor(anchor)

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StageLoss:
        """VICReg of matched tokens over all ranks, and the distance to the tower as it was."""
        total, parts = model(self.vision_loss.terms, batch, context)
        weight = float(len(batch))
        return StageLoss(
            total * weight, weight, {name: (value.detach() * weight, weight) for name, value in parts.items()}
        )

    def validate(self, model: nn.Module, batch: Batch, context: ValidationContext) -> Mapping[str, tuple[float, float]]:
        """The loss and its parts, and what the tokens are like."""
        found = model(self.vision_loss.measures, batch, context)
        count = float(len(batch))
        return {name: (float(value) * count, count) for name, value in found.items()}


class TextTask(PanoramaTask):
    """Stages `resampler` and `finetune`."""

    train_set: Questions
    val_set: Questions

    def __init__(self, config: PanoramaVlmConfig, stage: Stage, data: PreparedData) -> None:
        super().__init__(config, stage)
        assert self.network.resampler is not None
        self.builder = prompt_builder(config, stage, self.network)
        self.special = self.builder.special
        self.train_set = open_questions(data, "train", self.builder)
        self.val_set = open_questions(data, "val", self.builder)
        self.frozen_tower = not trained_tower(config)
        self.keeper: FeatureKeeper | None = None

    def batch_items(self, epoch: int) -> Sequence[SampleKey] | None:
        """Pictures at random, all questions about one together."""
        return grouped_by_picture(self.train_set.rows.numbers("picture"), self.config.seed, epoch)

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Samples -> one batch, each distinct picture once."""
        return collate_samples(samples, self.special.pad)

    def begin(self, workspace: Workspace) -> None:
        """Find features of the frozen tower where another stage or run left them; there must be room for the others."""
        if not (self.frozen_tower and self.config.runtime.cache_vision_features):
            return
        key = features_key(self.config, self.network.vision)
        store = FeatureStore.open(workspace.store, key, self.config.data.cache_bytes)
        self.keeper = FeatureKeeper(store)
        sets = [questions.pictures for questions in (self.train_set, self.val_set)]
        shape = (*self.network.token_dirs.shape[:2], self.config.model.vision.hidden_size)
        self.keeper.refuse_full(sets, shape, kept_format(next(self.network.parameters()).device))
        for pictures in sets:
            pictures.features = store

    def set_train_mode(self, model: nn.Module) -> None:
        """Train mode; what validation computed of the frozen tower before it is kept now."""
        super().set_train_mode(model)
        if self.keeper is not None:
            self.keeper.write()

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StageLoss:
        """Cross-entropy of the response tokens, summed."""
        del context
        total, count = model(self._response_loss, batch)
        return StageLoss(total, float(count), {"cross_entropy": (total.detach(), float(count))})

    def _response_loss(self, network: PanoramaModel, batch: Batch) -> tuple[Tensor, int]:
        assert batch.text is not None
        if self.frozen_tower:
            features = batch_features(self.config, network, batch.pictures, keeper=self.keeper)
        else:
            features = network.encode(cut_views(self.config, batch.pictures))
        tokens = batch_tokens(network, batch.pictures, features)[batch.rows]
        hidden = network.hidden(tokens, batch.text, self.special.image)
        return response_loss(hidden, network.lm_head, batch.text.labels)

    def validate(self, model: nn.Module, batch: Batch, context: ValidationContext) -> Mapping[str, tuple[float, float]]:
        """Mean cross-entropy per response token."""
        del context
        total, count = model(self._response_loss, batch)
        return {"val_loss": (float(total), float(count))}


def features_key(config: PanoramaVlmConfig, vision: nn.Module) -> dict[str, Any]:
    """What features of a frozen tower depend on beside the picture: its weights, the views, how they are cut."""
    return {
        "family": config.family,
        "owner": weights_digest(vision),
        "plan": config.image_processing.plan.plan_id,
        "tile_size": config.tile_size,
        "antialias": config.image_processing.antialias,
    }


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's tensors, names and number formats; the same weights from any checkpoint give it.

    A collective where the tensors are sharded.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        digest.update(whole.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def prompt_builder(config: PanoramaVlmConfig, stage: Stage, network: PanoramaModel) -> PromptBuilder:
    """What makes prompts for a model: as many image tokens as its resampler gives."""
    assert network.resampler is not None
    text = config.text
    return PromptBuilder(
        build_tokenizer(config, stage),
        network.resampler.num_tokens,
        max_text_length=text.max_text_length,
        min_response_tokens=text.min_response_tokens,
        system=text.system,
    )


def build_task(config: PanoramaVlmConfig, stage: Stage, data: PreparedData) -> VisionTask | TextTask:
    """The task of a stage over prepared data."""
    return VisionTask(config, stage, data) if stage.name == "vision" else TextTask(config, stage, data)


def begin(task: Any, workspace: Workspace) -> None:
    """What is derived from loaded weights: an anchor, or features."""
    task.begin(workspace)
