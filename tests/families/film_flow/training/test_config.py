"""The config of film_flow: published spellings, refused keys, contradictions, what makes an identity, presets."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from stageline.config import dotted_fields, fingerprint, identity, note_once, parse_yaml, semantic, to_yaml
from stageline.errors import ConfigError
from stageline.families import family_config, parse_config
from stageline.families.film_flow.config import STAGES, FilmFlowConfig, asked, check
from stageline.families.film_flow.config.presets import PRESETS
from stageline.families.film_flow.facts import facts, film_plan
from stageline.stage import stage_config

TINY = PRESETS["tiny"]


def config(*overrides: str, base: Any = TINY) -> FilmFlowConfig:
    parsed = parse_config(copy.deepcopy(dict(base)), overrides)
    assert isinstance(parsed, FilmFlowConfig)
    return parsed


def faults(*overrides: str, base: Any = TINY) -> str:
    with pytest.raises(ConfigError) as error:
        config(*overrides, base=base)
    return str(error.value)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_legal_for_both_stages(name: str) -> None:
    run = config(base=PRESETS[name])
    for stage in STAGES.selected(run):
        own = stage_config(run, stage)
        check(own, stage)
        assert own.model.use_vlm_film == (stage.name == "film")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_resolved_config_read_again_is_the_same_config(name: str) -> None:
    """Acceptance check 21."""
    for stage in STAGES:
        own = stage_config(config(base=PRESETS[name]), stage)
        again = parse_config(parse_yaml(to_yaml(own), "again"))
        assert fingerprint(semantic(again)) == fingerprint(semantic(own))
        assert facts(again) == facts(own)  # type: ignore[arg-type]


def test_the_backbone_stage_takes_film_out_and_keeps_the_rest() -> None:
    run = config("model.junction_gating_config.apply_stages=[3]")
    own = stage_config(run, STAGES["backbone"])
    assert (own.model.use_vlm_film, own.model.vlm_film_decoder_stages) == (False, None)
    assert film_plan(own).stages == film_plan(own).gate_stages == ()
    film = stage_config(run, STAGES["film"])
    assert (film_plan(film).stages, film_plan(film).gate_stages) == ((2, 3), (3,))


def test_absent_decoder_stages_are_written_out_and_known_as_default() -> None:
    raw = {"family": "film_flow"}
    run = config(base=raw)
    assert film_plan(run).stages == (0, 1)
    assert film_plan(run).stages_origin == "default"
    assert "vlm_film_decoder_stages:\n  - 0\n  - 1" in to_yaml(run)
    assert film_plan(config("model.vlm_film_decoder_stages=[0, 1]", base=raw)).stages_origin == "config"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("[]", "E_EMPTY"),
        ("[0, 0]", "E_DUPLICATE"),
        ("[4]", "E_RANGE"),
        ("[-1]", "E_RANGE"),
        ("[true]", "E_TYPE"),
        ("[1.0]", "E_TYPE"),
        ("['1']", "E_TYPE"),
        ("'none'", "E_TYPE"),
        ("[0, 7]", "E_RANGE"),
    ],
)
def test_bad_decoder_stages_are_refused_by_code_in_a_config(value: str, code: str) -> None:
    text = faults(f"model.vlm_film_decoder_stages={value}")
    assert code in text
    assert "vlm_film_decoder_stages" in text


def test_decoder_stages_without_film_are_a_contradiction() -> None:
    assert "E_CONTRADICTION" in faults("model.use_vlm_film=false")


@pytest.mark.parametrize(("value", "stages"), [("[3, 2]", (2, 3)), ("all", (0, 1, 2, 3)), ("[0]", (0,))])
def test_good_decoder_stages_are_sorted(value: str, stages: tuple[int, ...]) -> None:
    assert config(f"model.vlm_film_decoder_stages={value}").model.vlm_film_decoder_stages == stages


def test_all_faults_are_told_at_once() -> None:
    text = faults(
        "model.gamma_scale=0.1",
        "model.vlm_film_config.update_interval_steps_train=50",
        "model.model_chanels=16",
        "model.vlm_film_decoder_stages=[7]",
        "model.learning_rate=1e-2",
        "trainer.learning_rate=3e-3",
        "trainer.batch_size=0",
        "model.image_size=48",
        "data.image_size=32",
    )
    for part in ("film_limit", "training step", "model_channels", "E_RANGE", "trainer.learning_rate 0.003"):
        assert part in text
    assert "trainer.batch_size" in text
    assert "48 contradicts data.image_size 32" in text
    assert "7 faults" in text


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("model.gamma_scale", "film_limit"),
        ("model.vlm_film_config.beta_scale", "film_limit"),
        ("model.channel_mult_emb", "nothing reads it"),
        ("model.num_blocks", "nothing reads it"),
        ("model.label_dim", "nothing reads it"),
        ("model.augment_dim", "nothing reads it"),
        ("model.vlm_film_config.batch_strategy", "batch mates"),
        ("model.vlm_film_config.reuse_policy", "batch mates"),
        ("model.vlm_film_config.update_interval_steps_val", "training step"),
        ("model.vlm_film_config.logits_center", "batch mates"),
        ("model.junction_gating_config.pred_warmup_epochs", "training step"),
        ("trainer.enable_progress_bar", "nothing reads it"),
    ],
)
def test_known_but_refused_keys_say_why(key: str, hint: str) -> None:
    text = faults(f"{key}=1")
    assert "known and refused" in text
    assert hint in text
    assert key in text


@pytest.mark.parametrize(
    ("key", "home", "value"),
    [
        ("model.learning_rate", "learning_rate", 1e-2),
        ("model.weight_decay", "weight_decay", 0.5),
        ("model.use_ema", "use_ema", False),
        ("model.ema_decay", "ema_decay", 0.5),
        ("data.train_bs", "batch_size", 3),
        ("trainer.devices", "processes", 2),
        ("trainer.log_every_n_steps", "log_every_steps", 7),
        ("trainer.check_val_every_n_epoch", "validate_every_epochs", 5),
    ],
)
def test_published_names_are_moved_to_their_home(key: str, home: str, value: Any) -> None:
    base = {"family": "film_flow"}
    run = config(f"{key}={json.dumps(value)}", base=base)
    assert getattr(run.trainer, home) == value
    other = not value if isinstance(value, bool) else value * 2
    assert "E_CONTRADICTION" in faults(f"{key}={json.dumps(value)}", f"trainer.{home}={json.dumps(other)}", base=base)
    assert config(f"{key}={json.dumps(value)}", f"trainer.{home}={json.dumps(value)}", base=base) == run
    per_stage = config(base={**base, "stage_overrides": {"film": {key: value}}})
    assert getattr(stage_config(per_stage, STAGES["film"]).trainer, home) == value
    assert getattr(stage_config(per_stage, STAGES["backbone"]).trainer, home) != value


def test_published_values_are_read_and_a_run_without_an_average_is_evaluated_raw() -> None:
    base = {"family": "film_flow"}
    assert config("trainer.accelerator=gpu", base=base).trainer.accelerator == "cuda"
    assert config("model.use_ema=false", base=base).evaluate.weights == "raw"
    assert config(base=base).evaluate.weights == "ema"


def test_the_import_section_keeps_its_name_in_every_stage() -> None:
    run = config("import.film_stages=[1]")
    assert run.import_.film_stages == (1,)
    assert stage_config(run, STAGES["film"]).import_.film_stages == (1,)
    assert "\nimport:" in to_yaml(run)


def test_the_default_decoder_stages_are_told_when_the_stage_is_checked(caplog: pytest.LogCaptureFixture) -> None:
    note_once.cache_clear()
    own = stage_config(config(base={"family": "film_flow"}), STAGES["film"])
    with caplog.at_level("WARNING"):
        check(own, STAGES["film"])
        check(own, STAGES["film"])
    assert len(caplog.messages) == 1
    assert "[0, 1]" in caplog.messages[0]
    assert "0 = deepest, 128 ch" in caplog.messages[0]


def test_the_published_architecture_name_is_read_as_dual(caplog: pytest.LogCaptureFixture) -> None:
    run = config("model.arch_name=medsegdiff_flow", base={"family": "film_flow"})
    assert (run.model.arch_name, run.model.image_conditioning) == ("filmflow_dual", "dual")
    assert config("model.image_conditioning=dual", base={"family": "film_flow"}).model.arch_name == "filmflow_dual"
    assert "E_CONTRADICTION" in faults("model.image_conditioning=dual")


def test_one_image_size_fills_both_sections() -> None:
    run = config("model.image_size=64", base={"family": "film_flow"})
    assert run.data.image_size == 64
    assert config("data.image_size=64", base={"family": "film_flow"}).model.image_size == 64


def test_a_patch_plan_counts_crops_of_one_size() -> None:
    base = {"family": "film_flow", "model": {"image_size": 64}}
    run = config("model.patch_plan=[[64, 3]]", base=base)
    assert run.data.num_samples_per_image == 3
    assert "one size" in faults("model.patch_plan=[[64, 3], [32, 1]]", base=base)
    assert "E_CONTRADICTION" in faults("model.patch_plan=[[64, 3]]", "data.num_samples_per_image=4", base=base)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("model.image_size=50", "data.image_size=50"), "not divisible by 8"),
        (("model.attn_resolutions=[13]",), "[13]"),
        (("model.backbone_variant=msd_v0",), "'dual' only"),
        (("model.mode=dfm_binary", "model.prediction=velocity"), "logits"),
        (("model.mode=dfm_binary", "model.solver=heun"), "own sampler"),
        (("model.sigma=0.2",), "bridge"),
        (("model.lambda_auxiliary=0.2",), "'velocity' only"),
        (("model.vlm_film_config.encoder=none",), "encoder 'none'"),
        (("model.junction_gating_config.apply_stages=[0]",), "E_GATE_STAGE"),
        (("model.junction_gating_config.degree_threshold=2",), "at least 3"),
        (("model.vlm_film_config.encoder=clip", "model.vlm_film_config.feature_dim=null"), "vector size"),
        (("model.vlm_film_config.model_name=unknown/thing", "model.vlm_film_config.encoder=null"), "no kind"),
        (("data.name=folder",), "train_dir"),
        (("data.train_dir=x",), "folder"),
        (("data.name=trees",), "prompt_template"),
        (("evaluate.split=test",), "num_test"),
        (("model.model_channels=12",), "E_CHANNELS"),
        (("model.ot_coupling=exact",), "none"),
    ],
)
def test_contradictions_are_refused(overrides: tuple[str, ...], part: str) -> None:
    assert part in faults(*overrides)


def test_an_encoder_is_known_by_its_model_name() -> None:
    def kind(name: str) -> str | None:
        return config(
            f"model.vlm_film_config={{model_name: {name}, feature_dim: 512}}", base={"family": "film_flow"}
        ).model.vlm_film_config.encoder

    assert kind("openai/clip-vit-base-patch16") == "clip"
    assert kind("google/siglip2-base-patch16-224") == "siglip2"
    assert kind("Qwen/Qwen2.5-VL-3B-Instruct") == "qwen-vl"
    assert kind("microsoft/BiomedCLIP-PubMedBERT") == "biomedclip"


def test_identity_is_seed_architecture_conditioning_and_data() -> None:
    run = identity(config())

    def changes(*overrides: str) -> bool:
        return identity(config(*overrides)) != run

    assert changes("seed=1")
    assert changes("model.model_channels=16")
    assert changes("model.vlm_film_decoder_stages=[0]")
    assert changes("model.vlm_film_config.cond_dim=16")
    assert changes("data.num_train=64")
    for same in ("model.timesteps=2", "model.lambda_cldice=0.1", "evaluate.k=2", "trainer.max_steps=5", "root=/x"):
        assert not changes(same), same
    assert not changes("trainer.learning_rate=1e-4")


def test_a_film_stage_without_film_and_foreign_ablations_are_refused() -> None:
    raw = {"family": "film_flow", "model": {"use_vlm_film": False}}
    with pytest.raises(ConfigError, match=r"stages=\[backbone\]"):
        check(stage_config(config(base=raw), STAGES["film"]), STAGES["film"])
    ablated = stage_config(config("evaluate.film_active=[1]"), STAGES["film"])
    with pytest.raises(ConfigError, match=r"\[1\].*\[2, 3\]"):
        check(ablated, STAGES["film"])
    oracle = config("model.junction_gating_config.source=gt")
    with pytest.raises(ConfigError, match=r"evaluate\.oracle"):
        check(stage_config(oracle, STAGES["film"]), STAGES["film"])


def test_a_config_asks_only_for_what_it_states() -> None:
    assert asked({"family": "film_flow"}) == {}
    stated = asked({"family": "film_flow", "model": {"vlm_film_decoder_stages": [3, 2], "vlm_scope": "crop"}})
    assert stated == {"vlm_film_trained_stages": [2, 3], "vlm_scope": "crop"}
    raw = {"family": "film_flow", "model": {"vlm_film_decoder_stages": None}}
    assert asked(raw) == {}


def test_every_key_has_a_sentence() -> None:
    missing = []

    def walk(section: Any, prefix: str) -> None:
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                walk(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                missing.append(prefix + name)

    for name in ("model", "data", "evaluate", "import_"):
        walk(FilmFlowConfig.model_fields[name].annotation, f"{name}.")
    assert missing == []


def test_the_family_is_in_the_table() -> None:
    record = family_config("film_flow")
    assert record.config is FilmFlowConfig
    assert set(record.presets) == {"tiny", "folder-small", "xca", "octa500"}
    assert len(dotted_fields(FilmFlowConfig)) > 100
