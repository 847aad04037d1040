"""Stages as data: what trains, from which parents, with which objective, which part of the config it changes.

A family declares its stages once, statically; nothing here reads a file or loads torch. `stage_config` makes the
config one stage sees: the run's config, the stage's own patch, then the user's `stage_overrides`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stageline.config import C, RunConfig, fingerprint, flatten, nearest, semantic, set_dotted, validate
from stageline.errors import ConfigError, Faults

Outcome = Literal["load", "fresh", "drop", "external"]


@dataclass(frozen=True)
class Inheritance:
    """What becomes of one section of a parent's tensors, and why.

    load: copied. fresh: starts at its own initialisation. drop: in the parent, not wanted here.
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
class Stage:
    """One step of a family's training.

    name: lower-case word, part of paths and job names.
    trains: `fnmatch` patterns of parameter names; all others are frozen. A pattern that matches nothing is an error.
    objective: name of what is minimised, for people.
    steps: default number of optimizer steps; the config wins.
    parents: role -> stage. A role is `default` or one of the family's own words.
    optional_parents: roles without which the stage may start from scratch when that stage is not in the run.
    also_from: role -> further stages whose checkpoint `parents.<stage>.<role>` may name (fine-tuning from itself).
    patch: dotted config keys this stage changes.
    metric, direction: what "best" means, as declared by the stage's validation.
    parent_weights, parent_checkpoint: which weights of this stage feed the next one.
    """

    name: str
    trains: tuple[str, ...]
    objective: str
    steps: int
    metric: str
    direction: Literal["max", "min"] = "max"
    parents: Mapping[str, str] = field(default_factory=dict)
    optional_parents: frozenset[str] = frozenset()
    also_from: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    patch: Mapping[str, Any] = field(default_factory=dict)
    parent_weights: Literal["ema", "raw"] = "ema"
    parent_checkpoint: Literal["best", "last"] = "best"

    def accepted(self, role: str) -> tuple[str, ...]:
        """The stages a checkpoint in this role may be of."""
        return (self.parents[role], *self.also_from.get(role, ()))


class Stages:
    """The ordered stages of one family; parents come before their children."""

    def __init__(self, *stages: Stage) -> None:
        self._by_name = {stage.name: stage for stage in stages}
        seen: set[str] = set()
        for stage in stages:
            assert stage.name not in seen, f"stage {stage.name} is declared twice"
            assert set(stage.parents.values()) <= seen, f"stage {stage.name} stands before a parent"
            assert stage.optional_parents <= set(stage.parents)
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

    def selected(self, config: RunConfig) -> tuple[Stage, ...]:
        """The stages of this run, in the family's order; every fault of the keys that name stages at once."""
        faults = Faults(ConfigError, "stages", f"stages of {config.family}: {', '.join(self.names)}")
        wanted = self.names if config.stages is None else config.stages
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
            for role in roles:
                if name in self and role not in self[name].parents:
                    faults.add(f"parents.{name}: no role {role!r}; roles: {', '.join(self[name].parents) or 'none'}")
        for stage in self:
            if stage.name not in wanted:
                continue
            for role, parent in stage.parents.items():
                given = config.parents.get(stage.name, {}).get(role)
                if parent not in wanted and not given and role not in stage.optional_parents:
                    key = f"parents.{stage.name}.{role}"
                    faults.add(f"stages: {stage.name!r} needs {parent!r} before it, or {key}=<checkpoint>")
        faults.raise_if_any()
        return tuple(stage for stage in self if stage.name in wanted)


def stage_config(config: C, stage: Stage) -> C:
    """The config as this stage sees it: patch, then `stage_overrides`; validated again as a whole.

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
    return validate(raw, type(config), f"config of stage {stage.name}")


def num_steps(config: RunConfig, stage: Stage, num_samples: int | None = None) -> int | None:
    """Optimizer steps of a stage; None where epochs are given and the number of samples is not known yet.

    The last, incomplete group of an epoch is a step of its own.
    """
    trainer = config.trainer
    if trainer.max_steps is not None:
        return trainer.max_steps
    if trainer.max_epochs is None:
        return stage.steps
    if num_samples is None:
        return None
    per_step = trainer.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    return trainer.max_epochs * -(-num_samples // per_step)


def stage_settings(config: RunConfig) -> dict[str, Any]:
    """The part of a stage's config that can change its result, flat; evaluation does not belong to it."""
    plain = semantic(config)
    for key in ("stages", "stage_overrides", "parents", "evaluate"):
        plain.pop(key, None)
    return flatten(plain)


def stage_fingerprint(config: RunConfig, stage: Stage, data_digest: str, parents: Mapping[str, str]) -> str:
    """What a stage's result depends on. config: the stage's own. parents: role -> content of the checkpoint used."""
    return fingerprint(
        {"stage": stage.name, "settings": stage_settings(config), "data": data_digest, "parents": dict(parents)}
    )
