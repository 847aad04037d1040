"""panorama_vlm as a pipeline: prepare_data -> train_stage(vision, resampler, finetune) -> evaluate -> report."""

from stageline_components.chain import make_pipelines

panorama_vlm, panorama_vlm_pvc = make_pipelines("panorama_vlm")
