"""Plain data to typed settings: one error with every fault, each by its dotted key, misspelt keys with the nearest."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from stageline.config.fields import S, SectionError, Settings, is_operational, key_of
from stageline.config.kinds import locate
from stageline.errors import ConfigError, Faults

SHOWN_CHARACTERS = 120
"""Longest value shown in an error."""
REMEDY = "`stageline init` writes a commented config with every key"
SHORT = {
    "bs": "batch_size",
    "wd": "weight_decay",
    "epochs": "max_epochs",
    "steps": "max_steps",
    "warmup": "warmup_fraction",
    "gpus": "processes",
    "num_gpus": "processes",
    "devices": "processes",
    "world_size": "processes",
    "dtype": "precision",
    "amp": "precision",
    "fp16": "precision",
    "bf16": "precision",
    "clip": "gradient_clip_val",
    "grad_clip": "gradient_clip_val",
    "max_grad_norm": "gradient_clip_val",
    "accumulate": "accumulate_grad_batches",
    "gradient_accumulation_steps": "accumulate_grad_batches",
    "scheduler": "schedule",
    "device": "accelerator",
    "name": "run",
    "run_name": "run",
    "experiment_name": "run",
    "output": "root",
    "output_dir": "root",
    "random_seed": "seed",
}
"""What other programs call a setting -> last part of our key; beginnings (`lr`) and single words need no entry."""


NEAR, SAME = 0.6, 0.8
"""Share of letters that a misspelt word shares with what it meant; with a word of another section it must be more."""


def nearest(word: str, known: Iterable[str], share: float = NEAR) -> str | None:
    """The known word nearest to a misspelt one, or None if nothing is near."""
    names = sorted(set(known))
    matches = difflib.get_close_matches(word, names, n=1, cutoff=share)
    return matches[0] if matches else None


def validate(raw: Mapping[str, Any], model: type[S], where: str) -> S:
    """Turn a raw mapping into `model`, or raise one ConfigError that lists every fault."""
    faults = Faults(ConfigError, where, REMEDY)
    faults.extend(_infinite(raw, model, ()))
    faults.raise_if_any()
    try:
        text = json.dumps(raw, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: {error}", remedy="config values are texts, finite numbers, true/false, null, lists and mappings"
        ) from error
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
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
    hint = _value_hint(str(fault["type"]), path, shown)
    found = "" if isinstance(shown, dict) else f" (found {_short(shown)})"
    return [("", f"{name}: {message}{found}{hint}")]


def _value_hint(kind: str, path: Sequence[Any], found: Any) -> str:
    """What to write instead of a value of another type. kind: of pydantic's fault."""
    keys = [str(part) for part in path if isinstance(part, str)]
    key = keys[-1] if keys else "key"
    if kind == "string_type" and isinstance(found, (bool, int, float)):
        word = str(found).lower() if isinstance(found, bool) else str(found)
        written = "…" if isinstance(found, float) else word
        kind_found = "a truth value" if isinstance(found, bool) else "a number"
        return f': {word} is {kind_found}; as a text it stands in quotes, {key}: "{written}"'
    if kind == "string_type" and isinstance(found, dict):
        return f'; a text with `: ` in it stands in quotes, {key}: "…: …"'
    if isinstance(found, str) and found.strip().lower() in ("none", "nil", "nothing") and not kind.startswith("bool_"):
        return "; no value is written null, where a key may have none"
    if found is None and kind != "missing":
        return ": null is no value here; leave the key out for its default"
    if kind.startswith(("int_", "float_", "finite_")) and isinstance(found, str):
        number = _as_python(found)
        return f"; write {number}" if number is not None else ""
    if kind.startswith("bool_"):
        truth = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}
        word = str(found).strip().lower()
        known = truth.get(word, word if word in ("true", "false") else "")
        return f"; write {known}" if known else "; write true or false"
    if kind in ("tuple_type", "list_type") and not isinstance(found, dict):
        return f"; a list is written [first, second], {key}=[{found.strip(' ()')}]" if isinstance(found, str) else ""
    if kind == "model_type":
        return f": {'.'.join(keys)} is a section; set the keys in it, as {'.'.join(keys)}.<key>"
    if kind == "dict_type":
        return f": {'.'.join(keys)} holds names and values; set one as {'.'.join(keys)}.<name>"
    return ""


def _as_python(text: str) -> int | float | None:
    """The number that another language means by a word (`1_000`, `0x10`, `1.5e3`), or that stands in quotes."""
    word = text.strip()
    try:
        return int(word, 0)
    except ValueError:
        pass
    try:
        number = float(word)
    except ValueError:
        return None
    return int(number) if number.is_integer() else number if abs(number) < float("inf") else None


def _infinite(value: Any, model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    """Numbers that are none, each by its key: what YAML took for a number too large to hold may be meant as a text."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _infinite(item, model, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _infinite(item, model, path)
    elif isinstance(value, float) and not math.isfinite(value):
        key = ".".join(path)
        if path and locate(model, path).kind.text:
            yield f'{key}: what stands here is read as a number, too large for one; a text stands in quotes, {key}: "…"'
        else:
            yield f"{key}: {value} is no finite number"


def _code_of(sentence: str) -> str:
    """The stable code a sentence begins with, such as `E_RANGE`, or an empty text."""
    match = re.match(r"^(E_[A-Z0-9_]+): ", sentence)
    return match[1] if match else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def _hint(model: type[BaseModel], path: Sequence[Any]) -> str:
    """What an unknown key may have meant: the same word elsewhere, a short form or the nearest here, then elsewhere."""
    *parents, last = (str(part) for part in path)
    section = section_of(model, parents)
    second = getattr(model, "SPELLINGS", None)
    moved = frozenset() if second is None else second.second_names
    here = [key_of(name, field) for name, field in section.model_fields.items()] if section else []
    here = [key for key in here if ".".join([*parents, key]) not in moved]
    elsewhere = {key.rsplit(".", 1)[-1]: key for key in reversed(dotted_fields(model)) if key not in moved}
    if last in elsewhere:
        return f"did you mean {elsewhere[last]!r}?"
    for find in (_shortened, lambda word, known: [near] if (near := nearest(word, known)) else []):
        meant = [".".join([*parents, key]) for key in find(last, here)]
        if meant:
            return f"did you mean {' or '.join(map(repr, meant))}?"
    for find in (_shortened, lambda word, known: [near] if (near := nearest(word, known, SAME)) else []):
        meant = [elsewhere[key] for key in find(last, elsewhere)]
        if meant:
            return f"did you mean {' or '.join(map(repr, meant))}?"
    return f"known here: {', '.join(here)}"


def _shortened(word: str, known: Iterable[str]) -> list[str]:
    """The known keys that a short word may stand for: by table, by the beginnings of their words, or by one of them."""
    names = list(known)
    if SHORT.get(word) in names:
        return [SHORT[word]]
    begun = [key for key in names if "_" in key and _is_of_beginnings(word, key.split("_"))]
    if begun:
        return begun[:1]
    return [key for key in names if len(word) > 3 and word in key.split("_")][:3]


def _is_of_beginnings(word: str, parts: Sequence[str]) -> bool:
    """Whether a word is one beginning of each part after the other: `lr`, `lrate` and `learnrate` of learning, rate."""
    if not parts:
        return not word
    lengths = range(1, min(len(word), len(parts[0])) + 1)
    return any(word[:n] == parts[0][:n] and _is_of_beginnings(word[n:], parts[1:]) for n in lengths)


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


def alternatives(model: type[BaseModel], key: str) -> Iterator[str]:
    """The dotted keys that say in another way what a key says, by the section that has the key."""
    *path, last = key.split(".")
    section = section_of(model, path)
    if section is not None and issubclass(section, Settings):
        for pair in section.ALTERNATIVES:
            if last in pair:
                yield ".".join([*path, pair[1] if last == pair[0] else pair[0]])


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
