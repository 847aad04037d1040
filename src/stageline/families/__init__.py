"""The model families: one folder each, one line in this table.

`family_config(name)` gives a family's torch-free half (config class, presets, stages, facts, inheritance);
`load_family(name)` its record, which may load torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stageline.config import (
    RunConfig,
    apply_overrides,
    nearest,
    read_yaml,
    replaced_overrides,
    validate,
)
from stageline.contract import StepRate, Words
from stageline.errors import ConfigError

if TYPE_CHECKING:
    from stageline.contract import Family, FamilyConfig

FAMILIES = {
    "film_flow": "stageline.families.film_flow",
    "panorama_vlm": "stageline.families.panorama_vlm",
    "sparse_structure": "stageline.families.sparse_structure",
}

STEP_RATES: Mapping[tuple[str, str], StepRate] = {
    ("film_flow", "cpu"): StepRate(0.0, 5.2e-7, 7e6, "one thread of a server's CPU"),
    ("film_flow", "cuda"): StepRate(0.039, 2.6e-9, 3.4e7, "an NVIDIA H200"),
    ("panorama_vlm", "cpu"): StepRate(0.0, 8.7e-11, 4.5e8, "one thread of a server's CPU"),
}
"""(family, kind of device as torch calls it) -> what a training step took there: what a plan expects of a first run.
`benchmarks/bench_step_rates.py` prints the entries of the device that it runs on; what nobody measured has none, nor
has what no rate fits (panorama_vlm on a GPU waits for launches: 0.2 to 1.8 times what was measured)."""


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
    """The family's record; may load torch."""
    record: Family = import_module(f"{_module(name)}.family").FAMILY
    return record


def deferred(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is loaded when it is first called: a process loads what it does, and no more."""

    def call(*given: Any, **named: Any) -> Any:
        return getattr(import_module(module), name)(*given, **named)

    return call


def family_words(name: object) -> Words:
    """How a family names things; no words for one that this copy does not know."""
    return family_config(name).words if isinstance(name, str) and name in FAMILIES else Words()


def raw_preset(family: str, preset: str) -> dict[str, Any]:
    """The raw config of a preset; ConfigError names the nearest for one that does not exist."""
    presets = family_config(family).presets
    if preset not in presets:
        near = nearest(preset, presets)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"{family} has no preset {preset!r}{hint}", remedy=f"presets: {', '.join(sorted(presets))}")
    return {"family": family, **copy.deepcopy(dict(presets[preset]))}


def config_class(raw: Mapping[str, Any]) -> type[RunConfig]:
    """The class of a raw config; what every family has, where it names none that this copy knows."""
    name = raw.get("family")
    return family_config(name).config if isinstance(name, str) and name in FAMILIES else RunConfig


def at_home(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a raw config with its keys under our own names, so that what is set there later takes their place."""
    return config_class(raw).SPELLINGS.at_home(raw)


def with_overrides(raw: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of a raw config with `a.b=value` applied, whichever names of the keys either uses."""
    return apply_overrides(raw, overrides, config_class(raw))


def overrides_replaced(raw: Mapping[str, Any], overrides: Iterable[str]) -> list[str]:
    """The other keys of a raw config whose place `a.b=value` takes, and words that are given again later."""
    return replaced_overrides(raw, overrides, config_class(raw))


def parse_config(raw: Mapping[str, Any], overrides: Iterable[str] = (), where: str = "config") -> RunConfig:
    """Raw mapping + dotted overrides -> the family's typed config, its run named.

    raw: a config as plain data.
    overrides: `a.b=value`, as on the command line.
    where: what an error calls the config.

    Where nothing says `run`, the family's `run_name` does; with the rest of the config it is stated from then on.
    """
    merged = with_overrides(raw, overrides)
    name = merged.get("family")
    if not isinstance(name, str):
        raise ConfigError(f"{where}: `family` is required", remedy=f"families: {', '.join(sorted(FAMILIES))}")
    family = family_config(name)
    config = validate(merged, family.config, where)
    if "run" in merged or family.run_name is None:
        return config
    return validate({**merged, "run": family.run_name(config)}, family.config, where)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """YAML file + dotted overrides -> the family's typed config."""
    return parse_config(read_yaml(path), overrides, str(path))
