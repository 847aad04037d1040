"""What the pods of a stage mount or are pulled with: claims, Secrets, ConfigMaps. Only names of keys are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stageline.config import ClusterConfig
from stageline.doctor.line import Line, ok, unknown, wrong
from stageline.doctor.registry import HUB, parse_image
from stageline.errors import StagelineError
from stageline.kube.client import Api
from stageline.kube.keys import CLAIMS, CONFIG_MAPS, SECRETS
from stageline.kube.refusals import AbsentError
from stageline.kube.rights import chart_command

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
PULL_TYPES = ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg")
"""Types of the Secrets that a kubelet pulls with; it passes over all others."""


@dataclass(frozen=True)
class Wanted:
    """A Secret or ConfigMap. keys: that it has to hold.  server: of images pulled with it, where it is for that."""

    resource: str
    name: str
    keys: tuple[str, ...] = ()
    server: str = ""

    @property
    def kind(self) -> str:
        return "secret" if self.resource == SECRETS else "configmap"

    def command(self, namespace: str) -> str:
        """kubectl's that makes it."""
        files = " ".join(f"--from-file={key}=<file>" for key in self.keys or ("<key>",))
        kind, rest = ("secret generic", files) if self.kind == "secret" else ("configmap", files)
        if self.server:
            kind = "secret docker-registry"
            rest = f"--docker-server={self.server} --docker-username=<user> --docker-password=<token>"
        return f"kubectl -n {namespace} create {kind} {self.name} {rest}"


def claims_line(name: str, api: Api, cluster: ClusterConfig, nodes: int) -> Line:
    """nodes: pods of the largest stage."""
    mounted = [(mount.claim, mount.read_only) for mount in cluster.mounts if mount.claim]
    lines = [_claim(name, api, claim, nodes, read_only) for claim, read_only in mounted]
    if cluster.storage.claim:
        lines.insert(0, _claim(name, api, cluster.storage.claim, nodes, False, of_chart=cluster.defaults))
    faulty = [line for state in ("wrong", "unknown") for line in lines if line.state == state]
    text = ", and ".join(line.text for line in lines) or "none is asked for"
    return faulty[0] if faulty else ok(name, text)


def _claim(name: str, api: Api, claim: str, nodes: int, read_only: bool, of_chart: str = "") -> Line:
    """of_chart: name of the chart that could make it; "" for one that is the user's own."""
    try:
        found = api.get(CLAIMS, claim)
    except AbsentError:
        if not of_chart:
            remedy = f"kubectl -n {api.namespace} get pvc; set the claim of cluster.mounts to one of them"
            return wrong(name, f"there is no claim {claim!r}, which cluster.mounts names", remedy)
        make = chart_command(api.namespace, of_chart, "storage.claim.create=true", f"storage.claim.name={claim}")
        return wrong(name, f"there is no claim {claim!r}", f"{make}; or cluster.storage.claim=<one of kubectl get pvc>")
    phase, modes = found.get("status", {}).get("phase", "unknown"), found["spec"].get("accessModes", [])
    describe = f"kubectl -n {api.namespace} describe pvc {claim}"
    shared = {"ReadWriteMany", "ReadOnlyMany"} if read_only else {"ReadWriteMany"}
    if nodes > 1 and not shared & set(modes):
        uses = "read" if read_only else "write to"
        text = f"{claim!r} has access modes {', '.join(modes)}, but {nodes} pods on different nodes {uses} it"
        return wrong(name, text, f"make a claim with {' or '.join(sorted(shared))}, or set trainer.nodes=1")
    if phase == "Lost":
        return wrong(name, f"{claim!r} has lost its volume", describe)
    if phase != "Bound":
        return unknown(name, f"{claim!r} is {phase}: its class may wait for the first pod", describe)
    return ok(name, f"{claim!r} is bound, {', '.join(modes)}")


def secrets_line(name: str, api: Api, cluster: ClusterConfig) -> Line:
    """Secrets and ConfigMaps that pods mount, or are pulled with."""
    wanted = list(_wanted(cluster))
    if not wanted:
        return ok(name, "none is asked for")
    faults, remedies, hidden = [], [], []
    for item in wanted:
        command = item.command(api.namespace)
        try:
            found = api.get(item.resource, item.name)
        except AbsentError:
            faults.append(f"there is no {item.kind} {item.name!r}")
            remedies.append(command)
            continue
        except StagelineError as error:
            if error.code != "E_FORBIDDEN":
                raise
            hidden.append(f"{item.kind} {item.name!r}")
            continue
        missing = [key for key in item.keys if key not in (found.get("data") or {})]
        if missing:
            faults.append(f"{item.kind} {item.name!r} has no {', '.join(missing)}")
            remedies.append(f"{command} --dry-run=client -o yaml | kubectl -n {api.namespace} apply -f -")
        elif item.server and found.get("type") not in PULL_TYPES:
            faults.append(f"secret {item.name!r} has type {found.get('type')!r}: nodes pull with {PULL_TYPES[0]}")
            remedies.append(f"kubectl -n {api.namespace} delete secret {item.name} && {command}")
    if faults:
        return wrong(name, "; ".join(faults), " && ".join(remedies))
    if hidden:
        return unknown(name, f"may not be read from here, as it should be: {', '.join(hidden)}")
    return ok(name, ", ".join(repr(item.name) for item in wanted) + " exist")


def _wanted(cluster: ClusterConfig) -> Iterator[Wanted]:
    host = parse_image(cluster.image).host
    server = "https://index.docker.io/v1/" if host == HUB else host
    s3 = cluster.storage.s3
    for secret in cluster.pull_secrets:
        yield Wanted(SECRETS, secret, server=server)
    if s3 and s3.secret:
        yield Wanted(SECRETS, s3.secret, KEYS)
    if s3 and s3.ca_secret:
        yield Wanted(SECRETS, s3.ca_secret, (s3.ca_key,))
    if s3 and s3.ca_config_map:
        yield Wanted(CONFIG_MAPS, s3.ca_config_map, (s3.ca_key,))
    for mount in cluster.mounts:
        if mount.secret:
            yield Wanted(SECRETS, mount.secret)
        if mount.config_map:
            yield Wanted(CONFIG_MAPS, mount.config_map)
