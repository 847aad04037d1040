"""The one way from image and condition to a probability map: validation, evaluation and prediction use nothing else.

Noise is a function of (seed, image id, member), drawn once at the picture's full size, so that a result depends neither
on batch mates nor on windows. Condition and junction map are computed once per image. Legend: B images of C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stageline.errors import ConfigError
from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.film_flow.data.junctions import find_junctions, junction_heat
from stageline.families.film_flow.data.windows import Padding, Window, blend_weight, cover
from stageline.families.film_flow.facts import film_plan
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.objectives.guidance import guided_by_scale
from stageline.objectives.solvers import Prediction as Predicts
from stageline.objectives.solvers import Solution, Solver, integrate, sample_binary
from stageline.objectives.step import seeded

Forward = Callable[..., Tensor]
"""The network's forward pass; a wrapped module inside training, the module itself elsewhere."""
WindowCondition = Callable[[Window], ConditionBundle]
"""The condition of one window, where `vlm_scope` is `crop`."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a prediction is made.

    steps: K.  ensemble: members, each from noise of its own.  guidance: w of off + w (on - off).  window: side of the
    sliding window, None predicts at once.  film_active: an ablation, None for all decoder stages.  divisor: what sides
    of a picture are padded to.  crop: side of a training crop, which smaller pictures are padded to.
    junction: where J comes from (`head`, `pred`, `gt`), None without a gate.
    """

    seed: int
    mode: str = "cfm_continuous"
    prediction: Predicts = "endpoint"
    solver: Solver = "euler"
    steps: int = 4
    ensemble: int = 1
    guidance: float = 1.0
    window: int | None = None
    overlap: float = 0.25
    divisor: int = 8
    crop: int = 1
    eps: float = 1e-6
    film_active: tuple[int, ...] | None = None
    junction: str | None = None
    junction_threshold: float = 0.5
    degree_threshold: int = 3
    radius_px: float = 8.0


@dataclass(frozen=True)
class Probability:
    """mean: (B, 1, H, W) in [0, 1].  std: over the members, None for one.  junction: J (B, 1, H, W), None without.
    nfe: network evaluations that every image cost (the junction head is none)."""

    mean: Tensor
    std: Tensor | None
    junction: Tensor | None
    nfe: int


def training_sampling(config: FilmFlowConfig) -> Sampling:
    """How validation inside training predicts: the `model` section alone."""
    model, gate = config.model, config.model.junction_gating_config
    return Sampling(
        seed=config.seed,
        mode=model.mode,
        prediction=model.prediction,
        solver=model.solver,
        steps=model.timesteps,
        ensemble=model.num_ensemble,
        window=model.image_size if model.use_sliding_infer else None,
        overlap=config.evaluate.window_overlap,
        divisor=2 ** (len(model.channel_mult) - 1),
        crop=model.image_size,
        eps=model.dfm_eps,
        junction=gate.source if gate.enabled and film_plan(config).gate_stages else None,
        junction_threshold=gate.threshold,
        degree_threshold=gate.degree_threshold,
        radius_px=gate.radius_px,
    )


def evaluation_sampling(config: FilmFlowConfig) -> Sampling:
    """How `evaluate` and `predict` predict: as in training, but for what the `evaluate` section says otherwise."""
    same, asked = training_sampling(config), config.evaluate
    return replace(
        same,
        steps=asked.k or same.steps,
        solver=asked.solver or same.solver,
        ensemble=asked.ensemble or same.ensemble,
        guidance=asked.guidance,
        film_active=asked.film_active,
    )


def switch_off(condition: ConditionBundle) -> ConditionBundle:
    """The same condition, absent for every sample: FiLM changes exactly nothing."""
    return replace(condition, present=torch.zeros_like(condition.present))


def move(condition: ConditionBundle, device: torch.device) -> ConditionBundle:
    """The condition on another device."""
    return replace(condition, vec=condition.vec.to(device), present=condition.present.to(device))


def take(condition: ConditionBundle, index: Sequence[int]) -> ConditionBundle:
    """The condition of some of its samples, in the order of `index`."""
    rows = torch.tensor(list(index), device=condition.vec.device)
    return replace(condition, vec=condition.vec[rows], present=condition.present[rows])


def padding_of(image: Tensor, sampling: Sampling) -> Padding:
    """How pictures (..., H, W) are padded before the network sees them."""
    return Padding(image.shape[-2], image.shape[-1], sampling.divisor, max(sampling.crop, sampling.window or 1))


@torch.no_grad()
def head_junctions(model: FilmFlowModel, image: Tensor, sampling: Sampling) -> Tensor:
    """What the junction head finds in whole pictures (B, C, H, W) of any size: J (B, 1, H, W) in [0, 1]."""
    padding = padding_of(image, sampling)
    return padding.cut(model.junction_map(padding.grow(image)))


@torch.no_grad()
def predict_probability(
    model: FilmFlowModel,
    image: Tensor,
    condition: ConditionBundle | WindowCondition | None,
    ids: Sequence[str],
    sampling: Sampling,
    *,
    forward: Forward | None = None,
    heat: Tensor | None = None,
) -> Probability:
    """The probability that each pixel belongs to the mask.

    image: (B, C, H, W) in [-1, 1], any H and W.  condition: of the whole images, or a function of the window; None is
    FiLM off.  ids: (B,) names that the noise depends on.  forward: the wrapped model inside training.
    heat: (B, 1, H, W) true junction map, needed for `junction: gt` only.
    """
    padding = padding_of(image, sampling)
    pass_ = _Pass(model, forward or model, padding.grow(image), condition, tuple(ids), sampling)
    junction = None
    if sampling.junction is not None and condition is not None:
        junction = pass_.junction(None if heat is None else padding.grow(heat))
    members = padding.cut(torch.stack([pass_.member(number, junction) for number in range(sampling.ensemble)]))
    return Probability(
        mean=members.mean(dim=0),
        std=members.std(dim=0, correction=0) if sampling.ensemble > 1 else None,
        junction=None if junction is None else padding.cut(junction),
        nfe=pass_.nfe,
    )


class _Pass:
    """One call of `predict_probability`: what its parts share, and how often the network was asked."""

    def __init__(
        self,
        model: FilmFlowModel,
        forward: Forward,
        image: Tensor,
        condition: ConditionBundle | WindowCondition | None,
        ids: tuple[str, ...],
        sampling: Sampling,
    ) -> None:
        self.model, self.forward, self.image = model, forward, image
        self.condition, self.ids, self.sampling = condition, ids, sampling
        self.windows = cover(image.shape[-2], image.shape[-1], sampling.window, sampling.overlap)
        self.nfe = 0

    def junction(self, heat: Tensor | None) -> Tensor:
        """J of the whole images (B, 1, H, W), from the source that `sampling` names."""
        source = self.sampling.junction
        if source == "head":
            return self.model.junction_map(self.image)
        if source == "gt":
            if heat is None:
                raise ConfigError(
                    "junction_gating_config.source 'gt' needs the true junction map, which pictures without a label "
                    "have not",
                    remedy="evaluate on labelled data with evaluate.oracle=true, or train with source: head",
                )
            return heat.float()
        ungated = torch.zeros_like(self.image[:, :1])
        return junction_of_probability(self.member(0, ungated), self.sampling)

    def member(self, number: int, junction: Tensor | None) -> Tensor:
        """The probability (B, 1, H, W) from one noise field, blended over the windows."""
        fields = _NoiseFields(self.sampling.seed, self.ids, number, tuple(self.image.shape[-2:]), self.sampling)
        if len(self.windows) == 1:
            return self._window(self.windows[0], fields, junction)
        total = torch.zeros_like(self.image[:, :1])
        weights = torch.zeros_like(total[:1])
        for window in self.windows:
            weight = blend_weight(window).to(total)
            window.cut(total).add_(weight * self._window(window, fields, junction))
            window.cut(weights).add_(weight)
        return total / weights

    def _window(self, window: Window, fields: _NoiseFields, junction: Tensor | None) -> Tensor:
        image, batch = window.cut(self.image), len(self.ids)
        condition = self.condition(window) if callable(self.condition) else self.condition
        condition = None if condition is None else move(condition, image.device)
        gate = None if junction is None else window.cut(junction)
        if self.sampling.solver != "dopri5":
            return self._solve(image, condition, gate, fields, window, range(batch))
        # Its steps follow the error of the whole batch: alone, a sample's result does not depend on its mates.
        before, costs, parts = self.nfe, [], []
        for row in range(batch):
            self.nfe = before
            rows = slice(row, row + 1)
            own = None if condition is None else take(condition, [row])
            parts.append(
                self._solve(image[rows], own, None if gate is None else gate[rows], fields, window, range(row, row + 1))
            )
            costs.append(self.nfe)
        self.nfe = max(costs)
        return torch.cat(parts)

    def _solve(
        self,
        image: Tensor,
        condition: ConditionBundle | None,
        gate: Tensor | None,
        fields: _NoiseFields,
        window: Window,
        rows: range,
    ) -> Tensor:
        s = self.sampling

        def field(step: int) -> Tensor:
            return window.cut(fields[step])[rows.start : rows.stop].to(image.device)

        def network(x: Tensor, t: Tensor) -> Tensor:
            return self._guided(x, t, image, condition, gate)

        if s.mode == "dfm_binary":
            solution = sample_binary(
                lambda x, t: network(x, t).clamp(0, 1),
                (field(0) < 0.5).float(),
                steps=s.steps,
                draw=lambda k: field(k + 1),
                eps=s.eps,
            )
            return solution.last
        solution = integrate(network, field(0), steps=s.steps, solver=s.solver, prediction=s.prediction)
        return _to_probability(solution, s.prediction)

    def _guided(
        self, x: Tensor, t: Tensor, image: Tensor, condition: ConditionBundle | None, gate: Tensor | None
    ) -> Tensor:
        w = self.sampling.guidance
        if condition is None or w == 1.0:
            return self._ask(x, t, image, condition, gate)
        off = self._ask(x, t, image, switch_off(condition), gate)
        return off if w == 0.0 else guided_by_scale(self._ask(x, t, image, condition, gate), off, w)

    def _ask(
        self, x: Tensor, t: Tensor, image: Tensor, condition: ConditionBundle | None, gate: Tensor | None
    ) -> Tensor:
        """One evaluation: a velocity, an endpoint in [-1, 1], or (dfm_binary) a probability."""
        self.nfe += 1
        out = self.forward(x, t, image, condition, gate, film_active=self.sampling.film_active).float()
        return read_prediction(out, self.sampling.mode, self.sampling.prediction)


class _NoiseFields(Mapping[int, Tensor]):
    """Noise of one member: field 0 is the start, the others are the draws of dfm_binary's steps; (B, 1, H, W) each.

    Fields of one image come from one generator in order, so that image's numbers depend on nothing else.
    """

    def __init__(self, seed: int, ids: Sequence[str], member: int, size: tuple[int, ...], sampling: Sampling) -> None:
        self._count = 1 + (sampling.steps if sampling.mode == "dfm_binary" else 0)
        draw = torch.rand if sampling.mode == "dfm_binary" else torch.randn
        shape = (self._count, 1, *size)
        self._fields = torch.stack([draw(shape, generator=seeded("noise", seed, name, member)) for name in ids], dim=1)

    def __getitem__(self, step: int) -> Tensor:
        return self._fields[step]

    def __iter__(self) -> Any:
        return iter(range(self._count))

    def __len__(self) -> int:
        return self._count


def read_prediction(out: Tensor, mode: str, prediction: Predicts) -> Tensor:
    """What the network's output means: a probability (dfm_binary), an endpoint in [-1, 1], or a velocity."""
    if mode == "dfm_binary":
        return torch.sigmoid(out)
    return 2 * torch.sigmoid(out) - 1 if prediction == "endpoint" else out


def _to_probability(solution: Solution, prediction: Predicts) -> Tensor:
    """The last endpoint estimate, or (velocity) the last state, in [-1, 1] -> [0, 1]."""
    end = solution.last if prediction == "endpoint" else solution.x
    return ((end + 1) / 2).clamp(0, 1)


def junction_of_probability(probability: Tensor, sampling: Sampling) -> Tensor:
    """J of a predicted map (B, 1, H, W): threshold, skeleton, nodes, and heat around them; not differentiable."""
    maps = []
    for mask in (probability[:, 0] > sampling.junction_threshold).cpu().numpy():
        nodes = find_junctions(mask, degree_threshold=sampling.degree_threshold)
        maps.append(torch.from_numpy(junction_heat(nodes.points, nodes.radii, mask.shape, sampling.radius_px)))
    return torch.stack(maps)[:, None].to(probability.device)
