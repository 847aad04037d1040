"""up, down and status: the parts in order.

`up` is a comparison of what should be with what is: whatever is there and right stays. A cluster of which a piece is
missing that can't be put back alone (a killed API server's peers, half a start) is taken down and made anew, which
takes seconds, since programs and images stay.
"""

from __future__ import annotations

import contextlib
import json
import time
from functools import partial
from pathlib import Path

from cluster import (
    addons,
    certificates,
    control_plane,
    images,
    machine,
    network,
    node,
    parts,
    process,
    project,
    registry,
    s3,
    storage,
)
from cluster.errors import ClusterError
from cluster.mounts import cgroup_folders, cgroup_pids, mounts_below, remove_cgroups, remove_tree, unmount_below
from cluster.progress import say, timed
from cluster.state import Own, State, locked, write_json, write_own

TUNABLES = ("vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops")
"""What a kubelet sets for the whole machine; `down` puts back what was there before."""


def up(state: State, *, with_images: bool = True) -> None:
    """Bring the cluster up, or what is missing of it. Safe to repeat, also after a kill at any point."""
    started = time.monotonic()
    machine.check(state)
    with locked(state), process.working(state):
        say(f"cluster in {state.root}")
        machine.check_disk(state, with_images=with_images)
        machine.install(state)
        make_everything(state, with_images=with_images)
        if not is_whole(state):
            start(state)
        registry.start(state)
        s3.start_server(state)
        made = project.publish(state) if with_images else project.bare(state)
        write_own(state, describe(state, made))
    say(f"cluster is up after {time.monotonic() - started:.0f} s; `python -m cluster env` says how to use it")


def make_everything(state: State, *, with_images: bool) -> None:
    """Programs and images, side by side: the ones keep the processor busy, the others the network."""
    calls = [partial(parts.make, state), *([partial(project.build, state)] if with_images else [])]
    process.side_by_side(*calls, width=2)


def start(state: State) -> None:
    """Start everything from nothing, with the programs and images that are there."""
    clear(state)
    for name in (*essential(), "registry", "s3"):
        (state.logs / f"{name}.log").unlink(missing_ok=True)
    begun = time.monotonic()
    with timed("network and certificates"):
        save_tunables(state)
        network.make(state)
        certificates.make(state)
    with timed("control plane, registry and S3"):
        registry.collect(state)
        registry.start(state)
        s3.start_server(state)
        s3.create_bucket(s3.BUCKET, state=state)
        control_plane.start(state)
    made = images.make_parts(state)
    with timed("nodes to be Ready", usual="15 s"):
        for p in network.PLACES:
            node.start_containerd(state, p)
            node.forget_containers(state, p.name)
            images.pull_pause(state, p.name)
        for p in network.PLACES:
            node.start(state, p.name)
        addons.apply(state, made)
        for p in network.PLACES:
            node.wait_ready(state, p.name)
    say(f"  both nodes Ready {time.monotonic() - begun:.0f} s after the start")
    with timed("CoreDNS and the operator's webhook", usual="20 s"):
        addons.wait_ready(state)
    write_json(state.run / "whole.json", {"pins": parts.pins(state)})


def describe(state: State, made: dict[str, str]) -> Own:
    """What tests may know."""
    root = s3.root_account(state)
    return Own(
        kubeconfig=str(state.kubeconfig),
        netns=str(process.NETNS / network.HEAD.netns),
        nodes=[p.name for p in network.PLACES],
        kubectl=str(state.bin / "kubectl"),
        helm=str(state.bin / "helm"),
        kubeconform=str(state.bin / "kubeconform"),
        registry=registry.ADDRESS,
        storage_class=storage.CLASS,
        s3={"endpoint": s3.ENDPOINT, "region": s3.REGION, "bucket": s3.BUCKET, **root},
        images=made,
    )


def essential() -> list[str]:
    """Daemons without which there is no cluster (registry and S3 can be put back alone)."""
    return [*control_plane.DAEMONS, *(daemon for p in network.PLACES for daemon in node.daemons(p.name))]


def faults(state: State) -> list[str]:
    """What is wrong with the cluster, in words; empty if it is whole and works."""
    if not (state.run / "whole.json").exists():
        return ["it was never started to the end"]
    if json.loads((state.run / "whole.json").read_text())["pins"] != parts.pins(state):
        return ["it runs programs that are pinned differently now"]
    dead = [name for name in essential() if process.find(state, name) is None]
    if dead:
        return [f"{', '.join(dead)} died"]
    if not control_plane.is_ready(state):
        return ["the API server is not ready"]
    return [f"{p.name} is not Ready" for p in network.PLACES if not node.is_ready(state, p.name)]


def is_whole(state: State) -> bool:
    """Whether the cluster runs; if a part of it does, say why it is made anew."""
    if not state.run.exists() and not network.exists():
        return False
    found = faults(state)
    if found == ["it was never started to the end"] or not found:
        return not found
    # While all processes live, it may only be slow: a node that was just powered on, a machine with much to do.
    patience = 60 if all(process.find(state, name) for name in essential()) else 0
    with contextlib.suppress(ClusterError):
        process.wait_until(lambda: not faults(state), "it", seconds=patience, every=1)
        return True
    say(f"  starting it anew: {'; '.join(found)}")
    return False


def down(state: State, *, purge: bool = False) -> None:
    """Stop everything and leave nothing behind but programs, images and logs; with purge, not even those."""
    if not state.root.exists():
        say(f"there is no cluster in {state.root}")
        return
    with locked(state), process.working(state):
        with timed("stopping the cluster", quiet_seconds=1):
            clear(state)
        left = leftovers(state)
        if left:
            raise ClusterError("after stopping there is still:\n" + "\n".join(f"  - {line}" for line in left))
        if purge:
            with timed(f"removing {state.root}", quiet_seconds=1):
                for path in state.root.iterdir():
                    if path.name != "lock":
                        remove_tree(path)
    if purge:
        (state.root / "lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            state.root.rmdir()
    say("cluster is down" + ("; nothing of it is left" if purge else f"; programs and images stay in {state.root}"))


def clear(state: State) -> None:
    """End and remove whatever an earlier life left, in reverse order; needs no record to be right."""
    for p in reversed(network.PLACES):
        for daemon in reversed(node.daemons(p.name)):
            process.stop(state, daemon, grace_seconds=2 if "containerd" not in daemon else 0)
    ours = cgroup_owned(state)
    if ours:
        process.end(set(process.marked(process.DAEMON_MARK, state.root)) & shim_pids(state))
        process.end(cgroup_pids())
    for daemon in reversed(process.names(state)):
        process.stop(state, daemon, grace_seconds=2)
    process.end(process.marked(process.DAEMON_MARK, state.root))
    if ours:
        process.end(cgroup_pids())
        unmount_below(state.root)
        restore_tunables(state)
        network.remove(state)
        remove_cgroups()
    for p in network.PLACES:
        node.clear(state, p.name)
    for path in (state.run, state.volumes, state.root / "s3", state.document, state.kubeconfig):
        remove_tree(path)


def shim_pids(state: State) -> set[int]:
    """The shims of both nodes."""
    return set().union(*(node.shims(state, p.name) for p in network.PLACES))


def cgroup_owned(state: State) -> bool:
    """Whether namespaces and cgroups, which have fixed names, are this state directory's: no other cluster runs."""
    return not any(root != str(state.root) for root in process.marked(process.DAEMON_MARK).values())


def leftovers(state: State) -> list[str]:
    """What should be gone after `down`, in words."""
    found = [f"process {pid}" for pid in process.marked(process.DAEMON_MARK, state.root)]
    found += [f"mount {point}" for point in mounts_below(state.root)]
    if cgroup_owned(state):
        found += [f"process {pid} in {network.HEAD.netns} or its sibling" for pid in network.pids()]
        found += [f"network namespace {p.netns}" for p in network.PLACES if (process.NETNS / p.netns).exists()]
        found += [f"cgroup {folder}" for folder in cgroup_folders()]
    return found


def save_tunables(state: State) -> None:
    """Note the machine's settings that a kubelet will change."""
    file = state.root / "tunables.json"
    if not file.exists():
        values = {key: Path("/proc/sys", *key.split(".")).read_text().strip() for key in TUNABLES}
        write_json(file, values)


def restore_tunables(state: State) -> None:
    """Put the machine's settings back."""
    file = state.root / "tunables.json"
    if file.exists():
        for key, value in json.loads(file.read_text()).items():
            with contextlib.suppress(OSError):
                Path("/proc/sys", *key.split(".")).write_text(value)
        file.unlink()


def status(state: State) -> bool:
    """Say what runs and what is wrong; gives whether the cluster is whole."""
    found = faults(state) if state.run.exists() else ["it is not up"]
    for name in process.names(state):
        say(f"  {name}: {process.find(state, name) or 'dead'}")
    say("whole" if not found else "not whole: " + "; ".join(found))
    return not found
