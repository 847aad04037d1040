"""Tiny data for the guide's folder: scenes of latents in its layout, weights to start from, its configs made tiny."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from stageline.checkpoint.torch_files import write_torch_file
from stageline.config import apply_overrides, read_yaml
from stageline.config.document import Dumper
from stageline.families.sparse_structure.aliases import build_file
from stageline.families.sparse_structure.config import SparseStructureConfig
from stageline.families.sparse_structure.config.model import POSE, SHAPE
from stageline.families.sparse_structure.data.origin import CONDITIONALS, LATENTS, METADATA
from stageline.objectives.step import seeded

SCENES = {"train": 4, "val": 2, "test": 2}
RESOLUTION, CHANNELS, CONDITION = 8, 8, (2, 16)
"""Voxels of an edge, of which latents have a quarter; numbers of a latent; tokens and width of a condition."""
TINY = (
    *(f"model.resolution={RESOLUTION}", f"model.cond_channels={CONDITION[1]}", "trainer.precision=32-true"),
    *(f"model.{b}.{k}" for b in ("sparse_flow", "global_sparse_flow") for k in ("model_channels=32", "num_heads=2")),
    *("model.sparse_flow.num_blocks=2", "model.global_sparse_flow.num_blocks=1", "trainer.max_steps=4"),
    *("trainer.ema_decay=0.9", "trainer.accumulate_grad_batches=2"),
)
"""What makes a config small enough to try; it trains the sparse branch itself: no published one is of that size."""
PUBLISHED = "checkpoints/hf"
"""Folder of the files of the published structure."""
TINY_VALUES = {
    "model_channels": 32,
    "cond_channels": CONDITION[1],
    "num_heads": 2,
    "num_blocks": {24: 2, 4: 1},
    "resolution": RESOLUTION // 4,
    "sparse_flow_checkpoint": "ss_generator.ckpt",
    "checkpoint_dir": PUBLISHED,
}
"""Key of such a file -> its value there; numbers of blocks by what they were."""
PREFIX = "_base_models.generator.reverse_fn.backbone."
"""Of the network's tensors in the published file."""


def demo_data(folder: Path) -> list[str]:
    """Random latents below `data/scenes`, and configs that read them."""
    written = []
    for split, count in SCENES.items():
        for number in range(count):
            scene = folder / "data/scenes" / split / f"scene_{number:03d}"
            scene.mkdir(parents=True, exist_ok=True)
            objects = 2 + number % 2
            write_torch_file(scene / LATENTS, _latents(split, number, objects))
            cond = torch.randn(objects, *CONDITION, generator=seeded("demo condition", split, number))
            write_torch_file(scene / CONDITIONALS, {"cond": cond})
            (scene / METADATA).write_text(json.dumps({"num_objects": objects}) + "\n", encoding="utf-8")
            written += [str((scene / name).relative_to(folder)) for name in (LATENTS, CONDITIONALS, METADATA)]
    for config in sorted((folder / "configs").glob("*.yaml")):
        config.write_text(yaml.dump(_made_tiny(read_yaml(config)), Dumper=Dumper, sort_keys=False), encoding="utf-8")
        written.append(str(config.relative_to(folder)))
    for config in sorted((folder / PUBLISHED).glob("*.yaml")):
        text = yaml.dump(_tiny_values(read_yaml(config)), Dumper=Dumper, sort_keys=False)
        config.write_text(f"# Made tiny; the published sizes are those of the guide without --demo-data.\n{text}")
        written.append(str(config.relative_to(folder)))
    if (source := folder / PUBLISHED / "ss_generator.yaml").is_file():
        weights = source.with_suffix(".ckpt")
        write_torch_file(weights, {"state_dict": _weights(source)})
        written.append(str(weights.relative_to(folder)))
    return written


def _weights(source: Path) -> dict[str, torch.Tensor]:
    """A network of this size in the layout of the published file, which also holds what belongs to others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_file(source).reverse_fn.backbone
        for parameter in network.parameters():  # what starts at zero would keep the blocks closed
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    others = {"_base_models.condition_embedder.idx_emb": torch.zeros(3, CONDITION[1])}
    return {**{PREFIX + name: tensor.clone() for name, tensor in network.state_dict().items()}, **others}


def _tiny_values(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _tiny_value(key, value) for key, value in node.items()}
    return [_tiny_values(entry) for entry in node] if isinstance(node, list) else node


def _tiny_value(key: str, value: Any) -> Any:
    found = TINY_VALUES.get(key)
    if isinstance(found, Mapping):
        return found[value]
    return _tiny_values(value) if found is None else found


def _latents(split: str, number: int, objects: int) -> dict[str, torch.Tensor]:
    shapes = {SHAPE: ((RESOLUTION // 4) ** 3, CHANNELS), **{name: (1, width) for name, width in POSE.items()}}
    return {
        name: torch.randn(objects, *shape, generator=seeded("demo latents", split, number, name))
        for name, shape in shapes.items()
    }


def _made_tiny(raw: Mapping[str, Any]) -> dict[str, Any]:
    plain = apply_overrides({key: value for key, value in raw.items() if key != "parents"}, TINY, SparseStructureConfig)
    plain.pop("stages", None)
    return plain
