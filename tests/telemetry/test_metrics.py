"""Metric names follow the rules of the house; the endpoint serves what was recorded."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import urllib.request

import pytest

from stageline.telemetry import METRICS, MetricsEndpoint


@pytest.mark.parametrize("name", sorted(METRICS))
def test_names_end_in_their_unit(name):
    units = "steps|seconds|total|value|norm|rate|bytes"
    assert re.fullmatch(rf"stageline(_[a-z]+)+_({units})", name)
    assert METRICS[name].name == name
    assert METRICS[name].text.endswith(".")
    assert name.endswith("_total") == (METRICS[name].kind == "counter")


MULTIPROCESS = """
import os, sys
from stageline.telemetry import MetricsEndpoint
endpoint = MetricsEndpoint(int(sys.argv[1]), family="toy", stage="base", address="127.0.0.1")
endpoint.record("stageline_samples_total", 3)
endpoint.close()
print(endpoint.port, os.environ["PROMETHEUS_MULTIPROC_DIR"])
"""


def test_the_folder_of_a_server_with_several_processes_is_none_of_ours(tmp_path, monkeypatch):
    """The client decides when it is loaded; a missing folder ended the stage."""
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        monkeypatch.setenv(name, str(tmp_path / "missing"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ended = subprocess.run([sys.executable, "-c", MULTIPROCESS, str(port)], capture_output=True, text=True, check=False)
    assert ended.stdout == f"{port} {tmp_path / 'missing'}\n", ended.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_recorded_is_served():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = MetricsEndpoint(port, family="toy", stage="base", address="127.0.0.1")
    try:
        assert endpoint.port == port
        endpoint.record("stageline_finished_steps", 7)
        endpoint.record("stageline_samples_total", 3)
        endpoint.record("stageline_samples_total", 4)
        endpoint.record("stageline_step_duration_seconds", 0.5)
        endpoint.record("stageline_loss_value", 0.25, "dice")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            text = page.read().decode()
    finally:
        endpoint.close()
    assert 'stageline_finished_steps{family="toy",stage="base"} 7.0' in text
    assert 'stageline_samples_total{family="toy",stage="base"} 7.0' in text
    assert 'stageline_step_duration_seconds_sum{family="toy",stage="base"} 0.5' in text
    assert 'stageline_loss_value{family="toy",part="dice",stage="base"} 0.25' in text


def test_checkpoint_times_are_told_apart_up_to_an_hour_and_another_node_serves_its_own():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pages = []
    for is_first in (True, False):
        endpoint = MetricsEndpoint(port, family="toy", stage="base", address="127.0.0.1", is_first=is_first)
        try:
            for name in METRICS:
                endpoint.record(name, 2000.0)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                pages.append(page.read().decode())
        finally:
            endpoint.close()
    for name in ("stageline_checkpoint_write_seconds", "stageline_checkpoint_blocked_seconds"):
        assert f'{name}_bucket{{family="toy",le="1800.0",stage="base"}} 0.0' in pages[0]
        assert f'{name}_bucket{{family="toy",le="3600.0",stage="base"}} 1.0' in pages[0]
        assert name not in pages[1]
    served = {line.split()[2] for line in pages[1].splitlines() if line.startswith("# TYPE") and "_created" not in line}
    assert served == {name for name, metric in METRICS.items() if metric.of_each_node}
    assert "stageline_step_duration_seconds" in served


def test_a_taken_port_costs_the_endpoint_only():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = MetricsEndpoint(taken.getsockname()[1], family="toy", stage="base", address="127.0.0.1")
        assert str(taken.getsockname()[1]) in endpoint.warning
        endpoint.record("stageline_finished_steps", 7)
        endpoint.close()


def test_port_zero_serves_nothing():
    endpoint = MetricsEndpoint(0, family="toy", stage="base")
    assert (endpoint.port, endpoint.warning) == (0, "")
    endpoint.record("stageline_finished_steps", 7)
    with pytest.raises(KeyError):
        endpoint.record("stageline_no_such_metric", 1)
