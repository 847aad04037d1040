"""A job's environment in both directions: what its starter writes, what its pods and ranks read. Pure.

The one home of the names that travel to a job. Those that lower parts read for themselves (the store's, the image's,
the folder for failure records) are theirs and are only written here. torchrun finds its peers by its own `PET_*`.
"""

from __future__ import annotations

import math
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from stageline.build import IMAGE_VARIABLE
from stageline.checkpoint.lease import WAIT_VARIABLE
from stageline.config import parse_yaml
from stageline.errors import ConfigError, Faults
from stageline.store.below import FOLLOW_VARIABLE
from stageline.store.credentials import DEFAULT_FOLDER as CREDENTIALS_FOLDER
from stageline.store.credentials import FOLDER_VARIABLE
from stageline.store.settings import CA_FILE, ENDPOINTS, JOB_VARIABLE, STYLE_VARIABLE
from stageline.telemetry import FAILURE_DIR_VARIABLE

if TYPE_CHECKING:
    from stageline.config.cluster import StorageConfig

ITEM_VARIABLE = "STAGELINE_ITEM"
FINGERPRINT_VARIABLE = "STAGELINE_FINGERPRINT"
CONFIG_VARIABLE = "STAGELINE_CONFIG"
NODES_VARIABLE = "STAGELINE_NODES"
DEADLINE_VARIABLE = "STAGELINE_DEADLINE"
ARGUMENTS_VARIABLE = "STAGELINE_ARGUMENTS"
"""The job's verb and options as every pod of it got them; ranks compare it, like the config."""
RENDEZVOUS_VARIABLE = "STAGELINE_RENDEZVOUS_SECONDS"
"""Set by whoever wants pods to wait for each other shorter or longer than usual."""
MESSAGE_VARIABLE = "STAGELINE_TERMINATION_LOG"
"""Set where a pod's termination message lies elsewhere than the kubelet looks for it."""
POD_NAME, POD_UID, POD_IP, NODE_NAME = "POD_NAME", "POD_UID", "POD_IP", "NODE_NAME"
POD_FIELDS = {POD_NAME: "metadata.name", POD_UID: "metadata.uid", POD_IP: "status.podIP", NODE_NAME: "spec.nodeName"}
"""Variable -> the field of the pod that Kubernetes itself writes into it."""
QUIET = {"OMP_NUM_THREADS": "1"}
"""What torchrun sets itself for several ranks, with a banner: `trainer.threads` says how many torch really takes."""
PORT = 23456
"""Of the rendezvous on worker 0; also the training-operator's own default."""
RENDEZVOUS_BACKEND = "stageline"
"""Our own for torchrun, by the entry point of `trainer.torchrun`: torch's c10d unpickles what it finds."""
_NODES, _PROCESSES, _SHUTDOWN = "PET_NNODES", "PET_NPROC_PER_NODE", "PET_SHUTDOWN_TIMEOUT"
_RESTARTS = {"PET_MAX_RESTARTS": "0"}
"""Restarting is the operator's and the launcher's affair: torchrun's own would hide how a rank ended."""
_BACKEND = {"PET_RDZV_BACKEND": RENDEZVOUS_BACKEND}
_UNBUFFERED = {"PYTHONUNBUFFERED": "1"}
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


OF_RANKS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    *("ROLE_WORLD_SIZE", "NODE_RANK", "TORCHELASTIC_RUN_ID"),
)
"""What torchrun tells its ranks. Nobody who starts a job is one: left in a shell, it would make a rank of the job."""
LOOPBACK = "127.0.0.1"


def without_ranks(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment that jobs and pipelines on this machine start from. variables: of who starts them.

    Without torchrun's own options, too (`PET_*`): jobs are told theirs.
    """
    return {name: value for name, value in variables.items() if name not in OF_RANKS and not name.startswith("PET_")}


def loopback_environment() -> dict[str, str]:
    """Where ranks of this machine alone talk to each other (gloo), unless their starter says otherwise."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    return {"GLOO_SOCKET_IFNAME": names[0]} if names else {}


def meeting_here(job: str) -> list[str]:
    """The options by which ranks on this machine meet where no other machine reaches them. job: its name."""
    meeting = Meeting(rank=0, member="", bind="", seconds=60)
    options = {"nnodes": "1", "rdzv-backend": RENDEZVOUS_BACKEND, "rdzv-endpoint": f"{LOOPBACK}:0", "rdzv-id": job}
    return [f"--{name}={value}" for name, value in {**options, "rdzv-conf": meeting.text()}.items()]


@dataclass(frozen=True)
class JobEnvironment:
    """What every pod of a job is told by its environment.

    job: name of the job, "" for a pod that no job started.
    item: what it is for: `prepare_data`, a stage, `evaluate`; "" where nobody says.
    fingerprint: what its result depends on; "" for a job that finds its inputs by itself.
    image: the trainer image that was asked for.
    nodes, processes: pods, and ranks in each, from 1 on.
    shutdown_timeout_seconds: how long ranks may take to finish their step and commit after SIGTERM.
    config: the run's raw config; empty where none is needed.
    deadline: unix seconds by which the job must have ended; None for none.
    """

    job: str = ""
    item: str = ""
    fingerprint: str = ""
    image: str = ""
    nodes: int = 1
    processes: int = 1
    shutdown_timeout_seconds: float = 120.0
    config: Mapping[str, Any] = field(default_factory=dict)
    deadline: float | None = None


def write_environment(told: JobEnvironment) -> dict[str, str]:
    """The variables by which a pod is told all that; `read_environment` gives the same value again."""
    variables = {
        **_UNBUFFERED,
        _NODES: str(told.nodes),
        _PROCESSES: str(told.processes),
        **_BACKEND,
        "PET_RDZV_ENDPOINT": f"{told.job}-worker-0:{PORT}",
        "PET_RDZV_ID": told.job,
        **_RESTARTS,
        _SHUTDOWN: _text(told.shutdown_timeout_seconds),
        JOB_VARIABLE: told.job,
        ITEM_VARIABLE: told.item,
        FINGERPRINT_VARIABLE: told.fingerprint,
        IMAGE_VARIABLE: told.image,
        NODES_VARIABLE: str(told.nodes),
        CONFIG_VARIABLE: config_to_text(told.config),
    }
    return variables | ({} if told.deadline is None else deadline_environment(told.deadline))


def deadline_environment(deadline: float) -> dict[str, str]:
    """What is added once it is known when a job is submitted. deadline: unix seconds."""
    return {DEADLINE_VARIABLE: _text(round(deadline))}


def carried_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """What travels from whoever submits a job into its pods, and stands in no config. variables: of that process."""
    return {FOLLOW_VARIABLE: variables[FOLLOW_VARIABLE]} if variables.get(FOLLOW_VARIABLE) else {}


def read_environment(variables: Mapping[str, str]) -> JobEnvironment:
    """What a pod is told by its environment; ConfigError with everything in it that cannot be meant.

    variables: of the pod; what is not set takes the default of `JobEnvironment`.
    """
    usual = JobEnvironment()
    faults = Faults(ConfigError, "this pod's environment", "submit the job again")
    deadline = variables.get(DEADLINE_VARIABLE, "")
    told = JobEnvironment(
        job=variables.get(JOB_VARIABLE, ""),
        item=variables.get(ITEM_VARIABLE, ""),
        fingerprint=variables.get(FINGERPRINT_VARIABLE, ""),
        image=variables.get(IMAGE_VARIABLE, ""),
        nodes=_number(variables, _NODES, usual.nodes, faults),
        processes=_number(variables, _PROCESSES, usual.processes, faults),
        shutdown_timeout_seconds=_number(variables, _SHUTDOWN, usual.shutdown_timeout_seconds, faults),
        config=_text_to_config(variables.get(CONFIG_VARIABLE, ""), faults),
        deadline=_number(variables, DEADLINE_VARIABLE, 0.0, faults) if deadline else None,
    )
    faults.raise_if_any()
    return told


def config_to_text(config: Mapping[str, Any]) -> str:
    """A raw config as the YAML that travels."""
    return str(yaml.dump(dict(config), Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=120))


def _text_to_config(text: str, faults: Faults) -> dict[str, Any]:
    try:
        raw = parse_yaml(text, CONFIG_VARIABLE) if text.strip() else {}
    except ConfigError as error:
        faults.add(error.message)
        return {}
    if isinstance(raw, dict):
        return raw
    faults.add(f"{CONFIG_VARIABLE} holds a {type(raw).__name__}, expected a mapping of sections")
    return {}


def _number(variables: Mapping[str, str], name: str, usual: Any, faults: Faults) -> Any:
    """A number of the kind of `usual`, which it is where the variable is not set."""
    text = variables.get(name, "")
    try:
        return type(usual)(text) if text else usual
    except ValueError:
        faults.add(f"{name}={text!r}: expected a number")
        return usual


def _text(number: float) -> str:
    """A number as text that reads as the same number, whole ones without a point."""
    return str(int(number)) if number == int(number) else repr(number)


def process_environment(shutdown_timeout_seconds: int, failure_dir: str) -> dict[str, str]:
    """What a job on this machine gets on top of its starter's environment.

    shutdown_timeout_seconds: as in `JobEnvironment`. It goes by environment: torch versions without the option ignore
    it, and a flag would end them.
    failure_dir: local folder in which its ranks leave their failure records.
    """
    timeout = {_SHUTDOWN: str(shutdown_timeout_seconds)}
    return {**_UNBUFFERED, **timeout, **_RESTARTS, FAILURE_DIR_VARIABLE: failure_dir}


@dataclass(frozen=True)
class Meeting:
    """How a node finds its peers.

    rank: which of the nodes it is.  member: by what name, its pod's uid; "" for a random one.
    bind: the one address on which node 0's store listens; "" for that of the endpoint.
    seconds: how long it waits for the others.
    """

    rank: int
    member: str
    bind: str
    seconds: float

    def text(self) -> str:
        """As `--rdzv-conf`."""
        told = {"rank": self.rank, "member": self.member, "bind": self.bind, "timeout": math.ceil(self.seconds)}
        return ",".join(f"{name}={value}" for name, value in told.items() if value != "")


def rank_environment(
    own: Mapping[str, str],
    arguments: Sequence[str],
    failure_dir: str,
    *,
    lease_wait_seconds: int,
    meeting: Meeting | None = None,
) -> dict[str, str]:
    """What the ranks of a pod get instead of the pod's own environment; its config reaches them as a file.

    own: environment of the pod; what it sets of the waits below stays.
    arguments: verb and options of the job, which the ranks compare with each other's.
    failure_dir: folder in which they leave their failure records.
    lease_wait_seconds: how long they wait for the lease of an attempt before them.
    meeting: how torchrun finds its peers; None where the one rank is started without torchrun.
    """
    variables = {**QUIET, **own}
    variables.pop(CONFIG_VARIABLE, None)
    variables.setdefault(WAIT_VARIABLE, str(lease_wait_seconds))
    variables |= {**_UNBUFFERED, FAILURE_DIR_VARIABLE: failure_dir, ARGUMENTS_VARIABLE: shlex.join(arguments)}
    if meeting is not None:
        variables |= {**_RESTARTS, **_BACKEND, "PET_RDZV_CONF": meeting.text()}
        variables.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a store that ends before its clients: pages of frames
    return variables


def job_words(variables: Mapping[str, str]) -> dict[str, str]:
    """What a rank knows of its job and compares with the other ranks: pods of an edited job differ in it."""
    return {
        "fingerprint": variables.get(FINGERPRINT_VARIABLE, ""),
        "arguments": variables.get(ARGUMENTS_VARIABLE, ""),
    }


def storage_environment(storage: StorageConfig) -> dict[str, str]:
    """The variables by which the store finds S3; no credentials among them, only the folder they are mounted at."""
    return {name: value for name, value in _storage_variables(storage) if value}


def _storage_variables(storage: StorageConfig) -> Iterator[tuple[str, str]]:
    s3 = storage.s3
    if s3 is None:
        return
    yield FOLDER_VARIABLE, str(CREDENTIALS_FOLDER) if s3.secret else ""
    yield ENDPOINTS[0], s3.endpoint
    yield "AWS_REGION", s3.region
    yield STYLE_VARIABLE, "" if s3.path_style is None else str(s3.path_style).lower()
    yield "AWS_CA_BUNDLE", str(CA_FILE) if s3.ca_config_map or s3.ca_secret else ""
    yield "HTTPS_PROXY", s3.proxy
    yield "HTTP_PROXY", s3.proxy
    yield "NO_PROXY", s3.no_proxy
