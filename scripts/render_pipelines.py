"""Compiles every pipeline beside its Python file: of each family, with each of its branches, for S3 and for a claim.

`make render` calls it; tests hold the files equal to a fresh rendering.
"""

from __future__ import annotations

from pathlib import Path

from stageline.families import family_config
from stageline.pipeline.compiled import compile_pipeline, pipeline_name

FOLDER = Path(__file__).resolve().parents[1] / "pipelines"


def render() -> None:
    """Write all of them anew."""
    for file in sorted(FOLDER.glob("[!_]*.py")):
        for branch in ("", *family_config(file.stem).branches):
            for claim in (None, ""):
                name = pipeline_name(file.stem, branch, with_claim=claim is not None)
                compile_pipeline(file.stem, FOLDER / f"{name}.yaml", claim=claim, branch=branch)


if __name__ == "__main__":
    render()
