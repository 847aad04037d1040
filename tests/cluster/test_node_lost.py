"""A node powered off under a pod: the launcher ends the step in its time, naming node, pod and what frees it."""

from __future__ import annotations

import time

import pytest

from cluster import node
from stageline.errors import NodeLostError
from tests.cluster.spaces import Kubectl, Starter, in_thread, namespace, starter, swept, until
from tests.cluster.trivial import pod_spec, trivial_job

__all__ = ["namespace", "starter", "swept"]

pytestmark = [pytest.mark.slow, pytest.mark.owns_nodes]

LOST_SECONDS = 30
"""cluster.node_lost_seconds, counted from when the API server takes the node for lost (16 s on our own cluster)."""


def test_a_node_that_is_off_ends_the_step_and_the_next_start_says_what_frees_it(
    starter: Starter, kubectl: Kubectl, namespace: str
) -> None:
    started = starter(
        trivial_job("octa", nodes=2),
        node_lost_seconds=LOST_SECONDS,
        spread="require",
        change=lambda manifest: pod_spec(manifest).update(terminationGracePeriodSeconds=1),
    )
    started.start()
    thread, verdicts = in_thread(started)
    until(lambda: " ".join(started.said).count("runs on") == 2, "both run")
    place = "node-2"  # the other one carries the API server
    lost = next(text.split(":")[0] for text in started.said if text.endswith(f"runs on {place}"))
    node.power_off(place)
    begun = time.monotonic()
    thread.join(150)
    assert verdicts, started.said
    assert time.monotonic() - begun < 16 + LOST_SECONDS + 20
    assert verdicts[0].exit_code == NodeLostError.exit_code
    record = verdicts[0].record
    assert record
    assert place in record.sentence
    assert lost in record.sentence
    assert "Ready Unknown" in record.sentence
    command = f"kubectl -n {namespace} delete pod octa-film-{lost} --force --grace-period=0"
    assert command in record.remedy
    assert "octa" not in kubectl("-n", namespace, "get", "pytorchjobs", "-o", "name")

    again = starter(trivial_job("octa", nodes=1))
    thread, verdicts = in_thread(again, starts=True)
    until(lambda: f"waiting for the pods of the job before to end: {lost} on {place}" in again.said, "it is told", 20)
    kubectl(*command.split()[1:])
    until(lambda: "worker-0: runs on" in " ".join(again.said), "it starts once the pod is freed", 60)
    again.cancel()
    thread.join(60)
    assert verdicts[0].exit_code == 143
