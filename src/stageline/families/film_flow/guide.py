"""Tiny pictures in the layout of the guide's data, and its config made tiny. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from stageline.families.film_flow.data.tree_pictures import make_tree_picture

CONFIG = "configs/octa500.yaml"
COUNTS = {"train": 6, "val": 2, "test": 2}
SIZE = 64
"""Edge of a made picture in pixels."""
TINY = {
    "image_size: 224": "image_size: 48",
    "model_channels: 32": "model_channels: 8",
    "attn_resolutions: [56, 28]": "attn_resolutions: []",
    "use_gradient_checkpointing: true": "use_gradient_checkpointing: false",
    "    model_name: Qwen/Qwen2.5-VL-3B-Instruct\n": "",
    "encoder: qwen-vl": "encoder: stub",
    "feature_dim: 2048": "cond_dim: 32",
    "dtype: bfloat16": "film_hidden_dim: 32",
    "warmup_epochs: 20": "warmup_epochs: 0",
    "ramp_epochs: 20": "ramp_epochs: 1",
    "num_samples_per_image: 8": "num_samples_per_image: 2",
    "max_epochs: 500": "max_epochs: 2",
    "batch_size: 8": "batch_size: 4",
    "accumulate_grad_batches: 8": "accumulate_grad_batches: 1",
    "precision: bf16-mixed": "precision: 32-true",
    "ensemble: 4": "ensemble: 1",
}
"""What stands in the config -> what a laptop's CPU can do in a minute."""


def demo_data(folder: Path) -> list[str]:
    """Made trees where the guide has its data set, and its config made tiny; names of what was written.

    folder: a laid-out guide.
    """
    text = (folder / CONFIG).read_text(encoding="utf-8")
    for stated, tiny in TINY.items():
        assert stated in text, stated
        text = text.replace(stated, tiny)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    names = [CONFIG]
    for split, count in COUNTS.items():
        for index in range(count):
            made = make_tree_picture(0, split, index, SIZE)
            parts = {"image": made.pixels, "label": 255 * made.masks[0].astype(np.uint8)}
            for part, pixels in parts.items():
                name = f"data/octa500/{split}/{part}/{index:02d}.png"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / name)
                names.append(name)
    return names
