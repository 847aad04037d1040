"""etcd, API server, controller manager and scheduler: started in this order, inside the head's namespace."""

from __future__ import annotations

from collections.abc import Mapping

from cluster import process
from cluster.certificates import API_PORT, API_URL, folder
from cluster.network import HEAD, PODS, SERVICES
from cluster.process import run, wait_until
from cluster.state import State

DAEMONS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")

NOTICE_SECONDS = 16
"""When a silent node counts as lost. Chosen here: with the usual 50 s, each test of a lost node waits longer."""
TOLERATION_SECONDS = 20
"""How long a pod stays bound to a lost node; usually 300 s."""


def start(state: State) -> None:
    """Start what does not run yet and wait until the API server is ready."""
    etcd(state)
    api_server(state)
    wait_ready(state)
    controllers(state)


def etcd(state: State) -> None:
    """The store. It is thrown away with the cluster, so it need not wait for the disk."""
    data = state.run / "etcd"
    data.mkdir(parents=True, exist_ok=True)
    data.chmod(0o700)
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    argv = ["etcd", "--data-dir", data, "--name", "head", "--unsafe-no-fsync"]
    argv += ["--listen-client-urls", client, "--advertise-client-urls", client]
    argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"head={peer}"]
    process.start(state, "etcd", argv, netns=HEAD.netns)


def api_server(state: State) -> None:
    """The API server: Node and RBAC authorisation, admission as by default (Pod Security among it)."""
    pki = folder(state)
    flags = {
        "advertise-address": HEAD.address,
        "secure-port": API_PORT,
        "etcd-servers": "http://127.0.0.1:2379",
        "service-cluster-ip-range": SERVICES,
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "client-ca-file": pki / "ca.crt",
        "tls-cert-file": pki / "api-server.crt",
        "tls-private-key-file": pki / "api-server.key",
        "kubelet-certificate-authority": pki / "ca.crt",
        "kubelet-client-certificate": pki / "api-server-kubelet-client.crt",
        "kubelet-client-key": pki / "api-server-kubelet-client.key",
        "kubelet-preferred-address-types": "InternalIP",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "service-account-key-file": pki / "service-account.key",
        "service-account-signing-key-file": pki / "service-account.key",
        "requestheader-client-ca-file": pki / "front-proxy-ca.crt",
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": pki / "front-proxy-client.crt",
        "proxy-client-key-file": pki / "front-proxy-client.key",
        "enable-aggregator-routing": "true",
        "default-not-ready-toleration-seconds": TOLERATION_SECONDS,
        "default-unreachable-toleration-seconds": TOLERATION_SECONDS,
        "shutdown-delay-duration": "0s",
    }
    process.start(state, "kube-apiserver", command(state, "kube-apiserver", flags), netns=HEAD.netns)


def controllers(state: State) -> None:
    """Controller manager and scheduler; there is one of each, so they need no election."""
    pki = folder(state)
    flags = {
        "kubeconfig": pki / "kube-controller-manager.kubeconfig",
        "authentication-kubeconfig": pki / "kube-controller-manager.kubeconfig",
        "authorization-kubeconfig": pki / "kube-controller-manager.kubeconfig",
        "bind-address": "127.0.0.1",
        "leader-elect": "false",
        "use-service-account-credentials": "true",
        "root-ca-file": pki / "ca.crt",
        "service-account-private-key-file": pki / "service-account.key",
        "cluster-signing-cert-file": pki / "ca.crt",
        "cluster-signing-key-file": pki / "ca.key",
        "cluster-cidr": PODS,
        "service-cluster-ip-range": SERVICES,
        "node-monitor-period": "2s",
        "node-monitor-grace-period": f"{NOTICE_SECONDS}s",
    }
    argv = command(state, "kube-controller-manager", flags)
    process.start(state, "kube-controller-manager", argv, netns=HEAD.netns)
    flags = {
        "kubeconfig": pki / "kube-scheduler.kubeconfig",
        "authentication-kubeconfig": pki / "kube-scheduler.kubeconfig",
        "authorization-kubeconfig": pki / "kube-scheduler.kubeconfig",
        "bind-address": "127.0.0.1",
        "leader-elect": "false",
    }
    process.start(state, "kube-scheduler", command(state, "kube-scheduler", flags), netns=HEAD.netns)


def command(state: State, name: str, flags: Mapping[str, object]) -> list[object]:
    """A program of ours with its flags."""
    return [state.bin / name, *(f"--{key}={value}" for key, value in flags.items())]


def kubectl(state: State, *words: object, text: str | None = None, check: bool = True, seconds: float = 120) -> str:
    """Run our kubectl as administrator, inside the head's namespace."""
    argv = [state.bin / "kubectl", f"--kubeconfig={state.kubeconfig}", *words]
    return run(state, argv, netns=HEAD.netns, text=text, check=check, timeout_seconds=seconds)


def is_ready(state: State) -> bool:
    """Whether the API server lives and says that it is ready."""
    if process.find(state, "kube-apiserver") is None or not state.kubeconfig.exists():
        return False
    return kubectl(state, "get", "--raw=/readyz", "--request-timeout=5s", check=False).strip() == "ok"


def wait_ready(state: State) -> None:
    """Wait for the API server."""
    wait_until(
        lambda: is_ready(state),
        f"the API server at {API_URL} to be ready",
        seconds=90,
        every=0.3,
        advice=lambda: process.log_tail(state, "kube-apiserver"),
    )


def stop_api_server(state: State) -> None:
    """Take the API server away; what runs goes on without it."""
    process.stop(state, "kube-apiserver", grace_seconds=1)


def restart_api_server(state: State) -> None:
    """Stop the API server and start it again; returns when it is ready."""
    stop_api_server(state)
    api_server(state)
    wait_ready(state)
