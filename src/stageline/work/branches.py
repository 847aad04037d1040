"""The config of a branch: another run of the same pipeline, beside the main one and compared with it. No torch.

A branch is declared by the family (`stage.Branch`). Pipeline steps, driver and submission work its config out from the
main run's, each by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stageline.config import RunConfig, semantic
from stageline.errors import ConfigError
from stageline.families import family_config, parse_config

BETWEEN = "__"
"""Between the name of the main run and the branch's, where the family does not name the run."""


def branch_config(config: RunConfig, name: str, shared: Mapping[str, str]) -> RunConfig:
    """The config of a branch.

    config: the main run's.  name: of the branch.
    shared: stage that both have in common -> reference of what the main run hands on of it, "" for nothing.

    ConfigError for a branch that the family has not, one that changes nothing, and one that trains nothing.
    """
    family = family_config(config.family)
    if name not in family.branches:
        known = ", ".join(family.branches) or "none"
        raise ConfigError(f"{config.family} has no branch {name!r}", remedy=f"its branches: {known}")
    branch = family.branches[name]
    stages = [stage for stage in family.selected(config) if stage.name not in branch.shares]
    if not stages:
        raise ConfigError(
            f"branch {name!r} of run {config.run!r} has nothing to train: it shares {', '.join(branch.shares)}",
            remedy="select further stages",
        )
    raw: dict[str, Any] = json.loads(config.model_dump_json(exclude_unset=True, by_alias=True))
    raw |= {"family": config.family, "root": config.root, "stages": [stage.name for stage in stages]}
    for stage in stages:
        for role, source in stage.parents.items():
            named = raw.setdefault("parents", {}).setdefault(stage.name, {})
            if shared.get(source) and not named.get(role):
                named[role] = shared[source]
    raw["parents"] = {stage: roles for stage, roles in raw.get("parents", {}).items() if roles}
    where = f"branch {name} of the config"
    made = parse_config({**raw, "run": f"{config.run}{BETWEEN}{name}"}, branch.settings, where)
    if _settings(made) == _settings(config):
        raise ConfigError(
            f"branch {name!r} changes nothing: run {config.run!r} has {', '.join(branch.settings)} already",
            remedy="run the pipeline without the branch, or change the config",
        )
    if family.run_name is not None and family.run_name(config) == config.run:
        own = family.run_name(made)
        return made if own == config.run else made.model_copy(update={"run": own})
    return made


def _settings(config: RunConfig) -> dict[str, Any]:
    """What can differ between a run and its branch and matters."""
    return {key: value for key, value in semantic(config).items() if key not in ("stages", "parents")}
