"""Neighbours on the network: who reaches the pods of a job and whom they reach, by what is rendered.

Whether a network heeds policies can't be tested without one that does; what they admit is worked out here by the rules
of Kubernetes, by code that shares nothing with the rendering.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from stageline.config import ClusterConfig
from stageline.config.addresses import METADATA_ADDRESSES
from stageline.errors import ConfigError
from stageline.jobs.cluster.render.network_policy import render_objects
from stageline.jobs.job import Job

from ..jobs.jobs import JOBS, cluster, stage_job

Plain = dict[str, Any]
ROOT = Path(__file__).parents[2]
RENDEZVOUS, METRICS = 23456, 9400


# What a policy admits, by https://kubernetes.io/docs/concepts/services-networking/network-policies/ -------------------


@dataclass(frozen=True)
class Peer:
    """A pod, or with an address alone something outside of the cluster."""

    namespace: str = "train"
    labels: Plain = field(default_factory=dict)
    address: str = ""


def matches(selector: Plain, labels: Plain) -> bool:
    """An empty selector matches everything."""
    for wanted in selector.get("matchExpressions", []):
        there = labels.get(wanted["key"])
        truth = {
            "In": there in wanted.get("values", []),
            "NotIn": there not in wanted.get("values", []),
            "Exists": there is not None,
            "DoesNotExist": there is None,
        }
        if not truth[wanted["operator"]]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def is_peer(entry: Plain, other: Peer, namespace: str) -> bool:
    if "ipBlock" in entry:
        if not other.address:
            return False
        address, block = ipaddress.ip_address(other.address), entry["ipBlock"]
        networks = [ipaddress.ip_network(block["cidr"]), *map(ipaddress.ip_network, block.get("except", []))]
        return address in networks[0] and not any(address in network for network in networks[1:])
    if other.address:
        return False
    if "namespaceSelector" in entry:
        space = {"kubernetes.io/metadata.name": other.namespace, "team": other.namespace}
        if not matches(entry["namespaceSelector"], space):
            return False
    elif other.namespace != namespace:
        return False
    return matches(entry.get("podSelector", {}), other.labels)


def admits(policies: list[Plain], pod: Peer, other: Peer, port: int, way: str, protocol: str = "TCP") -> bool:
    """Whether a pod may be reached from (Ingress), or reach (Egress), another: policies add up; none admits all."""
    own = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and way in policy["spec"]["policyTypes"]
        and matches(policy["spec"]["podSelector"], pod.labels)
    ]
    key = {"Ingress": "from", "Egress": "to"}[way]
    rules = [(policy, rule) for policy in own for rule in policy["spec"].get(way.lower(), [])]
    return not own or any(
        (not rule.get(key) or any(is_peer(entry, other, policy["metadata"]["namespace"]) for entry in rule[key]))
        and (
            not rule.get("ports")
            or any(entry["port"] == port and entry.get("protocol", "TCP") == protocol for entry in rule["ports"])
        )
        for policy, rule in rules
    )


def test_the_rules_above_are_those_of_kubernetes() -> None:
    """The examples of its page: an empty selector, one peer of two selectors, two peers, `except`, default deny."""
    both = {"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {"matchLabels": {"role": "client"}}}
    two = [{"namespaceSelector": both["namespaceSelector"]}, {"podSelector": both["podSelector"]}]
    client, other = Peer("a", {"role": "client"}), Peer("a", {"role": "x"})

    def policy(ingress: list[Plain]) -> list[Plain]:
        spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": ingress}
        return [{"metadata": {"namespace": "train"}, "spec": spec}]

    def reached(ingress: list[Plain], peer: Peer, port: int = 1) -> bool:
        return admits(policy(ingress), Peer(), peer, port, "Ingress")

    assert [reached([{"from": [both]}], peer) for peer in (client, other, Peer())] == [True, False, False]
    assert all(reached([{"from": two}], peer) for peer in (client, other, Peer("train", client.labels)))
    assert not reached([], Peer())
    assert reached([{}], Peer("b"))
    assert [reached([{"ports": [{"port": 1}]}], Peer("b"), port) for port in (1, 2)] == [True, False]
    block = {"ipBlock": {"cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"]}}
    assert [reached([{"from": [block]}], Peer(address=a)) for a in ("172.17.0.9", "172.17.1.9")] == [True, False]
    assert admits(policy([]), Peer("b"), Peer(), 1, "Ingress")
    assert admits(policy([]), Peer(), Peer("b"), 1, "Egress")


# Jobs of a namespace, and who is beside them -------------------------------------------------------------------------


def job_pod(job: Plain, index: int = 0) -> Peer:
    """A worker as the training-operator makes it: the template's labels, and its own."""
    operators = {
        "training.kubeflow.org/job-name": job["metadata"]["name"],
        "training.kubeflow.org/operator-name": "pytorchjob-controller",
        "training.kubeflow.org/replica-index": str(index),
        "training.kubeflow.org/replica-type": "worker",
    }
    template = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    return Peer("train", {**template["metadata"]["labels"], **operators})


def rendered(*jobs: Job, **settings: Any) -> tuple[list[Plain], list[Peer]]:
    """(every policy of the namespace, the chart's included; worker 1 of each job)."""
    policies, pods = [*chart_policies()], []
    for job in jobs:
        *made, manifest = render_objects(job, cluster({"namespace": "train", **settings}))
        policies += made
        pods.append(job_pod(manifest, 1))
    return policies, pods


@cache
def chart_policies() -> list[Plain]:
    """Those that a chart of this tree brings, in the namespace of the jobs."""
    documents = yaml.safe_load_all((ROOT / "manifests/network-policies.yaml").read_text())
    return [{**d, "metadata": {**d["metadata"], "namespace": "train"}} for d in documents if d]


LAB = stage_job("film_flow", "film", nodes=2, config={"root": "/stageline", "trainer": {"metrics_port": METRICS}})
LABELS = {"app.kubernetes.io/name": "stageline", "app.kubernetes.io/managed-by": "stageline"}
NAMES = {"training.kubeflow.org/job-name": LAB.name}
NEIGHBOURS = {
    "a pod without labels": Peer(),
    "a pod of another namespace": Peer("other"),
    "a pod of another namespace with the job's labels": Peer("other", {**LABELS, **NAMES}),
    "a pod that any job of stageline could be": Peer("train", LABELS),
    "a pod of another kind of job with the same name": Peer("train", NAMES),
    "the trial's pod": Peer("train", {"app.kubernetes.io/name": "stageline", "app.kubernetes.io/component": "trial"}),
    "Prometheus": Peer("monitoring"),
    "a machine outside": Peer(address="203.0.113.7"),
    "the metadata server": Peer(address="169.254.169.254"),
}


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_nobody_but_the_pods_of_a_job_reaches_its_ports(neighbour: str) -> None:
    """The attack: from another namespace a pod without a token met the rendezvous and ran code in both workers."""
    policies, (pod,) = rendered(LAB)
    assert admits(policies, pod, replace(pod, labels={**pod.labels}), RENDEZVOUS, "Ingress")
    for port in (RENDEZVOUS, METRICS, 1, 65535):
        assert not admits(policies, pod, NEIGHBOURS[neighbour], port, "Ingress")
        assert not admits(policies, pod, NEIGHBOURS[neighbour], port, "Ingress", "UDP")


OTHERS = {
    "another run": stage_job("film_flow", "film", run="lab-2"),
    "another stage": stage_job("film_flow", "backbone"),
    "another variant": stage_job("film_flow", "film", variant="wide"),
    "evaluation of the run": stage_job("film_flow", "evaluate", arguments=("evaluate",)),
    "a trial": stage_job("film_flow", "film", run="stageline-trial", arguments=("trial", "film")),
    "a job whose run is named like the job": stage_job("film_flow", "film", run=LAB.name),
}


@pytest.mark.parametrize("other", OTHERS)
def test_jobs_of_stageline_do_not_reach_each_other(other: str) -> None:
    """The chart's rule admitted every pod of stageline in the namespace, and policies add up."""
    policies, (mine, its) = rendered(LAB, OTHERS[other])
    for port in (RENDEZVOUS, METRICS):
        assert not admits(policies, mine, its, port, "Ingress")
        assert not admits(policies, its, mine, port, "Ingress")
    assert admits(policies, its, its, RENDEZVOUS, "Ingress")


def test_a_label_of_ones_own_makes_no_pod_one_of_another_job() -> None:
    """A variant of the attack: a config that gives its pods the labels by which another job's are known."""
    for key in (*LABELS, *NAMES, "training.kubeflow.org/job-role"):
        with pytest.raises(ConfigError, match="is set by stageline itself"):
            cluster({"labels": {key: LAB.name}})


def test_metrics_are_read_from_a_named_namespace_and_nothing_else_there() -> None:
    policies, (pod,) = rendered(LAB, network={"metrics_from": ["monitoring"]})
    assert admits(policies, pod, Peer("monitoring"), METRICS, "Ingress")
    assert not admits(policies, pod, Peer("monitoring"), RENDEZVOUS, "Ingress")
    assert not admits(policies, pod, Peer("other", {"kubernetes.io/metadata.name": "monitoring"}), METRICS, "Ingress")
    prepare = replace(LAB, arguments=("prepare",))
    policies, (pod,) = rendered(prepare, network={"metrics_from": ["monitoring"]})
    assert not admits(policies, pod, Peer("monitoring"), METRICS, "Ingress"), "it serves none"


def test_whoever_may_read_metrics_is_not_let_to_where_ranks_meet() -> None:
    """A variant: metrics on the port of the rendezvous, where whoever comes counts as a rank."""
    for config in (
        {"trainer": {"metrics_port": 23456}},
        {"stage_overrides": {"film": {"trainer.metrics_port": 23456}}},
    ):
        job = stage_job("film_flow", "film", config={"root": "/stageline", **config})
        with pytest.raises(ConfigError, match=r"trainer\.metrics_port 23456 is where ranks meet"):
            rendered(job, network={"metrics_from": ["monitoring"]})


def test_pods_that_start_jobs_are_reached_by_nobody() -> None:
    """The trial's, and the steps of a pipeline."""
    *_, platforms = yaml.safe_load_all((ROOT / "pipelines/film_flow.yaml").read_text())
    steps = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    policies = chart_policies()
    for pod in (NEIGHBOURS["the trial's pod"], *(Peer("train", step["podMetadata"]["labels"]) for step in steps)):
        for peer in (pod, Peer(), Peer("train", LABELS), Peer("other")):
            assert not admits(policies, pod, peer, 80, "Ingress")
        assert admits(policies, pod, Peer(address="203.0.113.7"), 443, "Egress")


# Egress ---------------------------------------------------------------------------------------------------------------

STORE = {"storage": {"claim": "data", "s3": {"endpoint": "http://minio.store:9000", "proxy": "http://proxy:3128"}}}
PLAIN = {"claim": "data", "s3": {"endpoint": "http://minio.store"}}
WAYS = {
    "everything, unless it is limited": ({}, LAB, {}, [(Peer("other"), 22), (Peer(address="169.254.169.254"), 80)], []),
    "endpoint and proxy": (
        STORE,
        LAB,
        {},
        [(Peer("store"), 9000), (Peer(address="203.0.113.7"), 3128)],
        [(Peer("store"), 22), (Peer(address="203.0.113.7"), 443), (Peer(address="203.0.113.7"), 80)],
    ),
    "a store without endpoint": (
        {"storage": {}},
        replace(LAB, config={"root": "s3://bucket/lab"}),
        {},
        [(Peer(address="203.0.113.7"), 443)],
        [(Peer(address="203.0.113.7"), 80)],
    ),
    "a claim": ({}, LAB, {}, [], [(Peer(address="203.0.113.7"), 443), (Peer("other"), 80)]),
    "proxies and endpoints of the environment": (
        {"env": {"https_proxy": "proxy:8080"}},
        replace(LAB, environment={"AWS_ENDPOINT_URL": "https://s3.example.org:8333"}),
        {},
        [(Peer(address="203.0.113.7"), 8333), (Peer(address="203.0.113.7"), 8080)],
        [(Peer(address="203.0.113.7"), 443)],
    ),
    "further ports and rules": (
        {},
        LAB,
        {"store_ports": [443], "egress": [{"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 2049}]}]},
        [(Peer("hub"), 443), (Peer(address="10.1.2.3"), 2049), (Peer(address="2001:db8::1"), 443)],
        [(Peer(address="10.2.2.3"), 2049), (Peer("hub"), 8443)],
    ),
    "identity": (
        {},
        LAB,
        {"identity_endpoints": True},
        [
            (Peer(address="169.254.169.254"), 80),
            (Peer(address="169.254.170.23"), 80),
            (Peer(address="fd00:ec2::23"), 80),
        ],
        [(Peer(address="169.254.169.254"), 443), (Peer(address="169.254.1.1"), 80), (Peer(address="203.0.113.7"), 80)],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_egress_is_a_switch(way: str) -> None:
    settings, job, network, reached, barred = WAYS[way]
    limit = {} if way.startswith("everything") else {"limit_egress": True}
    policies, (pod,) = rendered(job, **settings, network={**network, **limit})
    for peer, port in reached:
        assert admits(policies, pod, peer, port, "Egress"), (peer, port)
    for peer, port in barred:
        assert not admits(policies, pod, peer, port, "Egress"), (peer, port)
    assert admits(policies, pod, replace(pod, labels={**pod.labels}), RENDEZVOUS, "Egress")
    for port, protocol in ((53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP")):
        for server in (Peer("kube-system"), Peer(address="169.254.20.10")):
            assert admits(policies, pod, server, port, "Egress", protocol)


@pytest.mark.parametrize(
    "address", sorted({"169.254.169.254", "169.254.170.2", "fe80::1", "fd00:ec2::254", *map(str, METADATA_ADDRESSES)})
)
def test_a_port_that_is_open_for_the_store_is_not_open_to_where_identities_are_kept(address: str) -> None:
    """A variant: a plain http:// endpoint opens port 80, on which every cloud's metadata server listens."""
    policies, (pod,) = rendered(LAB, storage=PLAIN, network={"limit_egress": True})
    assert admits(policies, pod, Peer(address="203.0.113.7"), 80, "Egress")
    assert not admits(policies, pod, Peer(address=address), 80, "Egress")


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"egress": [{}]}, "admits everything"),
        ({"egress": [{"to": [], "ports": []}]}, "admits everything"),
        ({"egress": [{"from": [{}]}]}, "holds ports, to"),
        ({"metrics_from": [{}]}, "found nothing"),
        ({"metrics_from": [{"namespace": "monitoring"}]}, "a peer holds ipBlock"),
        ({"metrics_from": ["Monitoring!"]}, "no name of a namespace"),
        ({"metrics_from": [""]}, "no name of a namespace"),
        ({"store_ports": [0]}, "store_ports"),
    ],
)
def test_a_rule_that_would_admit_all_or_means_nothing_is_refused(network: Plain, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        cluster({"network": {"limit_egress": True, **network}})


# Objects that tools take for theirs -----------------------------------------------------------------------------------

TRACKED = re.compile(
    r"argocd\.argoproj\.io/|app\.kubernetes\.io/instance$|(meta\.)?helm\.sh/|toolkit\.fluxcd\.io/|kustomize"
)


def keys(item: Any) -> Iterator[str]:
    """Every label and annotation of an object and what it makes."""
    if isinstance(item, dict):
        for key, value in item.items():
            if key in ("labels", "annotations") and isinstance(value, dict):
                yield from value
            yield from keys(value)
    elif isinstance(item, list):
        for entry in item:
            yield from keys(entry)


def test_no_object_that_a_launcher_makes_looks_like_one_of_a_repository() -> None:
    """Argo CD and Flux delete what carries their mark and is not in the repository: here a running job."""
    for job, settings in JOBS.values():
        found = set(keys(render_objects(job, settings)))
        assert "app.kubernetes.io/managed-by" in found
        assert not [key for key in found if TRACKED.search(key)]


@pytest.mark.parametrize(
    "key",
    [
        "argocd.argoproj.io/instance",
        "argocd.argoproj.io/tracking-id",
        "app.kubernetes.io/instance",
        "helm.sh/chart",
        "meta.helm.sh/release-name",
        "kustomize.toolkit.fluxcd.io/name",
        "helm.toolkit.fluxcd.io/name",
        "kustomize.config.k8s.io/id",
        "kapp.k14s.io/app",
    ],
)
def test_a_config_gives_no_job_such_a_mark(key: str) -> None:
    for field_name in ("labels", "annotations"):
        with pytest.raises(ConfigError, match="would take the job for one of its objects"):
            cluster({field_name: {key: "stageline"}})
    assert ClusterConfig(labels={"app.kubernetes.io/component": "training"}).labels
