"""The commented starter config: every section and key the preset states, with the sentence its field is documented by.

What the file says parses back to the same config; keys left to their defaults follow as comments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from stageline.config import ClusterConfig, RunConfig, canonical_json, key_of
from stageline.errors import ConfigError, StagelineError
from stageline.families import FAMILIES, family_config, parse_config, raw_preset

WIDTH = 100
CLUSTER = """\
# cluster:
#   image: registry.example.org/stageline/trainer@sha256:…
#   storage: {claim: stageline-data}
#   resources: {limits: {nvidia.com/gpu: 1}}
#   # every other key: `stageline schema`, or docs/config.md
"""
"""What stands for the section `cluster` where a preset states none of it: all its keys would be a third of the file."""


def starter_config(family: str | None, preset: str | None, data: Path | None) -> tuple[RunConfig, str, tuple[str, ...]]:
    """(config, where it comes from, what was found) of a starter: of a preset, or for a folder of one's own pictures.

    ConfigError for a family that is not named, and for one without picture folders: it names its guide.
    """
    if data is None:
        if family is None:
            raise ConfigError(
                f"no family given; there are {', '.join(FAMILIES)}",
                remedy="say --family NAME, or --data DIR of pictures",
            )
        preset = preset or "tiny"
        return parse_config(raw_preset(family, preset), where=f"preset {preset!r}"), f"preset {preset}", ()
    chosen = family_config(family or next(name for name in FAMILIES if family_config(name).propose))
    if chosen.propose is None:
        raise ConfigError(
            f"family {chosen.name!r} reads no folders of pictures",
            remedy=f"`stageline guide {chosen.name} DIR` lays out its guide, which says what its data are",
        )
    if preset is not None:
        raw_preset(chosen.name, preset)  # refuses one that does not exist
    found = chosen.propose(data, preset)
    return parse_config(dict(found.raw), where=f"config for {str(data)!r}"), f"for the pictures in {data}", found.told


def starter_yaml(config: RunConfig, origin: str) -> str:
    """Commented YAML of a config. origin: where it comes from, in words."""
    stated = json.loads(config.model_dump_json(exclude_unset=True, by_alias=True))
    lines = [
        f"# stageline config: family {config.family}, {origin}.",
        "# Keys behind `#` show the defaults. `stageline run -c FILE section.key=value` overrides what stands here.",
        "",
        *_section(config, {"family": config.family, **stated}, 0, type(config).SPELLINGS.second_names),
    ]
    text = "\n".join(lines).rstrip() + "\n"
    _check_round_trip(text, config)
    return text


def _section(
    section: BaseModel, stated: Mapping[str, Any], depth: int, left_out: frozenset[str], path: str = ""
) -> list[str]:
    """The lines of a section. left_out: dotted keys that are second names of others.  path: of the section, dotted."""
    pad = "  " * depth
    lines: list[str] = []
    for name, field in type(section).model_fields.items():
        key, value = key_of(name, field), getattr(section, name)
        if path + key in left_out:
            continue
        lines += [f"{pad}# {line}" for line in _wrap(field.description or "")]
        if isinstance(value, ClusterConfig) and key not in stated:
            lines += CLUSTER.splitlines()
        elif isinstance(value, BaseModel):
            own = stated.get(key)
            inside = _section(value, own if isinstance(own, Mapping) else {}, depth + 1, left_out, f"{path}{key}.")
            empty = not isinstance(own, Mapping) or not own
            lines += [f"{pad}{'# ' if empty else ''}{key}:", *(_commented(inside, pad) if empty else inside)]
        else:
            plain = json.loads(section.model_dump_json(by_alias=True, include={name}))[key]
            text = _inline(stated.get(key, plain))
            lines.append(f"{pad}{'' if key in stated else '# '}{key}: {text}")
        if depth == 0:
            lines.append("")
    return lines


def _commented(lines: list[str], pad: str) -> list[str]:
    """Lines of a section that is left to its defaults, all as comments."""
    result = []
    for line in lines:
        body = line[len(pad) :]
        result.append(f"{pad}# {body.replace('# ', '', 1) if body.lstrip().startswith('# ') else body}")
    return result


def _inline(value: Any) -> str:
    """A value on one line, as YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=100_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").rstrip()


def _wrap(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(" ".join(text.split()), WIDTH)


def _check_round_trip(text: str, config: RunConfig) -> None:
    from stageline.config import parse_yaml

    again = parse_config(parse_yaml(text, "starter config"), where="starter config")
    if canonical_json(again.model_dump(mode="json")) != canonical_json(config.model_dump(mode="json")):
        raise StagelineError("the starter config does not read back as the config it was made from")
