"""What a stage costs on a cluster on top of its training: start, eviction, cancellation, reaction to a change.

Run: `make cluster`, then `python benchmarks/bench_cluster.py`. It uses our own test cluster: one stage of two pods on
two nodes, checkpoints in S3, in a namespace that it makes and deletes. One machine plays both nodes: loading torch
twice on its cores is most of what the figures show, so read the parts, not the sum.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import network, s3
from cluster.state import Own, read_own

STAGELINE = str(Path(sys.executable).parent / "stageline")
RUN = "bench"
JOB = f"{RUN}-backbone"
GUARD_SECONDS = 600.0


class Followed:
    """A `stageline job submit --follow`, its lines with the time they came."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self.start = time.monotonic()
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            [STAGELINE, "job", "submit", "backbone", "--follow", *words],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    def when(self, *words: str, after: float = 0.0) -> float:
        """When the first line with all of `words` came, later than `after`; waits for it."""
        end = time.monotonic() + GUARD_SECONDS
        while time.monotonic() < end:
            for moment, line in list(self.lines):
                if moment > after and all(word in line for word in words):
                    return moment
            if self.process.poll() is not None:
                time.sleep(0.5)
                if not any(moment > after and all(w in line for w in words) for moment, line in self.lines):
                    break
            time.sleep(0.02)
        tail = "\n".join(line for _, line in self.lines[-25:])
        sys.exit(f"no line with {words} came; the last ones:\n{tail}")


def kubectl(own: Own, *words: str, text: str = "", check: bool = True) -> str:
    argv = [own.kubectl, f"--kubeconfig={own.kubeconfig}", *words]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if check and done.returncode:
        sys.exit(f"kubectl {' '.join(words)}: {done.stderr}")
    return done.stdout


def seconds_until(condition: Callable[[], bool], start: float) -> float:
    """Seconds from `start` until `condition` holds."""
    while not condition():
        if time.monotonic() - start > GUARD_SECONDS:
            sys.exit("a condition did not come true in time")
        time.sleep(0.02)
    return time.monotonic() - start


@contextmanager
def place(own: Own) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """(namespace, settings of the run, environment of this side) with a bucket of its own; gone at the end."""
    name = f"bench-{secrets.token_hex(3)}"
    s3.create_bucket(name)
    account = s3.create_account(f"user-{name}")
    s3.grant(name, account["access_key"])
    keys = {"AWS_ACCESS_KEY_ID": account["access_key"], "AWS_SECRET_ACCESS_KEY": account["secret_key"]}
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    objects = [
        {"kind": "Namespace", "metadata": {"name": name, "labels": labels}},
        {"kind": "ServiceAccount", "metadata": {"name": "stageline-trainer", "namespace": name}},
        {"kind": "Secret", "metadata": {"name": "stageline-s3", "namespace": name}, "stringData": keys},
    ]
    items = [{"apiVersion": "v1", **item} for item in objects]
    kubectl(own, "apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    settings = [
        *("--family", "film_flow", "--preset", "tiny", f"root=s3://{name}", f"run={RUN}", f"cluster.namespace={name}"),
        f"cluster.image={own.images['trainer']}",
        f"cluster.storage.s3.endpoint={own.s3['endpoint']}",
        "cluster.storage.s3.secret=stageline-s3",
        *("trainer.nodes=2", "trainer.log_every_steps=1", "trainer.checkpoint_every_steps=5"),
        *("stage_overrides.backbone.trainer.max_steps=100000", "data.num_train=16", "data.num_val=4"),
    ]
    here = {**keys, "AWS_ENDPOINT_URL_S3": own.s3["endpoint"], "AWS_REGION": own.s3["region"]}
    try:
        yield name, settings, {**here, "KUBECONFIG": own.kubeconfig}
    finally:
        kubectl(own, "delete", "namespace", name, "--wait=false", check=False)
        s3.delete_account(account["access_key"])


def show(title: str, parts: dict[str, float]) -> None:
    print(f"\n{title}")
    for name, value in parts.items():
        print(f"  {name:<58} {value:8.2f} s", flush=True)


def measure(own: Own, namespace: str, settings: list[str], environment: dict[str, str]) -> None:
    prepared = [STAGELINE, "prepare", *settings]
    subprocess.run(prepared, env={**os.environ, **environment}, check=True, capture_output=True)

    job = Followed(settings, environment)
    moments = {
        "command -> job created": job.when("submitted job"),
        "job created -> both pods have a node": max(job.when(f"worker-{n}: starts on") for n in (0, 1)),
        "node -> both containers run": max(job.when(f"worker-{n}: runs on") for n in (0, 1)),
        "container -> entry's first line": max(job.when(f"[worker-{n}] [stageline-entry] job") for n in (0, 1)),
        "entry -> first step (torch loaded twice, ranks met, model)": job.when("step 1/"),
    }
    parts, before = {}, job.start
    for name, moment in moments.items():
        parts[name], before = max(0.0, moment - before), max(before, moment)
    show("from submit to the first step", {**parts, "in all": before - job.start})

    job.when("step 7/")
    evicted = time.monotonic()
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": f"{JOB}-worker-1"}}
    path = f"/api/v1/namespaces/{namespace}/pods/{JOB}-worker-1/eviction"
    kubectl(own, "create", "--raw", path, "-f", "-", text=json.dumps(eviction))
    said = job.when("worker-1: is being stopped", after=evicted)
    again = job.when("resumed at step", after=evicted)
    step = job.when(" step ", "loss", after=again)
    parts = {"eviction asked for -> said by the launcher": said - evicted}
    show("one pod evicted", {**parts, "-> resumed": again - evicted, "-> training again": step - evicted})

    start = time.monotonic()
    subprocess.run(
        [STAGELINE, "job", "cancel", JOB, "--namespace", namespace],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )
    label = f"training.kubeflow.org/job-name={JOB}"
    gone = seconds_until(lambda: not kubectl(own, "-n", namespace, "get", "pytorchjobs", "-o", "name"), start)
    pods = seconds_until(lambda: not kubectl(own, "-n", namespace, "get", "pods", "-l", label, "-o", "name"), start)
    show("cancelled", {"command -> job deleted": gone, "-> pods committed and gone": pods})
    job.process.wait(60)


def main() -> None:
    own = read_own()
    if own is None or "trainer" not in own.images:
        print("\nno figures of a cluster: no test cluster with images is up; `make cluster` makes it")
        return
    network.enter()
    with place(own) as (namespace, settings, environment):
        measure(own, namespace, settings, environment)


if __name__ == "__main__":
    main()
