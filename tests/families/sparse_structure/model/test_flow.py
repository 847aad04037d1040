"""The per-object network: what each argument does, what is refused, and in which words."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from families.sparse_structure.model.networks import (
    CHANNELS,
    COND,
    MERGED,
    SEPARATE,
    SHARED,
    WIDTH,
    arguments,
    far,
    inputs,
    plain_latents,
    read_out,
    sparse_network,
)
from torch import Tensor, nn

from stageline.families.sparse_structure.model import (
    Latent,
    LearntPositionEmbedder,
    RandomPositionEmbedder,
    ShapePositionEmbedder,
    SparseStructureFlowTdfyWrapper,
)

CLOSE = 5e-6
"""Of float32 outputs of about 4 that are computed in another order."""


def test_positions_of_a_grid() -> None:
    """Sines then cosines of x, of y, of z, from raw integers, z fastest, zeros at the end."""
    table = ShapePositionEmbedder(model_channels=14, resolution=6, patch_size=2)()
    assert table.shape == (27, 14)
    x, y, z = 2, 0, 1
    row = table[9 * x + 3 * y + z].double()
    expected = []
    for p in (x, y, z):
        angles = p * torch.tensor([1.0, 10000**-0.5], dtype=torch.float64)
        expected += [angles.sin(), angles.cos()]
    torch.testing.assert_close(row[:12], torch.cat(expected), atol=1e-7, rtol=0)
    assert row[12:].tolist() == [0, 0]


def test_what_a_position_embedder_gives_decides_whether_it_is_trained() -> None:
    learned = Latent(3, 8, LearntPositionEmbedder(model_channels=8, token_len=2))
    fixed = Latent(3, 8, RandomPositionEmbedder(model_channels=8, token_len=2))
    assert "pos_emb" in dict(learned.named_parameters())
    assert "pos_emb" in dict(fixed.named_buffers())
    assert "pos_emb" in fixed.state_dict()
    with pytest.raises(TypeError, match="gave list, expected a Parameter or a tensor"):
        Latent(3, 8, lambda: [0.0])  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"\[2, 7\], expected \[tokens, 8\]"):
        Latent(3, 8, RandomPositionEmbedder(model_channels=7, token_len=2))


def test_starting_values() -> None:
    """Gates, shifts and scales are zero, and so is the step's last layer: `d` has no effect yet."""
    torch.manual_seed(0)
    network = SparseStructureFlowTdfyWrapper(**arguments(**SHARED))
    state = network.state_dict()
    zero = {key for key, value in state.items() if not value.any()}
    biases = {key for key in state if key.endswith(".bias")}
    modulation = {f"blocks.{b}.adaLN_modulation.1.weight" for b in range(2)}
    assert zero == biases | modulation | {"d_embedder.mlp.2.weight"}
    assert float(state["t_embedder.mlp.2.weight"].std()) == pytest.approx(0.02, rel=0.1)
    bound = (6 / (WIDTH + 4 * WIDTH)) ** 0.5
    weight = state["blocks.0.mlp.shape.mlp.0.weight"]
    assert 0.9 * bound < float(weight.abs().max()) <= bound
    latents, cond = inputs(2)
    assert far(network(latents, 3.0, cond, d=7.0), network(latents, 3.0, cond)) == 0


@pytest.mark.parametrize(
    ("more", "missing"),
    [
        ({}, {"d_embedder", "adaLN_modulation"}),
        ({"is_shortcut_model": True, "share_mod": True}, set()),
    ],
)
def test_which_tensors_there_are(more: dict[str, Any], missing: set[str]) -> None:
    """Check 1: per block 2 without shared modulation, and 16, 18 or 20 per stream."""
    for qk, cross in ((True, False), (False, False), (True, True)):
        network = sparse_network(qk_rms_norm=qk, qk_rms_norm_cross=cross, **more)
        keys = list(network.state_dict())
        per_block = 2 * (not more.get("share_mod")) + 5 * (16 + 2 * qk + 2 * cross)
        assert sum(key.startswith("blocks.1.") for key in keys) == per_block
        assert {"d_embedder", "adaLN_modulation"} - {key.split(".")[0] for key in keys} == missing
        assert sum(key.startswith("latent_mapping.") for key in keys) == 25


def test_time_and_step_are_one_number_or_one_per_object() -> None:
    """0-dim, one entry and one entry per object are the same; None for the step is not zero."""
    network = sparse_network(**SHARED)
    latents, cond = inputs(3)
    with torch.no_grad():
        out = network(latents, torch.full((3,), 512.5), cond, d=torch.full((3,), 250.0))
        for t, d in ((torch.tensor(512.5), torch.tensor([250.0])), (torch.tensor([512.5]), 250.0), (512.5, 250)):
            assert far(network(latents, t, cond, d=d), out) < CLOSE
        assert far(network(latents, 512.5, cond), network(latents, 512.5, cond, d=0.0)) > 1e-3
        mixed = network(latents, torch.tensor([1.0, 512.5, 3.0]), cond, d=torch.tensor([250.0]))
        assert far({m: x[1:2] for m, x in mixed.items()}, {m: x[1:2] for m, x in out.items()}) < CLOSE
    for shape in ((2,), (3, 1)):
        with pytest.raises(ValueError, match=r"t has the shape .*, expected \[\], \[1\] or \[3\]"):
            network(latents, torch.zeros(shape), cond)
    with pytest.raises(ValueError, match="without a step embedding"):
        sparse_network(**SEPARATE)(latents, 1.0, cond, d=0.0)


def test_a_shared_condition_is_that_of_every_object() -> None:
    """A row for the scene equals the same row for every object; other numbers of rows are refused."""
    network = sparse_network(**SHARED)
    latents, cond = inputs(3, rows=1)
    with torch.no_grad():
        assert far(network(latents, 1.0, cond), network(latents, 1.0, cond.expand(3, -1, -1))) < CLOSE
        assert far(network(latents_dict=latents, t=1.0, cond=cond), network(latents, 1.0, cond)) == 0
    for wrong in (cond.expand(2, -1, -1), cond[0], cond[..., :-1], cond[:, :0]):
        with pytest.raises(ValueError, match=rf"expected \[1 or 3, tokens, {COND}\]"):
            network(latents, 1.0, wrong)


def test_conditions_go_to_the_embedder_or_are_exactly_one() -> None:
    class Embedder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, tokens: Tensor, *, more: Tensor) -> Tensor:
            return self.scale * tokens + more

    latents, cond = inputs(2)
    plain, embedding = sparse_network(**SHARED), sparse_network(**SHARED, condition_embedder=Embedder())
    missing = embedding.load_state_dict(plain.state_dict() | {"condition_embedder.scale": torch.tensor(2.0)})
    assert not missing.missing_keys
    assert far(embedding(latents, 1.0, cond, more=cond), plain(latents, 1.0, 3 * cond)) < CLOSE
    for args, kwargs in (((), {}), ((cond, cond), {}), ((cond,), {"image": cond}), ((), {"image": cond})):
        with pytest.raises(TypeError, match="takes exactly one condition"):
            plain(latents, 1.0, *args, **kwargs)
    with pytest.raises(TypeError, match="the embedded condition is str"):
        plain(latents, 1.0, "a chair")
    with pytest.raises(TypeError, match="condition_embedder is dict, expected a module or None"):
        sparse_network(condition_embedder={"name": "dino"})


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("shortcuts", [True, False])
def test_cfg_makes_the_embedded_condition_zero(gradients: bool, shortcuts: bool) -> None:
    """Also where it holds NaN; without `force_zeros_cond` it has no effect. With gradients all parameters get one."""
    network = sparse_network(**SHARED, exact_shortcuts=shortcuts)
    latents, cond = inputs(2)
    with torch.set_grad_enabled(gradients):
        expected = network(latents, 1.0, torch.zeros_like(cond))
        out = network(latents, 1.0, torch.full_like(cond, torch.nan), cfg=True)
        assert far(out, expected) < CLOSE
        if gradients:
            read_out(out).backward()
            assert {n for n, p in network.named_parameters() if p.grad is None} == {
                n for n in dict(network.named_parameters()) if n.startswith("d_embedder")
            }
        other = sparse_network(**SEPARATE)
        assert far(other(latents, 1.0, cond, cfg=True), other(latents, 1.0, cond)) == 0


def test_modalities_are_all_there_and_of_one_kind() -> None:
    network = sparse_network(**SHARED)
    latents, cond = inputs(2)
    assert far(network({**latents, "colour": cond}, 1.0, cond), network(latents, 1.0, cond)) == 0
    with pytest.raises(KeyError, match=r"lack \['scale', 'translation_scale'\]"):
        network({m: latents[m] for m in list(CHANNELS)[:3]}, 1.0, cond)
    wrong = {**latents, "shape": latents["shape"].transpose(1, 2)[:, :5], "scale": latents["scale"][:1].half()}
    with pytest.raises(ValueError, match="scale has the shape") as caught:
        network(wrong, 1.0, cond)
    for part in ("shape has the shape [2, 5, 8], expected [2, 8, 8]", "[1, 1, 3], expected [2, 1, 3]", "dtypes differ"):
        assert part in str(caught.value)
    with pytest.raises(TypeError, match=r"latents are \{'shape': 'list', 'scale': 'float'\}, expected tensors"):
        network({**latents, "shape": [1], "scale": 1.0}, 1.0, cond)
    with pytest.raises(ValueError, match="there are no objects"):
        network({m: x[:0] for m, x in latents.items()}, 1.0, cond)


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"pe_mode": "rope", "mlp_ratio": 0}, ValueError, "mlp_ratio is 0.*pe_mode is 'rope'"),
        ({"dropout": 0.1, "windows": 2}, TypeError, "unknown keywords: dropout, windows"),
        ({"num_heads": 5}, ValueError, "num_heads is 5, expected a divisor of model_channels, 24"),
        ({"num_blocks": 0, "cond_channels": 0}, ValueError, "cond_channels is 0.*num_blocks is 0"),
        ({"protect_modality_list": ["voxels"]}, ValueError, r"names \['voxels'\], expected streams"),
        ({"latent_share_transformer": {"shape": ["scale"]}}, ValueError, "name of a modality that is a stream alone"),
        ({"latent_share_transformer": {"a": ["scale"], "b": ["scale"]}}, ValueError, "more than once"),
        ({"latent_share_transformer": {"a": ["colour"]}}, ValueError, "stream 'a' merges"),
        ({"latent_mapping": plain_latents(18)}, ValueError, "has model_channels 18, the network 24"),
        ({"latent_mapping": {}}, ValueError, "latent_mapping is empty"),
        ({"latent_mapping": {"shape": {"in_channels": 8}}}, ValueError, "latent_mapping.shape is"),
        ({"latent_mapping": plain_latents(names=["scale"])}, ValueError, "protect_modality_list"),
        ({"torso_dtype": "float8"}, ValueError, "torso_dtype is 'float8'"),
        ({"torso_dtype": "bfloat16", "use_fp16": True}, ValueError, "drop one of them"),
    ],
)
def test_what_is_refused_at_construction(more: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        SparseStructureFlowTdfyWrapper(**{**arguments(), **more})


def test_public_keywords_without_effect_are_said_quietly(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="stageline.families.sparse_structure"):
        SparseStructureFlowTdfyWrapper(
            **arguments(shape_attend_pose=True, freeze_d_time_embedder=False, resolution=2, patch_size=1)
        )
    assert [r.levelname for r in caplog.records] == ["DEBUG"]
    assert SparseStructureFlowTdfyWrapper(**arguments(num_heads=None, num_head_channels=8)).num_heads == 3


def test_frozen_shared_parameters() -> None:
    """Time embedding and the blocks' own modulation; not the step's embedding, nor a modulation of the model."""
    frozen = [
        n for n, p in sparse_network(**SHARED, freeze_shared_parameters=True).named_parameters() if not p.requires_grad
    ]
    blocks = [f"blocks.{b}.adaLN_modulation.1.{what}" for b in range(2) for what in ("weight", "bias")]
    time = [f"t_embedder.mlp.{layer}.{what}" for layer in (0, 2) for what in ("weight", "bias")]
    assert frozen == time + blocks
    shared = sparse_network(**SEPARATE, freeze_shared_parameters=True)
    assert [n for n, p in shared.named_parameters() if not p.requires_grad] == time


def test_configs_are_modules_plain_values_or_targets_and_are_not_changed() -> None:
    config = arguments(latent_share_transformer=MERGED)
    before = repr(config)
    keys = list(SparseStructureFlowTdfyWrapper(**config).state_dict())
    assert repr(config) == before
    at = "sam3d_objects.model.backbone.tdfy_dit.models.mm_latent"
    nodes = {
        name: {
            "_target_": f"{at}.Latent",
            **entry,
            "pos_embedder": {
                "_target_": f"{at}.{'Shape' if name == 'shape' else 'Learnt'}PositionEmbedder",
                **entry["pos_embedder"],
            },
        }
        for name, entry in config["latent_mapping"].items()
    }
    modules = {
        name: Latent(CHANNELS[name], WIDTH, LearntPositionEmbedder(model_channels=WIDTH, token_len=8))
        for name in CHANNELS
    }
    for mapping in (
        nodes,
        {"_target_": "sam3d_objects.config.utils.make_dict", **nodes},
        modules,
        nn.ModuleDict(modules),
    ):
        network = SparseStructureFlowTdfyWrapper(**{**config, "latent_mapping": mapping})
        assert list(network.state_dict()) == keys
    with pytest.raises(ValueError, match="expected model_channels with resolution"):
        SparseStructureFlowTdfyWrapper(
            **{
                **config,
                "latent_mapping": {"shape": {**config["latent_mapping"]["shape"], "pos_embedder": {"size": 3}}},
            }
        )


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_a_torso_of_less_precision(dtype: Any) -> None:
    """Linear weights of blocks alone; outputs have the dtype of the inputs and are near."""
    network, exact = sparse_network(**SHARED, torso_dtype=dtype), sparse_network(**SHARED)
    network.load_state_dict(exact.state_dict())
    names = dict(network.named_parameters())
    linear = {n for n in names if n.startswith("blocks.") and ".norm2." not in n and "_rms_norm." not in n}
    assert {n for n, p in names.items() if p.dtype != torch.float32} == linear
    latents, cond = inputs(2)
    with torch.no_grad():
        out = network(latents, 10.0, cond, d=1.0)
        assert {x.dtype for x in out.values()} == {torch.float32}
        assert far(out, exact(latents, 10.0, cond, d=1.0)) < 0.25
        double = network({m: x.double() for m, x in latents.items()}, 10.0, cond, d=1.0)
        assert {x.dtype for x in double.values()} == {torch.float64}
        assert far(double, {m: x.double() for m, x in out.items()}) < CLOSE


def test_autocast_keeps_float32_weights_and_outputs() -> None:
    network = sparse_network(**SHARED)
    latents, cond = inputs(2)
    exact = network(latents, 10.0, cond, d=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(latents, 10.0, cond, d=1.0)
    assert {x.dtype for x in out.values()} == {torch.float32}
    assert 0 < far(out, exact) < 0.25
    read_out(out).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
