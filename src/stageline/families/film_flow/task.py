"""Both stages of film_flow as the loop sees them: loss, parameter groups, schedules, validation.

`backbone` and `film` differ by their config alone (FiLM off, FiLM on). Losses are per-sample sums, so that a step may
be split into any micro-batches; all draws come from the context's generator, on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stageline.contract import ParameterGroup, SampleKey, Samples
from stageline.data.prepared import PreparedData
from stageline.families.film_flow import losses
from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.film_flow.data.preparation import is_per_crop
from stageline.families.film_flow.data.sets import Batch, FilmFlowData, Sample, open_data, window_condition
from stageline.families.film_flow.facts import facts
from stageline.families.film_flow.measures.modes import conditions_of
from stageline.families.film_flow.measures.validation import validate_batch
from stageline.families.film_flow.model.construction import build_model
from stageline.families.film_flow.sampling import junction_of_probability, read_prediction, training_sampling
from stageline.layers.parameter_groups import group_parameters
from stageline.objectives.flow import (
    binary_state,
    bridge_state,
    bridge_velocity,
    endpoint_of,
    sample_times,
    straight_path,
    straight_velocity,
)
from stageline.objectives.step import StageLoss, StepContext, ValidationContext
from stageline.stage import Stage

CLDICE_START = 0.25
"""Share of the training after which the soft centreline Dice counts: before, there is no centreline to speak of."""
PROBABILITY_EDGE = 1e-4
"""Velocity prediction: an endpoint outside [-1, 1] is cut to a probability this far from 0 and 1."""


class FilmFlowTask:
    """One stage of film_flow, built and ready; see `stageline.contract.StageTask` for the promises."""

    def __init__(self, config: FilmFlowConfig, stage: str, data: FilmFlowData) -> None:
        self.config = config
        self.stage = stage
        self.network = build_model(config)
        self.model: nn.Module = self.network
        self.train_set: Samples = data.train_set
        self.val_set: Samples = data.val_set
        self.epoch_samples = len(data.train_set)
        self.data = data
        self.features = data.features if is_per_crop(data.features.settings) else None
        whole = self.network.plan.stages and self.features is None
        self.conditions = conditions_of(data.val_set, data.source) if whole else None
        self.sampling = training_sampling(config)
        self.advance(0, 1)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples of one size -> a batch."""
        return self.data.collate(samples)

    def batch_items(self, epoch: int) -> Sequence[SampleKey] | None:
        """The loop's own order."""
        del epoch
        return None

    def set_train_mode(self, model: nn.Module) -> None:
        """Everything trains in both stages."""
        model.train()

    def shard_units(self) -> Sequence[nn.Module]:
        """Encoder levels, decoder stages, and the parts that are also called by themselves."""
        backbone = self.network.backbone
        alone = [part for part in (self.network.cond, self.network.junction) if part is not None]
        return [*backbone.enc.children(), *backbone.dec.children(), *alone]

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Weight decay on all weights but those of norms, biases, and the output layers of the FiLM heads."""
        return group_parameters(self.model, undecayed=("film.*.fc2.*",) if self.network.film else ())

    def advance(self, step: int, steps: int) -> None:
        """FiLM and gate strength of the step to come: 0 for the warm-up epochs, then linearly up to 1."""
        del steps
        model, gate = self.config.model, self.config.model.junction_gating_config
        self.network.schedule.set(
            film=self._strength(step, model.film_warmup_epochs, model.film_ramp_epochs),
            gate=self._strength(step, gate.warmup_epochs, gate.ramp_epochs),
        )

    def _strength(self, step: int, warmup_epochs: int, ramp_epochs: int) -> float:
        trainer = self.config.trainer
        per_step = trainer.batch_size * trainer.accumulate_grad_batches * trainer.world_size
        epoch = -(-self.epoch_samples // per_step)
        done = step - warmup_epochs * epoch
        if done < 0:
            return 0.0
        return min(1.0, done / (ramp_epochs * epoch)) if ramp_epochs else 1.0

    def facts(self) -> dict[str, Any]:
        """What the model itself says, over what its config says: the two must agree when a checkpoint is written."""
        plan, heads = self.network.plan, sorted(int(key) for key in self.network.film)
        return {
            **facts(self.config),
            "vlm_film_trained_stages": heads,
            "decoder_channels": list(plan.decoder_channels),
            "plan_fingerprint": plan.fingerprint if heads else "",
            "gate_stages": list(plan.gate_stages),
            "junction_head": self.network.junction is not None,
        }

    def validation_key(self, index: int) -> tuple[int, int]:
        """(H, W): a batch holds pictures of one size."""
        return self.data.val_set.size(index)

    def validate(self, model: nn.Module, batch: Batch, context: ValidationContext) -> Mapping[str, tuple[float, float]]:
        """Metrics of one batch through the one sampling path, whose noise is a function of seed and id."""
        condition = batch.condition if self.features is None else window_condition(batch, self.features)
        return validate_batch(
            self.config, self.network, model, batch, condition, self.sampling, self.conditions, context
        )

    def loss(self, model: nn.Module, batch: Batch, context: StepContext) -> StageLoss:
        """Flow loss, junction loss and their parts, each summed over the samples of the micro-batch."""
        x_t, t, x_0, x_1 = self._state(batch, context.rng)
        condition = self._drop(batch.condition, context.rng)
        gate = self._gate(model, x_t, t, batch)
        out = model(x_t, t, batch.image, condition, gate, full=True)
        terms = self._flow_terms(out.prediction, x_t, t, x_0, x_1, batch, context.progress)
        if out.junction_logits is not None:
            gating = self.config.model.junction_gating_config
            of_map = losses.junction_focal if gating.junction_loss == "focal" else losses.junction_bce_dice
            terms["junction"] = (gating.lambda_junction, of_map(out.junction_logits, batch.heat, batch.valid))
        total = torch.stack([weight * value.sum() for weight, value in terms.values()]).sum()
        count = float(len(batch.ids))
        return StageLoss(total, count, {name: (value.detach().sum(), count) for name, (_, value) in terms.items()})

    def _state(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x_t, t, x_0, x_1) of a micro-batch."""
        model, x_1 = self.config.model, batch.target
        device, shape = x_1.device, x_1.shape
        t = sample_times(shape[0], model.t_sampling, rng).to(device)
        if model.mode == "dfm_binary":
            x_0 = (torch.rand(shape, generator=rng) < 0.5).float().to(device)
            draw = torch.rand(shape, generator=rng).to(device)
            return binary_state(x_0, batch.mask, t, draw), t, x_0, batch.mask
        x_0 = torch.randn(shape, generator=rng).to(device)
        x_t = straight_path(x_0, x_1, t)
        if model.sigma > 0:
            x_t = bridge_state(x_t, t, model.sigma, torch.randn(shape, generator=rng).to(device))
        return x_t, t, x_0, x_1

    def _drop(self, condition: ConditionBundle | None, rng: torch.Generator) -> ConditionBundle | None:
        """The condition, absent for a random share of the samples."""
        if condition is None or not self.network.plan.stages:
            return None
        kept = torch.rand(condition.present.shape, generator=rng) >= self.config.model.cond_dropout
        return replace(condition, present=condition.present & kept.to(condition.present.device))

    def _gate(self, model: nn.Module, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor | None:
        """J where the gate does not read it from the head; `pred` asks the network once more, without gradient."""
        if self.sampling.junction in (None, "head"):
            return None
        if self.sampling.junction == "gt":
            return batch.heat
        with torch.no_grad():
            out = model(x_t, t, batch.image, batch.condition, torch.zeros_like(batch.heat)).float()
            answer = read_prediction(out, self.sampling.mode, self.sampling.prediction)
            if self.sampling.mode == "cfm_continuous":
                end = answer if self.sampling.prediction == "endpoint" else endpoint_of(x_t, answer, t)
                answer = ((end + 1) / 2).clamp(0, 1)
            return junction_of_probability(answer, self.sampling)

    def _flow_terms(
        self, out: Tensor, x_t: Tensor, t: Tensor, x_0: Tensor, x_1: Tensor, batch: Batch, progress: float
    ) -> dict[str, tuple[float, Tensor]]:
        """name -> (weight, loss per sample (B,)) of the flow."""
        model, out, valid = self.config.model, out.float(), batch.valid
        weight = 1 + model.junction_weight * batch.heat if model.junction_weight else None
        if model.mode == "cfm_continuous" and model.prediction == "velocity":
            u = bridge_velocity(x_0, x_1, x_t, t) if model.sigma > 0 else straight_velocity(x_0, x_1)
            terms = {"mse": (1.0, losses.pixel_mean((out - u) ** 2, losses.weigh(weight, valid)))}
            if model.lambda_auxiliary > 0:
                end = ((endpoint_of(x_t, out, t) + 1) / 2).clamp(PROBABILITY_EDGE, 1 - PROBABILITY_EDGE)
                found = losses.mask_loss(torch.logit(end), (x_1 + 1) / 2, model.loss, valid=valid)
                terms |= {f"auxiliary_{k}": (model.lambda_auxiliary, t * value) for k, value in found.items()}
            return terms
        target = x_1 if model.mode == "dfm_binary" else (x_1 + 1) / 2
        found = losses.mask_loss(out, target, model.loss, weight, valid)
        terms = {name: (1.0, value) for name, value in found.items()}
        if model.lambda_cldice > 0 and progress >= CLDICE_START:
            terms["cldice"] = (model.lambda_cldice, losses.soft_cldice(torch.sigmoid(out), batch.mask, valid))
        return terms


def build_task(config: FilmFlowConfig, stage: Stage, data: PreparedData) -> FilmFlowTask:
    """The task of a stage over prepared data. Raises DataError where they are of another config."""
    return FilmFlowTask(config, stage.name, open_data(config, data))
