"""Config against checkpoint, and a native file against itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch

from stageline.config import canonical_json
from stageline.errors import CheckpointError
from stageline.families.film_flow.agreement import (
    TrainedFilm,
    agree_facts,
    agree_stages,
    check_native,
    name_facts,
    trained_film,
)
from stageline.families.film_flow.film_plan import FilmPlan
from stageline.families.film_flow.model import FilmFlowModel

SUBSETS = [s for n in (1, 2, 3, 4) for s in combinations(range(4), n)]
FILE = TrainedFilm("runs/a/film/best.ckpt", (0, 1), (128, 96, 64, 32))
Build = Callable[..., FilmFlowModel]


@pytest.mark.parametrize("asked", [None, [0, 1], [1, 0]], ids=str)
@pytest.mark.parametrize("verb", ["evaluate", "resume", "seed"])
def test_silent_or_equal_takes_the_files(verb: Any, asked: Any) -> None:
    found = agree_stages(verb, asked, FILE)
    assert (found.stages, found.active, found.loaded, found.ablation) == ((0, 1), (0, 1), (0, 1), False)


@pytest.mark.parametrize("asked", [[2, 3], [0], [0, 1, 2], []], ids=str)
@pytest.mark.parametrize("verb", ["evaluate", "resume", "seed"])
def test_different_is_refused_with_both_lists_and_the_ways_out(verb: Any, asked: Any) -> None:
    with pytest.raises(CheckpointError) as error:
        agree_stages(verb, asked, FILE)
    assert error.value.code == "E_CFG_VS_CKPT"
    assert error.value.message == (
        f"config asks for FiLM decoder stages {asked} but runs/a/film/best.ckpt was trained with [0, 1] "
        "(source: metadata; heads: film.0 (256), film.1 (192))"
    )
    for way in ("model.vlm_film_decoder_stages", "evaluate.film_active=[…]", "film_heads"):
        assert way in error.value.remedy


@pytest.mark.parametrize("asked", [None, [0, 1]], ids=str)
def test_an_ablation_runs_a_part_of_the_files_stages(asked: Any) -> None:
    found = agree_stages("evaluate", asked, FILE, film_active=[1])
    assert (found.stages, found.active, found.ablation) == ((0, 1), (1,), True)
    assert not agree_stages("evaluate", asked, FILE, film_active=[1, 0]).ablation
    assert agree_stages("evaluate", asked, FILE, film_active=[]).active == ()


@pytest.mark.parametrize("active", [[2], [0, 7]], ids=str)
def test_an_ablation_of_an_untrained_stage_is_refused(active: list[int]) -> None:
    with pytest.raises(CheckpointError) as error:
        agree_stages("evaluate", None, FILE, film_active=active)
    assert error.value.code == "E_CFG_VS_CKPT"
    assert f"evaluate.film_active={active}" in error.value.message
    assert "[0, 1]" in error.value.message


def test_a_new_stage_keeps_common_heads_or_none() -> None:
    kept = agree_stages("seed", [1, 2], FILE, film_heads="keep_common")
    assert (kept.stages, kept.loaded, kept.fresh, kept.dropped) == ((1, 2), (1,), (2,), (0,))
    new = agree_stages("seed", [1, 2], FILE, film_heads="reinit")
    assert (new.loaded, new.fresh, new.dropped) == ((), (1, 2), (0, 1))
    for verb in ("evaluate", "resume"):
        with pytest.raises(CheckpointError):
            agree_stages(verb, [1, 2], FILE, film_heads="keep_common")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("apply_point", "post_block2"),
        ("head_variant", "relu_v0"),
        ("gate_stages", [0]),
        ("vlm_scope", "crop"),
        ("target_kind", "soft"),
        ("mode", "dfm_binary"),
    ],
)
def test_other_facts_follow_the_same_rule(key: str, other: Any) -> None:
    facts = {
        "apply_point": "post_block1",
        "head_variant": "silu_v1",
        "gate_stages": [0, 1],
        "vlm_scope": "image",
        "target_kind": "hard",
        "mode": "cfm_continuous",
    }
    agree_facts("evaluate", {}, facts, "best.ckpt")
    agree_facts("evaluate", facts, facts, "best.ckpt")
    agree_facts("evaluate", {**facts, "gate_stages": (0, 1)}, facts, "best.ckpt")
    with pytest.raises(CheckpointError, match=f"{key}: ") as error:
        agree_facts("resume", {key: other}, facts, "best.ckpt")
    assert error.value.code == "E_CFG_VS_CKPT"
    assert repr(other) in error.value.message
    assert repr(facts[key]) in error.value.message


def facts_of(plan: FilmPlan) -> dict[str, Any]:
    return {
        "vlm_film_trained_stages": list(plan.stages),
        "decoder_channels": list(plan.decoder_channels),
        "plan_fingerprint": plan.fingerprint,
    }


def header_of(facts: dict[str, Any]) -> dict[str, str]:
    return {key: canonical_json(value) for key, value in facts.items()}


@pytest.fixture(scope="module")
def native(build: Build) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    model = build((1, 3))
    return facts_of(model.plan), {name: tuple(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize("stages", [(), *SUBSETS], ids=str)
def test_a_native_file_agrees_with_itself(build: Build, stages: tuple[int, ...]) -> None:
    model = build(stages)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    facts = facts_of(model.plan)
    assert name_facts(shapes) == {"vlm_film_trained_stages": list(stages), "decoder_channels": [32, 24, 16, 8]}
    assert check_native("m", facts, header_of(facts), shapes) == stages
    film = trained_film("m", shapes, list(stages))
    assert (film.stages, film.channels) == (stages, (32, 24, 16, 8))


@pytest.mark.parametrize("key", ["vlm_film_trained_stages", "decoder_channels", "plan_fingerprint"])
def test_a_changed_header_is_refused(native: Any, key: str) -> None:
    facts, shapes = native
    for header in ({**header_of(facts), key: canonical_json([0, 1])}, {**header_of(facts), key: "not json"}):
        with pytest.raises(CheckpointError, match=key) as error:
            check_native("m", facts, header, shapes)
        assert error.value.code == "E_EVIDENCE_CONFLICT"
    with pytest.raises(CheckpointError, match=f"{key} is missing in the header"):
        check_native("m", facts, {k: v for k, v in header_of(facts).items() if k != key}, shapes)


def test_changed_metadata_are_refused_with_all_that_differs(native: Any) -> None:
    facts, shapes = native
    changed = {**facts, "vlm_film_trained_stages": [0, 1], "decoder_channels": [64, 24, 16, 8]}
    with pytest.raises(CheckpointError) as error:
        check_native("m", changed, header_of(facts), shapes)
    assert error.value.message.count("\n") == 4
    for part in ("[0, 1]", "[1, 3]", "film.1 (48), film.3 (16)", "[64, 24, 16, 8]"):
        assert part in error.value.message
    # Metadata and header changed alike are still not what the tensors say.
    with pytest.raises(CheckpointError) as error:
        check_native("m", changed, header_of(changed), shapes)
    assert error.value.code == "E_EVIDENCE_CONFLICT"


def test_removed_and_renamed_heads_are_refused(native: Any) -> None:
    facts, shapes = native
    removed = {k: v for k, v in shapes.items() if not k.startswith("film.3.")}
    half = {k: v for k, v in shapes.items() if k != "film.3.fc2.weight"}
    renamed = {k.replace("film.3.", "film.2."): v for k, v in shapes.items()}
    for changed in (removed, half, renamed):
        with pytest.raises(CheckpointError):
            check_native("m", facts, header_of(facts), changed)


@pytest.mark.parametrize("stages", SUBSETS, ids=str)
def test_reload_is_bitwise_and_no_other_plan_can_load(build: Build, inputs: Any, stages: tuple[int, ...]) -> None:
    model = build(stages)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = build(stages, kick=False)
    again.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(again(*inputs.positional(), inputs.condition), model(*inputs.positional(), inputs.condition))
    assert again.plan_fingerprint == model.plan_fingerprint
    other = build((2, 3) if stages != (2, 3) else (0, 1))
    for kwargs in ({}, {"strict": False}, {"assign": True}):
        with pytest.raises(CheckpointError) as error:
            other.load_state_dict(state, **kwargs)
        assert error.value.code == "E_CFG_VS_CKPT"
        assert str(list(stages)) in error.value.message
        assert str(list(other.plan.stages)) in error.value.message
    assert {int(s) for s in other.film} == set(other.plan.stages)


def test_a_partial_load_is_refused(build: Build) -> None:
    model = build((1,))
    state = model.state_dict()
    with pytest.raises(CheckpointError):
        model.load_state_dict(state, strict=False)
    del state["backbone.out.bias"]
    with pytest.raises(CheckpointError, match=r"backbone\.out\.bias"):
        model.load_state_dict(state)


def test_plan_cannot_be_exchanged(build: Build) -> None:
    model = build((2, 3))
    with pytest.raises(AttributeError):
        model.plan = build((0, 1)).plan  # type: ignore[misc]
