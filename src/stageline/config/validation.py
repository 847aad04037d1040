"""Plain data to typed settings: one error with every fault, each by its dotted key, misspelt keys with the nearest."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from stageline.config.fields import S, SectionError, is_operational, key_of
from stageline.errors import ConfigError, Faults

SHOWN_CHARACTERS = 120
"""Longest value shown in an error."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to a misspelt one, or None if nothing is near."""
    names = sorted(set(known))
    matches = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return matches[0] if matches else None


def validate(raw: Mapping[str, Any], model: type[S], where: str) -> S:
    """Turn a raw mapping into `model`, or raise one ConfigError that lists every fault."""
    try:
        text = json.dumps(raw, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: {error}", remedy="config values are texts, finite numbers, true/false, null, lists and mappings"
        ) from error
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        faults = Faults(ConfigError, where, "`stageline init` writes a commented config with every key")
        for fault in error.errors(include_url=False):
            for code, line in _describe(fault, model):
                faults.add(line, code=code)
        faults.raise_if_any()
        raise


def _describe(fault: Mapping[str, Any], model: type[BaseModel]) -> list[tuple[str, str]]:
    """(code, sentence) of one pydantic fault, or of each contradiction it holds."""
    path = tuple(fault["loc"])
    name = ".".join(str(part) for part in path) or "config"
    if fault["type"] == "extra_forbidden":
        return [("E_UNKNOWN_KEY", f"{name}: unknown key; {_hint(model, path)}")]
    if fault["type"] == "missing":
        return [("", f"{name}: required, and absent")]
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, SectionError):
        return [(_code_of(sentence), f"{name}: {sentence}") for sentence in cause.sentences]
    message = str(fault["msg"]).removeprefix("Value error, ")
    code = _code_of(message)
    if code:
        return [(code, f"{name}: {message}")]
    shown = fault.get("input")
    return [("", f"{name}: {message}{'' if isinstance(shown, dict) else f' (found {_short(shown)})'}")]


def _code_of(sentence: str) -> str:
    """The stable code a sentence begins with, such as `E_RANGE`, or an empty text."""
    match = re.match(r"^(E_[A-Z0-9_]+): ", sentence)
    return match[1] if match else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def _hint(model: type[BaseModel], path: Sequence[Any]) -> str:
    """What an unknown key may have meant: the same word elsewhere, the nearest here, the nearest elsewhere."""
    *parents, last = (str(part) for part in path)
    section = section_of(model, parents)
    here = [key_of(name, field) for name, field in section.model_fields.items()] if section else []
    elsewhere = {key.rsplit(".", 1)[-1]: key for key in dotted_fields(model)}
    near, far = nearest(last, here), nearest(last, elsewhere)
    if last in elsewhere:
        return f"did you mean {elsewhere[last]!r}?"
    if near:
        return f"did you mean {'.'.join([*parents, near])!r}?"
    if far:
        return f"did you mean {elsewhere[far]!r}?"
    return f"known here: {', '.join(here)}"


def section_of(model: type[BaseModel], path: Sequence[Any]) -> type[BaseModel] | None:
    """The section class at a path of keys, looking through Optional; None where there is none."""
    for part in path:
        fields = {key_of(name, field): field for name, field in model.model_fields.items()}
        field = fields.get(str(part))
        if field is None:
            return None
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return None
        model = inner
    return model


def dotted_fields(model: type[BaseModel], *, with_operational: bool = True) -> list[str]:
    """Every leaf key of a config class, dotted (`trainer.keep.last`)."""
    return list(_dotted_fields(model, with_operational))


@cache
def _dotted_fields(model: type[BaseModel], with_operational: bool) -> tuple[str, ...]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        if not with_operational and is_operational(field):
            continue
        key = key_of(name, field)
        section = section_of(model, (key,))
        if section is None:
            keys.append(key)
        else:
            keys += [f"{key}.{inner}" for inner in _dotted_fields(section, with_operational)]
    return tuple(keys)


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a config class (draft 2020-12), for editors; descriptions are the fields' own sentences."""
    schema = model.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
