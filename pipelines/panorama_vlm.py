"""panorama_vlm as a pipeline: prepare_data -> train_stage(vision, resampler, finetune) -> evaluate -> report.

With the branch `overlap0`: resampler and finetune once more on views without overlap, from the same vision stage, and
the comparison of the two.
"""

from stageline_components.chain import make_pipelines

panorama_vlm, panorama_vlm_pvc = make_pipelines("panorama_vlm")
panorama_vlm_overlap0, panorama_vlm_overlap0_pvc = make_pipelines("panorama_vlm", branch="overlap0")
