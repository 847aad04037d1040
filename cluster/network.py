"""The two network namespaces, joined by a veth, with pod ranges and routes; no way out.

node-1's interface is a bridge (there may be no `dummy` links), which also joins node-2's veth. A default route through
a gateway that nobody is makes the addresses look like a machine's to kubelet and API server.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from cluster.process import NETNS, run
from cluster.state import NAME, State

GATEWAY = "10.89.0.1"
SERVICES = "10.91.0.0/16"
API_SERVICE = "10.91.0.1"
DNS_SERVICE = "10.91.0.10"
PODS = "10.90.0.0/16"
CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Place:
    """Where one node lives in the network."""

    name: str
    netns: str
    link: str
    """The node's interface inside its namespace."""
    address: str
    pods: str
    """The range of its pods' addresses."""


PLACES = (
    Place("node-1", f"{NAME}-1", "nodes", "10.89.0.2", "10.90.1.0/24"),
    Place("node-2", f"{NAME}-2", "uplink", "10.89.0.3", "10.90.2.0/24"),
)
HEAD = PLACES[0]
"""The place of the control plane, the registry and the S3 server."""


def place(name: str) -> Place:
    """The place of the node of this name."""
    return next(p for p in PLACES if p.name == name)


def make(state: State) -> None:
    """Make both namespaces and what joins them. What a killed predecessor made must be gone."""
    for p in PLACES:
        run(state, ["ip", "netns", "add", p.netns])
        run(state, ["ip", "-n", p.netns, "link", "set", "lo", "up"])
    head, second = PLACES
    batch = [
        f"link add {head.link} type bridge",
        # A port that is always up: else the bridge and its address are down while node-2 is.
        "link add keep-0 type veth peer name keep-1",
        f"link set keep-0 master {head.link} up",
        "link set keep-1 up",
        f"link add to-node-2 type veth peer name {second.link} netns {second.netns}",
        f"link set to-node-2 master {head.link} up",
    ]
    run(state, ["ip", "-n", head.netns, "-batch", "-"], text="\n".join(batch) + "\n")
    for p, other in ((head, second), (second, head)):
        raise_link(state, p, other)
        # What a service sends to a pod on the same bridge must pass iptables too.
        for key in ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"):
            run(state, ["sysctl", "-q", "-w", f"{key}=1"], netns=p.netns)


def raise_link(state: State, p: Place, other: Place) -> None:
    """Bring a node's interface up, with address and routes (which go when a link goes down)."""
    batch = [
        f"address replace {p.address}/24 dev {p.link}",
        f"link set {p.link} up",
        f"route replace default via {GATEWAY} dev {p.link}",
        f"route replace {other.pods} via {other.address}",
    ]
    run(state, ["ip", "-n", p.netns, "-batch", "-"], text="\n".join(batch) + "\n")


def cut(state: State, p: Place) -> None:
    """Take a node's interface down: the cable is out."""
    run(state, ["ip", "-n", p.netns, "link", "set", p.link, "down"])


def mend(state: State, p: Place) -> None:
    """Bring a node's interface up again."""
    raise_link(state, p, next(other for other in PLACES if other is not p))


def exists() -> bool:
    """Whether a namespace of ours is there."""
    return any((NETNS / p.netns).exists() for p in PLACES)


def enter() -> None:
    """Move the calling thread into the head's namespace: its own was deleted with an earlier life of the cluster."""
    with (NETNS / HEAD.netns).open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns", str(NETNS / HEAD.netns))


def pids() -> set[int]:
    """All processes that live in our namespaces."""
    ours = set()
    for p in PLACES:
        if (NETNS / p.netns).exists():
            ours.add(os.stat(NETNS / p.netns).st_ino)  # noqa: PTH116
    found = set()
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and os.stat(folder / "ns" / "net").st_ino in ours:  # noqa: PTH116
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def remove(state: State) -> None:
    """Delete the namespaces, and with them links, routes and packet rules."""
    for p in PLACES:
        if (NETNS / p.netns).exists():
            run(state, ["ip", "netns", "delete", p.netns])
