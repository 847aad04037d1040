"""What a config may say: contradictions at once, which stage reads what, what stays frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stageline.errors import ConfigError
from stageline.families import parse_config, raw_preset
from stageline.families.sparse_structure.assembly import build_model
from stageline.families.sparse_structure.config import FAMILY_CONFIG, STAGES
from stageline.stage import stage_settings
from stageline.trainer.parameters import freeze_untrained

from .runs import at_stage, small

BRANCHES = ("sparse_flow", "global_sparse_flow")


def test_all_contradictions_come_at_once() -> None:
    raw = raw_preset("sparse_structure", "tiny")
    overrides = [
        "model.sparse_flow.num_heads=3",
        "model.modalities=[translation, shape, size]",
        "model.combine_mode=weighted",
        "model.global_flow_weight=0",
        "model.global_sparse_flow.scene_attention=pooled",
        "model.global_sparse_flow.pool=3",
        "model.global_sparse_flow.mlp_ratio=3.0",
        "model.global_sparse_flow.num_blocks=5",
        "data.num_objects=[4, 2]",
        "data.styles=[slab, gothic]",
        "data.allow_extra=true",
    ]
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, overrides)
    text = str(caught.value)
    assert "num_heads 3 do not divide" in text  # of a section inside `model`, whose own rules need it whole
    assert "num_objects [4, 2]" in text
    assert "styles ['slab', 'gothic']: different ones of slab, post, round, block" in text
    assert "allow_extra is read for latents alone" in text
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, overrides[1:])
    for part in (
        "modalities ['size'] are unknown",
        "'shape' stands first",
        "neither would ever have a gradient",
        "pool 3 does not divide",
        "mlp_ratio 3.0, sparse_flow.mlp_ratio 2.0",
        "num_blocks 5 are more than the 2",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective.loss_weights={shape: 1.0}"], "name each once"),
        (["objective.cfg_modalities=[size]"], r"cfg_modalities \['size'\]"),
        (["objective.time_window=[0.5, 0.2]"], "time_window"),
        (["objective.shared_draws=false", "objective.shared_draws_from=0.5"], "say when draws are shared"),
        (["data.name=latents", "data.data_root=x", "data.shuffle_objects=true"], "latents have none"),
        (["evaluate.steps=[]"], "at least one number"),
        (["model.sparse_flow.is_shortcut_model=false"], "both are told the step or none"),
        (["model.global_sparse_flow.block_map=[0, 1]"], "names 2 blocks for 1"),
        (["model.global_sparse_flow.block_map=[7]"], "are no blocks of 2"),
        (["model.global_sparse_flow.global_block_ids=[]"], "no block would see the scene"),
        (["data.name=latents"], "needs data_root"),
        (["data.data_root=x"], "for meshes and latents alone"),
    ],
)
def test_contradictions_are_refused(tmp_path: Any, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("stage", "overrides", "words"),
    [
        ("shape_vae", ["data.name=latents", "data.data_root=x"], "nothing to encode"),
        ("sparse_flow", ["model.sparse_flow.freeze_shared_parameters=true"], "keep the blocks closed"),
        ("sparse_flow", ["model.sparse_flow.force_zeros_cond=false"], "ignores the flag"),
        ("joint", ["model.global_sparse_flow.force_zeros_cond=false"], r"without model\.global_sparse_flow\.force"),
        ("global_flow", [f"model.{b}.is_shortcut_model=false" for b in BRANCHES], "cannot learn it"),
        ("joint", ["objective.guidance.unconditional_handling=discard"], "without any condition"),
        ("sparse_flow", ["objective.guidance.unconditional_handling=drop_tensors"], "say 'add_flag' or 'zeros'"),
        ("global_flow", ["objective.batch_mode=false"], "trainer.batch_size: 1"),
        ("global_flow", ["objective.batch_mode=false", "objective.shared_draws_from=0.5"], "need shared draws"),
    ],
)
def test_a_stage_refuses_what_it_cannot_do(tmp_path: Any, stage: str, overrides: list[str], words: str) -> None:
    config = at_stage(small(tmp_path, *overrides), stage)
    with pytest.raises(ConfigError, match=words):
        FAMILY_CONFIG.check(config, STAGES[stage])


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.self_consistency_prob=0", *(f"model.{b}.is_shortcut_model=false" for b in BRANCHES)],
        ["objective.guidance.unconditional_handling=zeros", *(f"model.{b}.force_zeros_cond=false" for b in BRANCHES)],
        ["objective.guidance.p_unconditional=0", *(f"model.{b}.force_zeros_cond=false" for b in BRANCHES)],
    ],
)
def test_flows_of_other_kinds_have_an_autoencoder_too(tmp_path: Any, overrides: list[str]) -> None:
    """Its stage reads neither networks nor objective, and asks nothing of them."""
    config = small(tmp_path, *overrides)
    for stage in STAGES:
        FAMILY_CONFIG.check(at_stage(config, stage.name), stage)


def test_a_stage_is_not_trained_anew_for_what_it_does_not_read(tmp_path: Any) -> None:
    changed = {
        "shape_vae": ("objective.time_mean=0", "model.global_sparse_flow.pool=2"),
        "sparse_flow": ("model.global_sparse_flow.pool=2", "model.combine_mode=weighted"),
    }
    for stage, overrides in changed.items():
        plain, other = (stage_settings(at_stage(small(tmp_path, *o), stage)) for o in ((), overrides))
        assert plain == other, stage
    assert stage_settings(at_stage(small(tmp_path), "global_flow")) != stage_settings(
        at_stage(small(tmp_path, *changed["sparse_flow"]), "global_flow")
    )


def test_latents_need_no_autoencoder(tmp_path: Any) -> None:
    config = small(tmp_path, "data.name=latents", "data.data_root=x")
    assert [stage.name for stage in FAMILY_CONFIG.selected(config)] == ["sparse_flow", "global_flow"]
    own = at_stage(config, "sparse_flow")
    with torch.device("meta"):
        model = build_model(own, STAGES["sparse_flow"])
    assert all(name.startswith("sparse_flow.") for name in model.state_dict())


@pytest.mark.parametrize("share_mod", [False, True])
def test_shared_parameters_stay_frozen_in_the_loop(tmp_path: Any, share_mod: bool) -> None:
    """The loop chooses anew what trains; the published setting counts there too, but for step embedder and shared
    modulation."""
    keys = [
        f"model.{b}.{key}"
        for b in ("sparse_flow", "global_sparse_flow")
        for key in ("freeze_shared_parameters=true", f"share_mod={str(share_mod).lower()}")
    ]
    config = at_stage(small(tmp_path, *keys, "model.combine_mode=weighted"), "joint")
    with torch.device("meta"):
        model = build_model(config, STAGES["joint"])
    trained = set(freeze_untrained(model, FAMILY_CONFIG.trains(config, STAGES["joint"]), "joint"))
    frozen = {name for name, _ in model.named_parameters()} - trained
    assert "global_flow_weight" in trained
    assert {"sparse_flow.d_embedder.mlp.0.weight", "global_sparse_flow.d_embedder.mlp.2.bias"} <= trained
    assert all(name.startswith("vae.") or "t_embedder" in name or "adaLN_modulation" in name for name in frozen)
    assert any("t_embedder" in name for name in frozen)
    assert any("blocks.0.adaLN_modulation" in name for name in frozen) != share_mod
