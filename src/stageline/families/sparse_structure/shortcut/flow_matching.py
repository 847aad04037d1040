"""Flow matching over modalities: the training loss, and sampling by a fixed number of steps.

x_t = (1 - (1 - sigma) t) x_0 + t x_1 with Gaussian x_0, target x_1 - (1 - sigma) x_0 (arXiv:2210.02747, equations 22
and 23); times from a logit-normal (arXiv:2403.03206, section 3.1). The network is told thousandths of time. States are
one tensor or a mapping of modality -> (N, L, C), N objects; its random numbers are drawn in alphabetical order.
"""

from __future__ import annotations

import collections
import functools
import itertools
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.errors import ConfigError
from stageline.families.sparse_structure.shortcut.guidance import guidance_of
from stageline.objectives.flow import straight_path, straight_velocity
from stageline.objectives.solvers import FixedSolver, fixed_step
from stageline.objectives.states import State, map_state, tensors_of

_log = logging.getLogger(__name__)

SOLVERS: tuple[FixedSolver, ...] = tuple(name for name in get_args(FixedSolver) if name != "heun")
UNTRAINED_STEPS = 128
"""From this number of equal steps on, their size was never trained as an answer: sampling tells the network 0."""

LossFunction = Callable[[Tensor, Tensor], Tensor]


class TimeSampler(Protocol):
    """Draws training times."""

    def __call__(self, *, size: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Times in [0, 1] of this size, float32 on the generator's device."""


def lognorm_sampler(mean: float = 0.0, std: float = 1.0, **kwargs: Any) -> Tensor:
    """sigmoid(mean + std n), n standard normal (arXiv:2403.03206, section 3.1).

    mean, std: of the logit.  kwargs: `size` and `generator` of `torch.randn`.
    """
    return torch.sigmoid(torch.randn(**kwargs) * std + mean)


def window_sampler(
    low: float, high: float, share: float = 1.0, mean: float = 0.0, std: float = 1.0, **kwargs: Any
) -> Tensor:
    """Times of which a share is concentrated on a window, the others logit-normal.

    low, high: of the window, in [0, 1].  share: probability in [0, 1] of a uniform time inside of it.
    mean, std: of the others' logit.  kwargs: `size` and `generator` of `torch.rand`.
    """
    inside = torch.rand(**kwargs) < share
    uniform = low + (high - low) * torch.rand(**kwargs)
    return torch.where(inside, uniform, lognorm_sampler(mean, std, **kwargs))


class FlowMatching(nn.Module):
    """A flow from noise (t = 0) to data (t = 1), its training loss and its sampler.

    reverse_fn: the network, `(x_t, t, *conditions, **conditions) -> velocity` of x_t's structure, t in thousandths; a
        guidance wrapper around one. `loss` and `generate` take another at call time: a module wrapped for precision and
        sharding.
    sigma_min: spread around the data at t = 1, in [0, 1).
    inference_steps: of the sampler, at least 1.
    time_scale: what times (and steps) are multiplied by before the network sees them.
    training_time_sampler_fn: draws training times; None is the logit-normal with mean 0 and spread 1.
    reversed_timestamp: the sampler's times become 1 - t.
    rescale_t: r, the sampler's times become t / (1 + (r - 1)(1 - t)); 1 changes nothing.
    loss_fn: (prediction, target) -> mean; None is the mean squared error. One for all modalities, or one per modality.
    loss_weights: of the modalities' losses in their sum; likewise.
    solver_method: `euler`, `midpoint` or `rk4`.  solver_kwargs: none of them has any.
    seed_or_generator: source of random numbers where a call gives none. None: torch's and Python's global ones, in the
        order of facebookresearch/sam-3d-objects. A number: own ones, which that seed starts.
    """

    def __init__(
        self,
        reverse_fn: Callable[..., Any],
        sigma_min: float = 0.0,
        inference_steps: int = 100,
        time_scale: float = 1000.0,
        training_time_sampler_fn: TimeSampler | None = None,
        reversed_timestamp: bool = False,
        rescale_t: float = 1.0,
        loss_fn: LossFunction | Mapping[str, LossFunction] | None = None,
        loss_weights: float | Mapping[str, float] = 1.0,
        solver_method: FixedSolver = "euler",
        solver_kwargs: Mapping[str, Any] | None = None,
        seed_or_generator: int | torch.Generator | None = None,
    ) -> None:
        super().__init__()
        faults = []
        if solver_method not in SOLVERS:
            faults.append(f"solver_method {solver_method!r}: one of {', '.join(SOLVERS)}")
        if solver_kwargs:
            faults.append(f"solver_kwargs {sorted(solver_kwargs)}: no solver has any")
        if inference_steps < 1:
            faults.append(f"inference_steps {inference_steps!r}: at least 1")
        if not 0 <= sigma_min < 1:
            faults.append(f"sigma_min {sigma_min!r}: in [0, 1)")
        if not isinstance(seed_or_generator, int | torch.Generator | None):
            faults.append(f"seed_or_generator {seed_or_generator!r}: a number, a torch.Generator or None")
        faults += self._faults()
        if faults:
            raise ConfigError(f"{type(self).__name__} cannot be built: {'; '.join(faults)}", remedy="mend them")
        self.reverse_fn = reverse_fn
        self.sigma_min = sigma_min
        self.inference_steps = inference_steps
        self.time_scale = time_scale
        self.training_time_sampler_fn: TimeSampler = training_time_sampler_fn or lognorm_sampler
        self.reversed_timestamp = reversed_timestamp
        self.rescale_t = rescale_t
        self.loss_fn = loss_fn or functional.mse_loss
        self.loss_weights = loss_weights
        self.solver_method: FixedSolver = solver_method
        self._told: set[str] = set()
        self.random_generator = seed_or_generator

    def _faults(self) -> list[str]:
        """What is wrong with a subclass's own arguments, which it has set by then."""
        return []

    @property
    def random_generator(self) -> torch.Generator:
        """Where tensors of random numbers come from; another one may be set, an int seeds one."""
        return torch.default_generator if self._own_generator is None else self._own_generator

    @random_generator.setter
    def random_generator(self, source: int | torch.Generator | None) -> None:
        own = torch.Generator().manual_seed(source) if isinstance(source, int) else source
        # None, and not the global ones themselves: a copy of the model would have copies of them.
        self._own_generator = own
        self._own_coins = None if own is None else random.Random(own.initial_seed())  # noqa: S311

    def _coin(self) -> float:
        """The next uniform number in [0, 1)."""
        return (self._own_coins or random).random()

    def forward(self, x_shape: Any, x_device: Any, *conditions: Any, **keywords: Any) -> Any:
        """`generate`, as upstream; what trains is `loss`."""
        return self.generate(x_shape, x_device, *conditions, **keywords)

    # Training

    def loss(
        self, x1: State, *conditions: Any, reverse_fn: Callable[..., Any] | None = None, **keywords: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(total, details): the sum over modalities of weight x loss, and it detached, with each one's unweighted loss.

        x1: the data, (N, ...) per modality.  conditions, keywords: for the network.
        reverse_fn: the network of this call.
        """
        t = self.training_time_sampler_fn(size=(num_objects(x1),), generator=self.random_generator)
        x0 = self.draw_noise(x1)
        t = t.to(tensors_of(x1)[0].device)
        network = self.reverse_fn if reverse_fn is None else reverse_fn
        guidance = guidance_of(network)
        with nullcontext() if guidance is None else guidance.training_branch():  # in eval mode too it is one pass
            answer = network(self.path(x0, x1, t), t * self.time_scale, *conditions, **keywords)
        total, each = self.weighted_loss(answer, self.target(x0, x1))
        return total, {"flow_matching_loss": total.detach(), **{f"flow_matching/{m}": v for m, v in each.items()}}

    def path(self, x0: State, x1: State, t: Tensor) -> Any:
        """x_t at times t (N,)."""
        return map_state(lambda a, b: straight_path(a, b, t, self.sigma_min), x0, x1)

    def target(self, x0: State, x1: State) -> Any:
        """The velocity of the path."""
        return map_state(lambda a, b: straight_velocity(a, b, self.sigma_min), x0, x1)

    def weighted_loss(self, answer: State, target: State) -> tuple[Tensor, dict[str, Tensor]]:
        """(sum over modalities of weight x loss, with a graph; modality -> its loss without weight, detached).

        One tensor gives no entry of its own. KeyError where losses or weights per modality name other modalities.
        """
        if isinstance(target, Tensor) and isinstance(answer, Tensor):
            if isinstance(self.loss_fn, Mapping) or isinstance(self.loss_weights, Mapping):
                raise KeyError("loss_fn or loss_weights are given per modality, the data are one tensor: give one each")
            return self.loss_weights * self.loss_fn(answer, target), {}
        if isinstance(target, Tensor) or isinstance(answer, Tensor) or not set(target) <= set(answer):
            found, have = ("one tensor" if isinstance(state, Tensor) else sorted(state) for state in (answer, target))
            raise KeyError(f"the network answers {found}, the data have {have}: it must answer all of them")
        functions = _per_modality("loss_fn", self.loss_fn, target)
        weights = _per_modality("loss_weights", self.loss_weights, target)
        losses = {m: functions[m](answer[m], target[m]) for m in sorted(target)}
        total = functools.reduce(torch.add, [weights[m] * loss for m, loss in losses.items()])
        return total, {m: loss.detach() for m, loss in losses.items()}

    def draw_noise(self, like: State, rng: torch.Generator | None = None) -> Any:
        """Standard normal noise of the shape, kind and place of a state; drawn in float32 where the generator lies.

        rng: takes the place of the model's own.
        """
        source = rng or self.random_generator
        return map_state(lambda x: _normal(x.shape, source).to(x.device, x.dtype), like)

    # Sampling

    def generate(self, x_shape: Any, x_device: Any, *conditions: Any, **keywords: Any) -> Any:
        """Samples: the last state that `generate_iter` yields, with the same arguments."""
        states = (state for _, state, _ in self.generate_iter(x_shape, x_device, *conditions, **keywords))
        return collections.deque(states, maxlen=1).pop()

    def generate_iter(
        self,
        x_shape: Any,
        x_device: Any,
        *conditions: Any,
        reverse_fn: Callable[..., Any] | None = None,
        steps: int | None = None,
        noise: State | None = None,
        rng: torch.Generator | None = None,
        **keywords: Any,
    ) -> Iterator[tuple[float, Any, tuple[()]]]:
        """Yields (time at which the step began, state after it, ()) for each step; keeps no graph.

        x_shape: shape of the samples: (N, L, C), or modality -> shape.  x_device: where they are made.
        conditions, keywords: for the network.  reverse_fn: the network of this call.
        steps: takes the place of `inference_steps`.  noise: the state at t = 0, drawn where it is None.
        rng: takes the place of the model's own source.
        """
        steps = self.inference_steps if steps is None else steps
        if steps < 1:
            raise ConfigError(f"sampling in {steps} steps", remedy="at least 1 step")
        network = self.reverse_fn if reverse_fn is None else reverse_fn
        told = self._told_step(steps)
        device = torch.device(x_device)
        if noise is None:
            source = rng or self.random_generator
            shapes = _checked_shapes(x_shape)
            noise = {m: _normal(shapes[m], source) for m in sorted(shapes)}
            noise = noise if isinstance(x_shape, Mapping) else noise[""]
        state: State = map_state(lambda x: x.to(device), noise)

        def velocity(x: State, t: float) -> Any:
            with torch.no_grad():
                return network(x, self._scaled(t, device), *conditions, **told(device), **keywords)

        times = self.times(steps)
        for t, end in itertools.pairwise(times):
            with torch.no_grad():
                state = fixed_step(self.solver_method, velocity, state, t, end)
            yield t, state, ()

    def times(self, steps: int) -> list[float]:
        """The sampler's times, steps + 1 of them, in double precision."""
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        if self.rescale_t:
            t = t / (1 + (self.rescale_t - 1) * (1 - t))
        return [float(value) for value in (1 - t if self.reversed_timestamp else t)]

    def _told_step(self, steps: int) -> Callable[[torch.device], dict[str, Tensor]]:
        """What the network is told of the step's size, as keywords: plain flow matching tells nothing."""
        assert steps >= 1, "checked by the sampler"
        return lambda _device: {}

    def _scaled(self, value: float, device: torch.device) -> Tensor:
        return torch.tensor([value * self.time_scale], dtype=torch.float32, device=device)

    def _say_once(self, level: int, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            _log.log(level, sentence)


def num_objects(x: State) -> int:
    """N of a state; ConfigError where modalities differ."""
    counts = {tensor.shape[0] for tensor in tensors_of(x)}
    if len(counts) != 1:
        shapes = map_state(lambda tensor: tensor, x)
        found = ", ".join(f"{name} {shapes[name].shape[0]}" for name in shapes)
        raise ConfigError(
            f"modalities have different numbers of objects: {found}", remedy="give each of them all objects"
        )
    return counts.pop()


def _per_modality(name: str, value: Any, modalities: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(modalities, value)
    if set(value) != set(modalities):
        raise KeyError(
            f"{name} is given for {sorted(value)}, the data have {sorted(modalities)}: name exactly these, or give one "
            "value for all"
        )
    return value


def _checked_shapes(shape: Any) -> Mapping[str, tuple[int, ...]]:
    """Modality -> shape; one tensor's under the name ""."""
    shapes = shape if isinstance(shape, Mapping) else {"": shape}
    for name, sizes in shapes.items():
        if not isinstance(sizes, Sequence) or isinstance(sizes, str) or not all(isinstance(n, int) for n in sizes):
            where = f" of {name!r}" if name else ""
            raise ConfigError(f"the shape{where} is {sizes!r}", remedy="give (N, L, C), or modality -> (N, L, C)")
    return {name: tuple(sizes) for name, sizes in shapes.items()}


def _normal(shape: Sequence[int], source: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=source, device=source.device)
