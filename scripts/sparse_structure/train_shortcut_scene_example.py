"""One optimizer step of ShortCut on a made-up scene of nine objects, with small networks, on the CPU; then samples.

python train_shortcut_scene_example.py
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from sam3d_objects.model.backbone.generator.classifier_free_guidance import ClassifierFreeGuidance
from sam3d_objects.model.backbone.generator.shortcut.model import ShortCut
from sam3d_objects.model.backbone.tdfy_dit.models import DualBackboneSparseStructureFlowTdfyWrapper
from torch import Tensor

NUM_OBJECTS = 9
WIDTH, CONDITION = 64, 32
"""Of tokens, and of the condition's tokens."""
GRID = 4
"""Latent voxels along an edge."""
CHANNELS = {"shape": 8, "6drotation_normalized": 6, "translation": 3, "scale": 3}


def branch_config(num_blocks: int) -> dict[str, Any]:
    """Arguments of a network: one stream of shape tokens, one of pose tokens."""
    grid = {"model_channels": WIDTH, "resolution": GRID}
    single = {"model_channels": WIDTH, "token_len": 1}
    return {
        "latent_mapping": {
            name: {"in_channels": size, "model_channels": WIDTH, "pos_embedder": grid if name == "shape" else single}
            for name, size in CHANNELS.items()
        },
        "latent_share_transformer": {"6drotation_normalized": [name for name in CHANNELS if name != "shape"]},
        "in_channels": CHANNELS["shape"],
        "out_channels": CHANNELS["shape"],
        "model_channels": WIDTH,
        "cond_channels": CONDITION,
        "num_blocks": num_blocks,
        "num_heads": 4,
        "qk_rms_norm": True,
        "is_shortcut_model": True,
        "force_zeros_cond": True,
    }


def make_model() -> ShortCut:
    """Two branches, guidance around them, ShortCut around that; the branch of one object does not train."""
    network = DualBackboneSparseStructureFlowTdfyWrapper(
        sparse_flow_config=branch_config(4), global_sparse_flow_config=branch_config(2), freeze_sparse_flow=True
    )
    guidance = ClassifierFreeGuidance(network, p_unconditional=0.1, unconditional_handling="add_flag")
    # The grid, the anchor and fm_eps_max are what training from scratch needs.
    recipe: dict[str, Any] = {"t_d_sampling": "grid", "anchor_smallest_step": True, "fm_eps_max": 1 / 128}
    return ShortCut(guidance, batch_mode=True, self_consistency_prob=0.25, **recipe)


def make_scene() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(latents of all objects, the scene's condition)."""
    tokens = {name: GRID**3 if name == "shape" else 1 for name in CHANNELS}
    latents = {name: torch.randn(NUM_OBJECTS, tokens[name], size) for name, size in CHANNELS.items()}
    return latents, {"cond": torch.randn(1, 16, CONDITION)}


def main() -> None:
    """Train one step and sample."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    torch.manual_seed(0)
    model = make_model()
    latents, conditions = make_scene()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)

    model.train()
    loss, details = model.loss(latents, **conditions)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    print(f"loss for {NUM_OBJECTS} objects: {loss.item():.4f}")
    for name in ("flow_matching_loss", "self_consistency_loss"):
        print(f"  {name}: {details[name].item():.4f}")

    model.eval()
    shapes = {name: tuple(value.shape) for name, value in latents.items()}
    for steps in (1, 2, 4):
        model.inference_steps = steps
        samples = model.generate(shapes, "cpu", **conditions)
        print(f"sampled in {steps} step{'s' * (steps > 1)}: shape {tuple(samples['shape'].shape)}")


if __name__ == "__main__":
    main()
