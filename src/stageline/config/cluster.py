"""The section `cluster`: how a stage runs on Kubernetes. Operational throughout: none of it can change a result.

It is part of every config, so that `cluster.image=…` and `stage_overrides.film.cluster.resources…` work like any other
key; a run on one machine reads none of it. What is pasted from elsewhere (affinity, tolerations) keeps Kubernetes' own
camelCase.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from posixpath import normpath
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from stageline.config.addresses import link_local_fault
from stageline.config.fields import SectionError, Settings
from stageline.config.network import NetworkConfig
from stageline.config.syntax import (
    LARGEST_INT,
    Amounts,
    Annotations,
    Bytes,
    Environment,
    Image,
    Label,
    Labels,
    Name,
    Names,
    NodeLabels,
    quantity_value,
)
from stageline.config.verbatim import toleration_faults

if TYPE_CHECKING:
    from stageline.config.settings import TrainerConfig

GRACE_MARGIN_SECONDS = 30
"""Between torchrun's shutdown timeout and the kubelet's SIGKILL: chosen here for the entry's own last words."""
ACCELERATOR = re.compile(
    r"(?:[a-z0-9.-]+\.)?(?:nvidia|amd|intel|habana|google)\.(?:com|ai)/(?:gpu|mig-.*|gaudi|tpu|i915|xe)"
)
"""Resource names that stand for devices a rank computes on, one rank each."""
SECRETS_PATH = "/var/run/secrets/stageline"
OWN_PATHS = ("/tmp", "/dev/shm", SECRETS_PATH)  # noqa: S108  # mount points of every pod
_AFFINITIES = ("nodeAffinity", "podAffinity", "podAntiAffinity")


class ResourcesConfig(Settings):
    """What each pod asks for. Names with dots may be given on the command line: `…limits.nvidia.com/gpu=8`."""

    requests: Amounts = Field(default_factory=dict)
    """Resource -> quantity the scheduler sets aside, e.g. `{cpu: 4, memory: 16Gi}`."""
    limits: Amounts = Field(default_factory=dict)
    """Resource -> quantity never exceeded; devices go here: `{nvidia.com/gpu: 8, rdma/hca_shared_devices_a: 1}`."""

    @model_validator(mode="after")
    def _requests_fit(self) -> ResourcesConfig:
        faults = []
        for name, amount in self.requests.items():
            limit = self.limits.get(name)
            if limit is not None and quantity_value(amount) > quantity_value(limit):
                faults.append(f"requests.{name} {amount} is more than limits.{name} {limit}")
            if "/" in name and limit is None:
                faults.append(f"requests.{name}: devices are asked for under limits")
        if faults:
            raise SectionError(faults)
        return self

    @property
    def accelerators(self) -> dict[str, int]:
        """Device resource -> how many each pod gets."""
        return {name: int(quantity_value(n)) for name, n in self.limits.items() if ACCELERATOR.fullmatch(name)}


class S3Config(Settings):
    """How pods reach the object store that `root` names. Without a Secret: workload identity, or an open store."""

    endpoint: str = ""
    """URL of a server that is not AWS: https://minio.example.org:9000; empty takes AWS' own."""
    region: str = "us-east-1"
    path_style: bool | None = None
    """Bucket in the path instead of the host name; null: so where an `endpoint` is given, as most servers want it."""
    secret: Name = ""
    """Secret, mounted as files: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if needed, AWS_SESSION_TOKEN."""
    proxy: str = ""
    """URL of the proxy between the pods and the store; without user and password, which everybody could read here."""
    no_proxy: str = ""
    """Hosts and networks reached without it, separated by commas; cluster-internal names should stand here."""
    ca_config_map: Name = ""
    """ConfigMap with the certificate authority of the store, under `ca_key`."""
    ca_secret: Name = ""
    """The same in a Secret, instead of `ca_config_map`."""
    ca_key: str = Field(default="ca.crt", pattern=r"^[-._a-zA-Z0-9]+$")

    @model_validator(mode="after")
    def _consistent(self) -> S3Config:
        faults = []
        for key in ("endpoint", "proxy"):
            value = getattr(self, key)
            parts = urlsplit(value)
            if value and (parts.scheme not in ("http", "https") or not parts.hostname):
                faults.append(f"{key} {value!r} is no http:// or https:// URL")
            elif parts.username or parts.password:
                faults.append(f"{key} holds a user or password, which everybody who may see the job could read")
            elif fault := link_local_fault(value):
                faults.append(f"{key}: {fault}")
        if self.ca_config_map and self.ca_secret:
            faults.append("ca_config_map and ca_secret contradict each other; give one of them")
        if faults:
            raise SectionError(faults)
        return self


class StorageConfig(Settings):
    """Where pods find `root`: a claim mounted into each of them, or an object store; both may be given."""

    claim: Name = ""
    """PersistentVolumeClaim (ReadWriteMany for several nodes) mounted at `mount_path`; `root` lies below that."""
    mount_path: str = Field(default="/stageline", pattern=r"^/[^:]+$")
    sub_path: str = Field(default="", pattern=r"^([^/.][^/]*(/[^/.][^/]*)*)?$")
    """Folder of the claim that is mounted; empty takes all of it."""
    s3: S3Config | None = None


class MountConfig(Settings):
    """A folder of files that pods need besides the store: a data set, a token, a certificate."""

    mount_path: str = Field(pattern=r"^/[^:]+$")
    secret: Name = ""
    config_map: Name = ""
    claim: Name = ""
    sub_path: str = Field(default="", pattern=r"^([^/.][^/]*(/[^/.][^/]*)*)?$")
    read_only: bool = True

    @model_validator(mode="after")
    def _one_source(self) -> MountConfig:
        given = [key for key in ("secret", "config_map", "claim") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of secret, config_map, claim; found {given or 'none'}")
        return self


class ClusterConfig(Settings):
    """One stage as pods. Everything may differ per stage: `stage_overrides.film.cluster.<key>`."""

    namespace: Label = ""
    """Where jobs run; empty takes the one of the kubeconfig's context, or the pod's own."""
    context: str = ""
    """Context of the kubeconfig; empty takes its current one. Pods use their service account."""
    defaults: Annotated[Name, Field(min_length=1)] = "stageline"
    """ConfigMap with the namespace's defaults, on which this section is put: the chart's `nameOverride`."""
    name_prefix: str = Field(default="", pattern=r"^([a-z][-a-z0-9]{0,19})?$")
    """In front of the names of jobs, for the chart's `namePolicy`. Part of their identity: with another one a job that
    runs already is not found."""
    image: Image = ""
    """Trainer image of this version, best by digest (name@sha256:…): a tag may mean something else tomorrow."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: Names = ()
    service_account: Name = "stageline-trainer"
    """Account of the training pods; its token is not mounted."""
    resources: ResourcesConfig = ResourcesConfig()
    prepare_resources: ResourcesConfig | None = None
    """For the preparation of data; null takes `resources`."""
    evaluate_resources: ResourcesConfig | None = None
    """For the evaluation, which is one process; null takes `resources`."""
    node_selector: NodeLabels = Field(default_factory=dict)
    affinity: dict[str, Any] = Field(default_factory=dict)
    """Kubernetes' own object, verbatim: nodeAffinity, podAffinity, podAntiAffinity."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Kubernetes' own objects, verbatim; those of `node_toleration_seconds` are added."""
    spread: Literal["prefer", "require", "off"] = "prefer"
    """Whether pods of one stage go to different nodes; `require` leaves them pending where there are too few."""
    priority_class: Name = ""
    runtime_class: Name = ""
    scheduler_name: Name = ""
    """Empty takes the cluster's default; a gang scheduler (Volcano, scheduler-plugins) is named here."""
    queue: Annotated[Name, Field(max_length=63)] = ""
    """Kueue's LocalQueue; empty starts pods at once. It becomes a label, which has 63 characters at most."""
    labels: Labels = Field(default_factory=dict)
    """Added to the job, its pods and its NetworkPolicy."""
    annotations: Annotations = Field(default_factory=dict)
    """Added to the job, its pods and its NetworkPolicy."""
    env: Environment = Field(default_factory=dict)
    """Environment of the training process (NCCL_*, GLOO_*, …). Never credentials."""
    storage: StorageConfig = StorageConfig()
    mounts: tuple[MountConfig, ...] = ()
    """Further Secrets, ConfigMaps and claims as folders."""
    network_policy: Literal["prefer", "require", "off"] = "prefer"
    """A NetworkPolicy of each job, by which only its own pods reach each other. Where the launcher may not make one,
    `prefer` says so and goes on, `require` makes no job; `off` makes none."""
    network: NetworkConfig = NetworkConfig()
    shared_memory: Bytes = "1Gi"
    """Size of /dev/shm, which data loaders and NCCL use; counts as memory of the pod."""
    scratch: Bytes = "10Gi"
    """Largest size of /tmp, on the node's own disk."""
    run_as_user: int | None = Field(default=1000, ge=1, le=LARGEST_INT)
    """Numeric uid of the pods; also their gid and the group of mounted volumes. null leaves all three to the cluster,
    as OpenShift wants it, which gives each namespace a range of its own."""
    fs_group_change_policy: Literal["OnRootMismatch", "Always"] = "OnRootMismatch"
    grace_seconds: int | None = Field(default=None, ge=1, le=LARGEST_INT)
    """From SIGTERM to SIGKILL; null takes `trainer.shutdown_timeout_seconds` and half a minute more."""
    restart_budget: int = Field(default=3, ge=0)
    """Restarts without a new committed checkpoint before the job is ended and explained."""
    pending_seconds: int = Field(default=900, ge=10)
    """How long pods may wait for a node, an image or a volume before the job is ended and explained."""
    deadline_seconds: int | None = Field(default=None, ge=60, le=LARGEST_INT)
    """From submission to the end, whatever happens; null sets none."""
    ttl_seconds: int | None = Field(default=86400, ge=0, le=LARGEST_INT)
    """How long a finished job is kept for people to look at; null keeps it."""
    node_lost_seconds: int = Field(default=300, ge=30)
    """How long a pod's node may be silent before the launcher ends the step and says how to free the pod."""
    node_toleration_seconds: int = Field(default=30, ge=0, le=LARGEST_INT)
    """How long pods stay on a node that is not ready or unreachable before they are evicted."""

    @field_validator("affinity")
    @classmethod
    def _known_affinities(cls, value: dict[str, Any]) -> dict[str, Any]:
        foreign = sorted(set(value) - set(_AFFINITIES))
        if foreign:
            raise ValueError(f"affinity has no {foreign}; it holds {', '.join(_AFFINITIES)}")
        return value

    @field_validator("tolerations")
    @classmethod
    def _legal_tolerations(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        faults = [f"toleration {index} {fault}" for index, one in enumerate(value) for fault in toleration_faults(one)]
        if faults:
            raise SectionError(faults)
        return value

    @model_validator(mode="after")
    def _mounts_apart(self) -> ClusterConfig:
        paths = [*OWN_PATHS]
        faults = []
        storage = [("storage", self.storage.mount_path)] if self.storage.claim else []
        for key, text in [*storage, *(("mounts", mount.mount_path) for mount in self.mounts)]:
            path = normpath("/" + text.lstrip("/"))
            taken = [other for other in paths if path in ("/", other) or other.startswith(path + "/")]
            if ".." in text.split("/"):
                faults.append(f"{key}: {text} goes up; give the folder itself")
            elif taken:
                faults.append(f"{key}: {text} hides {taken[0]}; choose another folder")
            elif path.startswith(f"{SECRETS_PATH}/"):
                faults.append(f"{key}: {text} lies in {SECRETS_PATH}, which can't be written; choose another folder")
            paths.append(path)
        if faults:
            raise SectionError(faults)
        return self

    def grace_for(self, shutdown_timeout_seconds: int) -> int:
        """Seconds from SIGTERM to SIGKILL of a job with this shutdown timeout."""
        return self.grace_seconds or shutdown_timeout_seconds + GRACE_MARGIN_SECONDS

    def resources_for(self, item: str) -> ResourcesConfig:
        """What the pods of `prepare_data`, `evaluate` or a stage ask for."""
        own = {"prepare_data": self.prepare_resources, "evaluate": self.evaluate_resources}.get(item)
        return own or self.resources

    @property
    def notes(self) -> tuple[str, ...]:
        """What is legal and still worth a sentence before a job is made."""
        pinned = not self.image or re.search(r"@sha256:[0-9a-f]{64}$", self.image)
        tag = f"cluster.image {self.image!r} is a tag: a node may run another image under it; pin it as name@sha256:…"
        return () if pinned else (tag,)


def cluster_faults(cluster: ClusterConfig, trainer: TrainerConfig) -> Iterator[str]:
    """What `cluster` and `trainer` of one stage say against each other."""
    shutdown = trainer.shutdown_timeout_seconds
    if cluster.grace_seconds is not None and cluster.grace_seconds < shutdown + GRACE_MARGIN_SECONDS:
        yield (
            f"cluster.grace_seconds {cluster.grace_seconds} leaves no time to commit: give at least "
            f"{shutdown + GRACE_MARGIN_SECONDS} (trainer.shutdown_timeout_seconds {shutdown} + {GRACE_MARGIN_SECONDS})"
        )
    devices = cluster.resources.accelerators
    total = sum(devices.values())
    if devices and trainer.accelerator != "cpu" and total != trainer.processes:
        found = ", ".join(f"{name}: {count}" for name, count in devices.items())
        yield (
            f"cluster.resources.limits give each pod {total} device(s) ({found}), but trainer.processes is "
            f"{trainer.processes}: one rank per device; set trainer.processes={total}"
        )
