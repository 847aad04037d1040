"""Every metric name with its unit, and `/metrics` for Prometheus to scrape.

A name stands in `METRICS` and nowhere else; dashboards and rules are checked against that table.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any, Literal

from stageline.printing import one_line


@dataclass(frozen=True)
class Metric:
    """One metric: full name ending in its unit, kind, help text, whether it has the label `part`.

    buckets: upper bounds of a histogram's, in its unit; empty takes prometheus_client's, 5 ms to 10 s.
    of_each_node: also served by the other nodes of a stage; the rest is about the stage as a whole.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    by_part: bool = False
    buckets: tuple[float, ...] = ()
    of_each_node: bool = False


SAVING_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)
"""Seconds, from what a local disk takes to what a large model in a far store does: up to an hour. Chosen here."""


LONGEST_LABEL = 200
"""Characters of a label's value and of a tag: names of loss parts may come from code of the user."""
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("stageline_finished_steps", "gauge", "Optimizer steps finished, those before a resume included."),
        Metric("stageline_planned_steps", "gauge", "Optimizer steps of the whole stage."),
        Metric("stageline_remaining_seconds", "gauge", "Expected seconds until the last step."),
        Metric("stageline_step_duration_seconds", "histogram", "Wall time of one optimizer step.", of_each_node=True),
        Metric(
            "stageline_data_wait_seconds",
            "histogram",
            "Part of a step spent waiting for the data loader.",
            of_each_node=True,
        ),
        Metric("stageline_samples_total", "counter", "Training samples consumed by all ranks."),
        Metric("stageline_loss_value", "gauge", "Training loss per sample or token; parts by label.", by_part=True),
        Metric("stageline_validation_value", "gauge", "Validation metrics by label.", by_part=True),
        Metric("stageline_best_value", "gauge", "Best value so far of the stage's declared metric."),
        Metric("stageline_gradient_norm", "gauge", "Norm of the whole gradient before clipping."),
        Metric("stageline_learning_rate", "gauge", "Learning rate of a group with factor 1."),
        Metric("stageline_bad_steps_total", "counter", "Steps skipped because loss or gradient was not finite."),
        Metric(
            "stageline_last_step_timestamp_seconds",
            "gauge",
            "When the last step ended, seconds since 1970.",
            of_each_node=True,
        ),
        Metric("stageline_last_checkpoint_timestamp_seconds", "gauge", "When the last checkpoint was committed."),
        Metric("stageline_last_checkpoint_steps", "gauge", "Step of the last committed checkpoint."),
        Metric(
            "stageline_checkpoint_write_seconds",
            "histogram",
            "Writing and committing one checkpoint.",
            buckets=SAVING_BUCKETS,
        ),
        Metric(
            "stageline_checkpoint_blocked_seconds",
            "histogram",
            "Part of a save during which the loop waited.",
            buckets=SAVING_BUCKETS,
        ),
        Metric(
            "stageline_device_memory_peak_bytes",
            "gauge",
            "Peak of allocated device memory; 0 on a CPU.",
            of_each_node=True,
        ),
    )
}


_OF_SEVERAL_PROCESSES = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
"""Variables of servers with several processes, which prometheus_client looks at once, when it is loaded: it then
writes every value into files of that folder, there or not. Ranks are scraped one by one."""


def _prometheus() -> Any:
    """The module prometheus_client, whatever such a server left in the environment. 0.1 s, only where served."""
    kept = {name: os.environ.pop(name) for name in _OF_SEVERAL_PROCESSES if name in os.environ}
    try:
        return importlib.import_module("prometheus_client")
    finally:
        os.environ.update(kept)


class MetricsEndpoint:
    """`/metrics` of one stage process for Prometheus.

    port: 0 serves nothing. A port that is taken costs the endpoint and a warning line, never the run.
    is_first: whether this is the process that knows the whole stage; another node's serves what is its own.
    """

    def __init__(
        self,
        port: int,
        *,
        family: str,
        stage: str,
        address: str = "0.0.0.0",  # noqa: S104  # scraped
        is_first: bool = True,
    ) -> None:
        self.warning = ""
        self.port = 0
        self._labels = {"family": one_line(family, LONGEST_LABEL), "stage": one_line(stage, LONGEST_LABEL)}
        self._values: dict[str, Any] = {}
        self._server: Any = None
        if not port:
            return
        prometheus = _prometheus()
        registry = prometheus.CollectorRegistry()
        kinds: dict[str, Any] = {
            "gauge": prometheus.Gauge,
            "counter": prometheus.Counter,
            "histogram": prometheus.Histogram,
        }
        try:
            self._server, _ = prometheus.start_http_server(port, addr=address, registry=registry)
        except OSError as error:
            self.warning = f"port {port} for /metrics cannot be had ({error}); the stage runs without the endpoint"
            return
        self.port = port
        for metric in METRICS.values():
            if not (is_first or metric.of_each_node):
                continue
            labels = ["family", "stage", *(["part"] if metric.by_part else [])]
            more = {"buckets": metric.buckets} if metric.buckets else {}
            self._values[metric.name] = kinds[metric.kind](metric.name, metric.text, labels, registry=registry, **more)

    def record(self, name: str, value: float, part: str | None = None) -> None:
        """Set a gauge, add to a counter or observe in a histogram, as the table says."""
        metric = METRICS[name]
        if name not in self._values:
            return
        own = {"part": one_line(part or "total", LONGEST_LABEL)} if metric.by_part else {}
        child = self._values[name].labels(**self._labels, **own)
        if metric.kind == "gauge":
            child.set(value)
        elif metric.kind == "counter":
            child.inc(value)
        else:
            child.observe(value)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
