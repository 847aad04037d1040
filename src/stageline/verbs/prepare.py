"""Preparing the data of a run: each split once per content, claimed and committed like a checkpoint, shared by runs.

A split lies under `cache/prepared/<fingerprint>/`: a folder of files, claimed by a conditional create, and
`manifest.json`, written last and by one preparer only. Files go into the store as soon as they are full. The splits of
a run are named together by one set. Loads what the family makes them with only where a split has to be made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from stageline.checkpoint.identity import compare_run, read_run
from stageline.checkpoint.usercode import OF_DATA, code_digests, keep_code, load_code
from stageline.config import RunConfig
from stageline.config.bounds import read_json
from stageline.data.prepared import PREPARED, Prepared, write_set
from stageline.data.quarantine import QUARANTINE, QuarantineError, SetAside, list_set_aside
from stageline.data.shards import SplitWriter
from stageline.data.splits import MANIFEST, Progress, Split, find_split, make_manifest, parse_manifest, silent
from stageline.data.told import note_told
from stageline.encoders.copies import lock_external
from stageline.errors import DiskFullError
from stageline.families import family_config, load_family
from stageline.printing import say
from stageline.store import NotFoundError, Store, open_store
from stageline.store.holder import is_dead, this_process
from stageline.store.scratch import scratch_folder
from stageline.verbs.one_preparer import has_peers, prepare_once
from stageline.work.answers import leave_answer
from stageline.work.data import hash_sources, note_sources, run_splits, split_fingerprints, unseen_sources
from stageline.work.externals import run_externals

CLAIM = "claim.json"


def prepare_data(config: RunConfig, progress: Progress = silent) -> Prepared:
    """The prepared splits of a run; those that the same inputs made before are reused.

    The weights of others that the run needs are locked first: splits may be made with them.
    Of several ranks that were started together rank 0 prepares and the others wait for it (`one_preparer`).
    DataError lists every fault of the source files before the first write; DiskFullError where they do not fit.
    """
    store = open_store(config.root)
    if has_peers(os.environ):
        return prepare_once(store, os.environ, lambda: _prepare_splits(config, store, progress), progress)
    return _prepare_splits(config, store, progress)


def _prepare_splits(config: RunConfig, store: Store, progress: Progress) -> Prepared:
    family = family_config(config.family)
    splits = run_splits(config, family)
    for external in run_externals(config, family):
        lock_external(store, external, progress)
    if unseen_sources(splits):  # the family says it in its own words, with every other fault of the sources
        _check_sources(config, store, splits, progress)
    sources = hash_sources(splits, progress)
    keys = split_fingerprints(config, splits, sources)
    missing = [split for split in splits if find_split(store, keys[split.name]) is None]
    made = False
    if any(split.own_code for split in missing):
        load_code(keep_code(config), sections=OF_DATA)
    if missing:
        _check_sources(config, store, missing, progress)
        for split in missing:
            made = _make_split(config, store, split, keys[split.name], sources[split.name], progress) or made
    note_sources(store, config, splits, sources)
    prepared = replace(write_set(store, keys), reused=not made)
    leave_answer(store, config, prepared)
    _list_rows(store, config, {name: split.set_aside for name, split in prepared.splits.items()})
    if not _is_of_another(store, config):
        for line in note_told(store.child("runs", config.run), prepared.facts["splits"]):
            say(f"prepare: {line}", error=True)
    return prepared


def _is_of_another(root: Store, config: RunConfig) -> bool:
    """Whether the run's name is that of another run, in which nothing may be written."""
    record = read_run(root, config.run)
    return record is not None and bool(compare_run(record, config))


def _check_sources(config: RunConfig, root: Store, splits: Sequence[Split], progress: Progress) -> None:
    """Every fault of the sources at once; rows that are too many to be set aside are listed in the run all the same."""
    try:
        load_family(config.family).check_sources(config, splits, progress)
    except QuarantineError as error:
        if _list_rows(root, config, error.set_aside):
            error.remedy += f"; all of them are listed in {root.child('runs', config.run, QUARANTINE).uri}"
        raise


def _list_rows(root: Store, config: RunConfig, splits: Mapping[str, Sequence[SetAside]]) -> list[str]:
    """List rows that cannot be used in the run, and say so; nothing is written where the name is another run's."""
    if _is_of_another(root, config):
        return []
    told = list_set_aside(root.child("runs", config.run), splits)
    for line in told:
        say(f"prepare: {line}", error=True)
    return told


def _make_split(
    config: RunConfig, root: Store, split: Split, key: str, sources: Mapping[str, str], progress: Progress
) -> bool:
    """Make one split and commit it; False where another preparer was faster: then its data are the data."""
    store = root.child(PREPARED, key)
    folder = _claim_folder(store)
    try:
        with _scratch(root) as scratch, SplitWriter(scratch, _keeper(store, folder)) as writer:
            facts = load_family(config.family).prepare(config, split, writer, progress)
            written = writer.finish()
        about: dict[str, Any] = {
            "family": config.family,
            "split": split.name,
            "key": dict(split.key),
            "sources": dict(sources),
            **({"code": code} if split.own_code and (code := code_digests(config, "data.code")) else {}),
            "facts": facts,
            "folder": folder,
            **written,
        }
        won = store.create(MANIFEST, make_manifest(about))
    except BaseException:
        store.delete_tree(folder)
        raise
    if not won:
        store.delete_tree(folder)
    _sweep_claims(store)
    return won


def _keeper(store: Store, folder: str) -> Callable[[Path, str], None]:
    """Takes finished files of a split into the store."""

    def keep(path: Path, name: str) -> None:
        size, free = path.stat().st_size, store.free_bytes()
        if free is not None and free < size:
            raise DiskFullError(
                f"a file of {size} bytes has no room at {store.uri!r}, {free} are free", remedy="make room"
            )
        store.put(f"{folder}/{name}", path)

    return keep


def _claim_folder(store: Store) -> str:
    """A folder of our own: `data`, or `data-2`, … where another preparer works or died."""
    number = 1
    while True:
        name = "data" if number == 1 else f"data-{number}"
        if store.create(f"{name}/{CLAIM}", json.dumps(this_process()).encode()):
            return name
        number += 1


def _sweep_claims(store: Store) -> None:
    """Remove what preparers that died on this machine had half written, now that the data are there."""
    winner = parse_manifest(store.get(MANIFEST), store.uri).folder
    for name in store.folders():
        with suppress(NotFoundError, ValueError, KeyError):  # without a readable claim nobody knows whose it is
            if name != winner and is_dead(read_json(store.get(f"{name}/{CLAIM}"))):
                store.delete_tree(name)


@contextmanager
def _scratch(root: Store) -> Iterator[Path]:
    """A local folder for files on their way, on the store's own disk where it has one; removed at the end."""
    place = root.child(*PREPARED.split("/")).local
    with scratch_folder("preparing") if place is None else place.scratch("preparing") as path:
        yield path
