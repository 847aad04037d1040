"""The per-object network against recorded values of the public one, and its size and names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families.sparse_structure.model.networks import CHANNELS, MERGED, POSE, moved, plain_latents, read_out
from safetensors.torch import load_file
from torch import Tensor

from stageline.families.sparse_structure.model import SparseStructureFlowTdfyWrapper

FOLDER = Path(__file__).resolve().parents[3] / "golden/sam3d"
RECORDED = json.loads((FOLDER / "flow.json").read_text())["A"]


def build(**more: Any) -> SparseStructureFlowTdfyWrapper:
    config = RECORDED["config"]
    return SparseStructureFlowTdfyWrapper(
        plain_latents(config["c"], config["resolution"]),
        config["share"],
        in_channels=8,
        out_channels=8,
        model_channels=config["c"],
        cond_channels=config["cond"],
        num_blocks=config["blocks"],
        num_heads=config["heads"],
        **{key: config[key] for key in ("mlp_ratio", "pe_mode", "qk_rms_norm", "is_shortcut_model", "patch_size")},
        resolution=config["resolution"],
        force_zeros_cond=config["force_zeros_cond"],
        **more,
    )


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(FOLDER / "flow_A_io.safetensors")


@pytest.fixture(scope="module")
def network() -> SparseStructureFlowTdfyWrapper:
    network = build()
    network.load_state_dict(load_file(FOLDER / "flow_A_state.safetensors"))
    return network


def evaluate(
    network: SparseStructureFlowTdfyWrapper, recorded: dict[str, Tensor], case: dict[str, Any]
) -> dict[str, Tensor]:
    latents = {name: recorded[f"in/x/{name}"] for name in CHANNELS}
    d = None if "d" not in case else torch.tensor(case["d"])
    return network(latents, torch.tensor(case["t"]), recorded["in/cond"], d=d, cfg=case.get("cfg", False))


def test_names_and_shapes_of_tensors_are_the_public_ones() -> None:
    """Check 1: the state has exactly the recorded keys and shapes, and the grid's embedding the recorded values."""
    fresh = build()
    assert {key: list(value.shape) for key, value in fresh.state_dict().items()} == RECORDED["keys"]
    assert list(fresh.streams) == RECORDED["stream_names"]
    there = load_file(FOLDER / "flow_A_state.safetensors")["latent_mapping.shape.pos_emb"]
    torch.testing.assert_close(fresh.latent_mapping["shape"].pos_emb, there, atol=2e-7, rtol=0)
    buffers = [name for name, _ in fresh.named_buffers()]
    assert buffers == ["latent_mapping.shape.pos_emb"]


@pytest.mark.parametrize("what", ["all", "pose_only"])
def test_names_and_gradients_of_separate_streams(what: str) -> None:
    """Checks 1 and 3: of the second recorded network, with shared modulation and norms in cross-attention."""
    recorded = json.loads((FOLDER / "flow.json").read_text())["B"]
    config = recorded["config"]
    torch.manual_seed(0)
    network = moved(
        SparseStructureFlowTdfyWrapper(
            plain_latents(config["c"], config["resolution"]),
            config["share"],
            in_channels=8,
            out_channels=8,
            model_channels=config["c"],
            cond_channels=config["cond"],
            num_blocks=config["blocks"],
            num_heads=config["heads"],
            qk_rms_norm=config["qk_rms_norm"],
            qk_rms_norm_cross=config["qk_rms_norm_cross"],
            share_mod=config["share_mod"],
        )
    )
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == recorded["keys"]
    tokens = {m: latent.num_tokens for m, latent in network.latent_mapping.items()}
    out = network(
        {m: torch.randn(2, tokens[m], c) for m, c in CHANNELS.items()}, 37.0, torch.randn(2, 7, config["cond"])
    )
    read_out(out, tuple(CHANNELS) if what == "all" else POSE).backward()
    without = {n for n, p in network.named_parameters() if p.grad is None}
    norms = recorded["grad_l2"][what]
    assert without == {n for n, _ in network.named_parameters() if norms.get(n) is None}


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize("case", RECORDED["cases"])
def test_outputs_are_the_recorded_ones(
    case: str, shortcuts: bool, network: SparseStructureFlowTdfyWrapper, recorded: dict[str, Tensor]
) -> None:
    """Check 2: largest difference 3e-6 (reached: 1.1e-6), with and without the shortcuts."""
    network.exact_shortcuts = shortcuts
    with torch.no_grad():
        out = evaluate(network, recorded, RECORDED["cases"][case])
    assert list(out) == list(CHANNELS)
    for name, value in out.items():
        torch.testing.assert_close(value, recorded[f"out/{case}/{name}"], atol=3e-6, rtol=0)


@pytest.mark.parametrize("what", ["all", "pose_only"])
def test_gradients_are_the_recorded_ones(
    what: str, network: SparseStructureFlowTdfyWrapper, recorded: dict[str, Tensor]
) -> None:
    """Check 3: norms of all gradients to 1e-4, and the same parameters without one: pose never reaches shape."""
    network.zero_grad(set_to_none=True)
    out = evaluate(network, recorded, RECORDED["cases"]["t_vec_d_vec"])
    read_out(out, tuple(CHANNELS) if what == "all" else POSE).backward()
    found = {n: None if p.grad is None else float(p.grad.norm()) for n, p in network.named_parameters()}
    expected = RECORDED["grad_l2"][what]
    assert {n for n, norm in found.items() if norm is None} == {n for n in found if expected.get(n) is None}
    norms = {n: norm for n, norm in found.items() if norm is not None}
    assert norms == pytest.approx({n: expected[n] for n in norms}, rel=1e-4, abs=1e-6)


def test_a_half_precision_torso_stores_its_linear_weights_so(recorded: dict[str, Tensor]) -> None:
    """Check 4: dtypes are the recorded ones, outputs are near those of float32, and come back as float32."""
    network = build(use_fp16=True)
    assert {n: str(p.dtype) for n, p in network.state_dict().items()} == RECORDED["fp16_param_dtypes"]
    network.load_state_dict(load_file(FOLDER / "flow_A_state.safetensors"))
    with torch.no_grad():
        out = evaluate(network, recorded, RECORDED["cases"]["t_vec_d_vec"])
    for name, value in out.items():
        torch.testing.assert_close(value, recorded[f"out/t_vec_d_vec/{name}"], atol=5e-3, rtol=0)


def test_the_public_size() -> None:
    """Check 5: 945 tensors and 959,962,133 parameters, one buffer, on the meta device."""
    with torch.device("meta"):
        network = SparseStructureFlowTdfyWrapper(
            plain_latents(1024, 16),
            MERGED,
            in_channels=8,
            out_channels=8,
            model_channels=1024,
            cond_channels=1024,
            num_blocks=24,
            num_heads=16,
            qk_rms_norm=True,
            is_shortcut_model=True,
            freeze_shared_parameters=True,
            force_zeros_cond=True,
            shape_attend_pose=False,
            freeze_d_time_embedder=False,
            resolution=16,
            patch_size=1,
        )
    assert len(network.state_dict()) == 945
    assert sum(p.numel() for p in network.parameters()) == 959_962_133
    assert [b.numel() for b in network.buffers()] == [4_194_304]
    assert sum(p.numel() for p in network.blocks[0].parameters()) == 39_886_848
    frozen = {
        n.split(".")[0] if "blocks" not in n else "blocks" for n, p in network.named_parameters() if not p.requires_grad
    }
    assert frozen == {"t_embedder", "blocks"}
