"""Python files of the user's own (`code: [guidance.py]`): hashed, kept with the run, executed where that was asked for.

Those under `code` count in the fingerprints of stages and evaluations, those under `data.code` in those of splits.
A file counts by its content. Its text lies in `runs/<run>/code/<sha256>.py`, so that a pod, which has no other files of
the user, has it; the config then names it `guidance.py@sha256:<sha256>`. Hashing and storing execute nothing and load
no torch; `load_code` executes, and is called by preparing, training, evaluating and predicting alone.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Literal

from stageline.config import C, RunConfig
from stageline.errors import ConfigError, Faults, StagelineError
from stageline.store import NotFoundError, Store, open_store

CODE = "code"
Section = Literal["code", "data.code"]
"""Where a config names files of the user's own."""
OF_STAGES: tuple[Section, ...] = ("code",)
OF_DATA: tuple[Section, ...] = ("data.code",)
SECTIONS = (*OF_STAGES, *OF_DATA)
STORED = re.compile(r"(?P<name>[^/@]+\.py)@sha256:(?P<digest>[0-9a-f]{64})")
LARGEST_BYTES = 4 << 20
"""Chosen here: a Python file larger than this is not one."""
REMEDY = "name Python files that are there, each name once"


@dataclass(frozen=True)
class CodeFile:
    """A file of the user's own. name: without its folder.  digest: SHA-256 of its bytes.  data: its bytes."""

    name: str
    digest: str
    data: bytes


def code_digests(config: RunConfig, section: Section = "code") -> dict[str, str]:
    """File name -> SHA-256 of what the config names in a section; nothing is executed.

    ConfigError with every file that is missing, too large, no Python file or named like another.
    """
    return {name: digest for name, digest, _ in _named(config, section)}


def named_code(config: RunConfig, sections: Collection[Section] = SECTIONS) -> tuple[str, ...]:
    """The files of the user's own that sections of a config name, as written there."""
    return tuple(entry for section in sections for entry in _entries(config, section))


def _entries(config: RunConfig, section: Section) -> tuple[str, ...]:
    return config.code if section == "code" else config.data.code


def with_code_of(config: C, other: RunConfig) -> C:
    """The config with the files that another one names, under the names that they have there."""
    data = config.data.model_copy(update={"code": other.data.code})
    return config.model_copy(update={"code": other.code, "data": data})


def name_code(config: C) -> C:
    """The config with its own files under the names that they have once they are kept; writes nothing."""
    if config.code:
        config = config.model_copy(update={"code": _kept_names(config, "code")})
    if config.data.code:
        data = config.data.model_copy(update={"code": _kept_names(config, "data.code")})
        config = config.model_copy(update={"data": data})
    return config


def keep_code(config: C) -> C:
    """Keep the texts of a config's own files with its run; the config with their kept names.

    What it names is executed wherever that config is, as long as the run is there.
    """
    for section in SECTIONS:
        for _, digest, path in _named(config, section):
            if path is not None:
                _folder(config).put(f"{digest}.py", _read(path))
    return name_code(config)


def read_code(config: RunConfig, run: Store | None = None, section: Section = "code") -> tuple[CodeFile, ...]:
    """The user's own files of a section of a config, their hashes checked; nothing is executed.

    run: the run's folder, where kept texts lie; None is that of the config.
    ConfigError with every text that is gone or another one.
    """
    store = _folder(config) if run is None else run.child(CODE)
    faults = Faults(ConfigError, section, "restore these files, or train again with those that are there")
    found = []
    for name, digest, path in _named(config, section):
        try:
            data = store.get(f"{digest}.py") if path is None else _read(path)
        except NotFoundError:
            faults.add(f"{name}: its text ({digest[:12]}) is not in {store.uri!r}")
            continue
        if hashlib.sha256(data).hexdigest() != digest:
            faults.add(f"{name}: the text in {store.uri!r} is another than the one that was named")
            continue
        found.append(CodeFile(name, digest, data))
    faults.raise_if_any()
    return tuple(found)


def load_code(
    config: RunConfig, run: Store | None = None, sections: Collection[Section] = OF_STAGES
) -> Mapping[str, ModuleType]:
    """Execute the user's own files of a config, each once in a process; file name -> module.

    A file registers what it brings by importing the family's names. Its module is called
    `stageline_user_<first 16 of its SHA-256>`. run: as for `read_code`.  sections: whose files.
    ConfigError where a file raises.
    """
    modules = {}
    for file in (file for section in sections for file in read_code(config, run, section)):
        name = f"stageline_user_{file.digest[:16]}"
        if name not in sys.modules:
            module = ModuleType(name)
            module.__file__ = file.name
            sys.modules[name] = module
            try:
                exec(compile(file.data, file.name, "exec"), module.__dict__)  # noqa: S102  # what `code` is for
            except StagelineError:
                del sys.modules[name]
                raise
            except Exception as error:
                del sys.modules[name]
                raise ConfigError(
                    f"code: {file.name} ends with {type(error).__name__}: {error}", remedy="mend that file"
                ) from error
        modules[file.name] = sys.modules[name]
    return modules


def _folder(config: RunConfig) -> Store:
    return open_store(config.root).child("runs", config.run, CODE)


def _kept_names(config: RunConfig, section: Section) -> tuple[str, ...]:
    return tuple(f"{name}@sha256:{digest}" for name, digest, _ in _named(config, section))


def _named(config: RunConfig, section: Section) -> list[tuple[str, str, Path | None]]:
    """(file name, SHA-256, path) of each file of a section; no path for one that is kept with the run."""
    faults = Faults(ConfigError, section, REMEDY)
    found: dict[str, tuple[str, str, Path | None]] = {}
    for entry in _entries(config, section):
        kept = STORED.fullmatch(entry)
        name = kept["name"] if kept else PurePosixPath(entry).name
        if name in found:
            faults.add(f"{entry!r}: the name {name!r} stands twice")
            continue
        if kept:
            found[name] = (name, kept["digest"], None)
            continue
        try:
            found[name] = (name, hashlib.sha256(_read(Path(entry))).hexdigest(), Path(entry))
        except ConfigError as error:
            faults.add(error.message)
    faults.raise_if_any()
    return list(found.values())


def _read(path: Path) -> bytes:
    """The bytes of a Python file; ConfigError where it can't be one."""
    if path.suffix != ".py":
        raise ConfigError(f"{str(path)!r} is no Python file (.py)", remedy=REMEDY)
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ConfigError(f"{str(path)!r} has more than {LARGEST_BYTES} bytes", remedy=REMEDY)
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror or error}", remedy=REMEDY) from error
