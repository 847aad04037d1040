"""The page: the parts in reading order, one style sheet, nothing from elsewhere."""

from __future__ import annotations

from stageline import __version__
from stageline.verbs.report.comparisons import comparisons_part
from stageline.verbs.report.html import Child, Markup, anchor, tag
from stageline.verbs.report.measurements import metrics_part, pictures_part
from stageline.verbs.report.overview import overview_part
from stageline.verbs.report.record import RunRecord
from stageline.verbs.report.sections import (
    config_part,
    curves_part,
    data_part,
    environment_part,
    failures,
    head,
    lineage_part,
    quarantine_part,
    reproduce_part,
    stages_part,
)
from stageline.verbs.report.style import CSS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
"""Content policy: the page may load nothing, whatever gets into it."""


def render_page(record: RunRecord) -> str:
    """The whole HTML document of a run."""
    has_clips = any(evaluation.clips for evaluation in record.evaluations)
    parts: list[tuple[str, list[Child]]] = [
        ("Metrics", metrics_part(record.evaluations, record.words)),
        *([("Comparisons", comparisons_part(record.comparisons, record.words))] if record.comparisons else []),
        ("Pictures and clips" if has_clips else "Pictures", pictures_part(record.evaluations, record.words)),
        ("Stages", stages_part(record)),
        *([("Data", data_part(record.data))] if record.data else []),
        *([("Rows set aside", quarantine_part(record.quarantine))] if record.quarantine else []),
        ("Curves", curves_part(record)),
        ("Lineage", lineage_part(record)),
        ("Reproduce", reproduce_part(record)),
        ("Config", config_part(record)),
        ("Environment", environment_part(record)),
    ]
    links = [tag("li", tag("a", name, href=f"#{anchor(name)}")) for name, _ in parts]
    body = [tag("section", tag("h2", name, id=anchor(name)), content) for name, content in parts]
    nav = tag("nav", tag("ul", links), aria_label="Parts of this report")
    document = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
            tag("meta", name="referrer", content="no-referrer"),
            tag("title", f"{record.name} · stageline report"),
            tag("style", Markup(CSS)),
        ),
        tag(
            "body",
            head(record),
            tag("main", failures(record), overview_part(record), nav, body),
            tag("footer", f"Made by stageline {__version__} from the files in the run directory."),
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{document}\n"
