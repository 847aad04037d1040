"""Stages as data: what trains, from which parents, with which objective, which part of the config it changes.

A family declares its stages once, statically; nothing here reads a file or loads torch. `stage_config` makes the
config one stage sees, weakest first: the stage's defaults, the run's config (preset and file, then the command line),
the stage's patch, the user's `stage_overrides`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

from stageline.config import (
    C,
    RunConfig,
    fill_in,
    fingerprint,
    flatten,
    nearest,
    once_counted,
    semantic,
    set_dotted,
    validate,
)
from stageline.errors import ConfigError, Faults

Outcome = Literal["load", "load or external", "fresh", "drop", "external"]
LossOver = Literal["any", "ranks", "none"]
"""Over what a loss may be split: micro-batches and ranks, ranks alone, or nothing."""
FROM_SCRATCH = "none"
"""What `parents.<stage>.<role>` says to start an optional role from scratch."""


@dataclass(frozen=True)
class Inheritance:
    """What becomes of one section of a parent's tensors, and why.

    load: copied. load or external: copied where the parent holds it, else read from the stage's external, as the
    parent itself did. fresh: starts at its own initialisation. drop: in the parent, not wanted here.
    external: weights that are not ours, read from their own source.
    patterns: `fnmatch` patterns of the tensor names that belong to the section.
    """

    section: str
    outcome: Outcome
    reason: str
    patterns: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "outcome": self.outcome,
            "reason": self.reason,
            "patterns": list(self.patterns),
        }


@dataclass(frozen=True)
class Trains:
    """Which parameters a stage trains; all others are frozen.

    include: `fnmatch` patterns of parameter names, case counts.
    exclude: patterns of names that stay frozen although `include` matches them.
    """

    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()

    def matches(self, name: str) -> bool:
        """Whether the parameter of this name trains."""
        return any(fnmatchcase(name, pattern) for pattern in self.include) and not any(
            fnmatchcase(name, pattern) for pattern in self.exclude
        )


@dataclass(frozen=True)
class Stage:
    """One step of a family's training.

    name: lower-case word, part of paths and job names.
    objective: name of what is minimised, for people.
    metric, direction: what "best" means, as declared by the stage's validation.
    trains: `fnmatch` patterns of parameter names; all others are frozen. A pattern that matches nothing is an error.
        Empty where the family says it by config.
    matrices: `fnmatch` patterns of weights between hidden layers; the matrices among those that train are what
        `trainer.optimizer: muon` is for. Embeddings and output heads do not belong to them.
    steps: default number of optimizer steps, >= 1; the config wins.
    epochs: default number of passes over the training data, >= 1, instead of `steps`.
    parents: role -> stage. A role is `default` or one of the family's own words.
    optional_parents: roles without which the stage may start from scratch when that stage is not in the run.
    also_from: role -> further stages whose checkpoint `parents.<stage>.<role>` may name (fine-tuning from itself).
    named_parents: further roles -> the stages whose checkpoint `parents.<stage>.<role>` may name, itself among them. No
        stage of the run fills them: where nobody names one, the stage starts without it.
    defaults: dotted config keys and their values where the user's config does not state them.
    patch: dotted config keys this stage changes, whatever the user's config says; `stage_overrides` alone win over it.
    opt_in: trained only where `stages` names it.
    loss_over: over what its loss may be split: `any` (ranks and micro-batches), `ranks` (each rank returns its share of
        a loss over all of them; incomplete groups of an epoch are dropped), `none`.
    parent_weights, parent_checkpoint: which weights of this stage feed the next one.
    not_evaluated: why its checkpoints cannot be evaluated, a sentence without a full stop; "" where they can.
    """

    name: str
    _: KW_ONLY
    objective: str
    metric: str
    direction: Literal["max", "min"] = "max"
    trains: tuple[str, ...] = ()
    matrices: tuple[str, ...] = ()
    steps: int | None = None
    epochs: int | None = None
    parents: Mapping[str, str] = field(default_factory=dict)
    optional_parents: frozenset[str] = frozenset()
    also_from: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    named_parents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    patch: Mapping[str, Any] = field(default_factory=dict)
    opt_in: bool = False
    loss_over: LossOver = "any"
    parent_weights: Literal["ema", "raw"] = "ema"
    parent_checkpoint: Literal["best", "last"] = "best"
    not_evaluated: str = ""

    def __post_init__(self) -> None:
        lengths = [length for length in (self.steps, self.epochs) if length is not None]
        assert len(lengths) == 1, f"stage {self.name}: give exactly one of steps and epochs"
        assert lengths[0] >= 1, f"stage {self.name} has no step"
        assert self.optional_parents <= set(self.parents), f"stage {self.name}: an optional parent is no role"
        assert set(self.also_from) <= set(self.parents), f"stage {self.name}: also_from names what is no role"
        assert not set(self.named_parents) & set(self.parents), f"stage {self.name}: a role is declared twice"

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role in which it takes a parent."""
        return (*self.parents, *self.named_parents)

    def accepted(self, role: str) -> tuple[str, ...]:
        """The stages a checkpoint in this role may be of."""
        if role in self.named_parents:
            return self.named_parents[role]
        return (self.parents[role], *self.also_from.get(role, ()))


@dataclass(frozen=True)
class Branch:
    """Another run of a family's pipeline, beside the main one and compared with it.

    settings: `key=value` words over the main run's config.
    shares: stages that are the main run's alone; those that follow them start from there.
    """

    settings: tuple[str, ...]
    shares: tuple[str, ...] = ()


class Stages:
    """The ordered stages of one family; parents come before their children."""

    def __init__(self, *stages: Stage) -> None:
        self._by_name = {stage.name: stage for stage in stages}
        seen: set[str] = set()
        for stage in stages:
            assert stage.name not in seen, f"stage {stage.name} is declared twice"
            assert set(stage.parents.values()) <= seen, f"stage {stage.name} stands before a parent"
            for role, parent in stage.parents.items():
                named = not self._by_name[parent].opt_in or stage.opt_in or role in stage.optional_parents
                assert named, f"stage {stage.name} needs {parent}, which is trained only where it is named"
            seen.add(stage.name)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self._by_name.values())

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def __getitem__(self, name: str) -> Stage:
        if name not in self._by_name:
            near = nearest(name, self.names)
            hint = f"; did you mean {near!r}?" if near else ""
            raise ConfigError(
                f"there is no stage {name!r}{hint}", remedy=f"stages of this family: {', '.join(self.names)}"
            )
        return self._by_name[name]

    def selected(self, config: RunConfig, default: Collection[str] | None = None) -> tuple[Stage, ...]:
        """The stages of this run, in the family's order; every fault of the keys that name stages at once.

        config: the run's; its `stages`, and the stages and roles its other keys name.
        default: names of the stages that `stages: null` means; None means all that are not opt-in.

        Whether a parent that is not selected can be had, only the store knows: the decision about each stage says it.
        """
        faults = Faults(ConfigError, "stages", f"stages of {config.family}: {', '.join(self.names)}")
        if default is None:
            default = [stage.name for stage in self if not stage.opt_in]
        assert set(default) <= set(self.names), f"no stages of this family: {sorted(set(default) - set(self.names))}"
        wanted = tuple(default) if config.stages is None else config.stages
        for key, names in (
            ("stages", wanted),
            ("stage_overrides", config.stage_overrides),
            ("parents", config.parents),
        ):
            for name in names:
                if name not in self:
                    near = nearest(name, self.names)
                    faults.add(f"{key}: no stage {name!r}" + (f"; did you mean {near!r}?" if near else ""))
        if not wanted:
            faults.add("stages: an empty list trains nothing; leave it out to train all")
        if len(set(wanted)) != len(wanted):
            faults.add(f"stages: {list(wanted)} names a stage twice")
        for name, roles in config.parents.items():
            for role, given in roles.items():
                if name not in self:
                    continue
                stage, key = self[name], f"parents.{name}.{role}"
                if role not in stage.roles:
                    faults.add(f"parents.{name}: no role {role!r}; roles: {', '.join(stage.roles) or 'none'}")
                elif given == FROM_SCRATCH and role in set(stage.parents) - stage.optional_parents:
                    faults.add(
                        f"{key}: {FROM_SCRATCH}, but {name!r} cannot start from scratch; name a checkpoint of "
                        f"{' or '.join(map(repr, stage.accepted(role)))}"
                    )
        faults.raise_if_any()
        return tuple(stage for stage in self if stage.name in wanted)


MAX_CONFIGS = 32
_CONFIGS: dict[tuple[int, int], tuple[RunConfig, Stage, RunConfig]] = {}
"""Ids of a config and a stage -> both, and the config at that stage; of the newest MAX_CONFIGS."""


def stage_config(config: C, stage: Stage) -> C:
    """The config as this stage sees it: `stage_raw`, validated again as a whole.

    A decision asks for it a dozen times; both are frozen, so that what was made of the same two is given again.
    """
    key = id(config), id(stage)
    known = _CONFIGS.get(key)
    if known is None:
        made = validate(stage_raw(config, stage), type(config), f"config of stage {stage.name}")
        known = _CONFIGS[key] = (config, stage, made)  # held, so that no other object takes their ids
        for oldest in list(_CONFIGS)[:-MAX_CONFIGS]:
            _CONFIGS.pop(oldest, None)
    return cast("C", known[2])


def stage_raw(config: RunConfig, stage: Stage, *, with_defaults: bool = True) -> dict[str, Any]:
    """What the config states for a stage, as plain data: patch, then `stage_overrides`, on top of the run's config.

    config: the run's.
    stage: one of its family.
    with_defaults: also the stage's `defaults`, where nothing else states their key or its alternative
        (`Settings.ALTERNATIVES`). Without them it is what the user says, for comparison with a checkpoint.

    An override may be spelled `{film: {trainer.max_steps: 9}}` or nested, as `stage_overrides.film.trainer.max_steps=9`
    on the command line gives it; both change that key and leave its neighbours alone.
    """
    raw: dict[str, Any] = json.loads(config.model_dump_json(exclude_unset=True, by_alias=True))
    overrides = flatten(raw.pop("stage_overrides", {}).get(stage.name, {}))
    faults = Faults(ConfigError, f"stage_overrides.{stage.name}", "write them as section.key: value")
    for key, value in [*stage.patch.items(), *overrides.items()]:
        if not all(key.split(".")):
            faults.add(f"{key!r} is no dotted key")
            continue
        clash = set_dotted(raw, key, value)
        if clash:
            faults.add(f"{key}: {clash} is not a section")
    faults.raise_if_any()
    if with_defaults:
        fill_in(raw, stage.defaults, type(config))
    return raw


def num_epochs(config: RunConfig, stage: Stage) -> int | None:
    """Passes over the training data, or None where the length of the stage is given in steps. config: the stage's."""
    if config.trainer.max_steps is not None:
        return None
    return config.trainer.max_epochs if config.trainer.max_epochs is not None else stage.epochs


def num_steps(config: RunConfig, stage: Stage, num_samples: int | None = None) -> int | None:
    """Optimizer steps of a stage; None where epochs are given and the number of samples is not known yet.

    config: the stage's.
    num_samples: of one epoch, >= 0.

    The last, incomplete group of an epoch is a step of its own; a loss over ranks drops it.
    """
    trainer, epochs = config.trainer, num_epochs(config, stage)
    if epochs is None:
        return trainer.max_steps if trainer.max_steps is not None else stage.steps
    if num_samples is None:
        return None
    per_step = trainer.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    whole, rest = divmod(num_samples, per_step)
    return epochs * (whole + (rest > 0 and stage.loss_over != "ranks"))


def stage_settings(config: RunConfig) -> dict[str, Any]:
    """The part of a stage's config that can change its result, flat; evaluation does not belong to it."""
    plain = semantic(config)
    for key in ("stages", "stage_overrides", "parents", "evaluate"):
        plain.pop(key, None)
    return {key: value for key, value in flatten(plain).items() if key not in type(config).OF_EVALUATION}


def stage_fingerprint(
    config: RunConfig,
    stage: Stage,
    data: str,
    parents: Mapping[str, str],
    externals: Mapping[str, str] | None = None,
    code: Mapping[str, str] | None = None,
    former: Mapping[str, Any] | None = None,
) -> str:
    """What a stage's result depends on.

    config: the stage's own.
    data: one text for the inputs of the splits that it reads.
    parents: role -> content of the checkpoint used.
    externals: weights of others -> digest.
    code: the user's own files -> SHA-256; without these two the fingerprint is what it was before there were some.
    former: dotted key -> value of settings that the first release counted; None takes their defaults.
    """
    settings = stage_settings(config) | once_counted(config) | dict(former or {})
    plain = {"stage": stage.name, "settings": settings, "data": data, "parents": dict(parents)}
    plain |= {"externals": dict(externals)} if externals else {}
    return fingerprint(plain | ({"code": sorted(code.values())} if code else {}))
