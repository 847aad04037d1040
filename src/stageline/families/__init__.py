"""The model families: one folder each, one line in this table.

`family_config(name)` gives a family's torch-free half (config class, presets, stages, facts, inheritance);
`load_family(name)` its record, which loads torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stageline.config import RunConfig, Spellings, apply_overrides, nearest, read_yaml, validate
from stageline.errors import ConfigError
from stageline.stage import Inheritance, Stage, Stages

if TYPE_CHECKING:
    from stageline.families.door import Family

FAMILIES = {"film_flow": "stageline.families.film_flow"}

Comparison = Literal["equal", "report", "ablatable"]
"""How a fact of the family is compared by a verb: it must be equal; a difference is only reported; or the config may
ask for less than the file has (an ablation)."""


@dataclass(frozen=True)
class FamilyConfig:
    """The torch-free half of a family's record.

    config: its `RunConfig` subclass.  presets: name -> raw config, `tiny` among them.
    facts(config): what a checkpoint of a stage with this (stage) config says about itself, JSON values.
    fact_rules: fact -> how `resume`, `seed` and `evaluate` compare it, e.g. {"vlm_film_trained_stages":
        {"resume": "equal", "seed": "report", "evaluate": "ablatable"}}. A fact without a rule must be equal.
    inherit(parent_facts, config): what becomes of each section of a parent.
    asked(raw_config): the facts a user's own config *states* (absent keys are no statement), for evaluate.
    data_key(config): the part of the config that prepared data depend on (seed included where it matters).
    source_files(config): the files prepared data are read from, sorted; () for synthetic data.
    num_samples(config, prepared_facts): training samples of one epoch, for planning epochs; None where nobody can say.
    summary(config): lines about the model of a stage config, for people who look at a plan.
    name_facts(shapes): the facts that tensor names and shapes of a checkpoint prove; compared whenever one is admitted.
    agree(asked, facts, shapes, where): refuses, in the family's own words, an evaluation whose config states other
        facts than the checkpoint at `where` has; before the general comparison.
    """

    name: str
    config: type[RunConfig]
    stages: Stages
    presets: Mapping[str, Mapping[str, Any]]
    facts: Callable[[Any], dict[str, Any]]
    fact_rules: Mapping[str, Mapping[str, Comparison]]
    inherit: Callable[[Mapping[str, Any], Any], tuple[Inheritance, ...]]
    data_key: Callable[[Any], dict[str, Any]]
    source_files: Callable[[Any], tuple[Path, ...]]
    check: Callable[[Any, Stage], None]
    """Everything that can be refused about a stage's config before data or model are touched."""
    asked: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda _raw: {}
    num_samples: Callable[[Any, Mapping[str, Any]], int | None] = lambda _config, _facts: None
    summary: Callable[[Any], tuple[str, ...]] = lambda _config: ()
    name_facts: Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, Any]] | None = None
    agree: Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, tuple[int, ...]], str], None] = (
        lambda _asked, _facts, _shapes, _where: None
    )


def _module(name: str) -> str:
    if name not in FAMILIES:
        near = nearest(name, FAMILIES)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"there is no family {name!r}{hint}", remedy=f"families: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def family_config(name: str) -> FamilyConfig:
    """The torch-free half of a family."""
    record: FamilyConfig = import_module(f"{_module(name)}.config").FAMILY_CONFIG
    return record


def load_family(name: str) -> Family:
    """The family's record; loads torch."""
    record: Family = import_module(f"{_module(name)}.family").FAMILY
    return record


def raw_preset(family: str, preset: str) -> dict[str, Any]:
    """The raw config of a preset; ConfigError names the nearest for one that does not exist."""
    presets = family_config(family).presets
    if preset not in presets:
        near = nearest(preset, presets)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"{family} has no preset {preset!r}{hint}", remedy=f"presets: {', '.join(sorted(presets))}")
    return {"family": family, **copy.deepcopy(dict(presets[preset]))}


def spellings_of(raw: Mapping[str, Any]) -> Spellings:
    """How the family of a raw config spells its keys, for `apply_overrides` and `replaced_overrides`."""
    name = raw.get("family")
    config = family_config(name).config if isinstance(name, str) and name in FAMILIES else RunConfig
    return config.spellings


def parse_config(raw: Mapping[str, Any], overrides: Iterable[str] = (), where: str = "config") -> RunConfig:
    """Raw mapping + dotted overrides -> the family's typed config."""
    merged = apply_overrides(raw, overrides, spellings_of(raw))
    name = merged.get("family")
    if not isinstance(name, str):
        raise ConfigError(f"{where}: `family` is required", remedy=f"families: {', '.join(sorted(FAMILIES))}")
    return validate(merged, family_config(name).config, where)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """YAML file + dotted overrides -> the family's typed config."""
    return parse_config(read_yaml(path), overrides, str(path))
