"""Names of runs: the guide's, what tells variants apart, and what happens to a name that is too long."""

from __future__ import annotations

import pytest
from room import config, guide

from stageline.config import fingerprint, identity
from stageline.errors import ConfigError
from stageline.families import FAMILIES, parse_config
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, STAGES
from stageline.families.panorama_vlm.naming import language_word, run_name, variant, vision_word


@pytest.mark.parametrize("kind", ["mlp", "qformer", "perceiver", "bimamba"])
def test_the_names_of_the_guide(kind: str) -> None:
    """Check 15: its four names, and the directories in them."""
    made = config(f"models.resampler_type={kind}", raw=guide("default"))
    assert run_name(made) == f"siglip2-so400m_Qwen3_{kind}_anyres-e2p_PE"
    assert variant(made) == f"anyres-e2p_{kind}"


def test_overlap_zero_has_a_name_of_its_own() -> None:
    """Check 15."""
    assert run_name(config(raw=guide("bimamba_overlap0"))) == "siglip2-so400m_Qwen3_bimamba_anyres-e2p_PE__ov000"


@pytest.mark.parametrize(
    ("override", "suffix"),
    [
        ("image_processing.overlap_ratio=0", "ov000"),
        ("image_processing.overlap_ratio=0.25", "ov033"),
        ("image_processing.overlap_ratio=0.33", "ov033"),
        ("image_processing.fov_deg=75", "ov052-fov075"),
        ("image_processing.pitch_rows=2", "rows2"),
        ("image_processing.caps=true", "caps"),
        ("models.language_model_name=Qwen/Qwen3-1.7B", "llm1p7b"),
        ("models.language_model_name=Qwen/Qwen3-4B", "llm4b"),
        ("models.vision_name=google/siglip2-so400m-patch16-384", "px384"),
        ("image_processing.stitching_mode=dedupe", "dedupe"),
        ("models.resampler_config.tokens_per_view=16", "tok16"),
        ("image_processing.overlap_ratio=0.5", ""),
        ("models.resampler_config.tokens_per_view=64", ""),
    ],
)
def test_what_differs_from_the_reference_is_told(override: str, suffix: str) -> None:
    """Check 15: nothing that is another model or another plan has the same name."""
    base = "siglip2-so400m_Qwen3_bimamba_anyres-e2p_PE"
    assert run_name(config(override)) == (f"{base}__{suffix}" if suffix else base)


def test_a_run_without_a_name_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "panorama_vlm", "stageline.families.panorama_vlm")
    made = parse_config(guide("bimamba_overlap0"), ["root=elsewhere", "profile=tiny"])
    assert made.run == "siglip2-so400m_Qwen3_bimamba_anyres-e2p_PE__ov000"
    assert (made.root, made.stages) == ("elsewhere", ("resampler", "finetune"))
    assert parse_config(guide("default"), ["run=mine"]).run == "mine"


def test_tokens_stand_in_a_fixed_order() -> None:
    made = config(
        "image_processing.stitching_mode=dedupe",
        "models.language_model_name=Qwen/Qwen3-1.7B",
        "image_processing.caps=true",
        "image_processing.overlap_ratio=0",
        "models.use_projection_positional_encoding=false",
    )
    assert run_name(made) == "siglip2-so400m_Qwen3_bimamba_anyres-e2p__ov000-caps-llm1p7b-dedupe"


def test_the_profile_keeps_the_names() -> None:
    for name in ("default", "bimamba_overlap0"):
        assert run_name(config("profile=tiny", raw=guide(name))) == run_name(config(raw=guide(name)))


def test_words_of_other_models() -> None:
    assert vision_word("openai/clip-vit-large-patch14") == "clip"
    assert vision_word("/models/siglip-base-patch16-224/") == "siglip-base"
    assert language_word("Qwen/Qwen2.5-0.5B") == "Qwen2"
    assert language_word("meta/Llama-3.2-1B") == "Llama"


def test_a_given_name_keeps_its_suffix_unless_it_is_exact() -> None:
    zero = "image_processing.overlap_ratio=0"
    assert run_name(config(zero, "experiment.name=mine")) == "mine__ov000"
    assert run_name(config(zero, "experiment.name=mine", "experiment.exact_name=true")) == "mine"
    assert run_name(config(zero, "experiment.name=mine", "experiment.suffix=b")) == "mine__b"


def test_a_name_beyond_80_characters_keeps_its_base_and_the_plan_shows_both() -> None:
    long = ("experiment.name=" + "n" * 70, "image_processing.overlap_ratio=0", "image_processing.caps=true")
    made = config(*long)
    name = run_name(made)
    assert name == "n" * 70 + "__" + fingerprint(identity(made))[:8]
    assert len(name) <= 80
    other = config(*long, "seed=1")
    assert run_name(other) != name
    lines = FAMILY_CONFIG.summary(config(*long, f"run={name}"), STAGES["resampler"])
    assert any(name in line and "n" * 70 + "__ov000-caps" in line for line in lines)
    with pytest.raises(ConfigError, match="say run: <name>"):
        run_name(config("experiment.name=" + "n" * 71, *long[1:], "image_processing.stitching_mode=dedupe"))
