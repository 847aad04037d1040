"""What a stage takes from a parent, section by section, and what is refused."""

from __future__ import annotations

import pytest
from room import config, guide, inherited, parent

from stageline.checkpoint.admission import fact_faults
from stageline.checkpoint.metadata import TensorRecord
from stageline.checkpoint.ownership import find_origins, ownership
from stageline.contract import Parent
from stageline.errors import CheckpointError
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, STAGES
from stageline.stage import stage_config

ZERO = config("profile=tiny", raw=guide("bimamba_overlap0"))
TAP = ("vicreg.tap=resampler", "models.resampler_config.pooling=1", "models.resampler_config.pool=none")


def reference(*overrides: str, kind: str = "bimamba") -> Parent:
    """A vision checkpoint of the guide's reference config."""
    made = config("profile=tiny", f"models.resampler_type={kind}", *overrides, raw=guide("default"))
    return parent("vision", made)


def outcomes(given: Parent, run: object = ZERO, stage: str = "resampler") -> dict[str, str]:
    return {name: section.outcome for name, section in inherited(given, run, stage).items()}  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bimamba", "mlp"])
def test_a_vision_checkpoint_serves_every_resampler_at_another_overlap(kind: str) -> None:
    """Check 17: with tap vision the tower alone is there; resampler and encoding are absent, and fresh."""
    given = reference(kind=kind)
    found = inherited(given, ZERO)
    assert {name: section.outcome for name, section in found.items()} == {
        "vision": "load or external",
        "projector": "drop",
        "pe": "fresh",
        "resampler": "fresh",
    }
    assert found["resampler"].reason == found["pe"].reason == "absent: the checkpoint has none"


def test_a_resampler_of_another_type_is_skipped_and_of_the_same_is_loaded() -> None:
    """Check 17: with tap resampler it is in the checkpoint, and counts for the same type alone."""
    mlp = reference("vicreg.tap=resampler", "models.resampler_config.pooling=1", kind="mlp")
    found = inherited(mlp, ZERO)
    assert found["resampler"].outcome == "fresh"
    assert found["resampler"].reason == "skipped: checkpoint mlp, run bimamba"
    assert found["pe"].outcome == "load"
    own = inherited(reference("vicreg.tap=resampler", "models.resampler_config.pool=none"), ZERO)
    assert own["resampler"].outcome == own["pe"].outcome == "load"


def test_the_same_type_with_other_shapes_is_refused_with_both() -> None:
    """Check 17: every differing setting with both values, and the override."""
    real = config(raw=guide("bimamba_overlap0"))
    given = parent(
        "vision",
        config(*TAP[::2], "models.resampler_config.depth=2", "models.resampler_config.state=16", raw=guide("default")),
    )
    with pytest.raises(CheckpointError) as caught:
        inherited(given, real)
    for words in (
        "'bimamba' with other shapes",
        "depth: checkpoint 2, run 4",
        "state: checkpoint 16, run 64",
        "start_fresh",
    ):
        assert words in str(caught.value)
    skipped = config("models.start_fresh=resampler", raw=guide("bimamba_overlap0"))
    assert inherited(given, skipped)["resampler"].outcome == "fresh"


def test_settings_without_shapes_do_not_keep_a_resampler_out() -> None:
    given = parent(
        "resampler",
        config("models.resampler_config.scan_order=view", "models.resampler_config.pooling=4", raw=guide("default")),
    )
    found = inherited(given, config(raw=guide("bimamba_overlap0")), "finetune")
    assert found["resampler"].outcome == "load"


def test_another_encoding_is_skipped_and_one_that_is_off_dropped() -> None:
    given = parent("resampler", config("models.pe.solid_angle=true", raw=guide("default")))
    found = inherited(given, config(raw=guide("bimamba_overlap0")), "finetune")
    assert (found["pe"].outcome, found["pe"].reason) == (
        "fresh",
        "skipped: checkpoint direction 34 x 1152, run direction 33 x 1152",
    )
    off = config("models.use_projection_positional_encoding=false", raw=guide("bimamba_overlap0"))
    assert outcomes(given, off, "finetune")["pe"] == "drop"


def test_adapters_go_into_finetune_alone() -> None:
    given = parent("finetune", config(raw=guide("default")))
    run = config(raw=guide("bimamba_overlap0"))
    assert outcomes(given, run, "finetune")["lora"] == "load"
    assert outcomes(given, run, "resampler")["lora"] == "drop"
    assert "lora" not in outcomes(parent("resampler", run), run, "resampler")
    assert outcomes(parent("resampler", run), run, "finetune")["lora"] == "fresh"
    with pytest.raises(CheckpointError, match="rank: checkpoint 32, run 8"):
        inherited(given, config("lora.rank=8", raw=guide("bimamba_overlap0")), "finetune")
    fresh = config("lora.rank=8", "models.start_fresh=[lora]", raw=guide("bimamba_overlap0"))
    assert outcomes(given, fresh, "finetune")["lora"] == "fresh"


def seed_faults(given: Parent, *overrides: str) -> tuple[list[str], list[str]]:
    own = stage_config(config(*overrides, raw=guide("bimamba_overlap0")), STAGES["resampler"])
    return fact_faults(given.facts, FAMILY_CONFIG.facts(own, STAGES["resampler"]), FAMILY_CONFIG.fact_rules, "seed")


def test_geometry_is_reported_and_the_tower_must_be_the_same() -> None:
    """Check 17: another plan is told, another tower, revision, patch or profile refused, field by field."""
    given = parent("vision", config(raw=guide("default")))
    faults, notes = seed_faults(given)
    assert faults == []
    for line in (
        "overlap: checkpoint 0.5, config 0.0",
        "plan: checkpoint '8x90', config '4x90'",
        "views: checkpoint 9",
    ):
        assert any(note.startswith(line) for note in notes), line
    faults, _ = seed_faults(given, "models.vision_name=google/siglip2-base-patch16-256")
    assert [fault.split(":")[0] for fault in faults] == ["vision", "vision_width"]
    faults, _ = seed_faults(given, "models.vision_revision=abc")
    assert faults == [
        "vision: checkpoint 'google/siglip2-so400m-patch16-256', config 'google/siglip2-so400m-patch16-256@abc'"
    ]
    assert [fault.split(":")[0] for fault in seed_faults(reference())[0]] == ["profile", "vision_patch", "vision_width"]


def test_a_stage_that_goes_on_has_the_same_geometry() -> None:
    one, other = (
        FAMILY_CONFIG.facts(stage_config(config(raw=guide(name)), STAGES["finetune"]), STAGES["finetune"])
        for name in ("default", "bimamba_overlap0")
    )
    for verb in ("resume", "evaluate"):
        faults, _ = fact_faults(one, other, FAMILY_CONFIG.fact_rules, verb)  # type: ignore[arg-type]
        assert {fault.split(":")[0] for fault in faults} >= {"overlap", "plan", "plan_id", "views", "yaws_deg"}


def test_tiles_of_another_width_are_told_with_the_tower() -> None:
    given = parent("vision", config("image_processing.fov_deg=60", raw=guide("default")))
    assert "tiles of 60 degrees before, 90 now" in inherited(given, ZERO)["vision"].reason


F = TensorRecord(dtype="F32", shape=(2,))
TOWER = ("vision.embeddings.w", "vision.encoder.layers.0.w", "vision.encoder.layers.1.w", "vision.post_layernorm.w")
CONNECTED = ("pe.before.w", "resampler.proj.w")
LANGUAGE = ("language.model.embed_tokens.weight", "language.model.layers.0.self_attn.q_proj.base_layer.weight")
ADAPTER = "language.model.layers.0.self_attn.q_proj.lora_A.default.weight"


@pytest.mark.parametrize("held", [TOWER[2:], ()], ids=["of a vision stage", "of the published tower"])
def test_every_tensor_of_a_chain_has_one_owner(held: tuple[str, ...]) -> None:
    """Tower blocks that a parent trained are referenced, the rest external; adapters are own."""
    run = config("profile=tiny", raw=guide("bimamba_overlap0"))
    own = stage_config(run, STAGES["finetune"])
    sections = {"default": FAMILY_CONFIG.inherit(parent("resampler", run), own, STAGES["finetune"])}
    model = dict.fromkeys((*TOWER, *CONNECTED, *LANGUAGE, ADAPTER), F)
    file = dict.fromkeys((*held, *CONNECTED), F)
    externals = {e.name: e.patterns for e in FAMILY_CONFIG.externals(own, STAGES["finetune"])}
    origins = find_origins(model, {"default": file}, sections, externals, where="x", partly=False)
    assert set(origins.loaded) == {*held, *CONNECTED}
    assert origins.fresh == (ADAPTER,)
    trains = FAMILY_CONFIG.trains(own, STAGES["finetune"])
    trained = [name for name in model if trains.matches(name)]
    owned = ownership(model, trained, (), origins, sections, {"default"})
    assert set(owned.own) == {*CONNECTED, ADAPTER}
    assert set(owned.referenced) == set(held)
    assert owned.external == dict.fromkeys(sorted(set(TOWER) - set(held)), "vision") | dict.fromkeys(
        LANGUAGE, "language"
    )
