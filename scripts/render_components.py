"""Writes components/steps.py from the one list of pipeline parameters (`stageline.pipeline.parameters`).

KFP takes a component from the source text of a function, so that every parameter has to stand in each signature.

`make render` calls it; a test holds the file equal to a fresh rendering.
"""

from __future__ import annotations

from pathlib import Path

from stageline.pipeline.parameters import PARAMETERS

FILE = Path(__file__).resolve().parents[1] / "components" / "steps.py"
HEAD = '''"""The steps of every pipeline as KFP components. Each body is one call into the library.

Written by `make render` from `stageline.pipeline.parameters`: change that table or scripts/render_components.py, not
this file. They are lightweight Python components: container components cannot run under `kfp.local`. What passes from
step to step is a reference as a string; the typed artifacts show the same thing with its metadata and metrics. No
`from __future__ import annotations` here: kfp reads the annotations as objects.

A step needs no torch, on a cluster least of all: there it starts a PyTorchJob of the trainer image and follows it.
"""

from functools import partial
from typing import NamedTuple

from kfp import dsl

from stageline import __version__

IMAGE = f"stageline/launcher:{__version__}"
"""What the steps run in on a cluster, unless the pipeline is told otherwise; local runs ignore it."""

step = partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
'''
OWN = "The model family; what follows it are the pipeline's own parameters."
BRANCH = "Whose step it is, and what that shares, as `stage=reference` words; empty for the main run."
STEPS = (
    (
        "prepare_data",
        "Prepared data of a config, made or reused.",
        (("dataset", "dsl.Output[dsl.Dataset]", "Where the prepared data lie, with file counts and facts."),),
        "Prepared",
    ),
    (
        "train_stage",
        "One stage, trained, continued or reused; where the config does not select it, what it finished before.",
        (
            ("checkpoint", "dsl.Output[dsl.Model]", "The checkpoint that the stage hands on, with its facts."),
            ("metrics", "dsl.Output[dsl.Metrics]", "Its best validation metric and its steps."),
            ("stage", "str", "Name of the stage."),
            ("data", "str", "Reference of the prepared data."),
            ("parents", "str", "`role=reference` words; an empty reference is none."),
        ),
        "Trained",
    ),
    (
        "evaluate",
        "The family's metrics of the last checkpoint named.",
        (
            ("metrics", "dsl.Output[dsl.Metrics]", "The metrics, with their sample counts as metadata."),
            ("data", "str", "Reference of the prepared data."),
            ("checkpoints", "str", "References of the stages in order, separated by spaces; empty ones are none."),
        ),
        "Evaluated",
    ),
    (
        "compare",
        "The evaluation compared with another one, sample by sample.",
        (
            ("comparison", "dsl.Output[dsl.Artifact]", "Differences with their intervals, as JSON."),
            ("evaluation", "str", "Reference of the evaluation: A."),
            ("other", "str", "B: an evaluation or a run by URI, or the name of a run below the same root; encoded."),
        ),
        "Compared",
    ),
    (
        "report",
        "The run's report, one self-contained HTML file.",
        (
            ("page", "dsl.Output[dsl.HTML]", "The report."),
            ("evaluation", "str", "Reference of the evaluation."),
            ("comparison", "str", "Where the comparison lies; empty is none."),
        ),
        "Reported",
    ),
)


def render_step(name: str, sentence: str, own: tuple[tuple[str, str, str], ...], returned: str) -> str:
    """The source text of one component.

    name: of the function in `stageline.pipeline.steps` and of the component.  sentence: what it does.
    own: its parameters beside the pipeline's, as (name, annotation, meaning).  returned: name of the result's type.
    """
    shared = [p for p in PARAMETERS if p.of_steps]
    lines = ["@step", f"def {name}("]
    lines += [f"    {key}: {kind}," for key, kind, _ in own]
    lines += ["    family: str,"]
    lines += [f"    {p.name}: {type(p.default).__name__} = {_literal(p.default)}," for p in shared]
    lines += [
        '    kfp_run: str = "",',
        '    branch: str = "",',
        f') -> NamedTuple("{returned}", reference=str):',
        f'    """{sentence}',
        "",
    ]
    lines += [
        "    Args:",
        *(f"        {key}: {meaning}" for key, _, meaning in own),
        f"        family: {OWN}",
        f"        branch: {BRANCH}",
        '    """',
    ]
    lines += ["    given = dict(locals())", "    from stageline.pipeline import steps", ""]
    lines += [f"    return steps.{name}(**given)"]
    return "\n".join(lines)


def _literal(value: str | int) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def render() -> str:
    """The whole file."""
    return "\n\n\n".join([HEAD.rstrip("\n"), *(render_step(*step) for step in STEPS)]) + "\n"


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
