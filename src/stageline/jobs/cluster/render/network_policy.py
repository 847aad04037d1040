"""The NetworkPolicy of one job: its own pods reach each other, and nobody else reaches them. Pure.

Policies add up: what any of them admits is admitted, so that each job needs one of its own. Whether a cluster's network
heeds them is not known here; pods on the host's network, and RDMA, go past them.
"""

from __future__ import annotations

import copy
import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from stageline.config import ClusterConfig
from stageline.config.addresses import METADATA_ADDRESSES
from stageline.jobs.cluster.render.pytorchjob import metrics_port, own_labels, render_job
from stageline.jobs.environment import storage_environment
from stageline.jobs.job import Job
from stageline.jobs.placement import SHARED
from stageline.kube.keys import LABEL_JOB, LABEL_NAMESPACE, OWN_LABELS
from stageline.store.settings import ENDPOINTS

POLICY_API, POLICY_KIND = "networking.k8s.io/v1", "NetworkPolicy"
DNS_PORTS = (53, 5353)
"""The second one is where the DNS pods of OpenShift listen; rules are judged behind their Service."""
DEFAULT_PORTS = {"https": 443, "http": 80}
PROXIES = ("https_proxy", "http_proxy", "all_proxy")
LINK_LOCAL = ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32")
"""Where machines are told who they are: RFC 3927, RFC 4291, and AWS's own network of IPv6."""
IDENTITY = (
    (("169.254.169.254/32", "169.254.170.23/32", "fd00:ec2::254/128", "fd00:ec2::23/128"), 80),
    (("169.254.169.252/32",), 988),
)
"""(addresses, TCP port): metadata servers of AWS, Azure, Google; EKS Pod Identity; GKE's metadata server on the node.
Sources: AWS "EKS Pod Identity", Google "Restrict network access with Workload Identity Federation for GKE"."""


def render_policy(job: Job, cluster: ClusterConfig) -> dict[str, Any] | None:
    """The NetworkPolicy of a job, under the job's name; None where `cluster.network_policy` is off."""
    if cluster.network_policy == "off":
        return None
    same = {"podSelector": {"matchLabels": {**OWN_LABELS, LABEL_JOB: job.name}}}
    ingress: list[dict[str, Any]] = [{"from": [copy.deepcopy(same)]}]
    port = metrics_port(job)
    if port and cluster.network.metrics_from:
        peers = [_peer(peer) for peer in cluster.network.metrics_from]
        ingress.append({"from": peers, "ports": [{"port": port, "protocol": "TCP"}]})
    spec: dict[str, Any] = {"podSelector": same["podSelector"], "policyTypes": ["Ingress"], "ingress": ingress}
    if cluster.network.limit_egress:
        spec["policyTypes"].append("Egress")
        spec["egress"] = list(_egress(job, cluster, same))
    metadata: dict[str, Any] = {"name": job.name}
    if cluster.namespace:
        metadata["namespace"] = cluster.namespace
    metadata["labels"] = {**cluster.labels, **own_labels(job)}
    if cluster.annotations:
        metadata["annotations"] = dict(cluster.annotations)
    return {"apiVersion": POLICY_API, "kind": POLICY_KIND, "metadata": metadata, "spec": spec}


def render_objects(job: Job, cluster: ClusterConfig) -> list[dict[str, Any]]:
    """What a job consists of, in the order in which it is made: its NetworkPolicy, if any, and the PyTorchJob."""
    policy = render_policy(job, cluster)
    return [*([policy] if policy else []), render_job(job, cluster)]


def _peer(peer: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(peer, str):
        return {"namespaceSelector": {"matchLabels": {LABEL_NAMESPACE: peer}}}
    return copy.deepcopy(dict(peer))


def _egress(job: Job, cluster: ClusterConfig, same: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"to": [copy.deepcopy(same)]}
    yield {"ports": [{"port": port, "protocol": protocol} for port in DNS_PORTS for protocol in ("UDP", "TCP")]}
    ports = store_ports(job, cluster)
    if ports:
        yield {"to": _everywhere_but_link_local(), "ports": [{"port": port, "protocol": "TCP"} for port in ports]}
    if cluster.network.identity_endpoints:
        for addresses, port in IDENTITY:
            peers = [{"ipBlock": {"cidr": address}} for address in addresses]
            yield {"to": peers, "ports": [{"port": port, "protocol": "TCP"}]}
    yield from (copy.deepcopy(rule) for rule in cluster.network.egress)


def store_ports(job: Job, cluster: ClusterConfig) -> list[int]:
    """TCP ports of the store and of proxies, as the pods' environment names them, and `network.store_ports`."""
    environment = {**storage_environment(cluster.storage), **cluster.env, **job.environment}
    endpoints = [environment[name] for name in ENDPOINTS if environment.get(name)]
    proxies = [url for name, url in environment.items() if name.lower() in PROXIES and url]
    ports = {*map(_port, endpoints), *map(_port, proxies), *cluster.network.store_ports}
    if not endpoints and (cluster.storage.s3 or str(job.config.get("root", "")).startswith(SHARED)):
        ports.add(DEFAULT_PORTS["https"])
    return sorted(ports)


def _port(url: str) -> int:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return parts.port or DEFAULT_PORTS.get(parts.scheme, DEFAULT_PORTS["https"])


def _everywhere_but_link_local() -> list[dict[str, Any]]:
    """Pods by a selector, since some networks judge them by no address; all else by two blocks."""
    barred = [*map(ipaddress.ip_network, LINK_LOCAL), *map(ipaddress.ip_network, sorted(METADATA_ADDRESSES, key=str))]
    blocks = []
    for everything in ("0.0.0.0/0", "::/0"):
        version = ipaddress.ip_network(everything).version
        excepted = [network for network in barred if network.version == version]
        apart = [n for n in excepted if not any(n != m and n.subnet_of(m) for m in excepted)]  # type: ignore[arg-type]  # one version
        blocks.append({"ipBlock": {"cidr": everything, "except": [str(network) for network in apart]}})
    return [{"namespaceSelector": {}}, *blocks]
