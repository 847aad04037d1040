"""sparse_structure as a pipeline: prepare_data -> shape_vae -> sparse_flow -> global_flow -> evaluate -> report."""

from stageline_components.chain import make_pipelines

sparse_structure, sparse_structure_pvc = make_pipelines("sparse_structure")
