"""`section.key=value` words of a command line on top of a config that is plain data.

A key takes the place of every name the config has for its setting, of its alternative (`max_epochs` for `max_steps`),
and of both in its `stage_overrides`; of several words for one key the last counts. What a value means, its field's type
says (`kinds`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from stageline.config.document import STAGE_OVERRIDES, set_path
from stageline.config.kinds import ANYTHING, Place, UnreadableError, locate, read_text
from stageline.config.spellings import get_key
from stageline.config.validation import alternatives
from stageline.errors import ConfigError, Faults

if TYPE_CHECKING:
    from stageline.config.settings import RunConfig

_PART = r"""(?:"[^"]+"|'[^']+'|[^.="']+)"""
_KEY = re.compile(rf"({_PART}(?:\.{_PART})*)=")
_PARTS = re.compile(_PART)
OPTIONS = {"config": "-c", "preset": "--preset"}
"""What is no setting but an option of every command with a config."""


class Override(NamedTuple):
    """One word of the command line. parts: its key at its dots, quotes taken away.  value: what it means."""

    word: str
    parts: tuple[str, ...]
    place: Place
    value: Any

    @property
    def key(self) -> str:
        return ".".join(self.parts)


def apply_overrides(raw: Mapping[str, Any], overrides: Iterable[str], model: type[RunConfig]) -> dict[str, Any]:
    """A copy of `raw` with `a.b=value` applied in order.

    raw: a config as plain data.
    overrides: `a.b=value`, as on the command line. Such a key also takes the place of itself, and of what lies below
        it, in the `stage_overrides` of `raw`; an override of `stage_overrides.<stage>.…` itself wins over it.
    model: the class of the config, whose fields say what the values mean and whose spellings how keys are written.

    Every override that cannot be applied is listed in one ConfigError.
    """
    return _apply(raw, overrides, model, Faults(ConfigError, "overrides", "write them as section.key=value"))[0]


def replaced_overrides(raw: Mapping[str, Any], overrides: Iterable[str], model: type[RunConfig]) -> list[str]:
    """The keys that `apply_overrides` takes out of `raw`, dotted, and the words that later ones take the place of.

    Of settings that an override changes under the name they have, nothing is said. Arguments as of `apply_overrides`.
    """
    return _apply(raw, overrides, model, Faults(ConfigError, "overrides", "write them as section.key=value"))[1]


def _apply(
    raw: Mapping[str, Any], words: Iterable[str], model: type[RunConfig], faults: Faults
) -> tuple[dict[str, Any], list[str]]:
    """(the config with the overrides, what they replaced)"""
    result: dict[str, Any] = copy.deepcopy(model.SPELLINGS.at_home(raw))
    overrides = [found for word in words if (found := _parse(word, model, faults))]
    replaced = [name for override in overrides for name in drop_replaced(result, override.key, model)]
    for override in overrides:
        if override.value:  # null and 0 say nothing in the place of what they are an alternative of
            replaced += _drop_alternatives(result, override.parts, model)
    for index, override in enumerate(overrides):
        if any(later.place.path == override.place.path for later in overrides[index + 1 :]):
            replaced.append(override.word)
        clash = set_path(result, override.place.path, override.value)
        if clash:
            faults.add(f"{override.word!r}: {clash} is not a section")
    faults.raise_if_any()
    return result, replaced


def _parse(word: str, model: type[RunConfig], faults: Faults) -> Override | None:
    """An override as it is meant, or None with the fault noted."""
    match = _KEY.match(word)
    if match is None:
        faults.add(f"{word!r} is not of the form section.key=value{_file_hint(word)}")
        return None
    parts = tuple(part.strip().strip("\"'") for part in _PARTS.findall(match[1]))
    if not all(parts):
        faults.add(f"{word!r} is not of the form section.key=value")
        return None
    parts = tuple(_home(parts, model))
    place = locate(model, parts)
    known = locate(model, model.SPELLINGS.moved.get(".".join(parts), ".".join(parts)).split("."))
    text = word[match.end() :]
    if ".".join(parts) in OPTIONS and place.kind is ANYTHING:
        faults.add(f"{word!r}: that is an option: {OPTIONS['.'.join(parts)]} {text}")
        return None
    if place.fault:
        faults.add(f"{word!r}: {place.fault}")
        return None
    try:
        return Override(word, parts, place, read_text(known.kind, text, f"override {word!r}"))
    except UnreadableError as error:
        faults.add(f"{word!r}: {error}")
    except ConfigError as error:
        faults.add(error.message)
    return None


def _home(parts: tuple[str, ...], model: type[RunConfig]) -> Iterable[str]:
    """The parts of our own name of a key; of one that is ours already they stay as they were quoted."""
    key = ".".join(parts)
    home = model.SPELLINGS.home(key)
    return parts if home == key else home.split(".")


def _file_hint(word: str) -> str:
    """What somebody may have meant who gives a file, or the name of a preset, as a setting."""
    if "=" in word:
        return ""
    if word.endswith((".yaml", ".yml", ".json")):
        return f"; a config file is given with -c: -c {word}"
    return "; a config file is given with -c FILE, a preset with --family NAME --preset NAME"


def drop_replaced(raw: dict[str, Any], key: str, model: type[RunConfig]) -> list[str]:
    """Take a setting out of a config, in place, wherever the command line takes its place.

    That is: under its other names, and under all of its names, with what lies below them, in the `stage_overrides` of
    every stage.

    raw: a config as plain data; overrides in it may be dotted, nested or both.
    key: as on the command line; `stage_overrides.…` itself takes nothing out.
    model: the class of the config, which knows the names.

    Returns what was taken out, as dotted keys.
    """
    return [] if key.partition(".")[0] == STAGE_OVERRIDES else _drop_names(raw, model.spellings(key), key)


def _drop_alternatives(raw: dict[str, Any], parts: Sequence[str], model: type[RunConfig]) -> list[str]:
    """Take what says a setting in another way out of a config, where the key at `parts` says it from now on."""
    if parts[0] != STAGE_OVERRIDES:
        others = alternatives(model, ".".join(parts))
        return [name for other in others for name in _drop_names(raw, model.spellings(other), "")]
    own, stage = get_key(raw, ".".join(parts[:2])), parts[1:2]
    if not stage or not isinstance(own, dict):
        return []
    names = (name for other in alternatives(model, ".".join(parts[2:])) for name in model.spellings(other))
    return [f"{STAGE_OVERRIDES}.{stage[0]}.{found}" for name in names for found in _drop(own, name.split("."))]


def _drop_names(raw: dict[str, Any], names: Iterable[str], spared: str) -> list[str]:
    """spared: the name that stays outside of `stage_overrides`."""
    dropped = [found for name in names if name != spared for found in _drop(raw, name.split("."))]
    stages = raw.get(STAGE_OVERRIDES)
    if not isinstance(stages, dict):
        return dropped
    from_stages: list[str] = []
    for stage in list(stages):
        own = stages[stage]
        if not isinstance(own, dict):
            continue
        found = [inner for name in names for inner in _drop(own, name.split("."))]
        from_stages += [f"{STAGE_OVERRIDES}.{stage}.{inner}" for inner in found]
        if found and not own:
            del stages[stage]
    if from_stages and not stages:
        del raw[STAGE_OVERRIDES]
    return dropped + from_stages


def _drop(node: dict[str, Any], path: list[str]) -> list[str]:
    """Take the key at a path, and what lies below it, out of a mapping whose keys may be dotted."""
    dropped: list[str] = []
    for key in list(node):
        parts = key.split(".")
        shared = min(len(parts), len(path))
        if parts[:shared] != path[:shared]:
            continue
        if len(parts) >= len(path):
            dropped.append(key)
            del node[key]
        elif isinstance(value := node[key], dict):
            inner = _drop(value, path[len(parts) :])
            dropped += [f"{key}.{name}" for name in inner]
            if inner and not value:
                del node[key]
    return dropped
