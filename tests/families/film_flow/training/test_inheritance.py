"""What a stage takes from its parent: backbone to film, film to film, and what must be said for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from stageline.contract import Parent
from stageline.errors import CheckpointError
from stageline.families.film_flow.config import FAMILY_CONFIG
from stageline.families.film_flow.config.stages import STAGES
from stageline.families.film_flow.facts import facts
from stageline.families.film_flow.inheritance import SECTIONS, inherit, section_of
from stageline.stage import Inheritance

from .small import at_stage, kicked_model, make_config


def inherited(parent: Mapping[str, Any], **keys: Any) -> tuple[Inheritance, ...]:
    """What stage film takes from a parent with these facts."""
    return inherit(Parent("default", "backbone", parent), at_stage(make_config(**keys), "film"), STAGES["film"])


def outcomes(parent: dict[str, Any], **keys: Any) -> dict[str, str]:
    return {part.section: part.outcome for part in inherited(parent, **keys)}


def backbone(**keys: Any) -> dict[str, Any]:
    return facts(at_stage(make_config(**keys), "backbone"))


def film(**keys: Any) -> dict[str, Any]:
    return facts(at_stage(make_config(**keys), "film"))


def test_film_takes_the_backbone_and_starts_every_head_at_the_identity() -> None:
    assert outcomes(backbone()) == {
        "backbone": "load",
        "junction": "load",
        "cond": "fresh",
        "film.2": "fresh",
        "film.3": "fresh",
        "schedule": "fresh",
    }


def test_equal_film_is_taken_whole() -> None:
    found = outcomes(film())
    assert found == {**dict.fromkeys(("backbone", "junction", "cond", "film.2", "film.3"), "load"), "schedule": "fresh"}


def test_other_decoder_stages_need_a_word() -> None:
    with pytest.raises(CheckpointError, match=r"\[2, 3\].*\[0, 1\]") as error:
        outcomes(film(model__vlm_film_decoder_stages=[0, 1]))
    assert error.value.code == "E_CFG_VS_CKPT"
    assert "keep_common" in error.value.remedy


def test_keep_common_takes_what_both_have() -> None:
    found = outcomes(film(model__vlm_film_decoder_stages=[0, 3]), model__film_heads="keep_common")
    assert {key: found[key] for key in ("film.0", "film.2", "film.3", "cond")} == {
        "film.0": "drop",
        "film.2": "fresh",
        "film.3": "load",
        "cond": "load",
    }


def test_reinit_takes_no_head_and_no_projection() -> None:
    found = outcomes(film(model__vlm_film_decoder_stages=[0, 3]), model__film_heads="reinit")
    assert {key: found[key] for key in ("film.0", "film.2", "film.3", "cond")} == {
        "film.0": "drop",
        "film.2": "fresh",
        "film.3": "fresh",
        "cond": "fresh",
    }


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"model__cond_source": "image"}, "cond_source"),
        ({"model__vlm_film_config.cond_dim": 16}, "cond_dim"),
        ({"model__film_apply_point": "post_block2"}, "apply_point"),
        ({"model__head_variant": "relu_v0"}, "head_variant"),
        ({"model__vlm_scope": "crop"}, "vlm_scope"),
    ],
)
def test_another_wiring_is_refused_and_named(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        outcomes(film(**keys))
    with pytest.raises(CheckpointError, match=named):
        outcomes(film(**keys), model__film_heads="keep_common")
    assert outcomes(film(**keys), model__film_heads="reinit")["cond"] == "fresh"


def test_the_junction_head_is_taken_made_or_left() -> None:
    off = {"model__junction_gating_config.enabled": False}
    assert outcomes(backbone(**off))["junction"] == "fresh"
    assert outcomes(backbone(), **off)["junction"] == "drop"
    assert "junction" not in outcomes(backbone(**off), **off)


def test_every_tensor_of_the_model_is_in_one_section() -> None:
    model = kicked_model(make_config())
    names = list(model.state_dict())
    assert {section_of(name) for name in names} == set(SECTIONS)
    parts = inherited(backbone())
    for name in names:
        owners = [part.section for part in parts for p in part.patterns if name.startswith(p.removesuffix("*"))]
        assert len(owners) == 1, name


def test_evaluation_asks_for_equal_decoder_stages_and_seeding_only_reports_them() -> None:
    rules = FAMILY_CONFIG.fact_rules["vlm_film_trained_stages"]
    assert (rules["resume"], rules["seed"], rules["evaluate"]) == ("equal", "report", "equal")
    assert STAGES["film"].accepted("default") == ("backbone", "film")
    assert STAGES["backbone"].parents == {}
