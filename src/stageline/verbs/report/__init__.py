"""The report of a run: one HTML file that needs nothing else, also for a run that failed or is not finished.

It is made from what lies in the run directory, with charts drawn here as SVG, pictures and clips as data URIs; the same
files always give the same report. Loads no torch.
"""

from __future__ import annotations

from stageline.store import open_below
from stageline.verbs.report.page import render_page
from stageline.verbs.report.record import read_run

REPORT_NAME = "report.html"


def build_report(run_uri: str) -> str:
    """Write `report.html` into a run directory and give its URI.

    run_uri: `<root>/runs/<run>`, in any store. What is damaged there becomes a line of the report; PlanError only where
    there is no run at all.
    """
    store = open_below(run_uri)
    store.put(REPORT_NAME, render_page(read_run(store)).encode("utf-8"))
    return f"{store.uri}/{REPORT_NAME}"
