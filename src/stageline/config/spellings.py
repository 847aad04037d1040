"""Other programs' spellings of a config's keys: which are moved, which are refused and why. Works on the raw mapping.

A family declares a table (`RunConfig.SPELLINGS`); `RunConfig` reads every config through it. A moved key has one home:
giving both with different values is a fault. A refused key is one that other programs' configs carry although nothing
should read it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

LOG = logging.getLogger("stageline.config")
STAGE_OVERRIDES = "stage_overrides"


class KeyFault(NamedTuple):
    """A fault of one raw key: where, its stable code, the sentence, what was found."""

    path: tuple[str, ...]
    code: str
    sentence: str
    found: Any


@cache
def note_once(text: str) -> None:
    """Say something about the config to the user, once per process."""
    LOG.warning(text)


def get_key(raw: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted key, None where it or a section on the way is absent."""
    node: Any = raw
    for part in dotted.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def put_key(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key; nothing where something on the way is no section: validation names that."""
    *sections, key = dotted.split(".")
    node: Any = raw
    for part in sections:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            return
    node[key] = value


def contradiction(one: str, a: Any, other: str, b: Any) -> KeyFault:
    """The fault of two names of one setting with different values."""
    sentence = f"{a!r} contradicts {other} {b!r}: two names of one setting; give one of them"
    return KeyFault(tuple(one.split(".")), "E_CONTRADICTION", sentence, a)


def _nothing(_raw: dict[str, Any], _faults: list[KeyFault]) -> None:
    """A family without readings of its own."""


def _same(key: str) -> str:
    """A family whose other names follow no rule."""
    return key


@dataclass(frozen=True)
class KeySpellings:
    """How a family's configs may be spelt. Keys are dotted.

    rename(key): the key that this one is another name of, itself where it is none; for names that follow a rule. The
        keys of `stage_overrides.<stage>` are renamed too, and a command line takes the place of either name.
    moved: published key -> ours; two names of one setting, read as the second.
    same: pairs of keys that hold one value; giving one sets both.
    values: key -> published word -> ours.
    refused: key -> why; `refused_prefixes`: beginning of a key's last part, in the section `refused_below` -> why.
    in_other_words: keys that say in words of their own what another key says; a starter config has the other key only.
    refused_anywhere: last parts of keys that are refused wherever they stand in that section -> why.
    read(raw, faults): the family's own readings, after all of the above; changes the raw mapping in place.
    """

    rename: Callable[[str], str] = _same
    moved: Mapping[str, str] = field(default_factory=dict)
    same: tuple[tuple[str, str], ...] = ()
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    in_other_words: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    refused_prefixes: Mapping[str, str] = field(default_factory=dict)
    refused_anywhere: Mapping[str, str] = field(default_factory=dict)
    refused_below: str = "model"
    read: Callable[[dict[str, Any], list[KeyFault]], None] = _nothing

    def of(self, key: str) -> tuple[str, ...]:
        """Every dotted key that means the same setting, the key itself among them."""
        home = self.moved.get(key, key)
        found = {key, home, *(old for old, new in self.moved.items() if new == home)}
        for pair in self.same:
            if home in pair:
                found |= set(pair)
        return tuple(sorted(found))

    @property
    def second_names(self) -> frozenset[str]:
        """Keys whose setting has another, first name: those that are moved, and the second of each pair."""
        return self.in_other_words | set(self.moved) | {other for _, other in self.same}

    def home(self, key: str) -> str:
        """The dotted key that `rename` makes of one, in `stage_overrides` too."""
        parts = key.split(".", 2)
        if parts[0] == STAGE_OVERRIDES and len(parts) > 2:
            return f"{parts[0]}.{parts[1]}.{self.rename(parts[2])}"
        return self.rename(key)

    def at_home(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of `raw` with renamed keys at their home, so that a command line can take their place.

        Where two names of one setting contradict each other nothing moves: validation says so.
        """
        result: dict[str, Any] = _copy(raw)
        return dict(_copy(raw)) if self._rename(result) else result

    def _rename(self, raw: dict[str, Any]) -> list[KeyFault]:
        faults: list[KeyFault] = []
        for path, value in list(_leaves(raw)):
            key = ".".join(path)
            if self.home(key) != key:
                faults += _carry(raw, path, value, self.home(key))
        return faults

    def refusal(self, path: tuple[str, ...]) -> str | None:
        """Why the key at this path is refused, or None for a key that no table knows."""
        dotted = ".".join(path)
        if dotted in self.refused:
            return self.refused[dotted]
        if path[0] != self.refused_below:
            return None
        if path[-1] in self.refused_anywhere:
            return self.refused_anywhere[path[-1]]
        return next((why for prefix, why in self.refused_prefixes.items() if path[-1].startswith(prefix)), None)

    def normalise(self, raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[KeyFault]]:
        """A copy of `raw` with moved keys at their home and refused keys out, and the faults found on the way."""
        result = _copy(raw)
        faults = self._take_refused(result, ())
        faults += self._rename(result)
        for old, new in self.moved.items():
            faults += _move(result, old, new)
        for one, other in self.same:
            _fill(result, one, other, faults)
        for key, words in self.values.items():
            value = get_key(result, key)
            if isinstance(value, str) and value in words:
                put_key(result, key, words[value])
        self.read(result, faults)
        stages = result.get(STAGE_OVERRIDES)
        for stage, overrides in (stages if isinstance(stages, dict) else {}).items():
            if isinstance(overrides, dict):
                faults += self._rename_overrides(str(stage), overrides)
        return result, faults

    def _take_refused(self, node: dict[str, Any], path: tuple[str, ...]) -> list[KeyFault]:
        faults: list[KeyFault] = []
        for key in list(node):
            here = (*path, str(key))
            if here[0] == STAGE_OVERRIDES:
                continue
            why = self.refusal(here)
            if why is not None:
                faults.append(KeyFault(here, "E_REFUSED_KEY", f"known and refused: {why}", node.pop(key)))
            elif isinstance(node[key], dict):
                faults += self._take_refused(node[key], here)
        return faults

    def _rename_overrides(self, stage: str, overrides: dict[str, Any]) -> list[KeyFault]:
        faults: list[KeyFault] = []
        for old, new in self.moved.items():
            if old not in overrides:
                continue
            value = overrides.pop(old)
            if overrides.get(new, value) != value:
                fault = contradiction(old, value, new, overrides[new])
                faults.append(fault._replace(path=(STAGE_OVERRIDES, stage, old)))
            overrides[new] = value
        for one, other in self.same:
            if (one in overrides) != (other in overrides):
                overrides[one] = overrides[other] = overrides.get(one, overrides.get(other))
        return faults


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _leaves(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of everything that is no section."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def _carry(raw: dict[str, Any], path: tuple[str, ...], value: Any, home: str) -> list[KeyFault]:
    """Take the value at a path to its home; sections that this leaves empty go."""
    nodes = [raw]
    for part in path[:-1]:
        nodes.append(nodes[-1][part])
    del nodes[-1][path[-1]]
    for part, node in zip(reversed(path[:-1]), reversed(nodes[:-1]), strict=True):
        if not node[part]:
            del node[part]
    at_home = {".".join(leaf): found for leaf, found in _leaves(raw)}.get(home)
    if value is None:
        return []
    if at_home is not None and at_home != value:
        return [contradiction(".".join(path), value, home, at_home)]
    put_key(raw, home, value)
    return []


def _move(raw: dict[str, Any], old: str, new: str) -> list[KeyFault]:
    section, _, key = old.rpartition(".")
    node = get_key(raw, section) if section else raw
    if not isinstance(node, dict) or key not in node:
        return []
    value = node.pop(key)
    home = get_key(raw, new)
    if value is None:
        return []
    if home is not None and home != value:
        return [contradiction(old, value, new, home)]
    put_key(raw, new, value)
    return []


def _fill(raw: dict[str, Any], one: str, other: str, faults: list[KeyFault]) -> None:
    a, b = get_key(raw, one), get_key(raw, other)
    if a is not None and b is not None and a != b:
        faults.append(contradiction(one, a, other, b))
        put_key(raw, other, a)  # said once
    elif a is not None:
        put_key(raw, other, a)
    elif b is not None:
        put_key(raw, one, b)
