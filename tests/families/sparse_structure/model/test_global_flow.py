"""The scene's network: what must hold between objects, and what its options refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families.sparse_structure.model.networks import (
    SEPARATE,
    SHARED,
    arguments,
    dual_network,
    far,
    inputs,
    moved,
    scene_network,
    sparse_network,
)
from torch import Tensor

from stageline.families.sparse_structure.model import (
    GlobalSparseStructureFlowTdfyWrapper,
    SparseStructureFlowTdfyWrapper,
)

MODES: list[dict[str, Any]] = [
    {"scene_attention": "full"},
    {"scene_attention": "pose"},
    {"scene_attention": "pooled", "pool": 2},
    {"scene_attention": "full", "global_block_ids": [1]},
]


def chosen(latents: dict[str, Tensor], numbers: list[int]) -> dict[str, Tensor]:
    return {m: x[numbers] for m, x in latents.items()}


@pytest.fixture(params=MODES, ids=lambda mode: "-".join(map(str, mode.values())))
def network(request: pytest.FixtureRequest) -> GlobalSparseStructureFlowTdfyWrapper:
    return scene_network(**SHARED, **request.param)


@pytest.mark.parametrize("kind", [SHARED, SEPARATE])
@pytest.mark.parametrize("mode", MODES)
def test_one_object_is_a_scene_of_its_own(mode: dict[str, Any], kind: dict[str, Any]) -> None:
    """Check 12: with the per-object network's weights, under the same names, the result is equal to the last bit."""
    sparse, scene = sparse_network(**kind), scene_network(seed=5, **kind, **mode)
    scene.load_state_dict(sparse.state_dict())
    latents, cond = inputs(1)
    with torch.no_grad():
        assert far(scene(latents, 2.0, cond), sparse(latents, 2.0, cond)) == 0


def test_the_order_of_objects_does_not_matter(network: GlobalSparseStructureFlowTdfyWrapper) -> None:
    """Check 12: permuted objects, conditions and times give permuted outputs."""
    latents, cond = inputs(4)
    order, t = [2, 0, 3, 1], torch.tensor([1.0, 2.0, 3.0, 4.0])
    with torch.no_grad():
        out = network(latents, t, cond)
        permuted = network(chosen(latents, order), t[order], cond[order])
    assert far(permuted, chosen(out, order)) < 1e-5


@pytest.mark.parametrize("mode", ["full", "pose"])
def test_identical_objects_see_nothing_new(mode: str) -> None:
    """Check 12: each of them gets what it gets alone, since doubled keys leave a softmax as it is."""
    network = scene_network(**SHARED, scene_attention=mode)
    latents, cond = inputs(1)
    with torch.no_grad():
        alone = network(latents, 2.0, cond)
        out = network(chosen(latents, [0, 0, 0]), 2.0, cond)
    assert far(out, chosen(alone, [0, 0, 0])) < 1e-5


@pytest.mark.parametrize("sizes", [[2, 2], [1, 3]])
def test_scenes_do_not_see_each_other(network: GlobalSparseStructureFlowTdfyWrapper, sizes: list[int]) -> None:
    """Check 12: two scenes in one call equal two calls."""
    latents, cond = inputs(4)
    first, second = list(range(sizes[0])), list(range(sizes[0], 4))
    with torch.no_grad():
        both = network(latents, 2.0, cond, scene_sizes=sizes)
        parts = [network(chosen(latents, part), 2.0, cond[part]) for part in (first, second)]
        assert far(both, {m: torch.cat([part[m] for part in parts]) for m in both}) < 1e-5
        assert far(both, network(latents, 2.0, cond)) > 1e-3


def test_who_hears_of_a_changed_object() -> None:
    """Check 13: in `full` all of the others, in `pose` their pose alone, in the per-object branch nobody."""
    latents, cond = inputs(3)
    changed = {m: x.clone() for m, x in latents.items()}
    changed["shape"][1] += 1

    def heard(network: Any) -> dict[str, float]:
        with torch.no_grad():
            before, after = network(latents, 2.0, cond), network(changed, 2.0, cond)
        return {m: float((after[m][0] - before[m][0]).abs().max()) for m in before}

    assert min(heard(scene_network(**SHARED)).values()) > 1e-3
    pose = heard(scene_network(**SHARED, scene_attention="pose"))
    assert pose.pop("shape") == 0
    assert min(pose.values()) > 1e-3
    dual = dual_network()
    assert set(heard(dual).values()) == {0.0}
    moved(dual.global_sparse_flow)
    assert set(heard(dual.sparse_flow).values()) == {0.0}
    assert min(heard(dual).values()) > 1e-3


def test_a_fresh_one_gives_exact_zeros() -> None:
    """Check 10: whatever its inputs, unless told otherwise; latents of the per-object network are not touched."""
    latents, cond = inputs(3)
    torch.manual_seed(0)
    out = GlobalSparseStructureFlowTdfyWrapper(**arguments())(latents, 900.0, cond)
    assert all(not x.any() for x in out.values())
    for network in (
        GlobalSparseStructureFlowTdfyWrapper(**arguments(zero_init_output=False)),
        SparseStructureFlowTdfyWrapper(**arguments()),
    ):
        assert all(x.any() for x in network(latents, 900.0, cond).values())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"scene_attention": "everyone"}, "scene_attention is 'everyone'"),
        ({"global_block_ids": [0, 2], "object_embedding": "fixed"}, "different numbers below 2; object_embedding is"),
        ({"scene_attention": "pooled", "pool": 4}, "has 8 tokens .* multiple of pool, 4"),
        (
            {"scene_attention": "pooled", "pool": 2, "latent_share_transformer": {"shape": ["shape", "scale"]}},
            "9 tokens",
        ),
        ({"scenes": 3}, "unknown keywords: scenes"),
    ],
)
def test_what_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        GlobalSparseStructureFlowTdfyWrapper(**arguments(**more))


def test_scenes_and_places_that_do_not_fit_are_refused() -> None:
    latents, cond = inputs(3)
    network = scene_network(object_embedding="learned", max_objects=2)
    assert network.object_emb.weight.shape == (2, 24)
    for sizes in ([2], [3, 0], [], [4, -1]):
        with pytest.raises(ValueError, match="add up to 3 objects"):
            network(latents, 1.0, cond, scene_sizes=sizes)
    with pytest.raises(ValueError, match="a scene has 3 objects"):
        network(latents, 1.0, cond)
    with pytest.raises(TypeError, match="scene_sizes"):
        sparse_network()(latents, 1.0, cond, scene_sizes=[3])
