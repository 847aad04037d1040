"""Launchers killed, pods evicted and jobs cancelled at random, for as long as one likes: `make soak MINUTES=30`.

Each round is one run: launchers come and go at random moments, pods are evicted or deleted, and at the end a last
launcher must find the one job, whose number never rises without reason, and cancel it so that nothing is left. A round
that fails prints its seed; `--seed` plays it again.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kubernetes import client, config

from cluster.state import read_own
from tests.cluster.test_launcher_killed import Drill, Witness, nothing_left

REQUESTS = 24
"""Launchers are killed at one of their first so many requests, or at a random moment."""


def one_round(drill: Drill, chance: random.Random, namespace: str) -> str:
    """What was done, in words; raises AssertionError where a law is broken."""
    done = []
    for _ in range(chance.randint(1, 4)):
        act = chance.choice(["request", "moment", "evict", "twice"])
        if act == "request":
            number, moment = chance.randint(1, REQUESTS), chance.choice(["before", "after"])
            launcher = drill.launch(kill_at=(number, moment))
            done.append(f"killed {moment} request {number}")
            launcher.process.join(chance.uniform(1, 15))
        else:
            launcher = drill.launch()
            if act == "twice":
                launcher.await_text("following")
            time.sleep(chance.uniform(0, 4))
            if act == "evict":
                evict(namespace, f"{drill.run}-film-worker-0", chance.choice([0, 4]))
                time.sleep(chance.uniform(0, 3))
            if act == "twice":
                other = drill.launch()
                assert other.end() == 10, f"a second launcher was let in:\n{other.text()}"
            done.append(f"{act}, then killed")
        if launcher.process.is_alive():
            launcher.signal(signal.SIGKILL)
        launcher.end()
    drill.finish()
    return "; ".join(done)


def evict(namespace: str, pod: str, grace: int) -> None:
    """Delete a pod, if it is there."""
    core = client.CoreV1Api()
    try:
        core.delete_namespaced_pod(pod, namespace, grace_period_seconds=grace)
    except client.ApiException as error:
        if error.status != 404:
            raise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    options = parser.parse_args()
    own = read_own()
    if own is None:
        print("no cluster is up; make cluster brings it up", file=sys.stderr)
        return 1
    config.load_kube_config(own.kubeconfig)
    namespace = f"soak-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    client.CoreV1Api().create_namespace({"metadata": {"name": namespace, "labels": labels}})
    witness = Witness(client.ApiClient(), namespace)
    end = time.monotonic() + options.minutes * 60
    number, faults = 0, 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            while time.monotonic() < end:
                seed = options.seed + number
                number += 1
                drill = Drill(Path(folder), own.kubeconfig, namespace, own.images["base"], f"soak-{number}")
                try:
                    done = one_round(drill, random.Random(seed), namespace)  # noqa: S311
                    jobs = len(witness.jobs[f"{drill.run}-film"])
                    assert jobs == 1, f"{jobs} jobs in one run"
                    nothing_left(client.ApiClient(), namespace)
                    print(f"round {number} (seed {seed}): {done}", flush=True)
                except AssertionError as error:
                    faults += 1
                    print(f"round {number} (seed {seed}) FAILED: {error}", flush=True)
    finally:
        witness.stop()
        subprocess.run([own.kubectl, f"--kubeconfig={own.kubeconfig}", "delete", "namespace", namespace], check=False)
    print(json.dumps({"rounds": number, "failed": faults}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
