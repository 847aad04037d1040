"""The four steps of every pipeline as KFP components. Each body is one call into the library.

They are lightweight Python components: container components cannot run under `kfp.local`. What passes from step to
step is a reference, `<uri>@sha256:<digest>`, as a string; the typed artifacts show the same thing with its metadata
and metrics. No `from __future__ import annotations` here: kfp reads the annotations as objects.
"""

from functools import partial
from typing import NamedTuple

from kfp import dsl

IMAGE = "stageline/trainer-python:0.1.0"
"""What the steps run in on a cluster; local runs ignore it, but warn unless it has `python` in its name."""

step = partial(dsl.component, base_image=IMAGE, install_kfp_package=False)


@step
def prepare_data(config: str, dataset: dsl.Output[dsl.Dataset]) -> NamedTuple("Prepared", reference=str):
    """Prepared data of a config, made or reused.

    Args:
        config: The run's config as JSON.
        dataset: Where the prepared data lie, with file counts and facts.
    """
    from stageline.execute import steps

    return steps.prepare_data(config, dataset)


@step
def train_stage(
    config: str,
    stage: str,
    data: str,
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    parents: str = "",
    launcher: str = "local",
) -> NamedTuple("Trained", reference=str):
    """One stage, trained, continued or reused; an empty reference where the config does not select it.

    Args:
        config: The run's config as JSON.
        stage: Name of the stage.
        data: Reference of the prepared data.
        checkpoint: The checkpoint that the stage hands on, with its facts.
        metrics: Its best validation metric and its steps.
        parents: `role=reference` words; an empty reference is none.
        launcher: What the stage runs as; `local` is a process beside this one.
    """
    from stageline.execute import steps

    return steps.train_stage(config, stage, data, parents, launcher, checkpoint, metrics)


@step
def evaluate(
    config: str,
    data: str,
    checkpoints: str,
    metrics: dsl.Output[dsl.Metrics],
    launcher: str = "local",
) -> NamedTuple("Evaluated", reference=str):
    """The family's metrics of the last checkpoint named.

    Args:
        config: The run's config as JSON.
        data: Reference of the prepared data.
        checkpoints: References of the stages in order, separated by spaces; the last one that is there is evaluated.
        metrics: The metrics, with their sample counts as metadata.
        launcher: What the evaluation runs as; `local` is a process beside this one.
    """
    from stageline.execute import steps

    return steps.evaluate(config, data, checkpoints, launcher, metrics)


@step
def report(config: str, evaluation: str, page: dsl.Output[dsl.HTML]) -> NamedTuple("Reported", reference=str):
    """The run's report, one self-contained HTML file.

    Args:
        config: The run's config as JSON.
        evaluation: Reference of the evaluation.
        page: The report.
    """
    from stageline.execute import steps

    return steps.report(config, evaluation, page)
