"""The record of panorama_vlm: everything training, evaluation, prediction and import ask of the family."""

from __future__ import annotations

from stageline.contract import Family
from stageline.families.panorama_vlm.baselines import BASELINES
from stageline.families.panorama_vlm.config import FAMILY_CONFIG
from stageline.families.panorama_vlm.data.preparation import check_sources, prepare
from stageline.families.panorama_vlm.evaluate import evaluate
from stageline.families.panorama_vlm.externals import section_of
from stageline.families.panorama_vlm.guide import demo_data
from stageline.families.panorama_vlm.imports import import_files
from stageline.families.panorama_vlm.model.assembly import build_model, load_externals
from stageline.families.panorama_vlm.model.language import exports
from stageline.families.panorama_vlm.predict import predict
from stageline.families.panorama_vlm.task import begin, build_task

FAMILY = Family(
    config=FAMILY_CONFIG,
    build_model=build_model,
    build_task=build_task,
    prepare=prepare,
    evaluate=evaluate,
    predict=predict,
    import_files=import_files,
    section_of=section_of,
    load_externals=load_externals,
    exports=exports,
    begin=begin,
    check_sources=check_sources,
    demo_data=demo_data,
    baselines=BASELINES,
    arrays="pictures with texts",
)
