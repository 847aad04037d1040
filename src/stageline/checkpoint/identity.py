"""A run's name, claimed: one name, one identity, one directory. Loads no torch.

`run.json` is created conditionally; whoever comes with another identity under the same name is blocked and told the
difference and the flag that starts a new run.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata as installed
from typing import Any

from stageline import __version__
from stageline.config import RunConfig, fingerprint, identity
from stageline.config.bounds import read_json
from stageline.errors import PlanError, difference
from stageline.store import NotFoundError, Store, open_store

RUN_NAME = "run.json"
RUN_SCHEMA = "stageline-run/1"
PACKAGES = ("torch", "lightning-fabric", "safetensors", "numpy", "pydantic", "obstore", "kfp", "transformers")


@dataclass(frozen=True)
class RunRecord:
    """What run.json holds. stages: name -> where it lies, relative to the run."""

    run: str
    family: str
    identity: Mapping[str, Any]
    fingerprint: str
    stages: Mapping[str, str]
    versions: Mapping[str, str]
    image: str
    command: str
    created: str

    def to_bytes(self) -> bytes:
        return (json.dumps({"schema": RUN_SCHEMA, **vars(self)}, indent=1, ensure_ascii=False) + "\n").encode()


def versions() -> dict[str, str]:
    """Versions of what takes part in a result, read without importing it, once."""
    return dict(_versions())


@cache
def _versions() -> Mapping[str, str]:
    found = {"stageline": __version__, "python": platform.python_version(), "platform": sys.platform}
    for package in PACKAGES:
        try:
            found[package] = installed.version(package)
        except installed.PackageNotFoundError:
            continue
    return found


def run_store(root: Store | str, run: str) -> Store:
    """`<root>/runs/<run>`."""
    return (root if isinstance(root, Store) else open_store(root)).child("runs", run)


def read_run(root: Store | str, run: str) -> RunRecord | None:
    """The record of a run, or None where the name is free."""
    store = run_store(root, run)
    try:
        data = store.get(RUN_NAME)
    except NotFoundError:
        return None
    where = f"{store.uri}/{RUN_NAME}"
    try:
        plain = read_json(data)
        schema = plain.pop("schema", None)
        record = RunRecord(**plain)
    except (ValueError, TypeError, AttributeError) as error:
        raise PlanError(
            f"{where!r} is damaged: {error}", remedy="restore it, or start a new run: run=<new name>"
        ) from None
    if schema == RUN_SCHEMA and fingerprint(record.identity) != record.fingerprint:
        raise PlanError(
            f"{where!r} was changed after it was written: its fingerprint is not that of the identity in it",
            remedy="restore it, or start a new run: run=<new name>",
        )
    if schema != RUN_SCHEMA:
        raise PlanError(f"{where!r} has schema {schema!r}, this version reads {RUN_SCHEMA}", remedy="run=<new name>")
    return record


def refuse_alike(root: Store | str, run: str) -> None:
    """PlanError where the name of another run differs from this one in capital letters alone.

    Some file systems, and people, take the two for one.
    """
    store = root if isinstance(root, Store) else open_store(root)
    alike = [name for name in store.folders("runs") if name != run and name.lower() == run.lower()]
    if alike:
        raise PlanError(
            f"the run {run!r} would lie beside {alike[0]!r} at {store.child('runs').uri!r}, and the names differ in "
            "capital letters alone",
            remedy=f"say run={alike[0]}, or start a new run: run=<new name>",
        )


def compare_run(record: RunRecord, config: RunConfig) -> list[str]:
    """In which fields a config is another run than the record, one line each: `key: recorded -> asked`."""
    own = json.loads(json.dumps(identity(config)))
    if fingerprint(own) == record.fingerprint:
        return []
    # What an evaluation alone reads was once part of the identity.
    recorded = {key: value for key, value in record.identity.items() if key not in type(config).OF_EVALUATION}
    if recorded == own and fingerprint(record.identity) == record.fingerprint:
        return []
    return difference(recorded, own) or ["identity: the fields are equal but the fingerprint is another"]


def claim_run(
    root: Store | str, config: RunConfig, command: str = "", *, stages: Mapping[str, str] | None = None, image: str = ""
) -> RunRecord:
    """Claim `config.run` for this config's identity, or join the run that has it already.

    stages: name -> where it lies in the run, for the record.
    PlanError if the name belongs to another identity, with the differing fields, or is
    another run's but for capital letters.
    """
    own = json.loads(json.dumps(identity(config)))
    record = RunRecord(
        run=config.run,
        family=config.family,
        identity=own,
        fingerprint=fingerprint(own),
        stages=dict(stages or {}),
        versions=versions(),
        image=image,
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    store = run_store(root, config.run)
    if not store.exists(RUN_NAME):
        refuse_alike(root, config.run)
    if store.create(RUN_NAME, record.to_bytes()):
        return record
    there = read_run(root, config.run)
    if there is None:
        raise PlanError(
            f"{store.uri}/{RUN_NAME} came and went", remedy="start again; is another process deleting runs?"
        )
    if there.run != config.run and there.run.lower() == config.run.lower():  # the file system takes them for one
        raise PlanError(
            f"the run at {store.uri!r} is called {there.run!r}, and {config.run!r} is asked for",
            remedy=f"say run={there.run}, or start a new run: run=<new name>",
        )
    lines = compare_run(there, config)
    if lines:
        listed = "\n".join(f"  - {line}" for line in lines)
        raise PlanError(
            f"the run {config.run!r} at {store.uri!r} has another identity:\n{listed}",
            remedy="start a new run with run=<new name>, or undo the change",
        )
    return there
