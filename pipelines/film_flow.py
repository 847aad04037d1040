"""film_flow as a pipeline: data, the backbone, FiLM heads on top of it, evaluation, report.

    prepare_data -> train_stage(backbone) -> train_stage(film) -> evaluate -> report

A stage that the config does not select passes an empty reference through and says so. Compiled: `film_flow.yaml`.
"""

from kfp import dsl

from stageline_components.steps import evaluate, prepare_data, report, train_stage


@dsl.pipeline(
    name="film-flow", description="Trains film_flow's stages in order, evaluates the last, writes the report."
)
def film_flow(config: str, launcher: str = "local") -> None:
    """config: the run's config as JSON.  launcher: what stages run as."""
    data = prepare_data(config=config)
    data.set_caching_options(False)

    backbone = train_stage(
        config=config,
        stage="backbone",
        data=data.outputs["reference"],
        launcher=launcher,
    )
    backbone.set_display_name("train backbone").set_caching_options(False)

    film = train_stage(
        config=config,
        stage="film",
        data=data.outputs["reference"],
        parents=f"default={backbone.outputs['reference']}",
        launcher=launcher,
    )
    film.set_display_name("train film").set_caching_options(False)

    evaluation = evaluate(
        config=config,
        data=data.outputs["reference"],
        checkpoints=f"{backbone.outputs['reference']} {film.outputs['reference']}",
        launcher=launcher,
    )
    evaluation.set_caching_options(False)

    report(config=config, evaluation=evaluation.outputs["reference"]).set_caching_options(False)
