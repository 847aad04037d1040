"""The record of film_flow: everything training, evaluation, prediction and import ask of the family.

What needs torch is deferred: preparing needs none.
"""

from __future__ import annotations

from stageline.contract import Family
from stageline.families import deferred
from stageline.families.film_flow.config import FAMILY_CONFIG
from stageline.families.film_flow.data.preparation import check_sources, prepare
from stageline.families.film_flow.inheritance import section_of
from stageline.families.film_flow.measures.baselines import BASELINES

HERE = "stageline.families.film_flow"

FAMILY = Family(
    config=FAMILY_CONFIG,
    build_model=deferred(f"{HERE}.model.construction", "build_model"),
    build_task=deferred(f"{HERE}.task", "build_task"),
    prepare=prepare,
    evaluate=deferred(f"{HERE}.evaluate", "evaluate"),
    predict=deferred(f"{HERE}.predict", "predict"),
    import_files=deferred(f"{HERE}.imports.legacy", "import_files"),
    section_of=section_of,
    check_sources=check_sources,
    demo_data=deferred(f"{HERE}.guide", "demo_data"),
    baselines=BASELINES,
    arrays="pictures",
)
