"""Import of legacy checkpoints: exact for every subset of decoder stages, or refused with the reason."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from stageline.errors import CheckpointError
from stageline.families import parse_config
from stageline.families.film_flow.imports.legacy import import_legacy
from stageline.families.film_flow.model.construction import build_model
from stageline.families.film_flow.model.network import FilmFlowModel
from tests.families.film_flow.model.subsets import every_subset

Build = Callable[..., FilmFlowModel]
Write = Callable[..., Path]


def logits(model: FilmFlowModel, inputs: Any, tensors: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Of a batch. tensors: all of another model of this kind, in the place of its own."""
    call = (*inputs.positional(), inputs.condition if model.plan.stages else None)
    with torch.no_grad():
        return model(*call) if tensors is None else functional_call(model, tensors, call, strict=True)


@pytest.mark.parametrize("stages", every_subset(none=True))
def test_every_subset_comes_back_exactly(
    legacy_model: Build, write_legacy: Write, inputs: Any, stages: tuple[int, ...]
) -> None:
    """Acceptance check 6 (heads alone) and check 10."""
    model = legacy_model(stages)
    path = write_legacy(model)
    before = path.read_bytes()
    raw, tensors, report = import_legacy(path, {})
    assert path.read_bytes() == before
    assert report["film_stages"] == list(stages)
    assert report["stages_origin"] == "inferred"
    assert not stages or report["plan_fingerprint"] == model.plan_fingerprint
    assert raw["model"]["use_vlm_film"] is bool(stages)
    assert raw["model"].get("vlm_film_decoder_stages", []) == list(stages)
    assert set(tensors) == set(model.state_dict())
    # Maps are made symmetric on the way; what they do to real input is the same to rounding.
    assert torch.allclose(logits(model, inputs, tensors), logits(model, inputs), atol=1e-5)
    for name, tensor in model.state_dict().items():
        assert name.endswith("filter.map") or torch.equal(tensors[name], tensor), name


@pytest.mark.parametrize("source", ["image", "probe"])
@pytest.mark.parametrize("stages", [(), (0, 3)], ids=str)
def test_the_config_that_is_given_rebuilds_the_model(
    legacy_model: Build, write_legacy: Write, inputs: Any, stages: tuple[int, ...], source: str
) -> None:
    model = legacy_model(stages, plan={"cond_source": source})
    raw, tensors, report = import_legacy(write_legacy(model), {"run": "old"})
    again = build_model(parse_config(raw)).eval()
    assert not stages or again.plan_fingerprint == report["plan_fingerprint"]
    again.load_state_dict(tensors)
    assert torch.allclose(logits(again, inputs), logits(model, inputs), atol=1e-5)


def test_conflict_names_both_and_is_settled_by_the_import_section(legacy_model: Build, write_legacy: Write) -> None:
    path = write_legacy(legacy_model((2, 3)), {"vlm_film_trained_stages": [0, 1]})
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as error:
        import_legacy(path, {})
    assert error.value.code == "E_EVIDENCE_CONFLICT"
    for part in ("[0, 1]", "[2, 3]", str(path)):
        assert part in error.value.message
    report = import_legacy(path, {"import": {"film_stages": [2, 3]}})[2]
    assert report["stages_origin"] == "override"
    assert path.read_bytes() == before


def test_assumptions_are_reported_and_answers_replace_them(legacy_model: Build, write_legacy: Write) -> None:
    path = write_legacy(legacy_model((1,)), junction_gating_config={"enabled": True})
    raw, _, report = import_legacy(path, {"run": "old"})
    assert raw["run"] == "old"
    assert raw["model"]["film_apply_point"] == "post_block1"
    assert raw["model"]["vlm_scope"] == "crop"
    said = "\n".join(report["assumptions"])
    for word in ("apply_point: post_block1", "vlm_scope: crop", "time_scale", "gate: off", "mid transformer"):
        assert word in said
    answers = {"import": {"apply_point": "post_block2", "vlm_scope": "image"}}
    raw, _, report = import_legacy(path, answers)
    assert (raw["model"]["film_apply_point"], raw["model"]["vlm_scope"]) == ("post_block2", "image")
    assert "apply_point" not in "\n".join(report["assumptions"])


def test_probe_projection_is_recognised(legacy_model: Build, write_legacy: Write, inputs: Any) -> None:
    model = legacy_model((1, 3), plan={"cond_source": "probe"}, cond_hidden=9)
    raw, tensors, report = import_legacy(write_legacy(model), {})
    assert raw["model"]["cond_source"] == "probe"
    assert raw["model"]["vlm_film_config"]["text_mlp_hidden_dim"] == 9
    assert raw["model"]["vlm_film_config"]["feature_dim"] == 12
    assert report["plan_fingerprint"] == model.plan_fingerprint
    assert torch.allclose(logits(model, inputs, tensors), logits(model, inputs), atol=1e-5)


def test_heads_without_layernorm(legacy_model: Build, write_legacy: Write) -> None:
    model = legacy_model((0, 3), cond_layernorm=False)
    raw, tensors, _ = import_legacy(write_legacy(model), {})
    assert raw["model"]["vlm_film_config"]["cond_layernorm"] is False
    assert "film.0.norm.weight" not in tensors


def test_averaged_weights_are_named(legacy_model: Build, write_legacy: Write) -> None:
    path = write_legacy(legacy_model(()), {"current_model_state": {}})
    assert import_legacy(path, {})[2]["weights"] == "ema"


def refused(code: str, path: Path, answers: dict[str, Any] | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        import_legacy(path, answers or {})
    assert error.value.code == code
    return str(error.value)


def test_left_over_and_missing_tensors_are_refused_together(legacy_model: Build, write_legacy: Write) -> None:
    """Acceptance check 10."""

    def edit(checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        state["loss.weight"] = torch.ones(1)
        state["unet.base_unet.extra.bias"] = torch.ones(1)
        del state["unet.base_unet.downs.1.0.block1.proj.bias"]
        state["unet.base_unet.mid_block1.block1.norm.weight"] = torch.ones(3)

    text = refused("E_TENSORS", write_legacy(legacy_model((2,)), edit=edit))
    assert "loss.weight [1]: left over" in text
    assert "unet.base_unet.extra.bias [1]: left over" in text
    assert "backbone.enc.1.res1.block1.conv.bias [16]" not in text
    assert "backbone.enc.1.res1.block1.conv.bias [8]: missing" in text
    assert "unet.base_unet.mid_block1.block1.norm.weight (ours: backbone.mid.res1.block1.norm.weight)" in text


@pytest.mark.parametrize("head", ["hard_head", "soft_head"])
def test_multi_task_backbones_are_unsupported(legacy_model: Build, write_legacy: Write, head: str) -> None:
    def edit(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"][f"unet.{head}.weight"] = torch.ones(1)

    assert head in refused("E_UNSUPPORTED", write_legacy(legacy_model(()), edit=edit))


def test_a_head_without_its_neighbour_is_refused(legacy_model: Build, write_legacy: Write) -> None:
    def edit(checkpoint: dict[str, Any]) -> None:
        for name in [n for n in checkpoint["state_dict"] if "vlm_film_heads.1." in n]:
            del checkpoint["state_dict"][name]

    path = write_legacy(legacy_model((0, 2, 3)), {"vlm_film_trained_stages": [0, 2, 3]}, edit)
    refused("E_EVIDENCE_CONFLICT", path)


def test_both_projections_are_ambiguous(legacy_model: Build, write_legacy: Write) -> None:
    def edit(checkpoint: dict[str, Any]) -> None:
        for layer in ("0", "2"):
            name = f"vlm_film_conditioner.text_to_cond.mlp.{layer}"
            checkpoint["state_dict"] |= {f"{name}.weight": torch.ones(10, 10), f"{name}.bias": torch.ones(10)}

    refused("E_AMBIGUOUS", write_legacy(legacy_model((0,)), edit=edit))


def test_hyper_parameters_must_fit_the_tensors(legacy_model: Build, write_legacy: Write) -> None:
    assert "[32, 24, 16, 8]" in refused("E_EVIDENCE_CONFLICT", write_legacy(legacy_model((0,)), model_channels=16))
    assert "64" in refused("E_EVIDENCE_CONFLICT", write_legacy(legacy_model(()), image_size=64))


class Foreign:
    """Not a plain value."""


def test_a_foreign_object_is_refused_by_name_and_never_run(legacy_model: Build, write_legacy: Write) -> None:
    """Acceptance check 10."""
    path = write_legacy(legacy_model(()), callbacks=Foreign())
    assert "Foreign" in refused("", path)


@pytest.mark.parametrize(
    ("allow", "value"),
    [("pathlib", pathlib.PurePosixPath("a/b")), ("numpy", np.float64(0.5)), ("argparse", argparse.Namespace(a=1))],
)
def test_harmless_objects_need_to_be_allowed(legacy_model: Build, write_legacy: Write, allow: str, value: Any) -> None:
    path = write_legacy(legacy_model((1,)), save_dir=value)
    refused("", path)
    report = import_legacy(path, {"import": {"allow_globals": [allow]}})[2]
    assert report["film_stages"] == [1]


def test_hyper_parameters_as_a_namespace(legacy_model: Build, write_legacy: Write) -> None:
    def edit(checkpoint: dict[str, Any]) -> None:
        hyper = {**checkpoint["hyper_parameters"], "vlm_film_decoder_stages": [1]}
        checkpoint["hyper_parameters"] = argparse.Namespace(**hyper)

    path = write_legacy(legacy_model((1,)), edit=edit)
    assert import_legacy(path, {"import": {"allow_globals": ["argparse"]}})[2]["stages_origin"] == "hparams"


@pytest.mark.parametrize("content", [[1, 2], {"weights": {}}, {"state_dict": {"a": 1}}], ids=str)
def test_other_files_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    refused("E_UNSUPPORTED", tmp_path / "a.ckpt")
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "a.ckpt")
    refused("E_UNSUPPORTED", tmp_path / "a.ckpt")
