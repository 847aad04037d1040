"""A node: its own containerd, kubelet and kube-proxy in its own namespace, and what can happen to it.

`power_off`, `power_on`, `pause` and `resume` are for tests marked `owns_nodes`; each takes the node's name.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from cluster import network, process, registry
from cluster.certificates import folder as pki_folder
from cluster.control_plane import kubectl
from cluster.mounts import cgroup_pids, make_cgroup, remove_tree, unmount_below
from cluster.network import DNS_SERVICE, PODS, Place, place
from cluster.process import run, wait_until
from cluster.state import NAME, State, current, write_json, write_text

CNI_PROGRAMS = "/usr/lib/cni"
PAUSE = f"{registry.ADDRESS}/stageline/pause:1"


def daemons(name: str) -> tuple[str, str, str]:
    """The names of a node's processes, in the order they start."""
    return (f"containerd-{name}", f"kubelet-{name}", f"kube-proxy-{name}")


def socket(state: State, name: str) -> Path:
    """The socket of a node's container runtime."""
    return state.node(name) / "containerd.sock"


def start(state: State, name: str) -> None:
    """Start what does not run yet of a node; returns before it is Ready (see `wait_ready`)."""
    p, home = place(name), state.node(name)
    start_containerd(state, p)
    kubelet, proxy = daemons(name)[1:]
    group = make_cgroup(name)
    kubelet_file = write_json(home / "kubelet.json", kubelet_configuration(state, p, group))
    pki = pki_folder(state)
    argv: list[object] = [state.bin / "kubelet", f"--config={kubelet_file}", f"--root-dir={home / 'kubelet'}"]
    argv += [f"--kubeconfig={pki / f'kubelet-{name}.kubeconfig'}", f"--cert-dir={home / 'kubelet-pki'}"]
    argv += [f"--hostname-override={name}", f"--node-ip={p.address}", f"--node-labels=stageline/node={name}"]
    process.start(state, kubelet, argv, netns=p.netns)
    proxy_file = write_json(home / "kube-proxy.json", proxy_configuration(state, p))
    process.start(state, proxy, [state.bin / "kube-proxy", f"--config={proxy_file}"], netns=p.netns)


def start_containerd(state: State, p: Place) -> None:
    """Start a node's container runtime and wait until it answers."""
    home, name = state.node(p.name), daemons(p.name)[0]
    config = write_text(home / "containerd.toml", containerd_configuration(state, p))
    write_json(home / "cni" / "10-stageline.conflist", cni_configuration(state, p))
    registry.hosts(home / "registries")
    process.start(state, name, ["containerd", "--config", config], netns=p.netns)
    wait_until(
        lambda: bool(ctr(state, p.name, "version", check=False)),
        f"containerd of {p.name} to answer",
        seconds=30,
        advice=lambda: process.log_tail(state, name),
    )


def ctr(state: State, name: str, *words: str, check: bool = True) -> str:
    """containerd's own client, on one node, where the kubelet's containers are."""
    return run(state, ["ctr", "-a", str(socket(state, name)), "-n", "k8s.io", *words], check=check, timeout_seconds=60)


def containerd_configuration(state: State, p: Place) -> str:
    """containerd's settings. Without restrict_oom_score_adj no pod starts where CAP_SYS_RESOURCE is missing."""
    home = state.node(p.name)
    return f"""version = 2
root = "{home}/containerd"
state = "{home}/containerd-run"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "{socket(state, p.name)}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".containerd]
discard_unpacked_layers = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PROGRAMS}"
conf_dir = "{home}/cni"

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{home}/registries"
"""


def cni_configuration(state: State, p: Place) -> dict[str, object]:
    """A bridge for the node's pods, without masquerading: pods see each other's true addresses."""
    leases = {"type": "host-local", "dataDir": str(state.node(p.name) / "leases")}
    leases |= {"ranges": [[{"subnet": p.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}  # type: ignore[dict-item]
    bridge = {"type": "bridge", "bridge": "pods", "isGateway": True, "hairpinMode": True, "ipam": leases}
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return {"cniVersion": "0.4.0", "name": f"{NAME}-{p.name}", "plugins": plugins}


def kubelet_configuration(state: State, p: Place, group: str) -> dict[str, object]:
    """The kubelet's settings. The thresholds are low: a developer's disk and memory are never as empty as a node's."""
    pki, home = pki_folder(state), state.node(p.name)
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": p.address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / f"serving-{p.name}.crt"),
        "tlsPrivateKeyFile": str(pki / f"serving-{p.name}.key"),
        "containerRuntimeEndpoint": f"unix://{socket(state, p.name)}",
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": str(write_text(home / "resolv.conf", "")),
        # Two kubelets must not share this folder: each clears away the other's.
        "podLogsDir": str(home / "pod-logs"),
        "volumePluginDir": str(home / "volume-plugins"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": group,
        "failCgroupV1": False,
        "failSwapOn": False,
        "localStorageCapacityIsolation": False,
        "oomScoreAdj": 0,
        "nodeStatusUpdateFrequency": "4s",
        "syncFrequency": "10s",
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "500Mi",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "500Mi",
        },
    }


def proxy_configuration(state: State, p: Place) -> dict[str, object]:
    """kube-proxy's settings; the conntrack limits belong to the machine and stay as they are."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(pki_folder(state) / "kube-proxy.kubeconfig")},
        "mode": "iptables",
        "hostnameOverride": p.name,
        "clusterCIDR": PODS,
        "bindAddress": p.address,
        "oomScoreAdj": 0,
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def is_ready(state: State, name: str) -> bool:
    """Whether the API server calls the node Ready."""
    path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    return kubectl(state, "get", "node", name, "-o", path, check=False).strip() == "True"


def wait_ready(state: State, name: str, seconds: float = 60) -> None:
    """Wait until the node is Ready."""
    wait_until(
        lambda: is_ready(state, name),
        f"{name} to be Ready",
        seconds=seconds,
        every=0.5,
        advice=lambda: process.log_tail(state, daemons(name)[1]),
    )


def heartbeat(state: State, name: str) -> str:
    """When the node last reported, as the API server knows it (ISO 8601, so that later is greater)."""
    path = "jsonpath={.spec.renewTime}"
    return kubectl(state, "-n", "kube-node-lease", "get", "lease", name, "-o", path, check=False).strip()


def wait_back(state: State, name: str, seconds: float = 90) -> None:
    """Wait until the node has reported anew and is Ready: what the API server believes may be older than the loss."""
    before = heartbeat(state, name)
    wait_until(lambda: heartbeat(state, name) > before, f"{name} to report", seconds=seconds, every=0.5)
    wait_ready(state, name, seconds)


def power_off(name: str, state: State | None = None) -> None:
    """The node dies at once: its link goes down, its processes and pods are killed, nobody is told."""
    state = state or current()
    network.cut(state, place(name))
    kill(state, name)


def kill(state: State, name: str) -> None:
    """Kill a node's processes, its pods and their shims, and detach what they had mounted."""
    for daemon in reversed(daemons(name)):
        process.stop(state, daemon, grace_seconds=0)
    process.end(shims(state, name) | cgroup_pids(name))
    process.end(cgroup_pids(name))
    unmount_below(state.node(name))


def shims(state: State, name: str) -> set[int]:
    """The processes between containerd and the containers of one node: they carry its socket in their command."""
    wanted = str(socket(state, name)).encode()
    found = set()
    for pid in process.marked(process.DAEMON_MARK, state.root):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"shim" in words[0] and wanted in b" ".join(words):
            found.add(pid)
    return found


def power_on(name: str, state: State | None = None) -> None:
    """The node comes back, as after a reboot: same identity and images, pods start anew. Returns when it is Ready."""
    state = state or current()
    network.mend(state, place(name))
    start(state, name)
    wait_back(state, name)


def pause(name: str, state: State | None = None) -> None:
    """The node falls silent (its kubelet stops reporting), while its pods go on."""
    state = state or current()
    pid = process.find(state, daemons(name)[1])
    if pid is not None:
        os.kill(pid, signal.SIGSTOP)


def resume(name: str, state: State | None = None) -> None:
    """The silent node speaks again. Returns when it is Ready."""
    state = state or current()
    pid = process.find(state, daemons(name)[1])
    if pid is not None:
        os.kill(pid, signal.SIGCONT)
    wait_back(state, name)


def clear(state: State, name: str) -> None:
    """Forget a node's pods and identity; keep its images. Only for a node that is stopped."""
    home = state.node(name)
    unmount_below(home)
    for socket_file in shim_sockets(home):
        socket_file.unlink(missing_ok=True)
    for result in Path("/var/lib/cni/results").glob(f"{NAME}-{name}-*"):
        result.unlink(missing_ok=True)
    kept = {"containerd"}
    for path in home.iterdir() if home.is_dir() else ():
        if path.name not in kept:
            remove_tree(path)
    remove_tree(home / "containerd" / "io.containerd.grpc.v1.cri")


def shim_sockets(home: Path) -> list[Path]:
    """Sockets that killed shims left; containerd puts them outside its own folders."""
    found = []
    for file in home.glob("containerd-run/io.containerd.runtime.v2.task/*/*/address"):
        name = file.read_text().strip().removeprefix("unix://")
        if name.startswith("/run/containerd/s/"):
            found.append(Path(name))
    return found


def forget_containers(state: State, name: str) -> None:
    """Remove the containers that an earlier life left in containerd's records, then start it afresh."""
    left = ctr(state, name, "containers", "list", "-q").split()
    if not left:
        return
    for start_at in range(0, len(left), 50):
        ctr(state, name, "containers", "rm", *left[start_at : start_at + 50], check=False)
    process.stop(state, daemons(name)[0])
    start_containerd(state, place(name))
