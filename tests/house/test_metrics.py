"""Every metric says its unit in its name, and nobody names one that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from stageline.telemetry import METRICS

ROOT = Path(__file__).resolve().parents[2]
UNITS = ("seconds", "bytes", "steps", "fraction", "value", "norm", "rate")
NAMED_IN = ["src", "docs", "components", "pipelines", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]


def test_every_name_ends_in_its_unit() -> None:
    assert METRICS
    for name, metric in METRICS.items():
        assert name == metric.name
        assert re.fullmatch(r"stageline(_[a-z]+)+", name)
        assert name.endswith("_total" if metric.kind == "counter" else UNITS), name
        assert metric.kind != "histogram" or name.endswith(("_seconds", "_bytes")), name


def test_every_metric_explains_itself() -> None:
    for metric in METRICS.values():
        assert metric.text.endswith("."), metric.name
        assert len(metric.text) > 20, metric.name


def test_nobody_names_a_metric_that_does_not_exist() -> None:
    endings = "|".join((*UNITS, "total"))
    pattern = re.compile(rf"\bstageline(?:_[a-z]+)+_(?:{endings})\b")
    unknown = []
    for top in NAMED_IN:
        path = ROOT / top
        files = [path] if path.is_file() else [f for f in path.rglob("*") if f.suffix in (".py", ".md", ".yaml")]
        for file in files:
            names = set(pattern.findall(file.read_text(encoding="utf-8")))
            unknown += [f"{file.relative_to(ROOT)}: {name}" for name in sorted(names - set(METRICS))]
    assert unknown == []
