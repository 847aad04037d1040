"""Every kind of network against the naive one, outputs and gradients, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families.sparse_structure.model import naive
from families.sparse_structure.model.networks import (
    CHANNELS,
    SEPARATE,
    SHARED,
    inputs,
    read_out,
    scene_network,
    sparse_network,
)
from torch import Tensor

from stageline.families.sparse_structure.model import GlobalSparseStructureFlowTdfyWrapper

TIMES, STEPS = [0.37, 0.9, 0.05], [0.5, 0.0, 0.125]
POOLED = {"scene_attention": "pooled", "pool": 2}
CASES: dict[str, tuple[str, dict[str, Any], list[int] | None]] = {
    "merged": ("sparse", SHARED, None),
    "separate": ("sparse", SEPARATE, None),
    "no norms": ("sparse", {**SHARED, "qk_rms_norm": False}, None),
    "protects the pose": ("sparse", {**SHARED, "protect_modality_list": ["6drotation_normalized"]}, None),
    "scene, merged": ("scene", SHARED, None),
    "scene, separate": ("scene", SEPARATE, [2, 1]),
    "scene, cut": ("scene", {**SHARED, "detach_protected": True}, [1, 2]),
    "scene, equally large": ("scene", SHARED, [1, 1, 1]),
    "scene, one block of two": ("scene", {**SHARED, "global_block_ids": [1]}, None),
    "scene, places": ("scene", {**SHARED, "object_embedding": "learned", "max_objects": 4}, [1, 2]),
    "pose": ("scene", {**SHARED, "scene_attention": "pose"}, None),
    "pose, separate, scenes": ("scene", {**SEPARATE, "scene_attention": "pose"}, [1, 2]),
    "pooled": ("scene", {**SHARED, **POOLED}, None),
    "pooled, separate, scenes": ("scene", {**SEPARATE, **POOLED}, [2, 1]),
}


WITH_SHARED_CONDITION = ("merged", "separate", "scene, equally large", "scene, cut")


@pytest.mark.parametrize(("case", "rows"), [*((c, 3) for c in CASES), *((c, 1) for c in WITH_SHARED_CONDITION)])
def test_outputs_and_gradients_are_those_of_loops_over_objects(case: str, rows: int) -> None:
    kind, more, sizes = CASES[case]
    side = 4 if "pooled" in case else 2
    network: Any = (scene_network if kind == "scene" else sparse_network)(**more, side=side).double()
    latents, cond = inputs(3, rows=rows, side=side, dtype=torch.float64)
    steps = STEPS if network.is_shortcut_model else None

    given: dict[str, Any] = {} if sizes is None else {"scene_sizes": sizes}
    d = None if steps is None else torch.tensor(steps, dtype=torch.float64)
    out = network(latents, torch.tensor(TIMES, dtype=torch.float64), cond, d=d, **given)
    read_out(out).backward()

    state: dict[str, Tensor] = {k: v.detach().clone() for k, v in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        state[name].requires_grad_(parameter.requires_grad)
    is_scene = isinstance(network, GlobalSparseStructureFlowTdfyWrapper)
    settings = naive.Settings(
        tuple(CHANNELS),
        network.streams,
        network.num_heads,
        mode=more.get("scene_attention", "full") if is_scene else "object",
        pool=more.get("pool", 1),
        global_blocks=more.get("global_block_ids"),
        cut=more.get("detach_protected", not is_scene),
        protected=more.get("protect_modality_list", ("shape",)),
    )
    expected = naive.evaluate(state, settings, latents, TIMES, cond, steps, sizes)
    read_out(expected).backward()
    # Frequencies are float32 in the network: 2e-8 of an angle.
    torch.testing.assert_close(out, expected, atol=2e-6, rtol=0)
    found = {n: p.grad for n, p in network.named_parameters()}
    reference = {n: state[n].grad for n in found}
    assert {n for n in found if found[n] is None} == {n for n in found if reference[n] is None}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, reference[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
