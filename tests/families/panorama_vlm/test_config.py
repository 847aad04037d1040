"""The config of panorama_vlm: presets, sections, rules that are told all at once, what each stage sees."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from room import ROOMS, config

from stageline.config import identity, json_schema, parse_yaml, to_yaml
from stageline.errors import ConfigError
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, STAGES, PanoramaVlmConfig
from stageline.stage import stage_config, stage_settings
from stageline.work.refusals import refuse_split

PRESETS = {name: dict(raw) for name, raw in FAMILY_CONFIG.presets.items()}


def refused(*overrides: str, stage: str = "", raw: dict[str, Any] | None = None) -> str:
    """What a config, or a stage's, is refused with."""
    with pytest.raises(ConfigError) as caught:
        config(*overrides, raw=raw) if not stage else checked(stage, *overrides)
    return str(caught.value)


def checked(stage: str, *overrides: str) -> PanoramaVlmConfig:
    own = stage_config(config(*overrides), STAGES[stage])
    FAMILY_CONFIG.check(own, STAGES[stage])
    return own


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_parses_and_comes_back_from_its_yaml(preset: str) -> None:
    made = config(raw=PRESETS[preset])
    again = config(raw=parse_yaml(to_yaml(made), preset))
    assert again == made
    assert identity(again) == identity(made)
    for stage in FAMILY_CONFIG.selected(made):
        own = stage_config(made, stage)
        FAMILY_CONFIG.check(own, stage)
        facts = FAMILY_CONFIG.facts(own, stage)
        assert json.loads(json.dumps(facts)) == facts
        assert set(FAMILY_CONFIG.fact_rules) <= set(facts)
        assert FAMILY_CONFIG.trains(own, stage).include


def test_the_schema_is_json_and_has_the_sections() -> None:
    schema = json.loads(json.dumps(json_schema(PanoramaVlmConfig)))
    assert {"model", "image_processing", "vicreg", "lora", "text", "data", "generation"} <= set(schema["properties"])


def test_the_config_loads_no_torch() -> None:
    code = (
        "import sys, stageline.families.panorama_vlm.config as c; c.FAMILY_CONFIG.config(data={'name': 'rooms'});"
        "print([m for m in ('torch', 'transformers', 'peft', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_config_that_says_nothing_of_its_rows_is_refused() -> None:
    assert "name 'csv' needs csv_train" in refused(raw={"run": "x"})


def test_all_faults_are_told_at_once() -> None:
    text = refused(
        "model.vision_nmae=x",
        "model.resampler_config.hidden=8",
        "image_processing.fov_deg=10",
        "lora.target_modules=[q_prj]",
        "vicreg.pairs=[auto, global]",
        "data.csv_val=x.csv",
        "trainer.batch_size=0",
    )
    for words in (
        "did you mean 'model.vision_name'?",
        "fov_deg is 10.0, expected a number from 20 to 130",
        "did you mean 'q_proj'?",
        "auto stands alone",
        "csv_val is read for name 'csv' only",
        "trainer.batch_size",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["image_processing.overlap_ratio=0.95"], "overlap_ratio is 0.95, expected a number from 0 to 0.9"),
        (["image_processing.overlap_ratio=-0.1", "image_processing.fov_deg=140"], "fov_deg is 140.0"),
        (["image_processing.pitch_span_deg=200"], "pitch_span_deg is 200.0"),
        (["image_processing.tile_size=384"], "the tower takes 256 pixels"),
        (["image_processing.tile_size=250"], "no multiple of the tower's patch size 16"),
        (["image_processing.stitching_mode=resample"], "needs image_processing.canvas"),
        (["image_processing.global_mode=naflex"], "needs model.vision_class 'siglip2_naflex'"),
        (["model.vision_name=acme/tower"], "no published name whose sizes are known"),
        (["model.vision_name=google/siglip2-base-patch16-naflex"], "is of class 'siglip2_naflex'"),
        (["model.vision_trainable_blocks=28"], "the tower has 27 blocks"),
        (["model.resampler_type=mlp", "model.resampler_config.scan_backend=torch"], "it is for bimamba"),
        (["model.resampler_config.tokens_per_view=50"], "no pooling of 16 x 16 tokens; possible: 256, 64, 16"),
        (["model.resampler_config.tokens_per_view=64", "model.resampler_config.pooling=4"], "contradict each other"),
        (["model.resampler_config.head_dim=96"], "does not divide twice the width 1024"),
        (["model.resampler_type=qformer", "model.resampler_config.heads=7"], "heads 7 does not divide"),
        (["model.resampler_type=qformer", "model.pe.after=true"], "have no direction"),
        (["model.resampler_config.scan_backend=cuda"], "scan_backend"),
        (["vicreg.pairs=photometric"], "needs color_jitter"),
        (["lora.target_modules=[]"], "target_modules is empty"),
        (["data.query_template=what"], "has not exactly one {query}"),
        (["data.erp_hfov_deg=180"], "go together"),
    ],
)
def test_what_contradicts_itself_is_refused_in_words(overrides: list[str], words: str) -> None:
    assert words in refused(*overrides)


@pytest.mark.parametrize("pooling", [2, 4])
def test_pooling_fits_the_grid_with_one_repeated_row_and_no_more(pooling: int) -> None:
    """27 x 27 tokens become 28 x 28; 14 x 14 pooled by 4 would need two rows more."""
    tower = "model.vision_name=google/siglip-so400m-patch14-384"
    made = config(tower, f"model.resampler_config.pooling={pooling}")
    assert made.image_tokens == 9 * (28 // pooling) ** 2
    odd = ["model.vision_name=google/siglip2-base-patch16-224", "model.resampler_config.pooling=4"]
    assert "pooling 4 does not fit a grid of 14 x 14" in refused(*odd)


@pytest.mark.parametrize(
    ("kind", "five", "seven", "nine"),
    [("mlp", 320, 448, 576), ("qformer", 160, 224, 288), ("perceiver", 320, 448, 576), ("bimamba", 320, 448, 576)],
)
def test_image_tokens_of_the_published_sizes(kind: str, five: int, seven: int, nine: int) -> None:
    """The table of section C.2, for the default scope of each type."""
    found = [
        config(f"model.resampler_type={kind}", f"image_processing.overlap_ratio={o}").image_tokens
        for o in (0, 0.25, 0.5)
    ]
    assert found == [five, seven, nine]


def test_the_tiny_profile_stands_in_for_any_sizes() -> None:
    made = config("profile=tiny", "image_processing.tile_size=256", "model.resampler_config.width=2048")
    assert (made.tile_size, made.grid, made.image_tokens) == (32, 4, 36)
    assert config("profile=tiny", "image_processing.overlap_ratio=0").image_tokens == 20
    assert made.model.resampler.model_dump()["width"] == 64
    real = config("image_processing.overlap_ratio=0.5")
    assert identity(made) != identity(real), "tiny and real runs never share a directory"
    tower, language = FAMILY_CONFIG.externals(made, STAGES["finetune"])
    assert (tower.generated, language.generated) == (True, True)
    others = FAMILY_CONFIG.externals(config("profile=tiny", "model.vision_name=x/y"), STAGES["vision"])
    assert others == (tower,), "made weights do not depend on the name they stand in for"


def test_requests_of_one_plan_are_one_setting() -> None:
    one, same, other = (config(f"image_processing.overlap_ratio={o}") for o in (0.1, 0.2, 0.25))
    assert identity(one) == identity(same) != identity(other)
    assert stage_settings(one) == stage_settings(same) != stage_settings(other)
    rows = [config(f"image_processing.overlap_ratio={o}", "image_processing.pitch_rows=2") for o in (0.1, 0.2)]
    assert identity(rows[0]) != identity(rows[1]), "the pitches of several rings follow the request"


def test_sizes_that_are_stated_are_those_of_the_name() -> None:
    made = config()
    numbers = json.dumps(made.model.vision.model_dump())
    assert identity(config(f"model.vision_config={numbers}")) == identity(made)


def test_adjacent_pairs_of_tiles_that_share_nothing_are_refused() -> None:
    """Check 6: the plan is named, and both ways out."""
    text = refused("vicreg.pairs=adjacent", "image_processing.overlap_ratio=0", stage="vision")
    for words in ("plan 4x90 has no shared tokens", "pairs: [global, jitter]", "--resume", 'drop "vision" from'):
        assert words in text
    own = checked("vision", "vicreg.pairs=[global, jitter]", "image_processing.overlap_ratio=0")
    assert own.vicreg_pairs == ("global", "jitter")
    FAMILY_CONFIG.check(
        stage_config(config("vicreg.pairs=adjacent", "image_processing.overlap_ratio=0"), STAGES["resampler"]),
        STAGES["resampler"],
    )


def test_pairs_that_are_left_to_the_plan() -> None:
    """Check 6: `auto` is adjacent where neighbours share tokens, else global and jitter; `vision` is then reused."""
    assert config().vicreg_pairs == ("adjacent",)
    zero = config("image_processing.overlap_ratio=0")
    assert zero.vicreg_pairs == ("global", "jitter")
    assert config("image_processing.overlap_ratio=0", "image_processing.global_mode=none").vicreg_pairs == ("jitter",)
    tower = "model.vision_name=google/siglip2-so400m-patch16-naflex"
    naflex = ("image_processing.global_mode=naflex", "model.vision_class=siglip2_naflex", tower)
    assert config("image_processing.overlap_ratio=0", *naflex).vicreg_pairs == ("jitter",)
    assert "the tiles' own grid" in refused("vicreg.pairs=[global, jitter]", *naflex, stage="vision")
    assert [stage.name for stage in FAMILY_CONFIG.selected(config())] == ["vision", "resampler", "finetune"]
    assert [stage.name for stage in FAMILY_CONFIG.selected(zero)] == ["resampler", "finetune"]
    asked = config("image_processing.overlap_ratio=0", "stages=[vision]")
    assert [stage.name for stage in FAMILY_CONFIG.selected(asked)] == ["vision"]


@pytest.mark.parametrize("grid", [4, 16])
def test_what_shares_tokens_is_what_the_correspondence_finds(grid: int) -> None:
    from stageline.families.panorama_vlm.config.rules import shares_tokens
    from stageline.families.panorama_vlm.geometry import pairs, plan

    for fov, overlap in ((90, 0.5), (90, 0), (75, 0), (90, 0.1), (120, 0), (60, 0.25), (75, 0.05)):
        made = plan(fov, overlap)
        wanted = bool(pairs(made, grid).valid.any())
        assert shares_tokens(made.fov_deg, made.views, made.neighbours, grid) == wanted, (fov, overlap)


@pytest.mark.parametrize(
    ("stage", "overrides", "words"),
    [
        ("vision", ["model.vision_trainable_blocks=0"], "only the head that is thrown away would learn"),
        ("vision", ["vicreg.tap=resampler"], "one image token per vision token"),
        ("vision", ["vicreg.pairs=global", "image_processing.global_mode=none"], "needs a global view"),
        ("resampler", ["model.vision_trainable_blocks=2"], "the tower is frozen in stage 'resampler'"),
        ("finetune", ["lora.use_lora=false", "model.train_resampler=false"], "nothing would train"),
    ],
)
def test_what_a_stage_cannot_do_is_refused(stage: str, overrides: list[str], words: str) -> None:
    assert words in refused(*overrides, stage=stage)


def test_a_tap_at_the_resampler_trains_it() -> None:
    own = checked(
        "vision", "vicreg.tap=resampler", "model.resampler_config.pool=none", "model.vision_trainable_blocks=0"
    )
    assert FAMILY_CONFIG.trains(own, STAGES["vision"]).include == ("projector.*", "resampler.*", "pe.*")


def test_accumulation_is_refused_for_vision_alone() -> None:
    """Check 12: VICReg is not split over micro-batches; the other stages are."""
    made = config("trainer.accumulate_grad_batches=4")
    with pytest.raises(ConfigError, match="accumulate_grad_batches=4 splits it over micro-batches"):
        refuse_split(STAGES["vision"], stage_config(made, STAGES["vision"]).trainer)
    refuse_split(STAGES["finetune"], stage_config(made, STAGES["finetune"]).trainer)


def test_one_run_has_one_plan() -> None:
    text = refused("stage_overrides.finetune.image_processing.overlap_ratio=0")
    assert "plan 4x90 of 5 views, but the run has 8x90 of 9" in text
    same = config("stage_overrides.finetune.image_processing.overlap_ratio=0.499")
    assert stage_config(same, STAGES["finetune"]).image_processing.plan.name == "8x90"
    stitched = config("stage_overrides.finetune.image_processing.stitching_mode=dedupe")
    assert stage_config(stitched, STAGES["finetune"]).image_tokens == 256


def test_which_parameters_train() -> None:
    """Check 13, the declared sets: the last blocks and the head; resampler and encoding; adapters and these again."""
    made = config()
    trained = {name: FAMILY_CONFIG.trains(stage_config(made, STAGES[name]), STAGES[name]) for name in STAGES.names}
    assert trained["vision"].include == (
        "vision.encoder.layers.25.*",
        "vision.encoder.layers.26.*",
        "vision.post_layernorm.*",
        "projector.*",
    )
    assert trained["resampler"].include == ("resampler.*", "pe.*")
    assert trained["finetune"].include == ("language.*lora_*", "resampler.*", "pe.*")
    for name, trains in trained.items():
        assert not trains.matches("language.model.layers.0.self_attn.q_proj.base_layer.weight"), name
        assert not trains.matches("vision.encoder.layers.24.mlp.fc1.weight"), name
    assert trained["finetune"].matches("language.model.layers.0.self_attn.q_proj.lora_B.default.weight")


def test_the_language_model_supplies_its_own_weights_and_no_adapter() -> None:
    from fnmatch import fnmatchcase

    _, language = FAMILY_CONFIG.externals(config(), STAGES["finetune"])

    def supplied(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in language.patterns)

    layer = "language.model.layers.3."
    for name in ("self_attn.q_proj.weight", "self_attn.q_proj.base_layer.weight", "self_attn.k_norm.weight"):
        assert supplied(layer + name), name
    for name in ("mlp.down_proj.weight", "input_layernorm.weight", "post_attention_layernorm.weight"):
        assert supplied(layer + name), name
    assert supplied("language.model.embed_tokens.weight")
    assert supplied("language.lm_head.weight")
    assert not supplied(layer + "self_attn.q_proj.lora_A.default.weight")


def test_a_change_that_a_stage_does_not_read_leaves_it_alone() -> None:
    """Other adapters train neither tower nor resampler anew, another pairing no caption stage."""
    for key, untouched in (
        ("lora.rank=8", ("vision", "resampler")),
        ("vicreg.form=biased_half", ("resampler", "finetune")),
    ):
        for name in STAGES.names:
            a, b = (stage_settings(stage_config(config(*extra), STAGES[name])) for extra in ((), (key,)))
            assert (a == b) == (name in untouched), (key, name)
    evaluated = ("generation.max_new_tokens=8", "metrics.tokenize=char")
    a, b = (stage_settings(stage_config(config(*extra), STAGES["finetune"])) for extra in ((), evaluated))
    assert a == b


def test_defaults_of_the_stages() -> None:
    made = config()
    own = {name: stage_config(made, STAGES[name]) for name in STAGES.names}
    assert {name: (c.trainer.batch_size, c.trainer.accumulate_grad_batches) for name, c in own.items()} == {
        "vision": (8, 1),
        "resampler": (1, 4),
        "finetune": (1, 4),
    }
    assert all(c.trainer.betas == (0.9, 0.98) and not c.trainer.use_ema for c in own.values())
    assert not own["resampler"].lora.use_lora
    assert own["finetune"].lora.use_lora


def test_what_a_user_states_for_an_evaluation() -> None:
    asked = FAMILY_CONFIG.asked({"family": "panorama_vlm", **ROOMS, "image_processing": {"overlap_ratio": 0}})
    assert asked == {"overlap": 0.0, "plan": "4x90", "plan_id": "6fc95b386c224f61", "views": 5}
    assert FAMILY_CONFIG.asked({"family": "panorama_vlm", **ROOMS}) == {}
    named = FAMILY_CONFIG.asked({"family": "panorama_vlm", **ROOMS, "model": {"resampler_type": "mlp"}})
    assert named == {"resampler_type": "mlp"}


def test_what_stages_read() -> None:
    """Stage vision reads pictures alone; other captions leave it alone, and so does another overlap."""
    made, zero = config(), config("image_processing.overlap_ratio=0", "data.query_template='{query}?'")
    names = {name: [s.name for s in FAMILY_CONFIG.splits(made, STAGES[name])] for name in STAGES.names}
    assert names["vision"] == ["train-pictures", "val-pictures"]
    assert names["finetune"] == ["train-pictures", "train", "val-pictures", "val"]
    assert [s.name for s in FAMILY_CONFIG.evaluation_splits(made)] == ["test-pictures", "test"]
    assert FAMILY_CONFIG.splits(made, STAGES["vision"]) == FAMILY_CONFIG.splits(zero, STAGES["vision"])
    prepared = {"splits": {"train-pictures": {"pictures": 16}, "train": {"rows": 64}}}
    assert [FAMILY_CONFIG.num_samples(made, stage, prepared) for stage in STAGES] == [16, 64, 64]
    assert FAMILY_CONFIG.num_samples(made, STAGES["vision"], {}) is None
