"""Config against checkpoint, what tensor names prove, and that no plan loads another's tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stageline.errors import CheckpointError
from stageline.families.film_flow.agreement import (
    TrainedFilm,
    agree_facts,
    agree_stages,
    name_facts,
    trained_film,
)
from stageline.families.film_flow.model.network import FilmFlowModel
from tests.families.film_flow.model.subsets import SUBSETS, every_subset

FILE = TrainedFilm("runs/a/film/best.ckpt", (0, 1), (128, 96, 64, 32))
Build = Callable[..., FilmFlowModel]


@pytest.mark.parametrize("asked", [None, [0, 1], [1, 0]], ids=str)
@pytest.mark.parametrize("verb", ["evaluate", "resume", "seed"])
def test_silent_or_equal_takes_the_files(verb: Any, asked: Any) -> None:
    """Acceptance check 8."""
    found = agree_stages(verb, asked, FILE)
    assert (found.stages, found.active, found.loaded, found.ablation) == ((0, 1), (0, 1), (0, 1), False)


@pytest.mark.parametrize("asked", [[2, 3], [0], [0, 1, 2], []], ids=str)
@pytest.mark.parametrize("verb", ["evaluate", "resume", "seed"])
def test_different_is_refused_with_both_lists_and_the_ways_out(verb: Any, asked: Any) -> None:
    """Acceptance check 8."""
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
    """Acceptance check 8."""
    found = agree_stages("evaluate", asked, FILE, film_active=[1])
    assert (found.stages, found.active, found.ablation) == ((0, 1), (1,), True)
    assert not agree_stages("evaluate", asked, FILE, film_active=[1, 0]).ablation
    assert agree_stages("evaluate", asked, FILE, film_active=[]).active == ()


@pytest.mark.parametrize("active", [[2], [0, 7]], ids=str)
def test_an_ablation_of_an_untrained_stage_is_refused(active: list[int]) -> None:
    """Acceptance check 8."""
    with pytest.raises(CheckpointError) as error:
        agree_stages("evaluate", None, FILE, film_active=active)
    assert error.value.code == "E_CFG_VS_CKPT"
    assert f"evaluate.film_active={active}" in error.value.message
    assert "[0, 1]" in error.value.message


def test_a_new_stage_keeps_common_heads_or_none() -> None:
    """Acceptance check 8."""
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
    """Acceptance check 8."""
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


@pytest.mark.parametrize("stages", [(), *SUBSETS], ids=str)
def test_names_prove_decoder_stages_and_channels(build: Build, stages: tuple[int, ...]) -> None:
    shapes = {name: tuple(t.shape) for name, t in build(stages).state_dict().items()}
    assert name_facts(shapes) == {"vlm_film_trained_stages": list(stages), "decoder_channels": [32, 24, 16, 8]}
    film = trained_film("m", shapes, list(stages))
    assert (film.stages, film.channels) == (stages, (32, 24, 16, 8))


@pytest.mark.parametrize("stages", every_subset())
def test_reload_is_bitwise_and_no_other_plan_can_load(build: Build, inputs: Any, stages: tuple[int, ...]) -> None:
    """Acceptance check 5."""
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
