"""Values for what a config does not state: below everything a user says."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from stageline.config.document import set_dotted
from stageline.config.settings import RunConfig
from stageline.config.validation import alternatives, dotted_fields


def fill_in(raw: dict[str, Any], defaults: Mapping[str, Any], model: type[RunConfig]) -> None:
    """Set the defaults whose keys nothing states, in place.

    raw: a config as plain data.
    defaults: dotted key -> value; a mapping at the key of a section stands for the keys in it.
    model: the config's class; its `spellings` and the `ALTERNATIVES` of its sections say what else states a key.
    """
    stated = copy.deepcopy(raw)
    values = set(dotted_fields(model))

    def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping) and value and key not in values:
            for inner, item in value.items():
                yield from leaves(f"{key}.{inner}", item)
        else:
            yield key, value

    for name, default in defaults.items():
        for key, value in leaves(name, default):
            if any(_states(stated, spelling) for spelling in model.spellings(key)):
                continue
            if any(_value_at(stated, other) is not None for other in alternatives(model, key)):
                continue
            clash = set_dotted(raw, key, value)
            assert clash is None, f"default {key}: {clash} is no section"


def _states(raw: Mapping[str, Any], key: str) -> bool:
    """Whether a dotted key is there, or something else than a section above it."""
    node: Any = raw
    for part in key.split("."):
        if not isinstance(node, Mapping):
            return True
        if part not in node:
            return False
        node = node[part]
    return True


def _value_at(raw: Mapping[str, Any], key: str) -> Any:
    node: Any = raw
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
