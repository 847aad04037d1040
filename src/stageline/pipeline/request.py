"""What a pipeline is asked for: the parameters a person gives become one config, the same in every step. No torch.

Every step gets the same parameters and works the config out anew, which is free; a step of its own for it would cost
two more pods. docs/pipeline.md lists them. They come one by one: in a text that KFP puts together of several, a single
quotation mark ends the step before its first line.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stageline.config import RunConfig, drop_replaced, parse_yaml, set_dotted
from stageline.errors import ConfigError, Faults
from stageline.families import at_home, config_class, parse_config, raw_preset, with_overrides
from stageline.jobs.defaults import mounted_defaults, with_defaults
from stageline.jobs.placement import check_on_cluster, home_faults, place_root
from stageline.pipeline.item_job import LAUNCHERS
from stageline.pipeline.parameters import OF_THE_PIPELINE, PARAMETERS, Parameter
from stageline.store.credentials import DEFAULT_FOLDER, KEY_FILE
from stageline.store.settings import CA_FILE

NOT_GIVEN = frozenset({None, "", "0", "0.0"})
"""A parameter of a pipeline always has a value: these say that nobody gave one."""
Reader = Callable[[str, str], Any]
REMEDY = "docs/pipeline.md lists the parameters of the pipeline"


@dataclass(frozen=True)
class Request:
    """raw: the run's config as plain data, with family, root and run written out.

    kfp_run: id of KFP's run; a label, never identity.
    """

    raw: Mapping[str, Any]
    config: RunConfig
    launcher: str
    kfp_run: str = ""

    @property
    def text(self) -> str:
        """The config as one text, the same for the same result: where jobs run and what they may use is left out."""
        return json.dumps({key: self.raw[key] for key in self.raw if key != "cluster"}, sort_keys=True)


def read_request(parameters: Mapping[str, Any]) -> Request:
    """The request that a pipeline's parameters make; ConfigError with every fault at once.

    parameters: name -> value; "" and 0 are not given. `family` and `kfp_run` come from the pipeline itself.
    """
    foreign = sorted(set(parameters) - NAMES)
    assert not foreign, f"no parameters of a pipeline: {foreign}"
    words = {name: str(value).strip() for name, value in parameters.items() if value is not None}
    faults = Faults(ConfigError, "the pipeline's parameters", REMEDY)
    raw = at_home(_base(words, faults))
    launcher = words.get("launcher") or "pytorchjob"
    if launcher == "pytorchjob":
        raw = with_defaults(raw, _collect(faults, mounted_defaults) or {})
    _apply(raw, words, SETTINGS, faults)
    if str(raw.get("root")).startswith("s3://") or words.get("s3_endpoint"):
        _apply(raw, words, S3_SETTINGS, faults)
        _apply(raw, {name: words.get(name, "") for name in _mounted(raw)}, MOUNTED, faults, of_a_person=False)
    overrides = words.get("overrides", "")
    raw = _collect(faults, lambda: with_overrides(raw, _words("overrides", overrides))) or raw
    if launcher not in LAUNCHERS:
        faults.add(f"launcher {launcher!r}: a stage can run as {', '.join(LAUNCHERS)}")
    if launcher == "pytorchjob":
        faults.extend(home_faults(raw))
        raw["root"] = place_root(raw) or raw.get("root", ".")
    typed = _collect(faults, lambda: parse_config(raw, where="config"))
    faults.raise_if_any()
    assert typed is not None
    if launcher == "pytorchjob":
        check_on_cluster(typed)
    if words.get("branch"):
        from stageline.pipeline.items import plain_config
        from stageline.store.references import split_pairs
        from stageline.work.branches import branch_config

        name, _, shared = words["branch"].partition(" ")
        typed = branch_config(typed, name, split_pairs(shared))
        raw = plain_config(typed)
    complete = {**raw, "family": typed.family, "root": typed.root, "run": typed.run}
    return Request(complete, typed, launcher, words.get("kfp_run", ""))


def _base(words: Mapping[str, str], faults: Faults) -> dict[str, Any]:
    """The config before any setting: the text's, or the preset's."""
    family, preset, config = (words.get(name, "") for name in ("family", "preset", "config"))
    if config and preset:
        faults.add("config and preset contradict each other; give one of them")
        return {"family": family}
    if preset:
        return _collect(faults, lambda: raw_preset(family, preset)) or {"family": family}
    raw = _collect(faults, lambda: parse_yaml(config, "config")) if config else None
    if raw is None:
        if not faults.found:
            faults.add("give config=<YAML or JSON text> or preset=<name>")
        return {"family": family}
    if not isinstance(raw, dict):
        faults.add(f"config is a {type(raw).__name__}, expected a mapping of sections")
        return {"family": family}
    raw.setdefault("family", family)
    if family and raw["family"] != family:
        faults.add(f"config is of the family {raw['family']!r}, this pipeline is of {family!r}")
    return raw


def _apply(
    raw: dict[str, Any],
    words: Mapping[str, str],
    settings: Mapping[str, tuple[str, Reader]],
    faults: Faults,
    *,
    of_a_person: bool = True,
) -> None:
    """Write the parameters that were given into the config.

    of_a_person: what somebody says here takes the place of the config's `stage_overrides`, as on the command line.
    """
    for name, (key, read) in settings.items():
        if words.get(name) in NOT_GIVEN:
            continue
        if of_a_person:
            drop_replaced(raw, key, config_class(raw))
        try:
            clash = set_dotted(raw, key, read(name, words[name]))
        except ConfigError as error:
            faults.add(error.message)
            continue
        if clash:
            faults.add(f"{name}: {clash} is not a section of the config")


def _word(name: str, value: str) -> str:
    if len(value.split()) > 1:
        raise ConfigError(f"{name} {value!r}: expected one word")
    return value


def _number(name: str, value: str) -> int:
    """A count; KFP hands numbers over as 2 or 2.0."""
    if not re.fullmatch(r"\+?\d+(\.0*)?", value):
        raise ConfigError(f"{name} {value!r}: expected a whole number")
    return int(value.split(".")[0])


def _words(name: str, value: str) -> list[str]:
    """Words between spaces (quoted as in a shell) or lines, or a YAML list of texts."""
    if value.lstrip().startswith("["):
        found = parse_yaml(value, name)
        if isinstance(found, list) and all(isinstance(word, str) for word in found):
            return found
        raise ConfigError(f"{name} {value!r}: expected a list of texts")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise ConfigError(f"{name} {value!r}: {error}") from error


def _names(name: str, value: str) -> list[str]:
    return _words(name, value) if value.startswith("[") else value.replace(",", " ").split()


def _path(name: str, value: str) -> str:
    """A URI or path, spaces and all."""
    if "\n" in value:
        raise ConfigError(f"{name} {value!r}: expected one line")
    return value


READERS: Mapping[str, Reader] = {"word": _word, "path": _path, "count": _number, "names": _names}


def _settings(wanted: Callable[[Parameter], bool]) -> dict[str, tuple[str, Reader]]:
    """Parameter of the pipeline -> (key of the config, how its text is read)."""
    return {p.name: (p.key, READERS[p.reading]) for p in PARAMETERS if p.key and wanted(p)}


SETTINGS = _settings(lambda parameter: parameter.store != "s3")
S3_SETTINGS = _settings(lambda parameter: parameter.store == "s3" and not parameter.mounted)
"""Left alone where nothing lies in S3."""
MOUNTED = _settings(lambda parameter: parameter.store == "s3" and bool(parameter.mounted))
"""What the pipeline mounts into its steps if it exists: jobs get it too, unless the config names another."""
NAMES = frozenset({*OF_THE_PIPELINE, *(parameter.name for parameter in PARAMETERS if parameter.of_steps)})


def _mounted(raw: Mapping[str, Any]) -> Iterator[str]:
    """Parameters of MOUNTED whose files are in this pod and of which the config says nothing."""
    node: Any = raw
    for part in ("cluster", "storage", "s3"):
        node = node.get(part) if isinstance(node, Mapping) else None
    stated = node if isinstance(node, Mapping) else {}
    if not stated.get("secret") and (DEFAULT_FOLDER / KEY_FILE).exists():
        yield "s3_secret"
    if not (stated.get("ca_config_map") or stated.get("ca_secret")) and CA_FILE.exists():
        yield "s3_ca"


def _collect(faults: Faults, make: Callable[[], Any]) -> Any:
    """What `make` returns, or None with every fault of its ConfigError noted."""
    try:
        return make()
    except ConfigError as error:
        head, *lines = error.message.split("\n  - ")
        faults.extend(lines or [head])
        return None
