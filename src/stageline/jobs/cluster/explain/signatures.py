"""Texts that schedulers, kubelets, the API server and dying programs leave, and what each means: one table per author.

Texts as of Kubernetes 1.29-1.33, containerd, torch 2.13 and the training-operator 1.9. A pattern's groups fill its
sentence and remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from stageline.errors import ClusterError, DiskFullError, OutOfMemoryError, PeerLostError
from stageline.kube.refusals import POLICY, QUOTA, SECURITY, SILENT_WEBHOOK, WEBHOOK


@dataclass(frozen=True)
class Signature:
    """A text's pattern and what to say where it is found."""

    pattern: re.Pattern[str]
    kind: str
    sentence: str
    remedy: str
    exit_code: int = ClusterError.exit_code


def _sign(pattern: str, kind: str, sentence: str, remedy: str, exit_code: int = ClusterError.exit_code) -> Signature:
    return Signature(re.compile(pattern, re.IGNORECASE | re.DOTALL), kind, sentence, remedy, exit_code)


def match(text: str, table: Iterable[Signature]) -> tuple[Signature, str, str] | None:
    """(signature, sentence, remedy) of the first entry that fits a text."""
    for entry in table:
        found = entry.pattern.search(text)
        if found:
            groups = {name: value or "" for name, value in found.groupdict().items()}
            return entry, entry.sentence.format(**groups), entry.remedy.format(**groups)
    return None


REFUSED = (
    _sign(
        QUOTA,
        "quota",
        "the namespace's quota {quota!r} is exceeded: {amounts}",
        "wait for other work to end, ask for less (cluster.resources), or have it raised: kubectl describe quota",
    ),
    _sign(
        SECURITY,
        "pod_security",
        "the namespace's pod security level {level!r} refuses the pod: {why}",
        "pods of stageline pass `restricted`: something changed them, a webhook or an edited job",
    ),
    _sign(
        WEBHOOK,
        "webhook",
        "the admission webhook {name!r} refuses the pod: {why}",
        "change what it objects to, or ask whoever runs the cluster for an exception",
    ),
    _sign(
        POLICY,
        "webhook",
        "the admission policy {name!r} refuses the pod: {why}",
        "change what it objects to, or ask whoever runs the cluster for an exception",
    ),
    _sign(
        SILENT_WEBHOOK,
        "webhook",
        "the admission webhook {name!r} does not answer, and pods are not created without it: {why}",
        "its server must run: kubectl get deployments --all-namespaces",
        141,
    ),
    _sign(
        r"service account [^/\s]+/(?P<name>[\w.-]+): serviceaccount .* not found",
        "service_account",
        "there is no service account {name!r}, as which the pods should run",
        "kubectl create serviceaccount {name}, install the chart, or set cluster.service_account",
    ),
    _sign(
        r"no PriorityClass with name (?P<name>\S+) was found",
        "priority_class",
        "there is no PriorityClass {name!r}",
        "kubectl get priorityclasses lists them; set cluster.priority_class",
    ),
    _sign(
        r'RuntimeClass "(?P<name>[^"]+)" not found',
        "runtime_class",
        "there is no RuntimeClass {name!r}",
        "kubectl get runtimeclasses lists them; set cluster.runtime_class",
    ),
    _sign(
        r"(?:maximum|minimum) (?P<what>\S+) usage per (?:Pod|Container) is (?P<limit>\S+), but",
        "limit_range",
        "the namespace's LimitRange refuses the pod's {what}: the bound is {limit}",
        "change cluster.resources, or have it raised: kubectl describe limitrange",
    ),
    _sign(
        r"is forbidden: (?P<why>.*)",
        "refused",
        "the API server refuses the pod: {why}",
        "its words name the field; the setting behind it is a key of `cluster`",
    ),
)
"""Why the API server refuses to create a pod; an Event of the job is the only place that tells."""

IMAGE = (
    _sign(
        r"InvalidImageName|couldn't parse image|invalid reference format",
        "image",
        "{{image}} is no name of an image",
        "set cluster.image to registry/name@sha256:…",
    ),
    _sign(
        r"ErrImageNeverPull",
        "image",
        "{{image}} is not on the node, and cluster.image_pull_policy Never forbids fetching it",
        "set cluster.image_pull_policy=IfNotPresent, or load the image on every node",
    ),
    _sign(
        r"unauthorized|authorization failed|pull access denied|\b401\b|\b403\b|denied",
        "image",
        "the registry refuses to hand out {{image}}",
        "set cluster.pull_secrets to a Secret of type kubernetes.io/dockerconfigjson, and check the name",
    ),
    _sign(
        r"no match for platform|exec format error",
        "image",
        "{{image}} was not built for this node's processor",
        "build it for the node's platform, or choose nodes by cluster.node_selector: {{kubernetes.io/arch: amd64}}",
    ),
    _sign(
        r"not ?found|manifest unknown|does not exist",
        "image",
        "there is no image {{image}} in its registry",
        "check cluster.image; was it pushed?",
    ),
    _sign(
        r"no such host|dial tcp|i/o timeout|connection refused|x509|TLS|EOF",
        "image",
        "the registry of {{image}} does not answer the node",
        "check the registry's name in cluster.image, and whether nodes can reach it",
    ),
    _sign(
        r"no space left on device", "image", "the node has no room for {{image}}", "free its disk, or use others", 141
    ),
    _sign(r"", "image", "the node cannot get {{image}}", "kubectl describe pod {{pod}} tells more"),
)
"""Why an image does not come."""

MOUNT = (
    _sign(
        r'volume "(?P<volume>[^"]+)" : (?P<type>secret|configmap) "(?P<name>[^"]+)" not found',
        "volume",
        "there is no {type} {name!r}, which the pod mounts as {volume!r}",
        "create it in the namespace of the job, or change the key of cluster.storage or cluster.mounts that names it",
    ),
    _sign(
        r'volume "(?P<volume>[^"]+)" : (?P<type>\S+ )?references non-existent \S+ key: (?P<name>\S+)',
        "volume",
        "the {type}behind the volume {volume!r} has no key {name!r}",
        "add that key to it; for a CA, name the key it has: cluster.storage.s3.ca_key",
    ),
    _sign(
        r"Multi-Attach error",
        "volume",
        "the claim is attached to another node, and can be to one only",
        "use a ReadWriteMany claim, or cluster.spread=off with room for all pods on one node",
    ),
    _sign(
        r"(?P<why>(?:MountVolume|AttachVolume|Unable to attach).*)",
        "volume",
        "a volume cannot be mounted: {why}",
        "kubectl describe pod {{pod}} tells more; look at the claim: kubectl describe pvc",
    ),
    _sign(
        r'(?:secret|configmap) "(?P<name>[^"]+)" not found',
        "volume",
        "there is no {name!r}, which the pod refers to",
        "create it in the namespace of the job",
    ),
)
"""Why volumes do not come."""

UNSCHEDULABLE = (
    _sign(
        r'persistentvolumeclaim "(?P<name>[^"]+)" not found',
        "volume",
        "there is no PersistentVolumeClaim {name!r}",
        "kubectl get pvc lists those of the namespace; set cluster.storage.claim, or create it",
    ),
    _sign(
        r"unbound immediate PersistentVolumeClaims",
        "volume",
        "the pod's PersistentVolumeClaim is bound to no volume yet",
        "kubectl describe pvc says why: often a storage class that does not exist or makes no volumes",
    ),
    _sign(
        r"volume node affinity conflict",
        "volume",
        "the pod's volume is in another zone or on another node than the nodes that would take it",
        "use storage that all nodes reach, or cluster.node_selector to stay where the volume is",
    ),
)
"""Why no node takes a pod, where it is not for want of room."""

STARTING = (
    _sign(
        r'exec: "(?P<name>[^"]+)": (?:executable file not found|stat .*no such file|.*permission denied)',
        "entrypoint",
        "the image has no program {name!r}: it is no trainer image of this version",
        "set cluster.image to the trainer image (images/trainer), built from this version",
    ),
    _sign(r"exec format error", IMAGE[3].kind, "the image was not built for this node's processor", IMAGE[3].remedy),
    _sign(
        r"runAsNonRoot and image (?:will run as root|has non-numeric user)",
        "entrypoint",
        "the image's user is root or has no number, and the pod must not run as root",
        "use the trainer image of images/trainer, whose user is 1000",
    ),
    _sign(
        r"OOM-?killed|container init was OOM",
        OutOfMemoryError.kind,
        "the memory limit is too small even to start the program",
        "raise cluster.resources.limits.memory",
        OutOfMemoryError.exit_code,
    ),
    _sign(r"(?P<why>.+)", "entrypoint", "the container cannot start: {why}", "kubectl describe pod {{pod}} tells more"),
)
"""Why a container does not start."""

LAST_LINES = (
    _sign(
        r"CUDA out of memory|torch\.OutOfMemoryError",
        OutOfMemoryError.kind,
        "the accelerator ran out of memory",
        "lower trainer.batch_size and raise trainer.accumulate_grad_batches",
        OutOfMemoryError.exit_code,
    ),
    _sign(
        r"No space left on device",
        DiskFullError.kind,
        "a disk of the pod is full",
        "raise cluster.shared_memory (/dev/shm) or cluster.scratch (/tmp), or free the claim",
        DiskFullError.exit_code,
    ),
    _sign(
        r"(?:NCCL|ncclSystemError|ncclRemoteError|ncclInternalError)\b.*error|Connection (?:closed|reset) by peer",
        PeerLostError.kind,
        "a rank lost its peers",
        "the first rank that failed tells why; starting again continues from the last checkpoint",
        PeerLostError.exit_code,
    ),
    _sign(
        r"(?P<why>(?:ModuleNotFoundError|ImportError): [^\n]+)",
        "entrypoint",
        "the image lacks something: {why}",
        "use the trainer image of this version",
    ),
    _sign(
        r"Read-only file system: '?(?P<path>[^\s'\"]+)",
        "entrypoint",
        "the program wrote to {path}, and the image's own files are read-only",
        "write below /tmp, or mount a claim there: cluster.mounts",
    ),
)
"""What a program's last lines give away where it left no record of its own."""
