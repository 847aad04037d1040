"""Typed config, stages, facts and fact rules of film_flow: the torch-free half of the family's record.

Sections stand in `sections.py`, published spellings in `seed_keys.py`, presets in `presets.py`, what a parent hands on
in `inheritance.py`. Everything here is a function of the config alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from stageline.config import OPERATIONAL, RunConfig
from stageline.errors import ConfigError, Faults
from stageline.families import Comparison, FamilyConfig
from stageline.families.film_flow.agreement import agree_facts, agree_stages, name_facts, trained_film
from stageline.families.film_flow.film_plan import FilmPlan, StagesOrigin, decoder_channels, resolve_gate_stages
from stageline.families.film_flow.inheritance import inherit
from stageline.families.film_flow.presets import PRESETS
from stageline.families.film_flow.rules import raise_faults
from stageline.families.film_flow.sections import DataConfig, EvaluateConfig, ImportConfig, ModelConfig
from stageline.families.film_flow.seed_keys import KeyFault, normalise
from stageline.stage import Stage, Stages

__all__ = ["FAMILY_CONFIG", "STAGES", "DataConfig", "EvaluateConfig", "FilmFlowConfig", "ImportConfig", "ModelConfig"]

NO_IDENTITY = frozenset(
    {
        *("learning_rate", "weight_decay", "use_ema", "ema_decay"),
        *("timesteps", "solver", "num_ensemble", "use_sliding_infer", "patch_plan"),
        *("loss", "lambda_auxiliary", "lambda_cldice", "junction_weight", "t_sampling", "dropout"),
        *("film_heads", "film_warmup_epochs", "film_ramp_epochs"),
    }
)
"""Keys of `model` that say how it is optimised or sampled: two runs that differ in them alone are the same run,
trained further or again. Everything else of `model` says what is trained."""

STAGES = Stages(
    Stage(
        "backbone",
        trains=("*",),
        objective="flow matching without condition",
        steps=20_000,
        metric="dice",
        patch={
            "model.use_vlm_film": False,
            "model.vlm_film_decoder_stages": None,
            "model.junction_gating_config.apply_stages": "same_as_film",
        },
    ),
    Stage(
        "film",
        trains=("*",),
        objective="flow matching with FiLM",
        steps=40_000,
        metric="dice",
        parents={"default": "backbone"},
        optional_parents=frozenset({"default"}),
        also_from={"default": ("film",)},
    ),
)


class FilmFlowConfig(RunConfig):
    """A run of film_flow."""

    family: Literal["film_flow"] = "film_flow"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    import_: ImportConfig = Field(default=ImportConfig(), alias="import", json_schema_extra=OPERATIONAL)
    """Answers for `stageline checkpoint import`."""

    IDENTITY: ClassVar[tuple[str, ...]] = (
        *("family", "seed", "data"),
        *(f"model.{key}" for key in ModelConfig.model_fields if key not in NO_IDENTITY),
    )

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **kwargs: Any) -> FilmFlowConfig:
        """Read the published spellings first, then validate; the faults of both are reported together."""
        raw = json.loads(json_data)
        if not isinstance(raw, Mapping):
            return super().model_validate_json(json_data, **kwargs)
        plain, faults = normalise(raw)
        lines = [_as_line(fault) for fault in faults]
        try:
            config = super().model_validate_json(json.dumps(plain), **kwargs)
        except ValidationError as error:
            raise ValidationError.from_exception_data(cls.__name__, [*lines, *_lines_of(error)]) from error
        if lines:
            raise ValidationError.from_exception_data(cls.__name__, lines)
        return config

    @model_validator(mode="after")
    def _consistent(self) -> FilmFlowConfig:
        vlm = self.model.vlm_film_config
        faults: list[tuple[str, str]] = []
        text = "text" in self.model.cond_source
        if self.model.image_size != self.data.image_size:
            sentence = f"model.image_size {self.model.image_size} is not data.image_size {self.data.image_size}"
            faults.append(("E_CONTRADICTION", sentence))
        if self.model.use_vlm_film and text and self.data.name in ("trees", "retina", "folder"):
            known = vlm.prompt_template or self.data.name in (vlm.prompt_templates or {}) or self.data.prompts_file
            if not known:
                faults.append(
                    (
                        "",
                        f"model.cond_source {self.model.cond_source!r} needs a prompt, and data {self.data.name!r} "
                        "bring none; set model.vlm_film_config.prompt_template",
                    )
                )
        if self.evaluate.split == "test" and not self.data.test_dir and not self.data.num_test:
            faults.append(("", "evaluate.split 'test' needs data.test_dir or data.num_test"))
        raise_faults(faults)
        return self


def _as_line(fault: KeyFault) -> InitErrorDetails:
    error = PydanticCustomError("value_error", "{sentence}", {"sentence": f"{fault.code}: {fault.sentence}"})
    return InitErrorDetails(type=error, loc=fault.path, input=fault.found)


def _lines_of(error: ValidationError) -> list[InitErrorDetails]:
    return [
        InitErrorDetails(type=line["type"], loc=line["loc"], input=line["input"], ctx=line.get("ctx", {}))
        for line in error.errors(include_url=False)
    ]


def film_plan(config: FilmFlowConfig, origin: StagesOrigin | None = None) -> FilmPlan:
    """The FiLM plan of a stage config; origin `default` where the config named no decoder stages."""
    model, vlm, gate = config.model, config.model.vlm_film_config, config.model.junction_gating_config
    channels = decoder_channels(model.model_channels, model.channel_mult)
    stages = model.vlm_film_decoder_stages or ()
    said = not stages or "vlm_film_decoder_stages" in model.model_fields_set
    gated = resolve_gate_stages(gate.apply_stages, stages, channels) if gate.enabled and stages else ()
    return FilmPlan(
        decoder_channels=channels,
        stages=stages,
        stages_origin=origin or ("config" if said else "default"),
        apply_point=model.film_apply_point,
        cond_dim=vlm.cond_dim,
        head_hidden=vlm.film_hidden_dim,
        head_variant=model.head_variant,
        gate_stages=gated,
        gate_value=gate.gate_value_in_junction,
        vlm_scope=model.vlm_scope,
        cond_source=model.cond_source,
    )


def has_junction_head(config: FilmFlowConfig) -> bool:
    """Whether the model has a junction head of its own."""
    gate = config.model.junction_gating_config
    return gate.enabled and gate.source == "head"


def condition_features(config: FilmFlowConfig) -> int:
    """F: size of the feature vector that reaches the model; 0 without FiLM. Picture and text together are two."""
    if not config.model.use_vlm_film:
        return 0
    parts = 2 if config.model.cond_source == "image+text" else 1
    return parts * (config.model.vlm_film_config.feature_dim or 0)


def facts(config: FilmFlowConfig) -> dict[str, Any]:
    """What a checkpoint of a stage with this config says about itself."""
    model, vlm, plan = config.model, config.model.vlm_film_config, film_plan(config)
    film = bool(plan.stages)
    return {
        "vlm_film_trained_stages": list(plan.stages),
        "decoder_channels": list(plan.decoder_channels),
        "plan_fingerprint": plan.fingerprint if film else "",
        "apply_point": plan.apply_point if film else "",
        "head_variant": plan.head_variant if film else "",
        "gate_stages": list(plan.gate_stages),
        "gate_value": plan.gate_value if plan.gate_stages else 1.0,
        "vlm_scope": plan.vlm_scope if film else "",
        "cond_source": plan.cond_source if film else "",
        "cond_encoder": f"{vlm.encoder}:{vlm.model_name or ''}@{vlm.revision or ''}" if film else "",
        "cond_features": condition_features(config),
        "cond_dim": plan.cond_dim if film else 0,
        "image_conditioning": model.image_conditioning,
        "backbone_variant": model.backbone_variant,
        "image_channels": model.image_channels,
        "junction_head": has_junction_head(config),
        "mode": model.mode,
        "prediction": model.prediction,
        "target_kind": model.target_kind,
        "time_scale": model.time_scale,
        "image_norm": config.data.image_norm,
    }


def _rule(resume: Comparison, seed: Comparison, evaluate: Comparison) -> dict[str, Comparison]:
    return {"resume": resume, "seed": seed, "evaluate": evaluate}


_FILM: dict[str, Comparison] = _rule("equal", "report", "equal")
"""A parent without FiLM, or with other decoder stages, may seed (`inherit` says how); nothing else may differ."""
FACT_RULES: dict[str, dict[str, Comparison]] = {
    "vlm_film_trained_stages": _rule("equal", "report", "equal"),
    "plan_fingerprint": _rule("equal", "report", "report"),
    **dict.fromkeys(("apply_point", "head_variant", "gate_stages", "gate_value", "vlm_scope"), _FILM),
    **dict.fromkeys(("cond_source", "cond_encoder", "cond_features", "cond_dim", "junction_head"), _FILM),
}
"""Facts that are not named here must be equal for every verb. An ablation is `evaluate.film_active`, never another list
of trained decoder stages."""


def asked(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that a user's own config states; keys that are absent or null state nothing."""
    named = {
        "vlm_film_trained_stages": "vlm_film_decoder_stages",
        "apply_point": "film_apply_point",
        **{key: key for key in ("head_variant", "vlm_scope", "cond_source", "mode", "prediction", "target_kind")},
        **{key: key for key in ("image_conditioning", "backbone_variant", "image_channels", "time_scale")},
        "gate_stages": "junction_gating_config",
    }
    stated = raw.get("model")
    stated = stated if isinstance(stated, Mapping) else {}
    own = facts(FilmFlowConfig.model_validate_json(json.dumps(raw)))
    result = {fact: own[fact] for fact, key in named.items() if stated.get(key) is not None}
    gate = stated.get("junction_gating_config")
    if not isinstance(gate, Mapping) or gate.get("apply_stages") in (None, "same_as_film"):
        result.pop("gate_stages", None)
    data = raw.get("data")
    if isinstance(data, Mapping) and data.get("image_norm") is not None:
        result["image_norm"] = own["image_norm"]
    return result


def agree(
    asked: Mapping[str, Any], found: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Refuse an evaluation whose config states other FiLM decoder stages, or another wiring, than the checkpoint has.

    asked: facts the user states.  found: the checkpoint's.  shapes: its tensors, which must prove what it says.
    Raises CheckpointError E_CFG_VS_CKPT, or E_EVIDENCE_CONFLICT where a checkpoint contradicts itself.
    """
    trained = trained_film(where, shapes, found.get("vlm_film_trained_stages"))
    agree_stages("evaluate", asked.get("vlm_film_trained_stages"), trained)
    agree_facts("evaluate", asked, found, where)


def data_key(config: FilmFlowConfig) -> dict[str, Any]:
    """The part of the config that prepared data depend on: what is made or read, and what features are made with."""
    model, vlm, gate = config.model, config.model.vlm_film_config, config.model.junction_gating_config
    made = config.data.name in ("prompted_trees", "trees")
    key: dict[str, Any] = {
        "data": config.data.model_dump(mode="json", exclude={"flips", "num_samples_per_image", "train_bs"}),
        "seed": config.seed if made else None,
        "image_channels": model.image_channels,
        "target_kind": model.target_kind,
        "junction": {"degree_threshold": gate.degree_threshold, "radius_px": gate.radius_px},
        "prompts": {"template": vlm.prompt_template, "templates": vlm.prompt_templates},
    }
    if model.use_vlm_film:
        trained = {"cond_dim", "film_hidden_dim", "text_mlp_hidden_dim", "cond_layernorm"}
        placed = {"device_map", "cache_dir", "cache_only", "prompt_template", "prompt_templates"}
        key["condition"] = {
            "source": model.cond_source,
            "scope": model.vlm_scope,
            "encoder": vlm.model_dump(mode="json", exclude=trained | placed),
        }
    return key


def source_files(config: FilmFlowConfig) -> tuple[Path, ...]:
    """The files that prepared data are made from, sorted; a folder that is missing gives none (preparing names it)."""
    data, vlm = config.data, config.model.vlm_film_config
    found = [Path(data.prompts_file)] if data.prompts_file else []
    if config.model.use_vlm_film and vlm.encoder == "precomputed" and vlm.model_name:
        found.append(Path(vlm.model_name))
    for folder in (data.train_dir, data.val_dir, data.test_dir):
        for part in ("image", "label"):
            path = Path(folder or "") / part
            if folder and path.is_dir():
                found += [file for file in path.iterdir() if file.is_file()]
    return tuple(sorted(found))


def num_samples(config: FilmFlowConfig, prepared: Mapping[str, Any]) -> int | None:
    """Training samples of one epoch, from the facts of prepared data."""
    images = prepared.get("splits", {}).get("train", {}).get("images")
    return images * config.data.num_samples_per_image if isinstance(images, int) else None


def check(config: FilmFlowConfig, stage: Stage) -> None:
    """Everything about a stage's config that can be refused before data or model are touched."""
    faults = Faults(ConfigError, f"config of stage {stage.name}")
    model = config.model
    if stage.name == "backbone" and model.use_vlm_film:
        faults.add("model.use_vlm_film is true, but the stage 'backbone' has no FiLM", code="E_CONTRADICTION")
    if stage.name == "film" and not model.use_vlm_film:
        faults.add("model.use_vlm_film is false: use stages=[backbone] to train without FiLM", code="E_CONTRADICTION")
    if stage.name == "film":
        _add_evaluation_faults(faults, config, model.vlm_film_decoder_stages or ())
    faults.raise_if_any()


def check_evaluation(config: FilmFlowConfig, trained: Sequence[int]) -> None:
    """What `evaluate` asks of a model with FiLM heads at the decoder stages `trained`. Raises ConfigError."""
    faults = Faults(ConfigError, "config section evaluate")
    _add_evaluation_faults(faults, config, trained)
    faults.raise_if_any()


def _add_evaluation_faults(faults: Faults, config: FilmFlowConfig, trained: Sequence[int]) -> None:
    active = config.evaluate.film_active
    missing = sorted(set(active or ()) - set(trained))
    if missing:
        faults.add(
            f"evaluate.film_active names {missing}, but FiLM is trained at {list(trained)} only: no trained head "
            "exists there",
            code="E_CFG_VS_CKPT",
        )
    if active is not None and not active:
        faults.add("evaluate.film_active is empty; to switch FiLM off say evaluate.film_mode=off", code="E_EMPTY")
    gate = config.model.junction_gating_config
    if gate.enabled and gate.source == "gt" and not config.evaluate.oracle:
        faults.add(
            "model.junction_gating_config.source 'gt' reads the true junctions in evaluation; "
            "say evaluate.oracle=true to mark the result, or use 'head'"
        )


FAMILY_CONFIG = FamilyConfig(
    name="film_flow",
    config=FilmFlowConfig,
    stages=STAGES,
    presets=PRESETS,
    facts=facts,
    fact_rules=FACT_RULES,
    inherit=inherit,
    data_key=data_key,
    source_files=source_files,
    check=check,
    asked=asked,
    num_samples=num_samples,
    name_facts=name_facts,
    agree=agree,
)
