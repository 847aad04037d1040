"""The steps of every pipeline as KFP components. Each body is one call into the library.

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


@step
def prepare_data(
    dataset: dsl.Output[dsl.Dataset],
    family: str,
    config: str = "",
    preset: str = "",
    run: str = "",
    root: str = "",
    stages: str = "",
    overrides: str = "",
    image: str = "",
    workers: int = 0,
    processes: int = 0,
    namespace: str = "",
    launcher: str = "pytorchjob",
    s3_endpoint: str = "",
    s3_region: str = "",
    s3_secret: str = "",
    s3_ca: str = "",
    claim: str = "",
    kfp_run: str = "",
    branch: str = "",
) -> NamedTuple("Prepared", reference=str):
    """Prepared data of a config, made or reused.

    Args:
        dataset: Where the prepared data lie, with file counts and facts.
        family: The model family; what follows it are the pipeline's own parameters.
        branch: Whose step it is, and what that shares, as `stage=reference` words; empty for the main run.
    """
    given = dict(locals())
    from stageline.pipeline import steps

    return steps.prepare_data(**given)


@step
def train_stage(
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    stage: str,
    data: str,
    parents: str,
    family: str,
    config: str = "",
    preset: str = "",
    run: str = "",
    root: str = "",
    stages: str = "",
    overrides: str = "",
    image: str = "",
    workers: int = 0,
    processes: int = 0,
    namespace: str = "",
    launcher: str = "pytorchjob",
    s3_endpoint: str = "",
    s3_region: str = "",
    s3_secret: str = "",
    s3_ca: str = "",
    claim: str = "",
    kfp_run: str = "",
    branch: str = "",
) -> NamedTuple("Trained", reference=str):
    """One stage, trained, continued or reused; where the config does not select it, what it finished before.

    Args:
        checkpoint: The checkpoint that the stage hands on, with its facts.
        metrics: Its best validation metric and its steps.
        stage: Name of the stage.
        data: Reference of the prepared data.
        parents: `role=reference` words; an empty reference is none.
        family: The model family; what follows it are the pipeline's own parameters.
        branch: Whose step it is, and what that shares, as `stage=reference` words; empty for the main run.
    """
    given = dict(locals())
    from stageline.pipeline import steps

    return steps.train_stage(**given)


@step
def evaluate(
    metrics: dsl.Output[dsl.Metrics],
    data: str,
    checkpoints: str,
    family: str,
    config: str = "",
    preset: str = "",
    run: str = "",
    root: str = "",
    stages: str = "",
    overrides: str = "",
    image: str = "",
    workers: int = 0,
    processes: int = 0,
    namespace: str = "",
    launcher: str = "pytorchjob",
    s3_endpoint: str = "",
    s3_region: str = "",
    s3_secret: str = "",
    s3_ca: str = "",
    claim: str = "",
    kfp_run: str = "",
    branch: str = "",
) -> NamedTuple("Evaluated", reference=str):
    """The family's metrics of the last checkpoint named.

    Args:
        metrics: The metrics, with their sample counts as metadata.
        data: Reference of the prepared data.
        checkpoints: References of the stages in order, separated by spaces; empty ones are none.
        family: The model family; what follows it are the pipeline's own parameters.
        branch: Whose step it is, and what that shares, as `stage=reference` words; empty for the main run.
    """
    given = dict(locals())
    from stageline.pipeline import steps

    return steps.evaluate(**given)


@step
def compare(
    comparison: dsl.Output[dsl.Artifact],
    evaluation: str,
    other: str,
    family: str,
    config: str = "",
    preset: str = "",
    run: str = "",
    root: str = "",
    stages: str = "",
    overrides: str = "",
    image: str = "",
    workers: int = 0,
    processes: int = 0,
    namespace: str = "",
    launcher: str = "pytorchjob",
    s3_endpoint: str = "",
    s3_region: str = "",
    s3_secret: str = "",
    s3_ca: str = "",
    claim: str = "",
    kfp_run: str = "",
    branch: str = "",
) -> NamedTuple("Compared", reference=str):
    """The evaluation compared with another one, sample by sample.

    Args:
        comparison: Differences with their intervals, as JSON.
        evaluation: Reference of the evaluation: A.
        other: B: an evaluation or a run by URI, or the name of a run below the same root; encoded.
        family: The model family; what follows it are the pipeline's own parameters.
        branch: Whose step it is, and what that shares, as `stage=reference` words; empty for the main run.
    """
    given = dict(locals())
    from stageline.pipeline import steps

    return steps.compare(**given)


@step
def report(
    page: dsl.Output[dsl.HTML],
    evaluation: str,
    comparison: str,
    family: str,
    config: str = "",
    preset: str = "",
    run: str = "",
    root: str = "",
    stages: str = "",
    overrides: str = "",
    image: str = "",
    workers: int = 0,
    processes: int = 0,
    namespace: str = "",
    launcher: str = "pytorchjob",
    s3_endpoint: str = "",
    s3_region: str = "",
    s3_secret: str = "",
    s3_ca: str = "",
    claim: str = "",
    kfp_run: str = "",
    branch: str = "",
) -> NamedTuple("Reported", reference=str):
    """The run's report, one self-contained HTML file.

    Args:
        page: The report.
        evaluation: Reference of the evaluation.
        comparison: Where the comparison lies; empty is none.
        family: The model family; what follows it are the pipeline's own parameters.
        branch: Whose step it is, and what that shares, as `stage=reference` words; empty for the main run.
    """
    given = dict(locals())
    from stageline.pipeline import steps

    return steps.report(**given)
