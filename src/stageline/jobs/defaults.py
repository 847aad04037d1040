"""What a config need not say in a namespace: the ConfigMap of the chart (`cluster.defaults`), on which it is put.

Its `cluster.yaml` holds `root`, the section `cluster`, and the port of metrics where the chart has them read. The
steps of a pipeline have it as a file; whoever submits from elsewhere asks the API server.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stageline.config import parse_yaml
from stageline.errors import ConfigError

KEY, ACCOUNT_KEY = "cluster.yaml", "launcher_service_account"
"""Of the ConfigMap: the defaults, and the account under which pipelines' steps run."""
FOLDER = Path("/etc/stageline")
"""Where pipelines mount the ConfigMap into their steps."""


def mounted_defaults() -> dict[str, Any]:
    """The defaults of the namespace this pod is in; empty where none are mounted."""
    try:
        text = (FOLDER / KEY).read_text(encoding="utf-8")
    except OSError:
        return {}
    return parse_defaults(text, str(FOLDER / KEY))


def mounted_account() -> str:
    """The chart's account for pipelines' steps in the namespace this pod is in; empty where none is mounted."""
    try:
        return (FOLDER / ACCOUNT_KEY).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def parse_defaults(text: str, where: str) -> dict[str, Any]:
    """The defaults as plain data; ConfigError for anything but `root`, `cluster` and `trainer.metrics_port`."""
    plain = parse_yaml(text, where) or {}
    known = isinstance(plain, dict) and set(plain) <= {"root", "cluster", "trainer"}
    if not known or set(plain.get("trainer", ())) - {"metrics_port"}:
        raise ConfigError(
            f"{where}: expected `root`, `cluster` and `trainer.metrics_port` only",
            remedy="mend that ConfigMap; the chart makes it",
        )
    return plain


def with_defaults(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A raw config on top of the defaults: sections are merged, what the config says wins."""
    merged = dict(defaults)
    for key, value in raw.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = with_defaults(value, below) if both else value  # type: ignore[arg-type]
    return merged
