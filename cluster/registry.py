"""The image registry: plain HTTP inside the namespaces, so that images are named by digest as on a real cluster."""

from __future__ import annotations

from pathlib import Path

from cluster import process
from cluster.network import HEAD
from cluster.process import run, wait_until
from cluster.state import State, write_json

ADDRESS = f"{HEAD.address}:5000"


def configuration(state: State) -> Path:
    """The registry's settings, written."""
    config = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(state.root / "registry")}, "delete": {"enabled": True}},
        "http": {"addr": ADDRESS},
    }
    return write_json(state.run / "registry.json", config)


def start(state: State) -> None:
    """Start the registry; its images outlive the cluster, in `registry/`."""
    (state.root / "registry").mkdir(parents=True, exist_ok=True)
    env = {"OTEL_TRACES_EXPORTER": "none"}
    argv = [state.bin / "registry", "serve", configuration(state)]
    process.start(state, "registry", argv, netns=HEAD.netns, env=env)
    wait_until(
        lambda: is_ready(state),
        f"the registry at {ADDRESS} to answer",
        seconds=20,
        advice=lambda: process.log_tail(state, "registry"),
    )


def collect(state: State) -> None:
    """Remove what no name points at any more: images of older sources. Only while the registry is stopped."""
    if (state.root / "registry" / "docker").is_dir():
        run(state, [state.bin / "registry", "garbage-collect", "--delete-untagged", configuration(state)], check=False)


def is_ready(state: State) -> bool:
    """Whether the registry lives and answers."""
    if process.find(state, "registry") is None:
        return False
    return status(state, "/v2/") == 200


def has(state: State, repository: str, digest: str) -> bool:
    """Whether an image is there, by digest."""
    return status(state, f"/v2/{repository}/manifests/{digest}") == 200


def status(state: State, path: str) -> int:
    """The HTTP status of a request to the registry; 0 where nothing answers."""
    accept = "application/vnd.oci.image.manifest.v1+json,application/vnd.docker.distribution.manifest.v2+json"
    argv = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Accept: {accept}", f"http://{ADDRESS}{path}"]
    return int(run(state, [*argv, "--noproxy", "*", "--max-time", "5"], netns=HEAD.netns, check=False) or 0)


def hosts(folder: Path) -> None:
    """Tell a containerd, by its folder of registries, that this one speaks plain HTTP."""
    url = f"http://{ADDRESS}"
    text = f'server = "{url}"\n\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n'
    target = folder / ADDRESS
    target.mkdir(parents=True, exist_ok=True)
    (target / "hosts.toml").write_text(text)
