"""What a trainer pod was told: its command line, and the variables that a rendered job gives it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stageline.config import parse_yaml
from stageline.errors import ConfigError

VERBS = ("train", "prepare", "evaluate", "trial")
CONFIG_VARIABLE = "STAGELINE_CONFIG"
ARGUMENTS_VARIABLE = "STAGELINE_ARGUMENTS"
"""Environment variable: the job's verb and options as every pod of it got them; ranks compare it, like the config."""
USAGE = "stageline-entry train <stage> --data=… | prepare | evaluate --checkpoint=… --data=… | trial <stage>"


@dataclass(frozen=True)
class Pod:
    """One pod of a job.

    arguments: verb and options.  config: the run's raw config, empty where none was given.  fingerprint: of the job.
    index: which of the nodes this is.  deadline: unix seconds.  name, uid, node: of the pod, empty outside a cluster.
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
    deadline = variables.get("STAGELINE_DEADLINE", "")
    name = variables.get("POD_NAME", "")
    index = re.search(r"-worker-(\d+)$", name)
    return Pod(
        arguments=tuple(arguments),
        config=_config(variables.get(CONFIG_VARIABLE, "")),
        job=variables.get("STAGELINE_JOB", ""),
        item=variables.get("STAGELINE_ITEM", "") or (arguments[1] if named else arguments[0]),
        fingerprint=variables.get("STAGELINE_FINGERPRINT", ""),
        index=int(index[1]) if index else 0,
        nodes=_number(variables, "PET_NNODES", 1, int),
        processes=_number(variables, "PET_NPROC_PER_NODE", 1, int),
        deadline=_number(variables, "STAGELINE_DEADLINE", 0.0, float) if deadline else None,
        shutdown_timeout_seconds=_number(variables, "PET_SHUTDOWN_TIMEOUT", 120.0, float),
        name=name,
        uid=variables.get("POD_UID", ""),
        node=variables.get("NODE_NAME", ""),
    )


def _config(text: str) -> dict[str, Any]:
    raw = parse_yaml(text, CONFIG_VARIABLE) if text.strip() else {}
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{CONFIG_VARIABLE} holds a {type(raw).__name__}, expected a mapping of sections",
            remedy="submit the job again",
        )
    return raw


def _number(variables: Mapping[str, str], name: str, default: Any, kind: type) -> Any:
    text = variables.get(name, "")
    try:
        return kind(text) if text else default
    except ValueError as error:
        raise ConfigError(f"{name}={text!r}: expected a number", remedy="submit the job again") from error
