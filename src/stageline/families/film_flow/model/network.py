"""The film_flow network: backbone, FiLM heads keyed by decoder stage, condition projection, junction head and gate.

Tensor names: `backbone.*`, `film.{s}.{norm,fc1,fc2}.*`, `cond.*`, `junction.*`, and the buffers
`schedule.film_strength`, `schedule.gate_strength`, which the loop advances and every checkpoint holds. The plan is
fixed at construction; tensors of another plan cannot be loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from stageline.errors import CheckpointError, ConfigError
from stageline.families.film_flow.conditions.bundle import ConditionBundle, bundle_from_protocol
from stageline.families.film_flow.config.film_plan import FilmPlan
from stageline.families.film_flow.imports.evidence import describe_heads, head_widths_of
from stageline.families.film_flow.model.dual import DualUNet
from stageline.families.film_flow.model.film import (
    ConditionProjection,
    FilmLimit,
    Interp,
    Modulation,
    SiteDiagnostics,
    diagnose,
    gate_map,
    make_heads,
    modulate,
)
from stageline.families.film_flow.model.junction_head import JunctionHead
from stageline.families.film_flow.model.unet import BackboneSettings, ConcatUNet


class FlowOutput(NamedTuple):
    """prediction: (B, 1, H, W).  junction_logits: (B, 1, H, W) where the junction head ran.  diagnostics: per decoder
    stage, empty unless asked for."""

    prediction: Tensor
    junction_logits: Tensor | None
    diagnostics: dict[int, SiteDiagnostics]


class Strengths(nn.Module):
    """Multipliers of FiLM and gate in [0, 1]; buffers, so that validation and evaluation see what training saw."""

    film_strength: Tensor
    gate_strength: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("film_strength", torch.ones(()))
        self.register_buffer("gate_strength", torch.ones(()))

    def set(self, *, film: float | None = None, gate: float | None = None) -> None:
        """Set one or both, in place. Raises ConfigError outside [0, 1]."""
        for name, value in (("film_strength", film), ("gate_strength", gate)):
            if value is None:
                continue
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} is {value!r}, expected a number in [0, 1]")
            getattr(self, name).fill_(value)


class FilmFlowModel(nn.Module):
    """x_t, t, image, condition, junction map -> prediction (logits of the mask, or a velocity).

    plan: decoder stages and everything that must agree about them.  settings: the backbone's.
    image_conditioning: `concat` or `dual`.  cond_features: F, size of the frozen features; needed where the plan has
    decoder stages.  cond_hidden: inner width of the `probe` projection.  film_limit: soft bounds of the heads.
    cond_layernorm: whether a head normalises the condition.  require_condition: a call without one is an error.
    junction_channels: width of the junction head, 0 for none.  detach_gate: no gradient from the flow loss into it.
    gate_interp: how the junction map is made smaller.
    Raises ConfigError where plan and settings contradict each other.
    """

    def __init__(
        self,
        plan: FilmPlan,
        settings: BackboneSettings,
        *,
        image_conditioning: Literal["concat", "dual"] = "concat",
        cond_features: int = 0,
        cond_hidden: int = 256,
        film_limit: FilmLimit | None = None,
        cond_layernorm: bool = True,
        require_condition: bool = False,
        junction_channels: int = 0,
        detach_gate: bool = True,
        gate_interp: Interp = "maxpool",
    ) -> None:
        super().__init__()
        _check_plan(plan, settings, image_conditioning, cond_features)
        self._plan = plan
        self.plan_fingerprint = plan.fingerprint
        self.settings = settings
        self.film_limit = film_limit or FilmLimit()
        self.require_condition = require_condition
        self.detach_gate = detach_gate
        self.gate_interp: Interp = gate_interp
        self.backbone = (ConcatUNet if image_conditioning == "concat" else DualUNet)(settings, plan.apply_point)
        self.film = make_heads(plan, layernorm=cond_layernorm)
        self.cond = (
            ConditionProjection(cond_features, plan.cond_dim, plan.cond_source, cond_hidden) if plan.stages else None
        )
        self.junction = JunctionHead(settings.image_channels, junction_channels) if junction_channels else None
        self.schedule = Strengths()
        _check_heads(self)

    @property
    def plan(self) -> FilmPlan:
        """The FiLM plan; fixed for the life of the model."""
        return self._plan

    @overload
    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        image: Tensor,
        condition: ConditionBundle | Mapping[str, Any] | None = ...,
        junction: Tensor | None = ...,
        *,
        film_active: Sequence[int] | None = ...,
        full: Literal[False] = ...,
        diagnostics: bool = ...,
    ) -> Tensor: ...
    @overload
    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        image: Tensor,
        condition: ConditionBundle | Mapping[str, Any] | None = ...,
        junction: Tensor | None = ...,
        *,
        film_active: Sequence[int] | None = ...,
        full: Literal[True],
        diagnostics: bool = ...,
    ) -> FlowOutput: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        image: Tensor,
        condition: ConditionBundle | Mapping[str, Any] | None = None,
        junction: Tensor | None = None,
        *,
        film_active: Sequence[int] | None = None,
        full: bool = False,
        diagnostics: bool = False,
    ) -> Tensor | FlowOutput:
        """One evaluation of the network.

        x_t: (B, 1, H, W) state.  t: (B,) in [0, 1], 0 is noise.  image: (B, C_img, H, W) in [-1, 1].  condition: None
        is FiLM off.  junction: (B, 1, h, w) in [0, 1]; None runs the junction head where the gate needs it.
        film_active: the decoder stages of the plan that are applied, None for all (an ablation).
        full: give a FlowOutput, with junction logits where there is a head.  diagnostics: fill it (only with `full`).
        Raises ConfigError E_NO_CONDITION, E_PLAN_MISMATCH, E_RANGE (film_active), E_NO_JUNCTION, E_SIZE.
        """
        active = self._active(film_active)
        bundle = self._accept(condition)
        logits = None
        gated = bundle is not None and any(s in self._plan.gate_stages for s in active)
        if self.junction is not None and (full or (gated and junction is None)):
            logits = self.junction(image)
        if gated and junction is None:
            if logits is None:
                raise ConfigError(
                    f"FiLM is gated at decoder stages {list(self._plan.gate_stages)}, but no junction map was given "
                    "and the model has no junction head",
                    remedy="use junction_gating_config.source: head, or pass the map (evaluate.oracle=true for gt)",
                    code="E_NO_JUNCTION",
                )
            junction = torch.sigmoid(logits.float())
            junction = junction.detach() if self.detach_gate else junction
        modulations = {} if bundle is None else self._modulate(bundle, active, junction, x_t)
        prediction, changes = self.backbone(x_t, t, image, modulations, diagnostics)
        if not full:
            out: Tensor = prediction
            return out
        return FlowOutput(prediction, logits, diagnose(modulations, changes) if diagnostics else {})

    def junction_map(self, image: Tensor) -> Tensor:
        """J of an image (B, 1, H, W) in [0, 1], for reuse over steps and windows. Needs the junction head."""
        if self.junction is None:
            raise ConfigError("this model has no junction head", code="E_NO_JUNCTION")
        return torch.sigmoid(self.junction(image).float())

    def _active(self, film_active: Sequence[int] | None) -> tuple[int, ...]:
        if film_active is None:
            return self._plan.stages
        foreign = [s for s in film_active if s not in self._plan.stages]
        if foreign:
            raise ConfigError(
                f"film_active {list(film_active)} names {foreign}, but the model has heads for decoder stages "
                f"{list(self._plan.stages)} only: no trained head exists there",
                remedy="name a subset of the trained decoder stages",
                code="E_RANGE",
            )
        return tuple(s for s in self._plan.stages if s in film_active)

    def _accept(self, condition: ConditionBundle | Mapping[str, Any] | None) -> ConditionBundle | None:
        """The condition as a bundle that was made for this model, or None where FiLM is not to be applied."""
        if not self._plan.stages:
            return None
        if condition is None:
            if self.require_condition:
                raise ConfigError(
                    f"FiLM is selected at decoder stages {list(self._plan.stages)} but no condition was given",
                    remedy="give a ConditionBundle (present=False for samples without one), or set "
                    "model.require_condition: false",
                    code="E_NO_CONDITION",
                )
            return None
        if isinstance(condition, Mapping):
            condition = bundle_from_protocol(condition, self._plan.stages)
        if condition.plan_fingerprint and condition.plan_fingerprint != self.plan_fingerprint:
            raise ConfigError(
                f"condition was prepared for the FiLM plan {condition.plan_fingerprint} but the model has "
                f"{self.plan_fingerprint}",
                remedy="encode the condition with this model's plan",
                code="E_PLAN_MISMATCH",
            )
        return condition

    def _modulate(
        self, bundle: ConditionBundle, active: Sequence[int], junction: Tensor | None, x_t: Tensor
    ) -> dict[int, Modulation]:
        """What each active decoder stage applies; in float32 whatever autocast says."""
        if bundle.vec.shape[-1] != (self.cond.features if self.cond is not None else 0) or self.cond is None:
            raise ConfigError(
                f"condition features have size {bundle.vec.shape[-1]}, the model was built for "
                f"{self.cond.features if self.cond is not None else 0}",
                remedy="use the encoder the model was trained with",
                code="E_PLAN_MISMATCH",
            )
        result = {}
        with torch.autocast(x_t.device.type, enabled=False):
            present = bundle.present
            cond = self.cond(torch.where(present[:, None], bundle.vec, 0.0).to(self.schedule.film_strength.dtype))
            for s in active:
                gate = None
                if junction is not None and s in self._plan.gate_stages:
                    shift = self._plan.n_stages - 1 - s
                    height, width = x_t.shape[-2] >> shift, x_t.shape[-1] >> shift
                    value, strength = self._plan.gate_value, self.schedule.gate_strength
                    gate = gate_map(junction.float(), strength, value, height, width, self.gate_interp)
                head = self.film[str(s)]
                result[s] = modulate(head, cond, present, self.schedule.film_strength, self.film_limit, gate)
        return result

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load tensors of this very plan; every name and shape must fit.

        Raises CheckpointError: E_CFG_VS_CKPT where the heads in `state_dict` are others, and for any other difference.
        """
        found = head_widths_of({name: tuple(tensor.shape) for name, tensor in state_dict.items()})
        if found != self._plan.head_widths:
            raise CheckpointError(
                f"the model applies FiLM at decoder stages {list(self._plan.stages)} but the tensors were trained with "
                f"{sorted(found)} (heads: {describe_heads(found)})",
                remedy="build the model from the checkpoint's own plan",
                code="E_CFG_VS_CKPT",
            )
        if not strict:
            raise CheckpointError(
                "tensors of this model are loaded strictly or not at all",
                remedy="to start a stage from another checkpoint, name it as the stage's parent",
            )
        try:
            return super().load_state_dict(state_dict, strict=True, assign=assign)
        except RuntimeError as error:
            raise CheckpointError(f"the tensors do not fit the model: {error}") from error


def _check_plan(plan: FilmPlan, settings: BackboneSettings, image_conditioning: str, cond_features: int) -> None:
    channels = tuple(reversed(settings.dims[1:]))
    if plan.decoder_channels != channels:
        raise ConfigError(
            f"the FiLM plan is for decoder channels {list(plan.decoder_channels)}, the backbone has {list(channels)}",
            remedy="make the plan from the same model_channels and channel_mult",
            code="E_PLAN_MISMATCH",
        )
    if plan.stages and cond_features < 1:
        raise ConfigError(
            f"FiLM at decoder stages {list(plan.stages)} needs the size of the condition features, "
            f"found {cond_features!r}",
            remedy="set model.vlm_film_config.feature_dim to the encoder's size",
        )
    if settings.backbone_variant == "msd_v0" and image_conditioning != "dual":
        raise ConfigError("backbone_variant 'msd_v0' exists for image_conditioning 'dual' only")


def _check_heads(model: FilmFlowModel) -> None:
    """Heads and plan are one thing; this can fail only by a fault of ours."""
    shapes = {f"film.{name}": tuple(p.shape) for name, p in model.film.named_parameters()}
    assert head_widths_of(shapes) == model.plan.head_widths, (shapes, model.plan)
