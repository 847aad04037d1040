"""What a running stage says about itself: metric names with their units, events, `/metrics`, failure records.

Torch-free, because plan, launch, report and the pipeline read what is written here.
"""

from __future__ import annotations

from stageline.telemetry.events import EVENTS_FILE, EventLog, EventStore, parse_events, read_events
from stageline.telemetry.failures import (
    FAILURE_DIR_VARIABLE,
    FAILURE_FILE,
    TRY_AGAIN,
    FailureRecord,
    asked_by,
    clear_failures,
    failure_name,
    first_cause,
    note_asked,
    put_failure,
    read_failure,
    read_failures,
    write_failure,
)
from stageline.telemetry.metrics import LONGEST_LABEL, METRICS, Metric, MetricsEndpoint
from stageline.telemetry.redaction import finite_json, hide_remembered, redact, remember_secret

__all__ = [
    "EVENTS_FILE",
    "FAILURE_DIR_VARIABLE",
    "FAILURE_FILE",
    "LONGEST_LABEL",
    "METRICS",
    "TRY_AGAIN",
    "EventLog",
    "EventStore",
    "FailureRecord",
    "Metric",
    "MetricsEndpoint",
    "asked_by",
    "clear_failures",
    "failure_name",
    "finite_json",
    "first_cause",
    "hide_remembered",
    "note_asked",
    "parse_events",
    "put_failure",
    "read_events",
    "read_failure",
    "read_failures",
    "redact",
    "remember_secret",
    "write_failure",
]
