"""What the tensors of a legacy checkpoint say about its model: sizes, attention, condition; and what is assumed.

Sizes are read from the tensors and compared with the hyper-parameters where these say them too. The result is the model
the tensors belong to, and the config that rebuilds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from stageline.errors import CheckpointError, Faults
from stageline.families.film_flow.config.film_plan import FilmPlan
from stageline.families.film_flow.imports.evidence import Restored
from stageline.families.film_flow.model.film import FilmLimit
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.families.film_flow.model.unet import BackboneSettings
from stageline.layers.shapes_only import shapes_only


class LegacyReading:
    """One file's reading.

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
        self.assumptions.append(
            "mid transformer: order and inner names of its parts are our reading (see dual.MidLayer)"
        )

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
        with shapes_only():
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
