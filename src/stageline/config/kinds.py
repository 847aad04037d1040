"""What a key's field takes, and texts read as that: the field's type says what a word means, not how the word looks.

`12` is a text where the field is text and a number where it is a number; YAML's own guess counts only for keys that no
section has, which validation then names. Numbers that are whole count as whole numbers however they are written (`1e3`,
`1000.0`), in files too. Works on plain data and section classes; what does not fit is passed on for validation to name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from stageline.config.document import STAGE_OVERRIDES, compose_yaml, parse_yaml
from stageline.config.fields import HomeExpanded, key_of
from stageline.errors import ConfigError

_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([-+]?[0-9]+))?")
_LARGEST_EXPONENT = 400
"""Beyond what a float holds; a number with a larger one is not computed."""
_NULLS = ("null", "Null", "NULL", "~")
"""YAML's words for nothing. Where a text is expected only the first one is."""


class UnreadableError(ValueError):
    """A text that no value can be made of, whatever the field takes."""


@dataclass(frozen=True)
class Kind:
    """What a field takes.

    null, text, truth, whole, real: whether None, a text, true/false, a whole number, any number.
    path: the text names a file or folder, whose `~` is a home folder.
    choices: the words or numbers of a Literal.
    items: types of a list's items, an Ellipsis behind one that repeats; None takes no list.
    entries: type of a mapping's values; None takes no mapping.
    section: class of a section.
    anything: nothing is known of it.
    own_reading: its section reads lists itself, before the types of their items are looked at.
    """

    null: bool = False
    text: bool = False
    truth: bool = False
    whole: bool = False
    real: bool = False
    path: bool = False
    choices: tuple[Any, ...] = ()
    items: tuple[Any, ...] | None = None
    entries: Any = None
    section: type[BaseModel] | None = None
    anything: bool = False
    own_reading: bool = False

    @property
    def holds_others(self) -> bool:
        """Whether its values can be lists, mappings or sections."""
        return self.items is not None or self.entries is not None or self.section is not None

    def item(self, index: int) -> Kind:
        """The kind of a list's item."""
        if not self.items or self.own_reading:
            return ANYTHING
        if self.items[-1] is Ellipsis:
            return kind_of(self.items[0])
        return kind_of(self.items[index]) if index < len(self.items) else ANYTHING


ANYTHING = Kind(anything=True)
_PLAIN: Mapping[Any, Kind] = {
    NoneType: Kind(null=True),
    str: Kind(text=True),
    bool: Kind(truth=True),
    int: Kind(whole=True),
    float: Kind(real=True),
}


@cache
def kind_of(annotation: Any) -> Kind:
    """The kind of a type annotation as sections use them: plain types, Literal, tuple, list, dict, sections, unions."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return replace(kind_of(arguments[0]), path=any(isinstance(a, HomeExpanded) for a in arguments[1:]))
    if origin in (Union, UnionType):
        return _union([kind_of(argument) for argument in arguments])
    if origin is Literal:
        return Kind(choices=arguments)
    if origin in (tuple, list):
        return Kind(items=(*arguments, Ellipsis) if origin is list else arguments)
    if origin is dict:
        return Kind(entries=arguments[1])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Kind(section=annotation)
    return ANYTHING


def _union(kinds: Sequence[Kind]) -> Kind:
    flags = ("null", "text", "truth", "whole", "real", "path", "anything")
    return Kind(
        **{flag: any(getattr(kind, flag) for kind in kinds) for flag in flags},
        choices=tuple(choice for kind in kinds for choice in kind.choices),
        items=next((kind.items for kind in kinds if kind.items is not None), None),
        entries=next((kind.entries for kind in kinds if kind.entries is not None), None),
        section=next((kind.section for kind in kinds if kind.section is not None), None),
    )


@cache
def fields_of(section: type[BaseModel]) -> Mapping[str, Kind]:
    """Key as written in YAML -> what it takes."""
    before = {
        name
        for decorator in section.__pydantic_decorators__.field_validators.values()
        if decorator.info.mode == "before"
        for name in decorator.info.fields
    }
    found = {}
    for name, field in section.model_fields.items():
        annotation: Any = field.annotation
        kind = replace(kind_of(annotation), own_reading=name in before)
        is_path = any(isinstance(extra, HomeExpanded) for extra in field.metadata)
        found[key_of(name, field)] = replace(kind, path=kind.path or is_path)
    return found


@dataclass(frozen=True)
class Place:
    """Where a dotted key leads.

    path: keys of the nested mappings on the way; a name with dots (`nvidia.com/gpu`) is one of them.
    kind: what stands there; `ANYTHING` for a key that no section has.
    fault: why nothing can be set there, if so.
    """

    path: tuple[str, ...]
    kind: Kind
    fault: str = ""


def locate(model: type[BaseModel], parts: Sequence[str]) -> Place:
    """Where a key leads in a config, `stage_overrides.<stage>.<key>` to what that key takes.

    model: class of the whole config.
    parts: the key, parted at its dots.
    """
    if parts[0] == STAGE_OVERRIDES and STAGE_OVERRIDES in model.model_fields and len(parts) > 2:
        inner = locate(model, parts[2:])
        return replace(inner, path=(*parts[:2], *inner.path))
    return _below(Kind(section=model), (), tuple(parts))


def _below(kind: Kind, path: tuple[str, ...], rest: tuple[str, ...]) -> Place:
    if not rest:
        return Place(path, kind)
    if kind.section is not None:
        inner = fields_of(kind.section).get(rest[0])
        return Place((*path, *rest), ANYTHING) if inner is None else _below(inner, (*path, rest[0]), rest[1:])
    if kind.entries is not None:
        inner = kind_of(kind.entries)
        if inner.holds_others or inner.anything:
            return _below(inner, (*path, rest[0]), rest[1:])
        return Place((*path, ".".join(rest)), inner)
    if kind.anything:
        return Place((*path, *rest), ANYTHING)
    here = ".".join(path)
    if kind.items is not None:
        return Place(path, kind, f"{here} is a list, and a list is given whole: {here}=[first, second, …]")
    return Place(path, kind, f"{here} is a value and no section: nothing lies below it")


def read_text(kind: Kind, text: str, where: str) -> Any:
    """What a text of the command line means for a field. UnreadableError, ConfigError where it means nothing.

    kind: what the field takes.
    text: as given; blanks around it do not count. In quotes it is a text, quotes and blanks inside as YAML has them.
    where: what an error of YAML calls it.

    A text that does not fit the field comes back as it is: validation says what was expected.
    """
    word = text.strip()
    if not word:
        null = "null for no value" if kind.null else "it as key=value"
        quoted = ", '' in quotes for an empty text" if kind.text else ""
        raise UnreadableError(f"nothing stands behind `=` (a variable that is not set?): write {null}{quoted}")
    quoted_text = _in_quotes(word)
    if quoted_text is not None:
        return quoted_text
    if kind.anything:
        return parse_yaml(text, where)
    if word == _NULLS[0] or (word in _NULLS and not kind.text):
        return None
    if kind.holds_others and (word[0] in "[{" or word.startswith("- ") or "\n" in word):
        parse_yaml(text, where)  # what is wrong with it as YAML
        return _read_node(kind, compose_yaml(text), where)
    return _read_word(kind, word)


def _in_quotes(word: str) -> str | None:
    """The text between quotes where all of a word is one quoted text."""
    if word[0] not in "\"'" or word[-1] != word[0]:
        return None
    try:
        found = parse_yaml(word, "")
    except ConfigError:  # quotes inside: the word itself is meant
        return None
    return found if isinstance(found, str) else None


def _read_word(kind: Kind, word: str) -> Any:
    if word in kind.choices or kind.text:
        return word
    if kind.truth and word in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return word.lower() == "true"
    number = _number(word)
    numeric = any(isinstance(choice, int) for choice in kind.choices)
    if number is not None and (kind.whole or kind.real or numeric):
        if number == number.to_integral_value() and (kind.whole or numeric):
            return int(number)
        return float(number)
    return word


def _number(word: str) -> Decimal | None:
    """The finite number that a word is, exactly; None for every other word."""
    match = _NUMBER.fullmatch(word)
    if match is None or len(word) > _LARGEST_EXPONENT or abs(int(match[1] or 0)) > _LARGEST_EXPONENT:
        return None
    number = Decimal(word)
    return number if abs(float(number)) != float("inf") else None


def _read_node(kind: Kind, node: yaml.Node, where: str) -> Any:
    """A list, a mapping, or a leaf of one, each leaf by the type of its field."""
    if isinstance(node, yaml.SequenceNode):
        return [_read_node(kind.item(index), item, where) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return {key.value: _read_node(_entry(kind, key.value), value, where) for key, value in node.value}
    assert isinstance(node, yaml.ScalarNode)
    if node.style:  # in quotes
        return node.value
    return read_text(kind, node.value, where) if node.value else None


def _entry(kind: Kind, key: str) -> Kind:
    """The kind of what stands under a key of a mapping."""
    if kind.section is not None:
        return _below(kind, (), tuple(key.split("."))).kind
    return ANYTHING if kind.entries is None else kind_of(kind.entries)


def with_whole_numbers(raw: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """A copy of a raw config with floats that are whole as integers where the field takes whole numbers only.

    raw: a config as plain data.
    model: class of the whole config; its `stage_overrides` are read by the keys they name.
    """
    fitted: dict[str, Any] = _fitted(Kind(section=model), raw)
    stages = fitted.get(STAGE_OVERRIDES)
    if STAGE_OVERRIDES in model.model_fields and isinstance(stages, Mapping):
        fitted[STAGE_OVERRIDES] = {
            stage: _fitted(Kind(section=model), own) if isinstance(own, Mapping) else own
            for stage, own in stages.items()
        }
    return fitted


def _fitted(kind: Kind, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _fitted(_entry(kind, str(key)), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_fitted(kind.item(index), item) for index, item in enumerate(value)]
    if isinstance(value, float) and value.is_integer() and kind.whole and not kind.real:
        return int(value)
    return value


def home_paths(raw: Mapping[str, Any], model: type[BaseModel]) -> Iterator[str]:
    """Dotted keys of a raw config whose paths begin with `~`."""
    yield from _home_paths(Kind(section=model), raw, "")


def _home_paths(kind: Kind, value: Any, key: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _home_paths(_entry(kind, str(name)), item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _home_paths(kind.item(index), item, key)
    elif isinstance(value, str) and kind.path and value.startswith("~"):
        yield key
