"""The section `cluster.network`: who reaches the pods of a job and whom they reach, as its NetworkPolicy says.

Objects pasted from Kubernetes (peers, egress rules) keep its own camelCase.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from stageline.config.fields import SectionError, Settings
from stageline.config.syntax import DNS_LABEL
from stageline.config.verbatim import peer_faults, rule_faults

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
            else:
                faults += [f"entry {index}: {fault}" for fault in peer_faults(peer)]
        if faults:
            raise SectionError(faults)
        return value

    @field_validator("egress")
    @classmethod
    def _known_rules(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        faults = [f"rule {index}: {fault}" for index, rule in enumerate(value) for fault in rule_faults(rule)]
        if faults:
            raise SectionError(faults)
        return value
