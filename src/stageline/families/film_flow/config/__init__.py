"""Typed config and stages of film_flow: the torch-free half of the family's record.

Stages stand in `stages.py`, sections in `model.py` and `sections.py`, published spellings in `spellings.py`, presets in
`presets.py`; what a checkpoint says in `facts.py`, what a parent hands on in `inheritance.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stageline.config import OPERATIONAL, KeySpellings, RunConfig, note_once
from stageline.contract import FamilyConfig, Proposal, StepWork
from stageline.errors import ConfigError, Faults
from stageline.families.film_flow.agreement import name_facts
from stageline.families.film_flow.config.film_plan import describe_stages
from stageline.families.film_flow.config.model import ModelConfig
from stageline.families.film_flow.config.presets import PRESETS
from stageline.families.film_flow.config.rules import raise_faults
from stageline.families.film_flow.config.sections import DataConfig, EvaluateConfig, ImportConfig
from stageline.families.film_flow.config.spellings import SPELLINGS
from stageline.families.film_flow.config.stages import STAGES
from stageline.families.film_flow.data.origin import evaluation_splits, splits
from stageline.families.film_flow.data.prompts import unseen_prompt
from stageline.families.film_flow.externals import externals
from stageline.families.film_flow.facts import FACT_RULES, agree, facts, film_plan, summary
from stageline.families.film_flow.inheritance import inherit
from stageline.families.film_flow.words import WORDS
from stageline.stage import Stage

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

    OF_EVALUATION: ClassVar[tuple[str, ...]] = ("data.num_test", "data.test_dir")

    SPELLINGS: ClassVar[KeySpellings] = SPELLINGS

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


def num_samples(config: FilmFlowConfig, stage: Stage, prepared: Mapping[str, Any]) -> int | None:
    """Training samples of one epoch, from the facts of prepared data."""
    del stage
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
    if stage.name == "film":
        _note_prompt(config)
    plan = film_plan(config)
    if plan.stages_origin == "default":
        known = describe_stages(plan.decoder_channels)
        note_once(f"model.vlm_film_decoder_stages is absent: FiLM at {list(plan.stages)} of {known}")


def check_evaluation(config: FilmFlowConfig, trained: Sequence[int]) -> None:
    """What `evaluate` asks of a model with FiLM heads at the decoder stages `trained`. Raises ConfigError."""
    faults = Faults(ConfigError, "config section evaluate")
    _add_evaluation_faults(faults, config, trained)
    faults.raise_if_any()
    if trained:
        _note_prompt(config)


def _note_prompt(config: FilmFlowConfig) -> None:
    """Say where a prompt is asked for that training does not see: an answer to it comes all the same."""
    if config.evaluate.prompt is None:
        return
    sentence = unseen_prompt(config)
    if sentence:
        note_once(sentence)


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


def step_work(config: FilmFlowConfig, _stage: Stage) -> StepWork | None:
    """Activations (pixel x channel, over the resolutions and the batch) of a step of the concatenating U-Net."""
    model, trainer = config.model, config.trainer
    if model.image_conditioning != "concat":
        return None
    levels = enumerate(model.channel_mult)
    values = sum((model.image_size >> level) ** 2 * model.model_channels * width for level, width in levels)
    return StepWork(trainer.accumulate_grad_batches, float(values * trainer.batch_size))


def propose(folder: Path, preset: str | None) -> Proposal:
    """A config for a folder of one's own pictures. preset: what it starts from; None is `folder-small`."""
    from stageline.families.film_flow.data.proposal import propose as propose_from

    return propose_from(folder, PRESETS[preset or "folder-small"])


FAMILY_CONFIG = FamilyConfig(
    name="film_flow",
    config=FilmFlowConfig,
    stages=STAGES,
    presets=PRESETS,
    facts=facts,
    fact_rules=FACT_RULES,
    inherit=inherit,
    splits=splits,
    evaluation_splits=evaluation_splits,
    check=check,
    asked=asked,
    externals=externals,
    num_samples=num_samples,
    summary=summary,
    name_facts=name_facts,
    agree=agree,
    words=WORDS,
    step_work=step_work,
    propose=propose,
)
