"""The record of film_flow: everything training, evaluation, prediction and import ask of the family."""

from __future__ import annotations

from stageline.contract import Family
from stageline.families.film_flow.config import FAMILY_CONFIG
from stageline.families.film_flow.data.preparation import check_sources, prepare
from stageline.families.film_flow.evaluate import evaluate
from stageline.families.film_flow.guide import demo_data
from stageline.families.film_flow.imports.legacy import import_files
from stageline.families.film_flow.inheritance import section_of
from stageline.families.film_flow.measures.baselines import BASELINES
from stageline.families.film_flow.model.construction import build_model
from stageline.families.film_flow.predict import predict
from stageline.families.film_flow.task import build_task

FAMILY = Family(
    config=FAMILY_CONFIG,
    build_model=build_model,
    build_task=build_task,
    prepare=prepare,
    evaluate=evaluate,
    predict=predict,
    import_files=import_files,
    section_of=section_of,
    check_sources=check_sources,
    demo_data=demo_data,
    baselines=BASELINES,
    arrays="pictures",
)
