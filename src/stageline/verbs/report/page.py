"""The page: the parts in reading order, one style sheet, nothing from elsewhere."""

from __future__ import annotations

from stageline import __version__
from stageline.verbs.report.comparisons import comparisons_part
from stageline.verbs.report.gallery import MAX_REPORT_BYTES, pictures_part
from stageline.verbs.report.html import Child, Markup, anchor, fold, join, tag
from stageline.verbs.report.measurements import metrics_part
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


EMPTY = {
    "Metrics": "Nothing has been evaluated.",
    "Pictures": "No evaluation has left pictures.",
    "Curves": "No stage has started.",
    "Lineage": "There is no committed checkpoint yet.",
    "Config": "No config was written.",
    "Environment": "Nothing was recorded.",
}
"""Parts that a reader looks for, and why one of them is not there; of other parts nothing is said."""
FRAME_BYTES = 100_000
"""What the page takes beside its parts, at most: style, words of every part, navigation."""


def render_page(record: RunRecord) -> str:
    """The whole HTML document of a run. Pictures and clips have the room that everything else leaves."""
    parts: dict[str, list[Child]] = {
        "Metrics": metrics_part(record.evaluations, record.words),
        "Comparisons": comparisons_part(record.comparisons, record.words),
        "Pictures": [],
        "Stages": stages_part(record),
        "Data": data_part(record.data),
        "Rows set aside": quarantine_part(record.quarantine),
        "Curves": curves_part(record),
        "Lineage": lineage_part(record),
        "Reproduce": reproduce_part(record),
        "Config": config_part(record),
        "Environment": environment_part(record),
    }
    overview = join(overview_part(record))
    written = {name: join(content) for name, content in parts.items()}
    taken = sum(len(join(text).encode()) for text in (head(record), failures(record), overview, *written.values()))
    written["Pictures"] = join(pictures_part(record.evaluations, record.words, MAX_REPORT_BYTES - FRAME_BYTES - taken))
    has_clips = any(media.is_clip for evaluation in record.evaluations for media in evaluation.media)
    titles = {"Pictures": "Pictures and clips"} if has_clips else {}
    links = [
        tag("li", tag("a", titles.get(name, name), href=f"#{anchor(name)}")) for name, text in written.items() if text
    ]
    body = [
        tag("section", tag("h2", titles.get(name, name), id=anchor(name)), text)
        for name, text in written.items()
        if text
    ]
    missing = [name for name in EMPTY if not written[name]]
    if missing:
        reasons = tag("ul", [tag("li", f"{name}: {EMPTY[name]}") for name in missing])
        body.append(tag("section", fold(f"Not there: {', '.join(missing)}", reasons), class_="missing"))
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
            # Read last: what could not be read while the parts were written is told here.
            tag("main", failures(record), overview, nav, body),
            tag("footer", f"Made by stageline {__version__} from the files in the run directory."),
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{document}\n"
