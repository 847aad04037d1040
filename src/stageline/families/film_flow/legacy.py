"""Import of a legacy Lightning `.ckpt`: read without executing anything, restore the decoder stages, rename, account.

The result is a raw config, tensors under our names and a report. Every tensor of the file becomes one of ours, and
every one of ours comes from the file; what the file does not say about itself is either given in the config's `import`
section or assumed, and each assumption stands in the report.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stageline.checkpoint.legacy import load_torch_file
from stageline.errors import CheckpointError, Faults
from stageline.families.film_flow.film import FilmLimit
from stageline.families.film_flow.film_plan import FilmPlan
from stageline.families.film_flow.fourier import half_plane
from stageline.families.film_flow.legacy_names import MULTI_TASK, legacy_evidence, map_names, unet_prefix
from stageline.families.film_flow.model import FilmFlowModel
from stageline.families.film_flow.restore import Restored, restore_stages
from stageline.families.film_flow.unet import BackboneSettings


def import_legacy(
    path: Path, config_raw: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """A legacy checkpoint -> (raw config for stageline, tensors under our names, report).

    config_raw: the user's raw config; its `import` section answers what the file leaves open (`film_stages`,
    `apply_point`, `vlm_scope`, `allow_globals`), its other sections are kept.
    Raises CheckpointError with the codes of `restore_stages`, E_UNSUPPORTED, E_TENSORS.
    """
    answers = config_raw.get("import") or {}
    checkpoint = load_torch_file(path, tuple(answers.get("allow_globals") or ()))
    tensors, hyper = _contents(checkpoint, str(path))
    multi_task = sorted(name for name in tensors if MULTI_TASK.search(name))
    if multi_task:
        raise CheckpointError(
            f"{path}: a multi-task backbone ({', '.join(multi_task[:4])}, …)",
            remedy="only single-task checkpoints can be imported",
            code="E_UNSUPPORTED",
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    prefix = unet_prefix(tensors, str(path))
    evidence = legacy_evidence(str(path), shapes, hyper, _plain(checkpoint.get("vlm_film_trained_stages")), prefix)
    restored = restore_stages(evidence, answers.get("film_stages"))
    renamed, unknown = map_names(tensors, prefix, restored.stages)
    faults = Faults(CheckpointError, str(path), "the file is not of the supported kind; nothing was written")
    for name in unknown:
        faults.add(f"{name} {list(shapes[name])}: left over, no rule knows this tensor", code="E_TENSORS")
    new = {ours: _converted(ours, tensors[old]) for old, ours in renamed.items()}
    reading = LegacyReading(str(path), new, hyper, restored, answers)
    model = reading.build(faults)
    new |= {name: buffer.clone() for name, buffer in _strengths().items()}
    _account(model, new, {ours: old for old, ours in renamed.items()}, faults)
    faults.raise_if_any()
    report = {
        "source": str(path),
        "weights": "ema" if "current_model_state" in checkpoint else "raw",
        "film_stages": list(restored.stages),
        "stages_origin": restored.origin,
        "levels": dict(restored.levels),
        "warnings": list(restored.warnings),
        "assumptions": reading.assumptions,
        "num_tensors": len(renamed),
        "num_fourier_maps": sum(name.endswith("filter.map") for name in new),
        "hyper_parameters": {key: repr(value) for key, value in sorted(hyper.items())},
        "plan": model.plan.to_json(),
        "plan_fingerprint": model.plan_fingerprint,
    }
    return reading.raw_config(config_raw), new, report


def _contents(checkpoint: Any, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and hyper-parameters of a Lightning checkpoint, the latter as plain values."""
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"{where}: holds a {type(checkpoint).__name__}",
            remedy="give a Lightning checkpoint",
            code="E_UNSUPPORTED",
        )
    state, hyper = checkpoint.get("state_dict"), checkpoint.get("hyper_parameters") or {}
    hyper = vars(hyper) if isinstance(hyper, argparse.Namespace) else hyper
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{where}: no `state_dict` of tensors (keys: {sorted(map(str, checkpoint))})",
            remedy="give a Lightning checkpoint",
            code="E_UNSUPPORTED",
        )
    if not isinstance(hyper, Mapping):
        raise CheckpointError(
            f"{where}: hyper_parameters are a {type(hyper).__name__}, expected a mapping", code="E_UNSUPPORTED"
        )
    return dict(state), {str(key): _plain(value) for key, value in hyper.items()}


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's; containers likewise."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _converted(name: str, tensor: Tensor) -> Tensor:
    """Fourier maps lose their redundant half; everything else is copied as it is."""
    if name.endswith("filter.map") and tensor.ndim == 3:
        return half_plane(tensor)
    return tensor.detach().clone().contiguous()


def _strengths() -> dict[str, Tensor]:
    """A finished model applies FiLM fully; it has no gate."""
    return {"schedule.film_strength": torch.ones(()), "schedule.gate_strength": torch.ones(())}


def _account(model: FilmFlowModel, new: Mapping[str, Tensor], origin: Mapping[str, str], faults: Faults) -> None:
    """Names and shapes on both sides must be the same."""
    own = model.state_dict()
    for name in sorted(set(own) - set(new)):
        faults.add(f"{name} {list(own[name].shape)}: missing, no tensor of the file becomes it", code="E_TENSORS")
    for name in sorted(set(new) - set(own)):
        faults.add(f"{origin[name]} (ours: {name}): left over, the model has no such tensor", code="E_TENSORS")
    for name in sorted(set(new) & set(own)):
        if new[name].shape != own[name].shape:
            found, expected = list(new[name].shape), list(own[name].shape)
            faults.add(f"{origin[name]} (ours: {name}): shape {found}, expected {expected}", code="E_TENSORS")


class LegacyReading:
    """What the tensors say about the model, checked against the hyper-parameters where these say it too.

    tensors: under our names.  answers: the user's `import` section.  assumptions: filled while reading.
    """

    def __init__(
        self,
        where: str,
        tensors: Mapping[str, Tensor],
        hyper: Mapping[str, Any],
        restored: Restored,
        answers: Mapping[str, Any],
    ) -> None:
        self.where = where
        self.tensors = tensors
        self.hyper = hyper
        self.stages = restored.stages
        self.assumptions: list[str] = []
        self.channels = tuple(restored.levels["decoder_channels"])
        self.apply_point = self._answer("apply_point", answers.get("apply_point"), "post_block1")
        self.vlm_scope = self._answer("vlm_scope", answers.get("vlm_scope"), "crop")
        self.mode = self._stated("mode", "dfm_binary")
        self.time_scale = float(self._stated("time_scale", 1000.0))
        self.cond_source = self._cond_source()
        self.plan = FilmPlan(
            decoder_channels=self.channels,
            stages=self.stages,
            stages_origin=restored.origin,
            apply_point=self.apply_point,
            cond_dim=self._size(f"film.{self._first}.fc1.weight", 1, 256),
            head_hidden=self._size(f"film.{self._first}.fc1.weight", 0, 256),
            head_variant="relu_v0" if self.stages else "silu_v1",
            vlm_scope=self.vlm_scope,
            cond_source=self.cond_source,
        )
        self.settings = self._settings()
        if (hyper.get("junction_gating_config") or {}).get("enabled"):
            self.assumptions.append("gate: off; the file does not say whether its decoder applied the gate")
        self.assumptions.append("mid transformer: inner tensor names and order of its parts as described in the docs")

    @property
    def _first(self) -> int:
        return self.stages[0] if self.stages else -1

    def _answer(self, key: str, given: Any, default: str) -> Any:
        if given is None:
            self.assumptions.append(f"{key}: {default} (the file does not say; import.{key} overrides)")
        return given or default

    def _stated(self, key: str, default: Any) -> Any:
        value = self.hyper.get(key)
        if value is None:
            self.assumptions.append(f"{key}: {default} (the hyper-parameters do not say)")
        return default if value is None else value

    def _size(self, name: str, axis: int, absent: int) -> int:
        tensor = self.tensors.get(name)
        return absent if tensor is None or tensor.ndim <= axis else int(tensor.shape[axis])

    def _cond_source(self) -> str:
        """By the projection the file holds; a file with both does not say which one fed the heads."""
        kinds = {
            "probe": any(name.startswith("cond.text_proj.") for name in self.tensors),
            "image": any(name.startswith("cond.image_proj.") for name in self.tensors),
        }
        if all(kinds.values()):
            raise CheckpointError(
                f"{self.where}: the file holds an image and a text projection, and does not say which fed the heads",
                remedy="export the checkpoint with one of them",
                code="E_AMBIGUOUS",
            )
        return "probe" if kinds["probe"] else "image"

    def _settings(self) -> BackboneSettings:
        width = self._size("backbone.mask_stem.weight", 0, 0)
        levels = len(self.channels)
        size = self._size("backbone.fuse.0.filter.map", 1, 0)
        stated = self.hyper.get("image_size")
        if stated is not None and int(stated) != size:
            raise CheckpointError(
                f"{self.where}: the Fourier maps are for images of {size}, the hyper-parameters say {stated}",
                code="E_EVIDENCE_CONFLICT",
            )
        full = [level for level in range(levels) if f"backbone.enc.{level}.attn.out_norm.weight" not in self.tensors]
        depth = len({name.split(".")[3] for name in self.tensors if name.startswith("backbone.mid.layers.")})
        if not width or not size or not depth or any(c % width for c in self.channels):
            raise CheckpointError(
                f"{self.where}: not a backbone that can be imported (stem {width}, Fourier maps {size}, "
                f"{depth} mid transformer layers, decoder channels {list(self.channels)})",
                remedy="expected a dual U-Net with static Fourier maps and a mid transformer",
                code="E_UNSUPPORTED",
            )
        return BackboneSettings(
            model_channels=width,
            channel_mult=tuple(c // width for c in reversed(self.channels)),
            image_channels=self._size("backbone.image_stem.weight", 1, 1),
            image_size=size,
            attn_resolutions=tuple(size >> level for level in full),
            backbone_variant="msd_v0",
            time_scale=self.time_scale,
            mid_layers=depth,
        )

    @property
    def cond_features(self) -> int:
        """F, from the projection."""
        key = "cond.text_proj.fc1.weight" if self.cond_source == "probe" else "cond.image_proj.proj.weight"
        return self._size(key, 1, 0)

    @property
    def cond_hidden(self) -> int:
        """Inner width of the probe projection."""
        return self._size("cond.text_proj.fc1.weight", 0, 256)

    @property
    def cond_layernorm(self) -> bool:
        """Whether the heads normalise their condition."""
        return not self.stages or f"film.{self._first}.norm.weight" in self.tensors

    def build(self, faults: Faults) -> FilmFlowModel:
        """The model these tensors belong to, on the meta device: for names and shapes."""
        if self.stages and not self.cond_features:
            faults.add("the file has FiLM heads but no condition projection", code="E_TENSORS")
            faults.raise_if_any()
        with torch.device("meta"):
            return FilmFlowModel(
                self.plan,
                self.settings,
                image_conditioning="dual",
                cond_features=self.cond_features,
                cond_hidden=self.cond_hidden,
                film_limit=FilmLimit(),
                cond_layernorm=self.cond_layernorm,
            )

    def raw_config(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """The config that rebuilds the model; sections of `base` are kept, its `model` keys must not contradict."""
        settings = self.settings
        model: dict[str, Any] = {
            "arch_name": "filmflow_dual",
            "backbone_variant": "msd_v0",
            "image_channels": settings.image_channels,
            "image_size": settings.image_size,
            "model_channels": settings.model_channels,
            "channel_mult": list(settings.channel_mult),
            "attn_resolutions": list(settings.attn_resolutions),
            "time_scale": settings.time_scale,
            "mid_layers": settings.mid_layers,
            "mode": self.mode,
            "prediction": "endpoint" if self.mode == "dfm_binary" else "velocity",
            "use_vlm_film": bool(self.stages),
        }
        for key in ("timesteps", "num_ensemble"):
            if self.hyper.get(key) is not None:
                model[key] = int(self.hyper[key])
        if self.stages:
            model |= self._film_config()
        return {**dict(base), "family": "film_flow", "model": {**dict(base.get("model") or {}), **model}}

    def _film_config(self) -> dict[str, Any]:
        vlm = dict(self.hyper.get("vlm_film_config") or {})
        config: dict[str, Any] = {
            "encoder": "precomputed",
            "feature_dim": self.cond_features,
            "cond_dim": self.plan.cond_dim,
            "film_hidden_dim": self.plan.head_hidden,
            "text_mlp_hidden_dim": self.cond_hidden,
            "cond_layernorm": self.cond_layernorm,
        }
        if vlm.get("model_name"):
            config |= {"model_name": str(vlm["model_name"]), "encoder": "qwen-vl"}
        return {
            "vlm_film_decoder_stages": list(self.stages),
            "film_apply_point": self.apply_point,
            "head_variant": self.plan.head_variant,
            "cond_source": self.cond_source,
            "vlm_scope": self.vlm_scope,
            "vlm_film_config": config,
        }
