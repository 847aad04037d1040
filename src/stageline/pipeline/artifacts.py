"""What a step shows of its answer in a KFP artifact: facts as metadata, and a small file that people can open.

The artifact's own `uri` stays what KFP chose: its launcher uploads what lies there and refuses another bucket. Where
the thing itself lies stands in the metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from stageline.printing import say


class Artifact(Protocol):
    """What the library needs of a KFP artifact."""

    metadata: dict[str, Any]

    @property
    def path(self) -> str: ...


class MetricsArtifact(Artifact, Protocol):
    def log_metric(self, metric: str, value: float) -> None: ...


def show_answer(artifact: Artifact, answer: Mapping[str, Any], payload: bytes | None = None) -> None:
    """Fill an artifact. payload: the file people see; none is the answer as JSON."""
    reference = str(answer["reference"])
    uri = reference.partition("@sha256:")[0]
    artifact.metadata.update({"reference": reference, "location": uri, **answer["metadata"]})
    if payload is None:
        plain = {"reference": reference, **answer["metadata"], **answer.get("metrics", {})}
        payload = (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode()
    path = Path(artifact.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)


def log_metrics(artifact: MetricsArtifact, answer: Mapping[str, Any]) -> None:
    """The numbers of an answer, as KFP compares them between runs; one that is not finite is said and left out."""
    for name, value in answer.get("metrics", {}).items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            artifact.log_metric(name, float(value))
        else:
            say(f"metric {name} has no value ({value}): not logged")
