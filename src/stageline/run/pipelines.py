"""Where the pipelines lie: one Python file and its compiled YAML per family, installed beside the library."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from stageline.errors import MissingPartError, StagelineError

PACKAGE = "stageline_pipelines"


def compiled_pipeline(family: str) -> Path:
    """The compiled pipeline of a family; MissingPartError where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        path = Path(folder) / f"{family}.yaml"
        if path.is_file():
            return path
    raise MissingPartError(
        f"the compiled pipeline of {family!r} is not installed (looked for {PACKAGE}/{family}.yaml)",
        remedy="install stageline with the extra `pipelines`, or `stageline pipeline compile` it",
    )


def compile_pipeline(family: str, path: Path) -> None:
    """Compile a family's pipeline into a YAML file; needs kfp."""
    try:
        module = importlib.import_module(f"{PACKAGE}.{family}")
        from kfp import compiler
    except ModuleNotFoundError as error:
        raise MissingPartError(
            f"compiling a pipeline needs {error.name}", remedy="install stageline with the extra `pipelines`"
        ) from error
    function = getattr(module, family, None)
    if function is None:
        raise StagelineError(f"{module.__name__} has no pipeline {family!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(function, str(path))
