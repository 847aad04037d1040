"""Config text to plain data: YAML files and dotted `section.key=value` overrides.

YAML is read as its version 1.2 reads it, where 1.1 surprises: `on`, `off`, `yes`, `no` and `2026-01-31` are texts,
`1e-4` is a number, `010` is ten, and a key stands once. Nothing here knows which keys exist.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from stageline.errors import ConfigError, Faults

STAGE_OVERRIDES = "stage_overrides"
"""The section that holds, per stage, what wins over the rest of the config."""
Spellings = Callable[[str], Iterable[str]]
"""Dotted key -> every key that means the same setting, itself among them."""

_TAG = "tag:yaml.org,2002:"
_OURS = {
    "bool": (re.compile(r"^(?:true|True|false|False)$"), "tTfF"),
    "int": (re.compile(r"^[-+]?[0-9]+$"), "-+0123456789"),
    "float": (
        re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$"),
        "-+0123456789.",
    ),
}
"""Plain words that are no texts, by the core schema of YAML 1.2 (10.3.2) without octal, hexadecimal, infinity, nan."""


class _Loader(yaml.SafeLoader):
    """Collects what is wrong with keys instead of stopping at the first."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.faults: list[str] = []


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) not in (*_OURS, "timestamp", "value")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, (_pattern, _first) in _OURS.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, list(_first))


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping whose keys are texts and stand once; `<<` merges are YAML's own and may be overridden."""
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag == _TAG + "merge":
            continue
        if key_node.tag != _TAG + "str":
            shown = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "made of several values"
            loader.faults.append(f"line {line}: the key {shown} is no text; put it in quotes")
        elif key_node.value in seen:
            first = seen[key_node.value]
            loader.faults.append(f"line {line}: the key {key_node.value!r} stands twice (first in line {first})")
        else:
            seen[key_node.value] = line
    if loader.faults:
        return {}
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


def _refuse_tag(loader: _Loader, node: yaml.Node) -> None:
    loader.faults.append(
        f"line {node.start_mark.line + 1}: {node.tag.removeprefix(_TAG)!r} is no kind of config value; "
        "expected texts, numbers, true/false, null, lists and mappings"
    )


_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag in {_TAG + kind for kind in ("null", "bool", "float", "seq", "str")}
}
_Loader.add_constructor(_TAG + "int", _construct_int)
_Loader.add_constructor(_TAG + "map", _construct_mapping)
_Loader.add_constructor(None, _refuse_tag)


class Dumper(yaml.SafeDumper):
    """Writes what `parse_yaml` reads back equal: also quotes texts that only YAML 1.2 takes for numbers (`1e4`)."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Equal lists are written out twice; an anchor in a config helps nobody."""
        return True


Dumper.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}


def _represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    """Texts with odd line breaks are written with escapes: PyYAML folds a lone NEL into a space."""
    return dumper.represent_scalar(_TAG + "str", text, style='"' if set(text) & set("\r\x85\u2028\u2029") else None)


Dumper.add_representer(str, _represent_text)
Dumper.add_implicit_resolver(_TAG + "float", _OURS["float"][0], list(_OURS["float"][1]))


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document. `where` names it in the error, which lists every bad key."""
    try:
        loader = _Loader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where} is not YAML: {error}", remedy="mend the file; `stageline init` writes a valid one"
        ) from error
    faults = Faults(ConfigError, where, "mend these lines; `stageline init` writes a valid config")
    faults.extend(loader.faults)
    faults.raise_if_any()
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping from a file."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"no config file at {str(path)!r}", remedy="`stageline init --family NAME --preset tiny` writes one"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}", remedy="give a readable UTF-8 YAML file") from error
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise ConfigError(
            f"{str(path)!r} holds {found}, expected a mapping of sections",
            remedy="`stageline init` writes a valid config",
        )
    return raw


def _own_spelling(key: str) -> tuple[str, ...]:
    return (key,)


def apply_overrides(
    raw: Mapping[str, Any], overrides: Iterable[str], spellings: Spellings = _own_spelling
) -> dict[str, Any]:
    """A copy of `raw` with `a.b=value` applied in order; the value is YAML (`[2, 3]`, `null`, `1e-4`, `text`).

    raw: a config as plain data.
    overrides: `a.b=value`, as on the command line. Such a key also takes the place of itself, and of what lies below
        it, in the `stage_overrides` of `raw`; an override of `stage_overrides.<stage>.…` itself wins over it.
    spellings: dotted key -> all keys that mean the same setting, itself among them.

    Every override that cannot be applied is listed in one ConfigError.
    """
    result: dict[str, Any] = copy.deepcopy(dict(raw))
    faults = Faults(ConfigError, "overrides", "write them as section.key=value")
    parsed = [found for override in overrides if (found := _parse_override(override, faults))]
    for key, _, _ in parsed:
        drop_stage_overrides(result, key, spellings)
    for key, value, override in parsed:
        clash = set_dotted(result, key, value)
        if clash:
            faults.add(f"{override!r}: {clash} is not a section")
    faults.raise_if_any()
    return result


def replaced_overrides(
    raw: Mapping[str, Any], overrides: Iterable[str], spellings: Spellings = _own_spelling
) -> list[str]:
    """The keys in the `stage_overrides` of `raw` that `apply_overrides` drops, as `stage_overrides.<stage>.<key>`.

    Arguments as of `apply_overrides`; overrides that cannot be applied replace nothing.
    """
    result = copy.deepcopy(dict(raw))
    ignored = Faults(ConfigError, "overrides", "")
    parsed = [found for override in overrides if (found := _parse_override(override, ignored))]
    return [name for key, _, _ in parsed for name in drop_stage_overrides(result, key, spellings)]


def _parse_override(override: str, faults: Faults) -> tuple[str, Any, str] | None:
    """(dotted key, value, override), or None with the fault noted."""
    key, sign, text = override.partition("=")
    key = key.strip()
    if not sign or not key or not all(key.split(".")):
        faults.add(f"{override!r} is not of the form section.key=value")
        return None
    try:
        return key, parse_yaml(text, f"override {override!r}"), override
    except ConfigError as error:
        faults.add(error.message)
        return None


def drop_stage_overrides(raw: dict[str, Any], key: str, spellings: Spellings = _own_spelling) -> list[str]:
    """Take a dotted key, and what lies below it, out of the `stage_overrides` of every stage, in place.

    raw: a config as plain data; overrides in it may be dotted, nested or both.
    key: as on the command line; `stage_overrides.…` itself takes nothing out.
    spellings: dotted key -> all keys that mean the same setting, itself among them.

    Returns what was taken out, as `stage_overrides.<stage>.<key>`.
    """
    stages = raw.get(STAGE_OVERRIDES)
    if not isinstance(stages, dict) or key.partition(".")[0] == STAGE_OVERRIDES:
        return []
    dropped: list[str] = []
    for stage in list(stages):
        own = stages[stage]
        if not isinstance(own, dict):
            continue
        found = [name for spelling in spellings(key) for name in _drop(own, spelling.split("."))]
        dropped += [f"{STAGE_OVERRIDES}.{stage}.{name}" for name in found]
        if found and not own:
            del stages[stage]
    if dropped and not stages:
        del raw[STAGE_OVERRIDES]
    return dropped


def _drop(node: dict[str, Any], path: list[str]) -> list[str]:
    """Take the key at a path, and what lies below it, out of a mapping whose keys may be dotted."""
    dropped: list[str] = []
    for key in list(node):
        parts = key.split(".")
        shared = min(len(parts), len(path))
        if parts[:shared] != path[:shared]:
            continue
        value = node[key]
        if len(parts) >= len(path):
            dropped.append(key)
            del node[key]
        elif isinstance(value, dict):
            inner = _drop(value, path[len(parts) :])
            dropped += [f"{key}.{name}" for name in inner]
            if inner and not value:
                del node[key]
    return dropped


def set_dotted(target: dict[str, Any], key: str, value: Any) -> str | None:
    """Set `target["a"]["b"]` for the key `a.b`; returns the part that is no mapping, if one is in the way.

    A section that is absent or null starts empty.
    """
    *path, last = key.split(".")
    node = target
    for depth, part in enumerate(path):
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            return ".".join(path[: depth + 1])
        node = child
    node[last] = value
    return None
