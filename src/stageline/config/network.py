"""The section `cluster.network`: who reaches the pods of a job and whom they reach, as its NetworkPolicy says.

Objects pasted from Kubernetes (peers, egress rules) keep its own camelCase.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from stageline.config.fields import SectionError, Settings
from stageline.config.syntax import DNS_LABEL

PEER_KEYS = ("ipBlock", "namespaceSelector", "podSelector")
RULE_KEYS = ("ports", "to")
"""Fields of a NetworkPolicyPeer and of a NetworkPolicyEgressRule (networking.k8s.io/v1)."""
Port = Annotated[int, Field(ge=1, le=65535)]


class NetworkConfig(Settings):
    """What the NetworkPolicy of a job admits besides the pods of that job, which always reach each other."""

    metrics_from: tuple[str | dict[str, Any], ...] = ()
    """Who may read `trainer.metrics_port`: names of namespaces, or Kubernetes' own peers, verbatim."""
    limit_egress: bool = False
    """Pods reach those of their job, DNS, the store and what stands below, and nothing else."""
    store_ports: tuple[Port, ...] = ()
    """TCP ports that pods reach besides those of the store's endpoint and proxy: 443 for a hub, say."""
    identity_endpoints: bool = False
    """Pods also reach the link-local addresses at which clouds keep what tells a pod who it is."""
    egress: tuple[dict[str, Any], ...] = ()
    """Further rules for whom pods reach: Kubernetes' own objects, verbatim."""

    @field_validator("metrics_from")
    @classmethod
    def _known_peers(cls, value: tuple[str | dict[str, Any], ...]) -> tuple[str | dict[str, Any], ...]:
        faults = []
        for index, peer in enumerate(value):
            if isinstance(peer, str):
                if len(peer) > 63 or not DNS_LABEL.fullmatch(peer):
                    faults.append(f"entry {index}: {peer!r} is no name of a namespace")
            elif not peer or set(peer) - set(PEER_KEYS):
                faults.append(f"entry {index}: a peer holds {', '.join(PEER_KEYS)}; found {sorted(peer) or 'nothing'}")
        if faults:
            raise SectionError(faults)
        return value

    @field_validator("egress")
    @classmethod
    def _known_rules(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        faults = []
        for index, rule in enumerate(value):
            if set(rule) - set(RULE_KEYS):
                faults.append(f"rule {index}: an egress rule holds {', '.join(RULE_KEYS)}; found {sorted(rule)}")
            elif not any(rule.values()):
                faults.append(f"rule {index} admits everything; set limit_egress=false instead")
        if faults:
            raise SectionError(faults)
        return value
