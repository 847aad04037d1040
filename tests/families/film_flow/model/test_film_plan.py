"""The FiLM plan: which lists of decoder stages are legal, and what each fault says."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from stageline.errors import ConfigError
from stageline.families.film_flow.config.film_plan import (
    FilmPlan,
    decoder_channels,
    resolve_decoder_stages,
    resolve_gate_stages,
    stage_lines,
    stage_table,
)

BASE = decoder_channels(32, [1, 2, 3, 4])


def test_channels_run_from_the_deepest_to_full_resolution() -> None:
    assert decoder_channels(32, [1, 2, 3, 4]) == (128, 96, 64, 32)
    assert decoder_channels(32, [1, 2, 4, 8]) == (256, 128, 64, 32)
    assert decoder_channels(64, [1, 2, 3, 4]) == (256, 192, 128, 64)


@pytest.mark.parametrize(("channels", "mult"), [(12, [1, 2]), (0, [1]), (8, [1, 0]), (8, []), (4, [2, 4]), (-8, [1])])
def test_channels_that_group_norm_cannot_split_are_refused(channels: int, mult: list[int]) -> None:
    with pytest.raises(ConfigError) as error:
        decoder_channels(channels, mult)
    assert error.value.code == "E_CHANNELS"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([], "E_EMPTY"),
        ([0, 0], "E_DUPLICATE"),
        ([4], "E_RANGE"),
        ([-1], "E_RANGE"),
        ([True], "E_TYPE"),
        ([1.0], "E_TYPE"),
        (["1"], "E_TYPE"),
        ("none", "E_TYPE"),
        ([0, 7], "E_RANGE"),
        (2, "E_TYPE"),
        ({0: 1}, "E_TYPE"),
        ([None], "E_TYPE"),
    ],
)
def test_bad_lists_are_refused_by_name(value: Any, code: str) -> None:
    """Acceptance check 4."""
    with pytest.raises(ConfigError) as error:
        resolve_decoder_stages(value, BASE, True)
    assert error.value.code == code
    assert "vlm_film_decoder_stages" in error.value.message
    assert error.value.remedy


def test_a_stage_out_of_range_is_explained_with_the_models_own_table() -> None:
    with pytest.raises(
        ConfigError,
        match=r"decoder stage 7 does not exist: this model has decoder stages 0\.\.3 "
        r"\(0 = deepest, 128 ch; 3 = full resolution, 32 ch\)",
    ):
        resolve_decoder_stages([0, 7], BASE, True)


def test_an_empty_list_names_the_switch() -> None:
    with pytest.raises(
        ConfigError,
        match=r"an empty stage list is not a way to disable FiLM; set model\.use_vlm_film: false",
    ):
        resolve_decoder_stages([], BASE, True)


def test_all_faults_of_a_list_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        resolve_decoder_stages([9, 1, 1, "x"], BASE, True)
    for part in ("decoder stage 9", "decoder stage 1 stands twice", "'x'"):
        assert part in error.value.message


@pytest.mark.parametrize("value", [[0], [0, 1, 2, 3], [], "all", [9]])
def test_naming_decoder_stages_without_film_is_a_contradiction(value: Any) -> None:
    """Acceptance check 4."""
    with pytest.raises(ConfigError) as error:
        resolve_decoder_stages(value, BASE, False)
    assert error.value.code == "E_CONTRADICTION"


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_good_values_for_every_depth(depth: int) -> None:
    """Acceptance check 4."""
    channels = decoder_channels(8, list(range(1, depth + 1)))
    assert resolve_decoder_stages(None, channels, True) == ((0, 1), "default")
    assert resolve_decoder_stages([2, 1], channels, True) == ((1, 2), "config")
    assert resolve_decoder_stages("all", channels, True) == (tuple(range(depth)), "config")
    assert resolve_decoder_stages([depth - 1], channels, True).stages == (depth - 1,)
    assert resolve_decoder_stages(None, channels, False) == ((), "config")
    with pytest.raises(ConfigError, match=rf"decoder stages 0\.\.{depth - 1}"):
        resolve_decoder_stages([depth], channels, True)


def test_order_has_no_meaning() -> None:
    """Acceptance check 4."""
    assert resolve_decoder_stages([3, 2], BASE, True).stages == (2, 3)


def test_gate_follows_film_or_names_a_part_of_it() -> None:
    assert resolve_gate_stages("same_as_film", (1, 3), BASE) == (1, 3)
    assert resolve_gate_stages([3, 1], (1, 3), BASE) == (1, 3)
    assert resolve_gate_stages([3], (1, 3), BASE) == (3,)
    assert resolve_gate_stages("same_as_film", (), BASE) == ()


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([0], "E_GATE_STAGE"),
        ([0, 1], "E_GATE_STAGE"),
        ("all", "E_GATE_STAGE"),
        ([], "E_EMPTY"),
        ([7], "E_RANGE"),
        ([1, 1], "E_DUPLICATE"),
        ([True], "E_TYPE"),
        ("same", "E_TYPE"),
    ],
)
def test_bad_gate_lists_are_refused_by_name(value: Any, code: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_gate_stages(value, (1, 3), BASE)
    assert error.value.code == code
    assert "apply_stages" in error.value.message


def test_plan_is_immutable_and_sorted() -> None:
    plan = FilmPlan(decoder_channels=BASE, stages=(3, 2), gate_stages=(3,))
    assert plan.stages == (2, 3)
    assert plan.head_widths == {2: 128, 3: 64}
    assert plan.n_stages == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.stages = (0,)  # type: ignore[misc]


def test_fingerprint_ignores_where_the_stages_came_from_and_nothing_else() -> None:
    plan = FilmPlan(decoder_channels=BASE, stages=(2, 3))
    assert len(plan.fingerprint) == 16
    assert dataclasses.replace(plan, stages_origin="metadata").fingerprint == plan.fingerprint
    others = [
        {"stages": (1, 3)},
        {"apply_point": "post_block2"},
        {"cond_dim": 128},
        {"head_hidden": 128},
        {"head_variant": "relu_v0"},
        {"gate_stages": (3,)},
        {"gate_value": 0.5},
        {"vlm_scope": "crop"},
        {"cond_source": "text"},
        {"decoder_channels": (128, 96, 64, 64)},
    ]
    found = {dataclasses.replace(plan, **change).fingerprint for change in others}
    assert len(found | {plan.fingerprint}) == len(others) + 1


def test_plan_as_json_has_every_field() -> None:
    plan = FilmPlan(decoder_channels=BASE, stages=(0, 2), gate_stages=(2,), gate_value=0.25, stages_origin="inferred")
    assert json.loads(json.dumps(plan.to_json())) == {
        "schema": 1,
        "n_stages": 4,
        "decoder_channels": [128, 96, 64, 32],
        "stages": [0, 2],
        "stages_origin": "inferred",
        "apply_point": "post_block1",
        "cond_dim": 256,
        "head_hidden": 256,
        "head_variant": "silu_v1",
        "gate_stages": [2],
        "gate_value": 0.25,
        "vlm_scope": "image",
        "cond_source": "image",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"stages": (9,)},
        {"gate_stages": (1,)},
        {"gate_value": 2.0},
        {"apply_point": "post_block3"},
        {"head_variant": "gelu"},
        {"cond_dim": 0},
    ],
    ids=str,
)
def test_a_plan_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FilmPlan(**{"decoder_channels": BASE, "stages": (0, 2), **change})


def test_stage_lines_name_index_and_count_from_the_end() -> None:
    head, *lines = stage_lines(FilmPlan(decoder_channels=BASE, stages=(2, 3), gate_stages=(3,)), 320)
    assert "FiLM at [2, 3]" in head
    assert "gate at [3]" in head
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3"]
    assert "4 from the output" in lines[0]
    assert "FiLM" not in lines[1]
    assert lines[3].endswith("FiLM head 64, gate")
    assert "320 x 320" in lines[3]


def test_stage_table_shows_both_ends() -> None:
    rows = stage_table(FilmPlan(decoder_channels=BASE, stages=(2, 3), gate_stages=(3,)), 320)
    assert [row["resolution"] for row in rows] == [40, 80, 160, 320]
    assert [row["head_outputs"] for row in rows] == [256, 192, 128, 64]
    assert [row["film"] for row in rows] == [False, False, True, True]
    assert [row["gate"] for row in rows] == [False, False, False, True]
