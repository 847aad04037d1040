"""Cheaper ways to the same result, what is kept for the backward pass, and compiling."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families.sparse_structure.model.networks import (
    COND,
    SEPARATE,
    SHARED,
    dual_network,
    far,
    inputs,
    moved,
    read_out,
    scene_network,
    sparse_network,
)
from torch import Tensor, nn

from stageline.families.sparse_structure.model.attention import CrossAttention
from stageline.families.sparse_structure.model.flow import PreparedCondition
from stageline.families.sparse_structure.shortcut.guidance import ClassifierFreeGuidance


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def kept_bytes(network: nn.Module, latents: dict[str, Tensor], condition: Tensor) -> int:
    """Bytes that autograd keeps of a call for the backward pass: each storage once, not the network's own ones, nor the
    condition's."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = network(latents, 1.0, condition, d=1.0)
    own = {x.untyped_storage().data_ptr() for x in (*network.parameters(), *network.buffers(), condition)}
    assert kept
    return sum(size for start, size in storages.items() if start not in own)


@pytest.mark.parametrize("rows", [3, 1])
@pytest.mark.parametrize("kind", [SHARED, SEPARATE])
def test_shortcuts_change_nothing(kind: dict[str, Any], rows: int) -> None:
    """Check 17: absorbed pose, closed-form unconditional pass, shared condition: outputs and gradients, 5e-6."""
    network = scene_network(**kind)
    latents, cond = inputs(3, rows=rows)
    plain = copy.deepcopy(network)
    plain.exact_shortcuts = False
    for cfg in (False, True):
        with torch.no_grad():
            short = network(latents, 1.0, cond, cfg=cfg)
            assert far(short, plain(latents, 1.0, cond.expand(3, -1, -1), cfg=cfg)) < 5e-6
    for one in (network, plain):
        read_out(one(latents, 1.0, cond)).backward()
    for (name, found), expected in zip(gradients(network).items(), gradients(plain).values(), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_short_stream_projects_no_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check 17: up to as many queries as a head is wide the condition is not projected; nor where it is all zero."""
    asked: list[int] = []
    projected = CrossAttention.keys_values

    def noted(self: CrossAttention, condition: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(1)
        return projected(self, condition)

    monkeypatch.setattr(CrossAttention, "keys_values", noted)
    latents, cond = inputs(3)
    network = sparse_network(**SHARED, num_heads=4)  # heads of 6: 8 voxels are too many, 4 pose tokens are not
    for cfg, count in ((False, 2), (True, 0)):
        asked.clear()
        with torch.no_grad():
            network(latents, 1.0, cond, cfg=cfg)
        assert len(asked) == count
    asked.clear()
    network(latents, 1.0, cond, cfg=True)
    assert len(asked) == 2


@pytest.mark.parametrize("rows", [3, 1])
def test_kept_keys_and_values(rows: int) -> None:
    """Check 17: equal to the last bit, made once, of both branches; a change of the weights makes them anew."""
    dual = moved(dual_network({"exact_shortcuts": False}, {"exact_shortcuts": False}), std=0.1)
    latents, cond = inputs(3, rows=rows)
    prepared = dual.prepare_condition(cond)
    assert isinstance(prepared, PreparedCondition)
    with torch.no_grad():
        for t in (1.0, 2.0):
            assert far(dual(latents, t, prepared, d=t), dual(latents, t, cond, d=t)) == 0
            # Two streams of three blocks, keys and values of 24 numbers for each of the tokens.
            assert prepared.cache.num_bytes == 2 * 3 * 2 * 24 * 4 * rows * cond.shape[1]
        assert far(dual(latents, 1.0, prepared, cfg=True), dual(latents, 1.0, cond, cfg=True)) == 0
        for parameter in dual.parameters():
            parameter.mul_(1.1)
        assert far(dual(latents, 1.0, prepared), dual(latents, 1.0, cond)) == 0
    read_out(dual(latents, 1.0, prepared)).backward()
    assert dual.sparse_flow.blocks[0].cross_attn["shape"].to_kv.weight.grad.any()


def test_a_frozen_branch_keeps_keys_and_values_in_training() -> None:
    """Check 17: of its blocks alone; the branch that trains makes its own in every pass."""
    dual = dual_network({"exact_shortcuts": False}, {"exact_shortcuts": False}, freeze_sparse_flow=True)
    latents, cond = inputs(3)
    prepared = dual.prepare_condition(cond)
    read_out(dual(latents, 1.0, prepared)).backward()
    assert prepared.cache.num_bytes == 2 * 2 * 2 * 24 * 4 * cond.shape[0] * cond.shape[1]
    assert all(p.grad is not None for n, p in dual.global_sparse_flow.named_parameters() if "d_embedder" not in n)


@pytest.mark.parametrize("handling", ["zeros", "add_flag"])
def test_guidance_takes_a_prepared_condition(handling: Any) -> None:
    """Check 17: guided with kept keys as with the tensor itself, whatever makes the unconditional call."""
    dual = moved(dual_network(), std=0.1)
    guided = ClassifierFreeGuidance(dual, strength=2.0, unconditional_handling=handling, interval=(0.0, 500.0)).eval()
    latents, cond = inputs(2)
    t = torch.tensor([300.0])
    with torch.no_grad():
        out = guided(latents, t, dual.prepare_condition(cond))
        assert far(out, guided(latents, t, cond)) == 0
        assert not torch.allclose(out["shape"], dual(latents, t, cond)["shape"], atol=1e-3)


def test_a_frozen_branch_keeps_nothing() -> None:
    """Check 18: for the backward pass at most 1.1 times what the scene's branch keeps alone; frozen either way."""
    latents, cond = inputs(4)
    for explicit in (True, False):
        dual = dual_network({"num_blocks": 4}, freeze_sparse_flow=explicit)
        dual.sparse_flow.requires_grad_(False)
        alone = kept_bytes(dual.global_sparse_flow, latents, cond)
        assert alone <= kept_bytes(dual, latents, cond) <= 1.1 * alone
    both = dual_network({"num_blocks": 4})
    assert kept_bytes(both, latents, cond) > 4 * alone


@pytest.mark.parametrize("make", [sparse_network, scene_network])
def test_recomputed_activations(make: Callable[..., Any]) -> None:
    """Check 19: the same outputs to the last bit, gradients to 1e-6, at most a tenth of the bytes."""
    latents, cond = inputs(3, side=4)
    plain, recomputing = (make(**SHARED, num_blocks=6, side=4, use_checkpoint=flag) for flag in (False, True))
    outs = [network(latents, 1.0, cond, d=1.0) for network in (plain, recomputing)]
    assert far(*outs) == 0
    for out in outs:
        read_out(out).backward()
    for (name, found), expected in zip(gradients(recomputing).items(), gradients(plain).values(), strict=True):
        assert float((found - expected).norm()) <= 1e-6 * float(expected.norm()) + 1e-7, name
    inputs_of_blocks = 6 * sum(x.nbytes for x in plain._to_streams(latents, None).values())
    stored = [kept_bytes(network, latents, cond) for network in (plain, recomputing)]
    assert stored[1] + inputs_of_blocks <= 0.1 * stored[0]


def test_blocks_compile_whole() -> None:
    """No part of a block depends on data: one graph, and the same outputs."""
    network = scene_network(**SHARED)
    block = torch.compile(network.blocks[0], backend="eager", fullgraph=True)
    streams = {s: x.detach() for s, x in network._to_streams(inputs(3)[0], None).items()}
    arguments = (streams, torch.randn(1, 24), torch.randn(3, 5, COND), (3,))
    assert far(block(*arguments), network.blocks[0](*arguments)) < 1e-6
