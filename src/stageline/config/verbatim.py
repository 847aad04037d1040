"""Kubernetes' own objects in a config, kept verbatim (tolerations, peers, egress rules): what a server would refuse.

Each function yields every fault of one object, found before a job is made. Sources: `ValidateTolerations` of core/v1,
`ValidateNetworkPolicyPeer` and `…Port` of networking.k8s.io/v1, LabelSelector of meta/v1.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

from stageline.config.syntax import key_fault, label_fault

EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
PROTOCOLS = ("TCP", "UDP", "SCTP")
OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
TOLERATION_KEYS = ("effect", "key", "operator", "tolerationSeconds", "value")
PEER_KEYS = ("ipBlock", "namespaceSelector", "podSelector")
RULE_KEYS = ("ports", "to")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")


def toleration_faults(toleration: Mapping[str, Any]) -> Iterator[str]:
    foreign = sorted(set(toleration) - set(TOLERATION_KEYS))
    if foreign:
        yield f"has no {foreign}; it holds {', '.join(TOLERATION_KEYS)}"
    key, operator = toleration.get("key") or "", toleration.get("operator") or "Equal"
    value, effect = toleration.get("value") or "", toleration.get("effect") or ""
    if operator not in ("Exists", "Equal"):
        yield f"operator {operator!r} is neither Exists nor Equal"
    elif not key and operator == "Equal" and not foreign:
        yield "has no key; without one the operator is Exists, which tolerates everything"
    elif operator == "Exists" and value:
        yield f"operator Exists has no value; found {value!r}"
    if key and (fault := key_fault(str(key))):
        yield fault
    if fault := label_fault("value", str(value)):
        yield fault
    if effect and effect not in EFFECTS:
        yield f"effect {effect!r} is none of {', '.join(EFFECTS)}, and not empty for all of them"
    seconds = toleration.get("tolerationSeconds")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int)):
        yield f"tolerationSeconds {seconds!r} is no whole number"
    elif seconds is not None and effect != "NoExecute":
        yield "tolerationSeconds goes with effect NoExecute alone"


def peer_faults(peer: Any) -> Iterator[str]:
    """A NetworkPolicyPeer."""
    if not isinstance(peer, Mapping) or not peer or set(peer) - set(PEER_KEYS):
        found = sorted(map(str, peer)) if isinstance(peer, Mapping) else repr(peer)
        yield f"a peer holds {', '.join(PEER_KEYS)}; found {found or 'nothing'}"
        return
    if "ipBlock" in peer:
        if len(peer) > 1:
            yield "a peer with ipBlock holds nothing else"
        yield from _block_faults(peer["ipBlock"])
    for name in PEER_KEYS[1:]:
        if name in peer:
            yield from (f"{name}: {fault}" for fault in _selector_faults(peer[name]))


def _block_faults(block: Any) -> Iterator[str]:
    if not isinstance(block, Mapping) or "cidr" not in block or set(block) - {"cidr", "except"}:
        yield f"ipBlock holds cidr and maybe except; found {block!r}"
        return
    whole, faults = _network(block["cidr"])
    yield from faults
    for part in _list(block.get("except")):
        inner, faults = _network(part)
        yield from faults
        if whole and inner and (inner.version != whole.version or inner == whole or not inner.subnet_of(whole)):  # type: ignore[arg-type]
            yield f"ipBlock: except {part!r} is no part of cidr {block['cidr']!r}"


def _network(text: Any) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network | None, list[str]]:
    try:
        return ipaddress.ip_interface(str(text) if "/" in str(text) else "no length").network, []
    except ValueError:
        return None, [f"ipBlock: {text!r} is no network in CIDR notation, such as 10.0.0.0/8"]


def _selector_faults(selector: Any) -> Iterator[str]:
    """A LabelSelector; {} selects everything."""
    if not isinstance(selector, Mapping) or set(selector) - {"matchLabels", "matchExpressions"}:
        yield f"a selector holds matchLabels, matchExpressions; found {selector!r}"
        return
    labels = selector.get("matchLabels") or {}
    if not isinstance(labels, Mapping):
        yield f"matchLabels is no mapping of labels: {labels!r}"
        labels = {}
    for key, value in labels.items():
        yield from filter(None, (key_fault(str(key)), label_fault(str(key), str(value))))
        if not isinstance(value, str):
            yield f"{key}: {value!r} is no text; put it into quotes"
    for entry in _list(selector.get("matchExpressions")):
        if not isinstance(entry, Mapping) or set(entry) - {"key", "operator", "values"}:
            yield f"an expression holds key, operator, values; found {entry!r}"
            continue
        key, operator, values = str(entry.get("key", "")), entry.get("operator"), entry.get("values") or []
        if fault := key_fault(key):
            yield fault
        if operator not in OPERATORS:
            yield f"{key}: operator {operator!r} is none of {', '.join(OPERATORS)}"
        elif (operator in OPERATORS[:2]) != bool(values):
            yield f"{key}: operator {operator} has {'no values' if values else 'values'}; found {values!r}"
        yield from filter(None, (label_fault(key, str(value)) for value in _list(values)))


def rule_faults(rule: Mapping[str, Any]) -> Iterator[str]:
    """A NetworkPolicyEgressRule."""
    if set(rule) - set(RULE_KEYS):
        yield f"an egress rule holds {', '.join(RULE_KEYS)}; found {sorted(rule)}"
        return
    if not any(rule.values()):
        yield "admits everything; set limit_egress=false instead"
    for peer in _list(rule.get("to")):
        yield from (f"to: {fault}" for fault in peer_faults(peer))
    for port in _list(rule.get("ports")):
        yield from (f"ports: {fault}" for fault in _port_faults(port))


def _port_faults(port: Any) -> Iterator[str]:
    if not isinstance(port, Mapping) or set(port) - {"protocol", "port", "endPort"}:
        yield f"a port holds protocol, port, endPort; found {port!r}"
        return
    protocol, number, end = port.get("protocol", "TCP"), port.get("port"), port.get("endPort")
    if protocol not in PROTOCOLS:
        yield f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}"
    if isinstance(number, str) and (len(number) > 15 or not _PORT_NAME.fullmatch(number)):
        yield f"{number!r} is neither a number nor the name of a port"
    elif not isinstance(number, str) and number is not None and not _is_port(number):
        yield f"port {number!r} is none of 1 to 65535"
    if end is not None and not (_is_port(end) and _is_port(number) and end >= number):
        yield f"endPort {end!r} goes with a number as port, and is not less"


def _is_port(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535


def _list(value: Any) -> list[Any]:
    """A list as it is; anything else as its only entry, which is then no object."""
    if isinstance(value, (list, tuple)):
        return [*value]
    return [] if value is None else [value]
