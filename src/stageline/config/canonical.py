"""Settings to one canonical text and its SHA-256: fingerprints, identity, and the YAML written beside a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stageline.config.document import Dumper
from stageline.config.fields import is_added, is_operational, key_of
from stageline.config.settings import RunConfig


def semantic(config: BaseModel) -> dict[str, Any]:
    """The config as plain JSON data without its operational fields: what fingerprints are made of.

    A section may let a property stand for a field (`Settings.IN_FINGERPRINTS`): `trainer.processes` holds the ranks of
    all nodes here, so that two pods of one rank and one machine with two are the same stage. A field that was `added`
    later is left out at its default, so that fingerprints made before it stay what they are.
    """
    result: dict[str, Any] = {}
    for key, attribute, added in _counted_fields(type(config)):
        value = _plain(getattr(config, attribute))
        if added is not None and value == _plain(added.get_default(call_default_factory=True)):
            continue
        result[key] = value
    return result


@cache
def _counted_fields(model: type[BaseModel]) -> tuple[tuple[str, str, FieldInfo | None], ...]:
    """(key, attribute that holds what counts, the field where it was added later) of what is not operational."""
    stand_ins: Mapping[str, str] = getattr(model, "IN_FINGERPRINTS", {})
    return tuple(
        (key_of(name, field), stand_ins.get(name, name), field if is_added(field) else None)
        for name, field in model.model_fields.items()
        if not is_operational(field)
    )


def once_counted(config: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> default of the operational fields that the first release counted in fingerprints."""
    counted, sections = _once_counted_fields(type(config))
    found = {f"{prefix}{key}": field.get_default(call_default_factory=True) for key, field in counted}
    for key, name in sections:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            found |= once_counted(value, f"{prefix}{key}.")
    return found


@cache
def _once_counted_fields(
    model: type[BaseModel],
) -> tuple[tuple[tuple[str, FieldInfo], ...], tuple[tuple[str, str], ...]]:
    """((key, field) that counted once, (key, name) of those that can hold a section)."""
    counted, sections = [], []
    for name, field in model.model_fields.items():
        key, extra = key_of(name, field), field.json_schema_extra
        if isinstance(extra, dict) and extra.get("once_counted"):
            counted.append((key, field))
        elif _can_be_section(field.annotation):
            sections.append((key, name))
    return tuple(counted), tuple(sections)


def _can_be_section(annotation: Any) -> bool:
    """Whether a value of the type can be a section: it is one, or one is among its alternatives."""
    if isinstance(annotation, type):
        return issubclass(annotation, BaseModel) or annotation is object
    return annotation is Any or isinstance(annotation, TypeVar) or any(map(_can_be_section, get_args(annotation)))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return semantic(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists and empty mappings stay values. For showing what differs."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


_AS_THEY_ARE = (str, int, bool, type(None))
"""Most of what a metadata file holds; asked for first, since thousands of tensors stand in one."""


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, whole floats as integers (1.0 and 1 are the same setting).

    Raises ValueError for infinity and nan, which JSON has not.
    """

    def normal(item: Any) -> Any:
        if type(item) in _AS_THEY_ARE:
            return item
        if type(item) is dict:
            return {k if type(k) is str else str(k): normal(v) for k, v in item.items()}
        if isinstance(item, float) and item.is_integer() and abs(item) < 2**53:
            return int(item)
        if isinstance(item, Mapping):
            return {str(k): normal(v) for k, v in item.items()}
        if isinstance(item, (list, tuple)):
            return [normal(v) for v in item]
        return item

    return json.dumps(normal(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    text = canonical_json(value)  # a file may say what is no character: then it is none of ours, and has a hash too
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def seal_of(plain: Mapping[str, Any]) -> str:
    """Hash over every field but the seal."""
    return fingerprint({key: value for key, value in plain.items() if key != "seal"})


def seal(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its seal: a file that was changed by hand or by a fault no longer matches it."""
    return {**plain, "seal": seal_of(plain)}


def is_sealed(plain: Any) -> bool:
    """Whether something read back is a mapping that is exactly what was sealed."""
    if not isinstance(plain, dict):
        return False
    try:
        return bool(plain.get("seal") == seal_of(plain))
    except ValueError:  # nan or infinity: never written by us
        return False


def identity(config: RunConfig) -> dict[str, Any]:
    """What makes a run this run and no other, as a flat mapping of dotted keys; nothing that evaluations alone read."""
    flat = flatten(semantic(config))
    wanted, unread = type(config).IDENTITY, type(config).OF_EVALUATION
    return {k: v for k, v in flat.items() if k not in unread and any(k == w or k.startswith(w + ".") for w in wanted)}


def to_yaml(config: BaseModel) -> str:
    """The fully resolved config as YAML, defaults written out; `parse_yaml` reads it back equal."""
    plain = config.model_dump(mode="json", by_alias=True)
    return yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
