"""Kubernetes' own objects in a config: what a server would refuse when the job is made is refused when it is read."""

from __future__ import annotations

from typing import Any

import pytest

from stageline.config import ClusterConfig, validate
from stageline.errors import ConfigError


def cluster(**raw: Any) -> ClusterConfig:
    return validate(raw, ClusterConfig, "cluster")


def faults(**raw: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        cluster(**raw)
    return str(caught.value)


TOLERATIONS: tuple[dict[str, Any], ...] = (
    {"operator": "Exists"},
    {"key": "a.example/b", "value": "c", "effect": "NoSchedule"},
    {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0},
    {"key": "a", "operator": "Equal", "value": ""},
)
NO_TOLERATIONS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"effect": "NoSchedule"}, "has no key"),
    ({"key": "a", "effect": "noschedule"}, "effect 'noschedule' is none of"),
    ({"key": "a b", "operator": "Exists"}, "'a b'"),
    ({"key": "a", "value": "b c"}, "'b c' is no label value"),
    ({"key": "a", "operator": "Exists", "value": "b"}, "Exists has no value"),
    ({"key": "a", "tolerationSeconds": 3}, "goes with effect NoExecute"),
    ({"key": "a", "effect": "NoExecute", "tolerationSeconds": "3"}, "is no whole number"),
    ({"key": "a", "effect": "NoExecute", "tolerationSeconds": True}, "is no whole number"),
)


@pytest.mark.parametrize("toleration", TOLERATIONS, ids=str)
def test_tolerations_as_kubernetes_takes_them(toleration: dict[str, Any]) -> None:
    assert cluster(tolerations=[toleration]).tolerations == (toleration,)


@pytest.mark.parametrize(("toleration", "words"), NO_TOLERATIONS, ids=str)
def test_tolerations_that_kubernetes_refuses(toleration: dict[str, Any], words: str) -> None:
    text = faults(tolerations=[{"operator": "Exists"}, toleration])
    assert "toleration 1" in text
    assert words in text


SELECTOR = {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["d"]}]}
PEERS: tuple[dict[str, Any], ...] = (
    {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
    {"ipBlock": {"cidr": "fd00::/8"}},
    {"namespaceSelector": {}, "podSelector": SELECTOR},
    {"podSelector": {"matchExpressions": [{"key": "c", "operator": "Exists"}]}},
)
NO_PEERS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"ipBlock": {"cidr": "x"}}, "'x' is no network"),
    ({"ipBlock": {"cidr": "10.0.0.1"}}, "'10.0.0.1' is no network"),
    ({"ipBlock": {"cidr": "10.0.0.0/33"}}, "is no network"),
    ({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}, "is no part of"),
    ({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/16"]}}, "is no part of"),
    ({"ipBlock": {"from": "10.0.0.0/8"}}, "holds cidr"),
    ({"ipBlock": None}, "holds cidr"),
    ({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}, "holds nothing else"),
    ({"podSelector": {"app": "x"}}, "a selector holds"),
    ({"podSelector": None}, "a selector holds"),
    ({"podSelector": {"matchLabels": {"a": "b c"}}}, "'b c' is no label value"),
    ({"podSelector": {"matchLabels": {"a": 1}}}, "put it into quotes"),
    ({"podSelector": {"matchLabels": ["a"]}}, "no mapping"),
    ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "in", "values": ["b"]}]}}, "'in' is none of"),
    ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}, "has values"),
    ({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}, "has no values"),
    ({"podSelector": {"matchExpressions": ["a"]}}, "an expression holds"),
)


@pytest.mark.parametrize("peer", PEERS, ids=str)
def test_peers_as_kubernetes_takes_them(peer: dict[str, Any]) -> None:
    network = {"metrics_from": [peer], "egress": [{"to": [peer]}]}
    assert cluster(network=network).network.metrics_from == (peer,)


@pytest.mark.parametrize(("peer", "words"), NO_PEERS, ids=str)
def test_peers_that_kubernetes_refuses(peer: dict[str, Any], words: str) -> None:
    text = faults(network={"metrics_from": ["monitoring", peer], "egress": [{"to": [peer]}]})
    assert "entry 1: " in text
    assert "rule 0: to: " in text
    assert text.count(words) == 2


PORTS: tuple[tuple[Any, str], ...] = (
    ({"port": 0}, "port 0"),
    ({"port": 70000}, "port 70000"),
    ({"port": True}, "port True"),
    ({"port": "UPPER"}, "neither a number nor"),
    ({"port": "443"}, "neither a number nor"),
    ({"port": 443, "protocol": "tcp"}, "'tcp' is none of"),
    ({"port": 443, "endPort": 442}, "endPort 442"),
    ({"port": "web", "endPort": 442}, "endPort 442"),
    ({"ports": 443}, "a port holds"),
    (443, "a port holds"),
)


@pytest.mark.parametrize(("port", "words"), PORTS, ids=str)
def test_ports_that_kubernetes_refuses(port: Any, words: str) -> None:
    assert words in faults(network={"egress": [{"ports": [port]}]})


def test_ports_as_kubernetes_takes_them() -> None:
    ports = [{"port": 443}, {"port": 1, "endPort": 65535, "protocol": "SCTP"}, {"port": "web"}, {"protocol": "UDP"}]
    assert cluster(network={"egress": [{"ports": ports}]}).network.egress == ({"ports": ports},)
