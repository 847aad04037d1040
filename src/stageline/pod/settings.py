"""What a trainer pod was told: its command line, and the variables that a rendered job gives it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stageline.errors import ConfigError
from stageline.jobs.environment import NODE_NAME, POD_IP, POD_NAME, POD_UID, read_environment

VERBS = ("train", "prepare", "evaluate", "trial")
USAGE = "stageline-entry train <stage> --data=… | prepare | evaluate --checkpoint=… --data=… | trial <stage> --family=…"


@dataclass(frozen=True)
class Pod:
    """One pod of a job.

    arguments: verb and options.  config: the run's raw config, empty where none was given.  fingerprint: of the job.
    index: which of the nodes this is.  deadline: unix seconds.
    name, uid, address (its IP), node: of the pod, empty outside a cluster.
    """

    arguments: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    job: str = ""
    item: str = ""
    fingerprint: str = ""
    index: int = 0
    nodes: int = 1
    processes: int = 1
    deadline: float | None = None
    shutdown_timeout_seconds: float = 120.0
    name: str = ""
    uid: str = ""
    address: str = ""
    node: str = ""

    @property
    def verb(self) -> str:
        return self.arguments[0]

    @property
    def world_size(self) -> int:
        """Ranks in all; preparation and evaluation are one process."""
        return self.nodes * self.processes if self.verb == "train" else 1

    @property
    def run(self) -> str:
        return str(self.config.get("run", "default"))

    @property
    def label(self) -> str:
        """The folder of this pod's log: another pod of the same name has another."""
        return f"{self.name or f'node-{self.index}'}-{self.uid[:8] or 'local'}"

    @property
    def stage(self) -> str:
        """The stage to train, "" for other verbs."""
        return self.arguments[1] if self.verb in ("train", "trial") else ""

    def options(self, name: str) -> list[str]:
        """The values of `--name=value`, in order."""
        return [word.partition("=")[2] for word in self.arguments if word.startswith(f"--{name}=")]


def read_pod(arguments: Sequence[str], variables: Mapping[str, str]) -> Pod:
    """The pod of a command line and an environment; ConfigError for what cannot be meant."""
    if not arguments or arguments[0] not in VERBS:
        found = arguments[0] if arguments else "nothing"
        raise ConfigError(f"stageline-entry was started with {found!r}", remedy=USAGE)
    named = len(arguments) > 1 and not arguments[1].startswith("-")
    if arguments[0] in ("train", "trial") and not named:
        raise ConfigError(f"stageline-entry {arguments[0]}: expected the name of a stage", remedy=USAGE)
    told = read_environment(variables)
    name = variables.get(POD_NAME, "")
    found_index = re.search(r"-worker-(\d+)$", name)
    if told.nodes > 1 and (found_index is None or int(found_index[1]) >= told.nodes):
        raise ConfigError(
            f"{POD_NAME}={name!r} names none of the {told.nodes} workers of a job: the rank of a node is the number at "
            "its end, `<job>-worker-<number>`",
            remedy="submit the job again: the training-operator names its pods so",
        )
    return Pod(
        arguments=tuple(arguments),
        config=told.config,
        job=told.job,
        item=told.item or (arguments[1] if named else arguments[0]),
        fingerprint=told.fingerprint,
        index=int(found_index[1]) if found_index else 0,
        nodes=told.nodes,
        processes=told.processes,
        deadline=told.deadline,
        shutdown_timeout_seconds=told.shutdown_timeout_seconds,
        name=name,
        uid=variables.get(POD_UID, ""),
        address=variables.get(POD_IP, ""),
        node=variables.get(NODE_NAME, ""),
    )
