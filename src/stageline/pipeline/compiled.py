"""Where the pipelines lie: one Python file and its compiled YAML per family, installed beside the library."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from stageline.errors import MissingPartError, StagelineError
from stageline.families import family_config

PACKAGE = "stageline_pipelines"


def pipeline_name(family: str, branch: str = "", *, with_claim: bool = False) -> str:
    """What a pipeline and its file are called. branch: of the family, "" for none."""
    return "_".join([family, *([branch] if branch else []), *(["pvc"] if with_claim else [])])


def compiled_pipeline(family: str, *, with_claim: bool = False, branch: str = "") -> Path:
    """The compiled pipeline of a family; MissingPartError where it is not installed.

    with_claim: the variant whose store is a PersistentVolumeClaim.  branch: the one with that branch.
    """
    name = f"{pipeline_name(family, branch, with_claim=with_claim)}.yaml"
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        path = Path(folder) / name
        if path.is_file():
            _refuse_stale(path, family)
            return path
    raise MissingPartError(
        f"the compiled pipeline of {family!r} is not installed (looked for {PACKAGE}/{name})",
        remedy=f"install stageline with the extra `pipelines`, or in a clone: make render, which compiles {family} too",
    )


def _refuse_stale(path: Path, family: str) -> None:
    """MissingPartError where a compiled pipeline has other stages than the family has now."""
    tasks = _read(path)["root"]["dag"]["tasks"].values()
    parameters = [task["inputs"]["parameters"].get("stage", {}) for task in tasks]
    compiled = {str(p["runtimeValue"]["constant"]) for p in parameters if "runtimeValue" in p}
    stages = family_config(family).stages.names
    if compiled != set(stages):
        raise MissingPartError(
            f"the compiled pipeline {path} has steps for the stages {', '.join(sorted(compiled)) or 'none'}, "
            f"{family} has {', '.join(stages)}",
            remedy="compile it anew: make render",
        )


def _read(path: Path) -> dict[str, Any]:
    """The first document of a compiled pipeline: its definition."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    plain: dict[str, Any] = next(yaml.load_all(path.read_text(encoding="utf-8"), loader))  # a safe loader
    return plain


def compile_pipeline(family: str, path: Path, *, claim: str | None = None, image: str = "", branch: str = "") -> None:
    """Compile a family's pipeline into a YAML file; needs kfp.

    claim: the variant whose store is a PersistentVolumeClaim, with this default ("" keeps its own); None is for S3.
    image: default of the launcher image; empty is this version's name.  branch: the pipeline with that branch.
    """
    try:
        module = importlib.import_module(f"{PACKAGE}.{family}")
        from kfp import compiler
    except ModuleNotFoundError as error:
        raise MissingPartError(
            f"compiling a pipeline needs {error.name}", remedy="install stageline with the extra `pipelines`"
        ) from error
    name = pipeline_name(family, branch, with_claim=claim is not None)
    function = getattr(module, name, None)
    if function is None:
        raise StagelineError(f"{module.__name__} has no pipeline {name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    defaults = {"launcher_image": image, "claim": claim}
    given = {key: value for key, value in defaults.items() if value}
    compiler.Compiler().compile(function, str(path), pipeline_parameters=given or None)


def task_names(pipeline: Path) -> dict[str, str]:
    """Task of a compiled pipeline -> its name for people, in the order in which they run."""
    tasks = _read(pipeline)["root"]["dag"]["tasks"]
    ordered = sorted(tasks, key=lambda name: len(tasks[name].get("dependentTasks", ())))
    return {name: str(tasks[name]["taskInfo"]["name"]) for name in ordered}
