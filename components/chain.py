r"""The pipeline of any family: data, its stages in order, evaluation, report; drawn from its `Stages`.

    prepare_data -> train_stage(first) -> ... -> train_stage(last) -> evaluate -> report

With a branch the pipeline has the steps of a second run, which starts from the stages that both share, and compares the
two: `branch` is a constant parameter of its steps.

    ... -> train_stage(shared) -> ... -> evaluate -----------------> compare -> report
                              \-> prepare_data -> ... -> evaluate -/    \----> report of the branch

Every stage of the family has a step; one that the config does not select hands on what it finished before, or nothing,
and says so. Compiled twice, since KFP cannot mount a claim only where there is one: for S3 and this machine, and for a
PersistentVolumeClaim.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kfp import dsl

from stageline.families import family_config
from stageline.pipeline.parameters import PARAMETERS, Parameter
from stageline_components.placement import place, with_claim, with_s3
from stageline_components.steps import IMAGE, compare, evaluate, prepare_data, report, train_stage

Pipeline = Any
"""What `dsl.pipeline` makes; kfp has no types."""
Placed = Callable[[dsl.PipelineTask, str], dsl.PipelineTask]


def make_pipelines(family: str, branch: str = "") -> tuple[Pipeline, Pipeline]:
    """The pipelines of a family, (its store is S3, its store is a claim).

    family: its name in the table; the pipelines are called after it.  branch: one of its branches, "" for none.
    """
    record = family_config(family)
    name = f"{family}_{branch}" if branch else family

    def run_steps(
        asked: dict[str, Any], placed: Placed, before: Mapping[str, Any], title: str = ""
    ) -> tuple[dict[str, Any], Any]:
        """The steps of one run up to its evaluation; returns what its stages hand on, and the evaluation.

        before: stage -> what another run hands on of it: it has no step here.  title: begins the steps' names.
        """
        data = placed(prepare_data(**asked), f"{title}prepare data").outputs["reference"]
        handed_on: dict[str, Any] = dict(before)
        for stage in record.stages:
            if stage.name in before:
                continue
            parents = " ".join(f"{role}={handed_on[source]}" for role, source in stage.parents.items())
            task = train_stage(**asked, stage=stage.name, data=data, parents=parents)
            handed_on[stage.name] = placed(task, f"{title}train {stage.name}").outputs["reference"]
        checkpoints = " ".join(f"{name}={reference}" for name, reference in handed_on.items())
        task = evaluate(**asked, data=data, checkpoints=checkpoints)
        return handed_on, placed(task, f"{title}evaluate").outputs["reference"]

    def chain(given: dict[str, Any], placed: Placed) -> None:
        """All steps. placed: gives a step its name and its place on a cluster."""
        asked = {"family": family, **given, "kfp_run": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
        handed_on, evaluation = run_steps(asked, placed, {})
        comparison: Any = ""
        if branch:
            shared = {stage: handed_on[stage] for stage in record.branches[branch].shares}
            words = [branch, *(f"{stage}={reference}" for stage, reference in shared.items())]
            own = {**asked, "branch": " ".join(words)}
            _, other = run_steps(own, placed, shared, f"{branch}: ")
            task = compare(**asked, evaluation=evaluation, other=other)
            comparison = placed(task, "compare").outputs["reference"]
            placed(report(**own, evaluation=other, comparison=""), f"{branch}: report")
        placed(report(**asked, evaluation=evaluation, comparison=comparison), "report")

    def on_s3(**parameters: Any) -> None:
        image, defaults = parameters.pop("launcher_image"), parameters.pop("defaults")

        def placed(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
            return with_s3(place(task, name, image, defaults), parameters["s3_secret"], parameters["s3_ca"])

        chain(parameters, placed)

    def on_claim(**parameters: Any) -> None:
        image, defaults = parameters.pop("launcher_image"), parameters.pop("defaults")

        def placed(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
            return with_claim(place(task, name, image, defaults), parameters["claim"])

        chain(parameters, placed)

    also = f", does so again with the branch {branch}, compares the two" if branch else ""
    sentence = f"Trains {family}'s stages in order, evaluates the last{also}, writes the report; the store is"
    return (
        _pipeline(on_s3, name, f"{sentence} S3.", [p for p in PARAMETERS if p.is_of("s3")]),
        _pipeline(on_claim, f"{name}_pvc", f"{sentence} a claim.", [p for p in PARAMETERS if p.is_of("claim")]),
    )


def _pipeline(body: Callable[..., None], name: str, sentence: str, parameters: list[Parameter]) -> Pipeline:
    """A pipeline with the parameters of the table: kfp reads signature and docstring of its function."""
    defaults = {p.name: p.pipeline_default for p in parameters} | {"launcher_image": IMAGE}

    def pipeline(*values: Any) -> None:
        body(**dict(zip(defaults, values, strict=True)))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    pipeline.__name__ = name
    pipeline.__doc__ = f"{sentence}\n\nArgs:\n" + "\n".join(f"    {p.name}: {p.meaning}." for p in parameters)
    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(key, kind, default=value, annotation=type(value)) for key, value in defaults.items()]
    )
    return dsl.pipeline(name=name.replace("_", "-"), description=sentence)(pipeline)
