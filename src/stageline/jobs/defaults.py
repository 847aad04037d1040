"""What a config need not say in a namespace: the chart's ConfigMap `stageline`, from which every config starts there.

Its `cluster.yaml` holds `root` and the section `cluster`. The steps of a pipeline have it as a file; whoever submits
from elsewhere asks the API server.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stageline.config import parse_yaml
from stageline.errors import ConfigError

CONFIG_MAP = "stageline"
KEY = "cluster.yaml"
FOLDER = Path("/etc/stageline")
"""Where pipelines mount the ConfigMap into their steps."""


def mounted_defaults() -> dict[str, Any]:
    """The defaults of the namespace this pod is in; empty where none are mounted."""
    try:
        text = (FOLDER / KEY).read_text(encoding="utf-8")
    except OSError:
        return {}
    return parse_defaults(text, str(FOLDER / KEY))


def parse_defaults(text: str, where: str) -> dict[str, Any]:
    """The defaults as plain data; ConfigError for anything but `root` and `cluster`."""
    plain = parse_yaml(text, where) or {}
    if not isinstance(plain, dict) or not set(plain) <= {"root", "cluster"}:
        raise ConfigError(
            f"{where}: expected `root` and `cluster` only",
            remedy=f"mend the ConfigMap {CONFIG_MAP!r}; the chart makes it",
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
