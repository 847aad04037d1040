"""film_flow as a pipeline: prepare_data -> train_stage(backbone) -> train_stage(film) -> evaluate -> report."""

from stageline_components.chain import make_pipelines

film_flow, film_flow_pvc = make_pipelines("film_flow")
