"""Small film_flow networks for property checks: 8 channels, 16², random weights, heads kicked off the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stageline.families.film_flow.conditions.bundle import ConditionBundle
from stageline.families.film_flow.config.film_plan import FilmPlan, decoder_channels
from stageline.families.film_flow.model.fourier import full_plane
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.families.film_flow.model.unet import BackboneSettings

FEATURES = 12
SIZE = 16


@dataclass(frozen=True)
class Inputs:
    """One batch of two samples."""

    x_t: Tensor
    t: Tensor
    image: Tensor
    condition: ConditionBundle

    def positional(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x_t, self.t, self.image


def _kick(model: FilmFlowModel) -> None:
    """Heads off the identity: every head's weights are a function of its decoder stage alone."""
    for key, head in model.film.items():
        rng = torch.Generator().manual_seed(1000 + int(key))
        for name, parameter in head.named_parameters():
            if name.startswith("fc2"):
                parameter.data.normal_(0.0, 0.3, generator=rng)
            elif name.startswith("fc1"):
                parameter.data.normal_(0.0, 0.2, generator=rng)


@pytest.fixture(scope="session")
def build() -> Callable[..., FilmFlowModel]:
    """build(stages, …): a model whose backbone, condition and heads do not depend on which stages are chosen."""

    def make(
        stages: Sequence[int] = (),
        *,
        kick: bool = True,
        gate: Sequence[int] = (),
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        plan: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> FilmFlowModel:
        shape = BackboneSettings(model_channels=8, channel_mult=channel_mult, image_size=SIZE, **(settings or {}))
        film_plan = FilmPlan(
            decoder_channels=decoder_channels(8, channel_mult),
            stages=tuple(stages),
            gate_stages=tuple(gate),
            **{"cond_dim": 10, "head_hidden": 14, **(plan or {})},
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = FilmFlowModel(film_plan, shape, cond_features=FEATURES if stages else 0, **kwargs)
            rng = torch.Generator().manual_seed(7)
            for name, parameter in model.backbone.named_parameters():
                # Layers that start at zero would hide what passes through them.
                if "attn" in name or "cross" in name:
                    parameter.data.normal_(0.0, 0.2, generator=rng)
        if model.cond is not None:
            rng = torch.Generator().manual_seed(77)
            for parameter in model.cond.parameters():
                parameter.data.normal_(0.0, 0.5, generator=rng)
        if kick:
            _kick(model)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def inputs() -> Inputs:
    """Two samples with conditions of their own."""
    rng = torch.Generator().manual_seed(3)
    return Inputs(
        torch.randn(2, 1, SIZE, SIZE, generator=rng),
        torch.tensor([0.2, 0.7]),
        torch.rand(2, 1, SIZE, SIZE, generator=rng) * 2 - 1,
        ConditionBundle(torch.randn(2, FEATURES, generator=rng), torch.tensor([True, True])),
    )


RES = {"time": "mlp.1", "block1.conv": "block1.proj", "block2.conv": "block2.proj", "shortcut": "res_conv"}
PARTS = {"res1": "0", "res2": "1", "attn": "2", "down": "3", "up": "3"}
MIDDLE = {"cross1": "0", "ff1": "1", "ff2": "2", "cross2": "3"}
ROOTS = {
    "mask_stem": "init_conv",
    "image_stem": "cond_init_conv",
    "time.fc1": "time_mlp.1",
    "time.fc2": "time_mlp.3",
    "out": "final_conv",
    "tail": "final_res_block",
    "mid.res1": "mid_block1",
    "mid.image_res1": "cond_mid_block1",
    "mid.res2": "mid_block2",
}
ATTENTION = {"norm.weight": "prenorm.g", "qkv.weight": "to_qkv.weight", "out_norm.weight": "to_out.1.g"}
CROSS = {"norm_match.weight": "prenorm_qk.g", "norm_value.weight": "prenorm_v.g"}
CROSS |= {"qk.weight": "to_qk.weight", "v.weight": "to_v.weight"}
COND = {"image_proj.proj": "image_to_cond.proj", "image_proj.norm": "image_to_cond.ln"}
COND |= {"text_proj.fc1": "text_to_cond.mlp.0", "text_proj.fc2": "text_to_cond.mlp.2"}


def _res(rest: str) -> str:
    for new, old in RES.items():
        rest = rest.replace(new, old)
    return rest


def _attention(rest: str, linear: bool) -> str:
    if rest in ATTENTION:
        return f"fn.{ATTENTION[rest]}"
    return "fn." + rest.replace("out.", "to_out.0." if linear else "to_out.")


def _level(rest: str, names: set[str], prefix: str, last: int) -> str:
    level, part, inner = rest.split(".", 2)
    if part == "attn":
        inner = _attention(inner, f"{prefix}.{level}.attn.out_norm.weight" in names)
    elif part == "up":
        inner = inner if int(level) == last else f"1.{inner}"
    elif part != "down":
        inner = _res(inner)
    return f"{level}.{PARTS[part]}.{inner}"


def _middle(rest: str) -> str:
    layer, part, inner = rest.split(".", 2)
    if part.startswith("ff"):
        inner = inner.replace("norm.weight", "0.g").replace("fc1", "1").replace("fc2", "3")
    else:
        inner = CROSS.get(inner, inner.replace("out.", "to_out."))
    return f"{layer}.{MIDDLE[part]}.fn.{inner}"


def legacy_name(name: str, names: set[str], stages: Sequence[int], last: int) -> str:
    """Our tensor name -> the legacy one; the inverse of the import's map, written on its own."""
    section, rest = name.split(".", 1)
    if section == "film":
        stage, inner = rest.split(".", 1)
        inner = inner.replace("norm", "ln").replace("fc1", "mlp.0").replace("fc2", "mlp.2")
        return f"vlm_film_heads.{list(stages).index(int(stage))}.{inner}"
    if section == "cond":
        stem, kind = rest.rsplit(".", 1)
        return f"vlm_film_conditioner.{COND[stem]}.{kind}"
    base = "unet.base_unet."
    for new, old in ROOTS.items():
        if rest.startswith(new + "."):
            return base + old + _res(rest.removeprefix(new))
    top, rest = rest.split(".", 1)
    if top == "mid":
        return base + "mid_transformer.layers." + _middle(rest.removeprefix("layers."))
    if top == "fuse":
        level, inner = rest.split(".", 1)
        inner = "ff_parser_attn_map" if inner == "filter.map" else inner
        if inner.startswith("norm_"):
            inner = inner.replace(".weight", ".g").replace(".bias", ".b")
        return f"{base}conditioners.{level}.{_res(inner)}"
    old = {"enc": "downs", "img_enc": "cond_downs", "dec": "ups"}[top]
    return f"{base}{old}.{_level(rest, names, f'backbone.{top}', last)}"


def legacy_checkpoint(model: FilmFlowModel, **hyper: Any) -> dict[str, Any]:
    """A Lightning checkpoint of the old program, as it would hold this (dual, msd_v0) model."""
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("schedule.")}
    last = model.plan.n_stages - 1
    old = {}
    for name, tensor in state.items():
        value = full_plane(tensor, 2 * (tensor.shape[-1] - 1)) if name.endswith("filter.map") else tensor.clone()
        old[legacy_name(name, set(state), model.plan.stages, last)] = value
    assert len(old) == len(state)
    settings = model.settings
    known = {
        "model_channels": settings.model_channels,
        "channel_mult": list(settings.channel_mult),
        "image_size": settings.image_size,
        "mode": "dfm_binary",
        "use_vlm_film": bool(model.plan.stages),
        "vlm_film_decoder_stages": None,
    }
    return {"epoch": 3, "global_step": 12, "state_dict": old, "hyper_parameters": {**known, **hyper}}


@pytest.fixture(scope="session")
def legacy_model(build: Callable[..., FilmFlowModel]) -> Callable[..., FilmFlowModel]:
    """legacy_model(stages): a model as only imported files have it; plain ones are made once, for nobody to change."""

    def make(stages: Sequence[int] = (), **kwargs: Any) -> FilmFlowModel:
        settings = {"backbone_variant": "msd_v0", "attn_resolutions": (SIZE // 8,)}
        plan = {"head_variant": "relu_v0" if stages else "silu_v1", "vlm_scope": "crop", **kwargs.pop("plan", {})}
        model = build(stages, image_conditioning="dual", settings=settings, plan=plan, **kwargs)
        rng = torch.Generator().manual_seed(9)
        for name, parameter in model.backbone.named_parameters():
            if name.endswith("filter.map"):
                parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=rng))
        return model

    once = cache(lambda stages, channel_mult: make(stages, channel_mult=channel_mult))

    def give(stages: Sequence[int] = (), channel_mult: tuple[int, ...] = (1, 2, 3, 4), **kwargs: Any) -> FilmFlowModel:
        if kwargs:
            return make(stages, channel_mult=channel_mult, **kwargs)
        return once(tuple(stages), channel_mult)

    return give


@pytest.fixture
def write_legacy(tmp_path: Path) -> Callable[..., Path]:
    """write_legacy(model, top={…}, edit, **hyper): the model as a legacy `.ckpt` file; edit changes what it holds."""

    def write(
        model: FilmFlowModel,
        top: dict[str, Any] | None = None,
        edit: Callable[[dict[str, Any]], Any] | None = None,
        name: str = "old.ckpt",
        **hyper: Any,
    ) -> Path:
        checkpoint = {**legacy_checkpoint(model, **hyper), **(top or {})}
        if edit is not None:
            edit(checkpoint)
        torch.save(checkpoint, tmp_path / name)
        return tmp_path / name

    return write
