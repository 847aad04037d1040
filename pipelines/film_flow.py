"""film_flow as a pipeline: data, the backbone, FiLM heads on top of it, evaluation, report.

    prepare_data -> train_stage(backbone) -> train_stage(film) -> evaluate -> report

A stage that the config does not select passes an empty reference through and says so. Compiled twice, since KFP cannot
mount a claim only where there is one: `film_flow.yaml` for S3 and for this machine, `film_flow_pvc.yaml` for a claim.
"""

from collections.abc import Callable, Mapping

from kfp import dsl

from stageline_components.placement import place, with_claim, with_s3
from stageline_components.steps import IMAGE, evaluate, prepare_data, report, train_stage

DESCRIPTION = "Trains film_flow's stages in order, evaluates the last, writes the report."


def chain(parameters: Mapping[str, object], placed: Callable[[dsl.PipelineTask, str], dsl.PipelineTask]) -> None:
    """The steps one after another. placed: gives a step its name and its place on a cluster."""
    asked = {"family": "film_flow", **parameters, "kfp_run": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
    del asked["launcher_image"]
    data = placed(prepare_data(**asked), "prepare data").outputs["reference"]
    backbone = placed(train_stage(**asked, stage="backbone", data=data, parents=""), "train backbone")
    first = backbone.outputs["reference"]
    film = placed(train_stage(**asked, stage="film", data=data, parents=f"default={first}"), "train film")
    checkpoints = f"{first} {film.outputs['reference']}"
    evaluation = placed(evaluate(**asked, data=data, checkpoints=checkpoints), "evaluate").outputs["reference"]
    placed(report(**asked, evaluation=evaluation), "report")


@dsl.pipeline(name="film-flow", description=DESCRIPTION)
def film_flow(
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
    launcher_image: str = IMAGE,
    s3_endpoint: str = "",
    s3_region: str = "",
    s3_secret: str = "stageline-s3",  # noqa: S107  # a name
    s3_ca: str = "stageline-s3-ca",
) -> None:
    """Trains film_flow's stages in order, evaluates the last, writes the report; the store is S3.

    Args:
        config: The run's config as YAML text (kfp's command line takes JSON apart); or give preset.
        preset: A preset of the family instead of config, e.g. tiny.
        run: Name of the run, at most 40 lower-case letters, digits and hyphens; the same name continues it.
        root: Where runs and caches lie, s3://bucket/folder.
        stages: Stages to train, separated by spaces or commas; empty takes the config's, as a rule all.
        overrides: Config keys that win over everything, section.key=value, separated by spaces or lines.
        image: Trainer image of the jobs, best as name@sha256:digest (cluster.image).
        workers: Pods of a stage (trainer.nodes); 0 takes the config's.
        processes: Ranks in each of those pods (trainer.processes); 0 takes the config's.
        namespace: Where the jobs run (cluster.namespace); empty is the pipeline's own.
        launcher: What stages run as, pytorchjob, or local for inside the step itself.
        launcher_image: Image of the pipeline's steps.
        s3_endpoint: URL of an S3 server that is not AWS' own.
        s3_region: Region of the bucket.
        s3_secret: Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; need not exist with workload identity.
        s3_ca: ConfigMap with the ca.crt of a private S3 server; need not exist.
    """
    parameters = dict(locals())

    def placed(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
        return with_s3(place(task, name, launcher_image), s3_secret, s3_ca)

    chain(parameters, placed)


@dsl.pipeline(name="film-flow-pvc", description=DESCRIPTION)
def film_flow_pvc(
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
    launcher_image: str = IMAGE,
    claim: str = "stageline",
) -> None:
    """Trains film_flow's stages in order, evaluates the last, writes the report; the store is a claim.

    Args:
        config: The run's config as YAML text (kfp's command line takes JSON apart); or give preset.
        preset: A preset of the family instead of config, e.g. tiny.
        run: Name of the run, at most 40 lower-case letters, digits and hyphens; the same name continues it.
        root: Where runs and caches lie, a folder of the claim; empty is all of it.
        stages: Stages to train, separated by spaces or commas; empty takes the config's, as a rule all.
        overrides: Config keys that win over everything, section.key=value, separated by spaces or lines.
        image: Trainer image of the jobs, best as name@sha256:digest (cluster.image).
        workers: Pods of a stage (trainer.nodes); 0 takes the config's.
        processes: Ranks in each of those pods (trainer.processes); 0 takes the config's.
        namespace: Where the jobs run (cluster.namespace), with the same claim; empty is the pipeline's own.
        launcher: What stages run as, pytorchjob, or local for inside the step itself.
        launcher_image: Image of the pipeline's steps.
        claim: PersistentVolumeClaim mounted into steps and jobs; ReadWriteMany for several nodes.
    """
    parameters = dict(locals())

    def placed(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
        return with_claim(place(task, name, launcher_image), claim)

    chain(parameters, placed)
