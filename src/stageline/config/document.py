"""Config text to plain data: YAML files, and dotted keys of plain data.

YAML is read as its version 1.2 reads it, where 1.1 surprises: `on`, `off`, `yes`, `no` and `2026-01-31` are texts,
`1e-4` is a number, `010` is ten, and a key stands once. Nothing here knows which keys exist.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from stageline.config.bounds import MAX_YAML_BYTES, PARSER, TooLargeError, check_yaml
from stageline.errors import ConfigError, Faults

STAGE_OVERRIDES = "stage_overrides"
"""The section that holds, per stage, what wins over the rest of the config."""

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


class _Loader(PARSER):  # type: ignore[misc]
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
    found: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return found


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


class Dumper(yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper):  # type: ignore[misc]
    """Writes what `parse_yaml` reads back equal: also quotes texts that only YAML 1.2 takes for numbers (`1e4`)."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Equal lists are written out twice; an anchor in a config helps nobody."""
        return True


Dumper.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}


def _represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    """Texts with odd line breaks are written with escapes: PyYAML folds a lone NEL into a space."""
    odd = set(text) & set("\r\x85\u2028\u2029")
    node: yaml.ScalarNode = dumper.represent_scalar(_TAG + "str", text, style='"' if odd else None)
    return node


Dumper.add_representer(str, _represent_text)
Dumper.add_implicit_resolver(_TAG + "float", _OURS["float"][0], list(_OURS["float"][1]))


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document. `where` names it in the error, which lists every bad key."""
    try:
        value, wrong = _parsed(text)
    except TooLargeError as error:
        raise ConfigError(f"{where}: {error}", remedy="write a shorter config; long lists stand in files") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where} is not YAML: {error}", remedy="mend the file; `stageline init` writes a valid one"
        ) from error
    faults = Faults(ConfigError, where, "mend these lines; `stageline init` writes a valid config")
    faults.extend(wrong)
    faults.raise_if_any()
    return copy.deepcopy(value)


@lru_cache(maxsize=64)
def _parsed(text: str) -> tuple[Any, tuple[str, ...]]:
    """(the value, what is wrong with its keys). Kept: a plan reads the config of the same checkpoint several times."""
    check_yaml(text)
    loader = _Loader(text)
    try:
        value = loader.get_single_data()
    finally:
        loader.dispose()
    return value, tuple(loader.faults)


def compose_yaml(text: str) -> yaml.Node:
    """The nodes of a YAML document that `parse_yaml` takes: words as they are written, and which stand in quotes."""
    node = yaml.compose(text, Loader=_Loader)
    assert isinstance(node, yaml.Node)
    return node


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping from a file."""
    file = Path(path)
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_YAML_BYTES + 1)
        if len(data) > MAX_YAML_BYTES:
            raise ConfigError(
                f"{str(path)!r} has more than {MAX_YAML_BYTES} bytes (MAX_YAML_BYTES)", remedy="give a config file"
            )
        text = data.decode("utf-8")
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


def set_dotted(target: dict[str, Any], key: str, value: Any) -> str | None:
    """`set_path` for the key `a.b`."""
    return set_path(target, key.split("."), value)


def set_path(target: dict[str, Any], path: Sequence[str], value: Any) -> str | None:
    """Set `target["a"]["b"]` for the path a, b; returns the part that is no mapping, if one is in the way.

    A section that is absent or null starts empty.
    """
    node = target
    for depth, part in enumerate(path[:-1]):
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            return ".".join(path[: depth + 1])
        node = child
    node[path[-1]] = value
    return None
