"""What the data of a run are made from: its splits, their source files, and what is prepared of them. No torch.

The splits of a run are those that its selected stages and its evaluation read. Source files are hashed by whoever
prepares; what they had then (size, time, hash) is noted, so that a plan can tell without reading gigabytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stageline.checkpoint.usercode import code_digests
from stageline.config import RunConfig, fingerprint, flatten
from stageline.config.bounds import read_json
from stageline.contract import FamilyConfig
from stageline.data.prepared import set_fingerprint
from stageline.data.splits import Progress, Split, SplitManifest, file_sha256, find_split, silent, split_fingerprint
from stageline.encoders.lock import Digests, external_digests, read_lock
from stageline.errors import DataError, Faults, PlanError, difference
from stageline.families import family_config
from stageline.stage import Stage, stage_config
from stageline.store import NotFoundError, Store, open_store

SOURCES = "cache/sources"
"""Hashes of source files with the size and time they had."""

Hashes = dict[str, dict[str, str]]
"""Split -> source file -> SHA-256."""


@dataclass(frozen=True)
class SplitForecast:
    """What can be told of a split without reading its source files.

    fingerprint: "" where the sources would have to be read first; then `reason` says why.
    manifest: of the prepared split, None where it is still to be made.
    """

    split: Split
    fingerprint: str
    manifest: SplitManifest | None
    reason: str = ""


def stage_splits(config: RunConfig, family: FamilyConfig, stage: Stage) -> tuple[Split, ...]:
    """What a stage reads. config: the run's."""
    return family.splits(stage_config(config, stage), stage)


def run_splits(config: RunConfig, family: FamilyConfig) -> tuple[Split, ...]:
    """What the selected stages and the evaluation of a run read, each split once.

    PlanError where two of them ask for other data under one name, with the keys that differ.
    """
    readers = {f"stage {stage.name!r}": stage_splits(config, family, stage) for stage in family.selected(config)}
    readers["evaluate"] = family.evaluation_splits(config)
    found: dict[str, Split] = {}
    faults = Faults(PlanError, f"data of run {config.run!r}", "change `data` for the whole run instead")
    for reader, splits in readers.items():
        for split in splits:
            first = found.setdefault(split.name, split)
            lines = difference(flatten(first.key), flatten(split.key))
            faults.extend(f"{reader} asks for other data: {line}" for line in lines)
    faults.found = list(dict.fromkeys(faults.found))
    faults.raise_if_any()
    return tuple(found.values())


def inputs_digest(inputs: Mapping[str, str]) -> str:
    """One text for what a stage or an evaluation reads. inputs: split -> fingerprint of what it was made from."""
    return fingerprint({"splits": dict(inputs)})


def evaluation_names(config: RunConfig) -> tuple[str, ...]:
    """Names of the splits that an evaluation reads. config: the run's."""
    return tuple(split.name for split in family_config(config.family).evaluation_splits(config))


def source_names(paths: tuple[Path, ...]) -> dict[str, Path]:
    """Source files by their path below the folder they share, so that a data set that moves stays the same."""
    if not paths:
        return {}
    absolute = [path.absolute() for path in paths]
    shared = Path(os.path.commonpath([path.parent for path in absolute]))
    return {path.relative_to(shared).as_posix(): path for path in absolute}


def unseen_sources(splits: Sequence[Split]) -> tuple[Path, ...]:
    """Files and folders that splits are read from and that are not there, as seen from here."""
    paths = [path for split in splits for path in (*split.unseen, *split.source_files)]
    return tuple(path for path in dict.fromkeys(paths) if not path.exists())


def unseen_sentence(paths: Sequence[Path]) -> str:
    """Why nobody here can tell what data they lead to."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    shown = ", ".join(str(path) for path in paths[:3])
    return f"not to be seen from here: {shown}{more}; the job that prepares reads the sources and says reused or run"


def hash_seen(splits: Sequence[Split]) -> Hashes:
    """The same as `hash_sources`, of the splits whose sources can all be seen from here."""
    return hash_sources(tuple(split for split in splits if not unseen_sources([split])))


def hash_sources(splits: tuple[Split, ...], progress: Progress = silent) -> Hashes:
    """SHA-256 of every file the splits are made from, read anew, each once; with the rule that one is read by, if any.

    DataError lists every file that cannot be read, and every folder that is not there.
    """
    paths = sorted({path.absolute() for split in splits for path in split.source_files})
    hashes: dict[Path, str] = {}
    faults = Faults(DataError, "source files that cannot be read", "mend or remove them")
    faults.extend(f"{str(path)!r}: not there" for split in splits for path in split.unseen)
    for done, path in enumerate(paths, 1):
        try:
            hashes[path] = file_sha256(path)
        except OSError as error:
            faults.add(f"{str(path)!r}: {error.strerror or error}")
        progress(done, len(paths), "hashing source files")
    faults.raise_if_any()
    rules = {path.absolute(): split.rule for split in splits for path in split.source_files}
    ruled = {path: f"{sha}:{rule}" if (rule := rules[path](path)) else sha for path, sha in hashes.items()}
    return {
        split.name: {name: ruled[path] for name, path in source_names(split.source_files).items()} for split in splits
    }


def split_fingerprints(config: RunConfig, splits: tuple[Split, ...], sources: Hashes) -> dict[str, str]:
    """Split -> its fingerprint, "" where its sources are not hashed or weights of others are not locked.

    sources: as `hash_sources` gives them, or `hash_seen`.
    """
    keys, code = {}, code_digests(config, "data.code")
    for split in splits:
        digests = split_digests(open_store(config.root), split)
        known = split_fingerprint(config.family, split, sources.get(split.name, {}), code, digests.known)
        keys[split.name] = "" if digests.unknown or split.name not in sources else known
    return keys


def split_digests(root: Store, split: Split) -> Digests:
    """What is known of the weights of others that a split is made with."""
    return external_digests(read_lock(root), split.externals, compare=True) if split.externals else Digests({})


def prepared_fingerprint(config: RunConfig, splits: tuple[Split, ...], sources: Hashes) -> str:
    """Name of the set of prepared splits that a config and its source files lead to; "" where nobody can know yet."""
    keys = split_fingerprints(config, splits, sources)
    return set_fingerprint(keys) if all(keys.values()) else ""


def forecast(config: RunConfig, store: Store, splits: tuple[Split, ...] | None = None) -> tuple[SplitForecast, ...]:
    """What preparing would find, split by split, without reading source files.

    store: the root.  splits: None is all of the run.
    Source files whose size and time are those noted count as unchanged; preparing hashes them.
    """
    if splits is None:
        splits = run_splits(config, family_config(config.family))
    return tuple(_forecast_split(config, store, split) for split in splits)


def _forecast_split(config: RunConfig, store: Store, split: Split) -> SplitForecast:
    never = "never prepared with this data section"
    if unseen := unseen_sources([split]):
        return SplitForecast(split, "", None, unseen_sentence(unseen))
    names = source_names(split.source_files)
    sources: dict[str, str] = {}
    if names:
        noted = _read_note(store, config, split)
        if noted is None:
            return SplitForecast(split, "", None, never)
        changed = [name for name, path in names.items() if noted.get(name, [])[:2] != _stamp(path)]
        changed += sorted(set(noted) - set(names))
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            return SplitForecast(split, "", None, f"source files changed: {', '.join(changed[:3])}{more}")
        sources = {name: str(noted[name][2]) for name in names}
    digests = split_digests(store, split)
    if digests.unknown:
        return SplitForecast(split, "", None, "made with weights of others that are not locked")
    code = code_digests(config, "data.code")
    key = split_fingerprint(config.family, split, sources, code, digests.known)
    manifest = find_split(store, key)
    return SplitForecast(split, key, manifest, "" if manifest else never)


def note_sources(store: Store, config: RunConfig, splits: tuple[Split, ...], sources: Hashes) -> None:
    """Note size, time and hash of the source files of splits. store: the root."""
    for split in splits:
        names = source_names(split.source_files)
        note = {name: [*_stamp(names[name]), sha] for name, sha in sources[split.name].items() if name in names}
        if note:
            store.put(_note_key(config, split), json.dumps(note).encode())


def _read_note(store: Store, config: RunConfig, split: Split) -> dict[str, list[Any]] | None:
    try:
        note = read_json(store.get(_note_key(config, split)))
    except (NotFoundError, ValueError):  # a forecast only; preparing reads the files themselves
        return None
    whole = isinstance(note, dict) and all(isinstance(v, list) and len(v) == 3 for v in note.values())
    return note if whole else None


def _note_key(config: RunConfig, split: Split) -> str:
    about: Mapping[str, Any] = {"family": config.family, "split": split.name, "key": dict(split.key)}
    return f"{SOURCES}/{fingerprint(about)}.json"


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]
