"""Both networks added: the start changes nothing, the scene's branch wakes up, the other one stays; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families.sparse_structure.model.networks import (
    POSE,
    SHARED,
    arguments,
    dual_network,
    far,
    inputs,
    moved,
    plain_latents,
    read_out,
    scene_network,
)
from torch import Tensor, nn

from stageline.families.sparse_structure.model import (
    DualBackboneSparseStructureFlowTdfyWrapper,
    Latent,
    LearntPositionEmbedder,
    trainable_parameters,
)

FRESH: dict[str, Any] = {**SHARED, "num_blocks": 1}


def build(sparse: dict[str, Any], scene: dict[str, Any], **more: Any) -> DualBackboneSparseStructureFlowTdfyWrapper:
    return DualBackboneSparseStructureFlowTdfyWrapper(arguments(**sparse), arguments(**scene), **more)


@pytest.mark.parametrize("more", [{}, {"combine_mode": "weighted", "global_flow_weight": 0.3}])
@pytest.mark.parametrize("scene", [{}, {"scene_attention": "pooled", "pool": 2, "model_channels": 12}])
def test_a_fresh_branch_changes_nothing(more: dict[str, Any], scene: dict[str, Any]) -> None:
    """Check 10: equal to the per-object branch to the last bit, however the scene's branch is built."""
    if scene:
        scene = {**scene, "latent_mapping": plain_latents(12)}
    dual = dual_network(scene=scene, **more)
    latents, cond = inputs(3)
    for given in ({}, {"cfg": True}, {"d": 3.0, "scene_sizes": [1, 2]}):
        mine = {k: v for k, v in given.items() if k != "scene_sizes"}
        assert far(dual(latents, 5.0, cond, **given), dual.sparse_flow(latents, 5.0, cond, **mine)) == 0
    assert far(dual(latents_dict=latents, t=5.0, cond=cond), dual(latents, 5.0, cond)) == 0


def test_outputs_are_the_sum_or_the_weighted_sum() -> None:
    latents, cond = inputs(2)
    for more, weight in (({}, 1.0), ({"combine_mode": "weighted", "global_flow_weight": -0.5}, -0.5)):
        dual = moved(dual_network(**more), std=0.1)
        if dual.global_flow_weight is not None:
            assert dual.global_flow_weight.shape == ()
            nn.init.constant_(dual.global_flow_weight, weight)
        sparse, scene = (branch(latents, 5.0, cond) for branch in (dual.sparse_flow, dual.global_sparse_flow))
        assert far(dual(latents, 5.0, cond), {m: x + weight * scene[m] for m, x in sparse.items()}) == 0


def test_guidance_by_the_scene_adds_its_branch_again() -> None:
    """(1 + s) both - s one: at 0 both to the last bit, and nothing where the scene's branch is fresh."""
    latents, cond = inputs(2)
    for more in ({}, {"combine_mode": "weighted", "global_flow_weight": -0.5}):
        fresh = dual_network(**more)
        assert far(fresh(latents, 5.0, cond, scene_strength=3.0), fresh(latents, 5.0, cond)) == 0
        dual = moved(fresh, std=0.1)
        both, one = dual(latents, 5.0, cond), dual.sparse_flow(latents, 5.0, cond)
        assert far(dual(latents, 5.0, cond, scene_strength=0.0), both) == 0
        expected = {m: 2.5 * x - 1.5 * one[m] for m, x in both.items()}
        assert far(dual(latents, 5.0, cond, scene_strength=1.5), expected) < 1e-5


def test_streams_change_nothing() -> None:
    """Check 23: to the last bit; on a CUDA device too where there is one. `bench_sparse_gpu.py` takes the times."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        dual = moved(dual_network(parallel="streams"), std=0.1).to(device)
        latents, cond = inputs(3)
        latents, cond = {name: x.to(device) for name, x in latents.items()}, cond.to(device)
        both = dual(latents, 5.0, cond)
        dual.parallel = "none"
        assert far(dual(latents, 5.0, cond), both) == 0


def test_the_state_is_both_branches_and_the_weight() -> None:
    dual, weighted = dual_network(), dual_network(combine_mode="weighted")
    branches = {f"sparse_flow.{k}" for k in dual.sparse_flow.state_dict()}
    branches |= {f"global_sparse_flow.{k}" for k in dual.global_sparse_flow.state_dict()}
    assert set(dual.state_dict()) == branches
    assert set(weighted.state_dict()) == branches | {"global_flow_weight"}
    assert dual.latent_mapping is dual.sparse_flow.latent_mapping
    assert (dual.device, dual.dtype) == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("scene", [{}, {"share_mod": True}])
def test_the_fresh_branch_wakes_up_in_three_steps(scene: dict[str, Any]) -> None:
    """Check 11: heads alone move first, then conditions, inputs and gates, then the rest; last what lies behind the
    step embedding's zero layer; after three updates all have a gradient. The frozen branch keeps every bit."""
    dual = dual_network(scene=scene, freeze_sparse_flow=True)
    before = {k: v.clone() for k, v in dual.sparse_flow.state_dict().items()}
    optimizer = torch.optim.AdamW(trainable_parameters(dual), lr=1e-2)
    latents, cond = inputs(3)
    awake: list[set[str]] = []
    for _ in range(4):
        optimizer.zero_grad()
        out = dual(latents, 500.0, cond, d=250.0)
        (sum(out[m].square().mean() for m in POSE) + 0.1 * out["shape"].square().mean()).backward()
        parameters = dict(dual.global_sparse_flow.named_parameters())
        assert all(p.grad is not None for p in parameters.values())
        awake.append({n for n, p in parameters.items() if p.grad is not None and p.grad.any()})
        optimizer.step()
    assert {n.split(".")[2] for n in awake[0]} == {"out_layer"}
    assert any("cross_attn" in n for n in awake[1])
    assert not any("self_attn" in n or "mlp" in n for n in awake[1])
    assert set(parameters) - awake[2] == {"d_embedder.mlp.0.weight", "d_embedder.mlp.0.bias"}
    assert awake[3] == set(parameters)
    assert all(torch.equal(v, before[k]) for k, v in dual.sparse_flow.state_dict().items())


def test_a_frozen_branch_stays_frozen() -> None:
    dual = dual_network(freeze_sparse_flow=True)
    dual.train()
    assert dual.global_sparse_flow.training
    assert not any(module.training for module in dual.sparse_flow.modules())
    assert {id(p) for p in trainable_parameters(dual)} == {id(p) for p in dual.global_sparse_flow.parameters()}
    open_dual = dual_network()
    for parameter in open_dual.sparse_flow.parameters():
        parameter.requires_grad = False
    assert {id(p) for p in trainable_parameters(open_dual)} == {
        id(p) for p in open_dual.global_sparse_flow.parameters()
    }
    latents, cond = inputs(2)
    read_out(open_dual(latents, 5.0, cond)).backward()
    assert all(p.grad is None for p in open_dual.sparse_flow.parameters())


@pytest.mark.parametrize(("block_map", "numbers"), [("even", [0, 2, 4]), ("first", [0, 1, 2]), ([4, 4, 1], [4, 4, 1])])
def test_the_scene_branch_starts_from_the_other(block_map: Any, numbers: list[int]) -> None:
    """Weights are copied block by block, heads are zero again, and the sum is still the per-object branch."""
    dual = dual_network({"num_blocks": 5}, {"num_blocks": 3, "object_embedding": "learned"})
    places = dual.global_sparse_flow.object_emb.weight.clone()
    dual.init_global_from_sparse(block_map)
    source, target = dual.sparse_flow.state_dict(), dual.global_sparse_flow.state_dict()
    for key, value in target.items():
        if key.startswith("blocks."):
            _, number, rest = key.split(".", 2)
            assert torch.equal(value, source[f"blocks.{numbers[int(number)]}.{rest}"])
        elif "out_layer" in key:
            assert not value.any()
        elif key == "object_emb.weight":
            assert torch.equal(value, places)
        else:
            assert torch.equal(value, source[key])
    latents, cond = inputs(2)
    assert far(dual(latents, 5.0, cond), dual.sparse_flow(latents, 5.0, cond)) == 0


def test_a_start_from_the_other_branch_that_does_not_fit_is_refused() -> None:
    dual = dual_network(scene={"num_heads": 4})
    before = {k: v.clone() for k, v in dual.state_dict().items()}
    with pytest.raises(ValueError, match=r"self_attn.q_rms_norm.shape.gamma is \[4, 6\], .* \[2, 12\]"):
        dual.init_global_from_sparse()
    assert all(torch.equal(v, before[k]) for k, v in dual.state_dict().items())
    for block_map in ("last", [2], [0, 1], []):
        with pytest.raises(ValueError, match="block_map"):
            dual_network().init_global_from_sparse(block_map)


def test_the_condition_is_embedded_once() -> None:
    class Embedder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.calls = nn.Linear(10, 10), 0

        def forward(self, cond: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(cond)

    embedder = Embedder()
    dual = build({**SHARED, "condition_embedder": embedder}, {**FRESH, "condition_embedder": embedder})
    latents, cond = inputs(2)
    dual(latents, 5.0, cond)
    assert embedder.calls == 1
    assert dual.condition_embedder is embedder
    assert [k for k in dual.state_dict() if "embedder.linear" in k] == [
        f"sparse_flow.condition_embedder.linear.{what}" for what in ("weight", "bias")
    ]
    with pytest.raises(ValueError, match="different condition embedders"):
        build({**SHARED, "condition_embedder": Embedder()}, {**FRESH, "condition_embedder": embedder})


def other_latents(**entries: dict[str, Any]) -> dict[str, Any]:
    return {"latent_mapping": {name: {**entry, **entries.get(name, {})} for name, entry in plain_latents().items()}}


@pytest.mark.parametrize(
    ("scene", "more", "words"),
    [
        ({"latent_mapping": dict(reversed(plain_latents().items()))}, {}, "expected the same in the same order"),
        ({"latent_mapping": plain_latents(names=["shape", "scale"])}, {}, "the modalities are"),
        (other_latents(scale={"in_channels": 4}), {}, "modality 'scale' has 3 and 4 channels"),
        ({"latent_mapping": plain_latents(side=3)}, {}, "modality 'shape' has 8 and 27 tokens"),
        ({"is_shortcut_model": False}, {}, "is_shortcut_model is True and False"),
        ({"condition_embedder": {"name": "dino"}}, {}, "different condition embedders"),
        ({}, {"combine_mode": "gated", "parallel": "threads"}, "combine_mode is 'gated'.*parallel is 'threads'"),
        ({}, {"combine_mode": "weighted", "global_flow_weight": 0.0}, "neither would ever get a gradient"),
        ({}, {"combine_mode": "weighted", "global_flow_weight": float("nan")}, "expected a finite number"),
    ],
)
def test_branches_that_do_not_fit_are_refused(scene: dict[str, Any], more: dict[str, Any], words: str) -> None:
    """Check 14: every error of the constructor."""
    with pytest.raises(ValueError, match=words):
        build(SHARED, {**FRESH, **scene}, **more)


def test_branches_that_hold_the_same_latent_are_refused() -> None:
    """Check 14: a head that is zeroed for the scene would be zero in the other branch too."""
    shared = {m: Latent(3, 24, LearntPositionEmbedder(model_channels=24, token_len=1)) for m in ("shape", *POSE)}
    with pytest.raises(ValueError, match="both branches hold the same Latent 'shape'"):
        build({**SHARED, "latent_mapping": shared}, {**FRESH, "latent_mapping": shared})
    assert all(x.out_layer.weight.any() for x in shared.values())


def test_checkpoints_are_looked_for_together_and_loaded(tmp_path: Path) -> None:
    """Check 14: both paths are checked before anything else happens; a zero weight is fine with a trained branch."""
    with pytest.raises(FileNotFoundError, match=r"sparse_flow: .*a\.ckpt; global_sparse_flow: .*b\.ckpt"):
        build(
            SHARED,
            {"unknown": 1},
            checkpoint_dir=str(tmp_path),
            sparse_flow_checkpoint="a.ckpt",
            global_sparse_flow_checkpoint="b.ckpt",
        )
    from safetensors.torch import save_file

    trained = scene_network(seed=9, **FRESH)
    save_file(trained.state_dict(), tmp_path / "scene.safetensors")
    dual = build(
        SHARED,
        FRESH,
        checkpoint_dir=str(tmp_path),
        global_sparse_flow_checkpoint="scene.safetensors",
        combine_mode="weighted",
        global_flow_weight=0.0,
    )
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in dual.global_sparse_flow.state_dict().items())


def test_outputs_that_do_not_meet_are_refused() -> None:
    class Other(nn.Module):
        """A branch that gives back its inputs. changed: what it does to them."""

        def __init__(self, changed: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
            super().__init__()
            self.changed = changed

        def forward(self, latents: dict[str, Tensor], *_: Any, **__: Any) -> dict[str, Tensor]:
            return self.changed(latents)

    dual = dual_network()
    latents, cond = inputs(2)
    dual.global_sparse_flow = Other(lambda x: {m: x[m] for m in x if m != "scale"} | {"colour": x["scale"]})
    with pytest.raises(ValueError, match=r"outputs differ: \['colour', 'scale'\] are of one branch only"):
        dual(latents, 5.0, cond)
    dual.global_sparse_flow = Other(lambda x: {**x, "scale": x["scale"][..., :2]})
    with pytest.raises(ValueError, match=r"scale: \[2, 1, 3\] and \[2, 1, 2\]"):
        dual(latents, 5.0, cond)


def test_configs_are_mappings_and_are_not_changed() -> None:
    with pytest.raises(TypeError, match="sparse_flow_config is Linear, expected a mapping of arguments"):
        DualBackboneSparseStructureFlowTdfyWrapper(nn.Linear(1, 1), arguments(**FRESH))  # type: ignore[arg-type]
    configs = arguments(**SHARED), arguments(**FRESH)
    before = [repr(config) for config in configs]
    DualBackboneSparseStructureFlowTdfyWrapper(*configs)
    assert [repr(config) for config in configs] == before
