"""Which decoder stages a file was trained with: inference from widths, and every row of the cross-examination."""

from __future__ import annotations

from typing import Any

import pytest

from stageline.errors import CheckpointError
from stageline.families.film_flow.config.film_plan import decoder_channels
from stageline.families.film_flow.imports.evidence import Evidence, infer_stages, native_evidence, restore_stages
from tests.families.film_flow.model.subsets import SUBSETS

BASE = (128, 96, 64, 32)
EQUAL = (128, 64, 64, 32)
"""Two neighbours of equal width: widths alone cannot always tell."""


def widths(stages: tuple[int, ...], channels: tuple[int, ...] = BASE) -> tuple[int, ...]:
    return tuple(2 * channels[s] for s in stages)


def evidence(stages: tuple[int, ...], channels: tuple[int, ...] = BASE, **kwargs: Any) -> Evidence:
    return Evidence(where="old.ckpt", head_widths=widths(stages, channels), channels=channels, **kwargs)


@pytest.mark.parametrize(
    "channels",
    [decoder_channels(32, m) for m in ([1, 2, 3, 4], [1, 2, 4, 8])]
    + [decoder_channels(m, [1, 2, 3, 4]) for m in (64, 16)],
    ids=str,
)
def test_distinct_widths_are_never_wrong(channels: tuple[int, ...]) -> None:
    """Acceptance check 7."""
    for stages in SUBSETS:
        assert infer_stages(widths(stages, channels), channels) == (stages,)


def test_equal_neighbours_are_right_or_refused() -> None:
    """Acceptance check 7."""
    unique, ambiguous = [], []
    for stages in SUBSETS:
        candidates = infer_stages(widths(stages, EQUAL), EQUAL)
        assert stages in candidates
        (unique if len(candidates) == 1 else ambiguous).append(stages)
        if len(candidates) == 1:
            assert restore_stages(evidence(stages, EQUAL)).stages == stages
            continue
        with pytest.raises(CheckpointError) as error:
            restore_stages(evidence(stages, EQUAL))
        assert error.value.code == "E_AMBIGUOUS"
        for candidate in candidates:
            assert str(list(candidate)) in error.value.message
    assert (len(unique), len(ambiguous)) == (7, 8)
    assert infer_stages((128,), EQUAL) == ((1,), (2,))
    assert infer_stages((256, 128), EQUAL) == ((0, 1), (0, 2))
    assert infer_stages((128, 128), EQUAL) == ((1, 2),)
    assert infer_stages((256, 128, 128), EQUAL) == ((0, 1, 2),)


@pytest.mark.parametrize("bad", [(255,), (100,), (64, 128), (256, 256), (64, 64, 64, 64, 64), (256, 0)], ids=str)
def test_widths_of_no_decoder_stage_are_refused(bad: tuple[int, ...]) -> None:
    """Acceptance check 7."""
    with pytest.raises(CheckpointError) as error:
        infer_stages(bad, BASE)
    assert error.value.code == "E_HEAD_SHAPE"


@pytest.mark.parametrize("stages", SUBSETS, ids=str)
def test_each_level_alone_restores_every_subset(stages: tuple[int, ...]) -> None:
    """Acceptance check 6."""
    for kwargs, origin in (
        ({"metadata_stages": list(stages)}, "metadata"),
        ({"hparams_stages": list(stages)}, "hparams"),
        ({}, "inferred"),
        ({"metadata_stages": list(stages), "hparams_stages": list(stages)}, "metadata"),
    ):
        found = restore_stages(evidence(stages, use_vlm_film=True, **kwargs))
        assert (found.stages, found.origin, found.warnings) == (stages, origin, ())
        assert found.levels["head_widths"] == list(widths(stages))


def test_null_hyper_parameters_are_unknown_not_the_default() -> None:
    """Acceptance check 6."""
    assert restore_stages(evidence((0, 1, 2, 3), hparams_stages=None)).stages == (0, 1, 2, 3)


def refused(code: str, item: Evidence, override: Any = None) -> str:
    with pytest.raises(CheckpointError) as error:
        restore_stages(item, override)
    assert error.value.code == code
    assert "old.ckpt" in error.value.message
    return str(error.value)


def test_metadata_win_over_hyper_parameters_when_only_they_fit_the_heads() -> None:
    found = restore_stages(evidence((2, 3), metadata_stages=[2, 3], hparams_stages=[0, 1]))
    assert (found.stages, found.origin) == ((2, 3), "metadata")
    assert "[2, 3]" in found.warnings[0]
    assert "[0, 1]" in found.warnings[0]


def test_two_levels_that_both_fit_are_a_conflict_the_user_may_settle() -> None:
    item = evidence((0, 1), EQUAL, metadata_stages=[0, 1], hparams_stages=[0, 2])
    text = refused("E_EVIDENCE_CONFLICT", item)
    assert "[0, 1]" in text
    assert "[0, 2]" in text
    assert "import.film_stages=[…]" in text
    for choice in ([0, 1], [0, 2]):
        found = restore_stages(item, choice)
        assert (found.stages, found.origin) == (tuple(choice), "override")
    refused("E_EVIDENCE_CONFLICT", item, [1, 2])


def test_metadata_against_heads_is_a_conflict_only_a_candidate_settles() -> None:
    for hparams in (None, [0, 1], [2, 3]):
        item = evidence((2, 3), metadata_stages=[0, 1], hparams_stages=hparams)
        text = refused("E_EVIDENCE_CONFLICT", item)
        assert "[0, 1]" in text
        assert "[2, 3]" in text
        assert restore_stages(item, [2, 3]).origin == "override"
        refused("E_EVIDENCE_CONFLICT", item, [0, 1])


def test_hyper_parameters_alone_against_heads_are_a_conflict() -> None:
    item = evidence((2, 3), hparams_stages=[0, 1])
    text = refused("E_EVIDENCE_CONFLICT", item)
    assert "[0, 1]" in text
    assert "[2, 3]" in text
    assert restore_stages(item, [2, 3]).stages == (2, 3)


@pytest.mark.parametrize("key", ["metadata_stages", "hparams_stages"])
def test_one_level_settles_what_widths_leave_open(key: str) -> None:
    assert restore_stages(evidence((2,), EQUAL, **{key: [2]})).stages == (2,)
    assert restore_stages(evidence((1,), EQUAL, **{key: [1]})).stages == (1,)


def test_ambiguity_is_settled_by_the_user_within_the_candidates() -> None:
    item = evidence((1,), EQUAL)
    assert "import.film_stages=[…], one of [1], [2]" in refused("E_AMBIGUOUS", item)
    assert restore_stages(item, [2]).stages == (2,)
    refused("E_AMBIGUOUS", item, [0])


def test_the_user_cannot_contradict_evidence_that_agrees() -> None:
    item = evidence((1,), EQUAL, metadata_stages=[1])
    assert restore_stages(item, [1]).origin == "override"
    refused("E_EVIDENCE_CONFLICT", item, [2])
    refused("E_EVIDENCE_CONFLICT", evidence((2, 3)), [0, 1])


def test_a_file_without_film() -> None:
    for use in (None, False):
        found = restore_stages(Evidence(where="old.ckpt", channels=BASE, use_vlm_film=use))
        assert found.stages == ()
    # The old program wrote its default list also where FiLM was off.
    assert restore_stages(Evidence(where="a", channels=BASE, use_vlm_film=False, hparams_stages=[0, 1])).stages == ()
    assert restore_stages(Evidence(where="a", channels=BASE, metadata_stages=[])).stages == ()


@pytest.mark.parametrize(
    "kwargs", [{"use_vlm_film": True}, {"metadata_stages": [0, 1]}, {"hparams_stages": [2]}], ids=str
)
def test_film_that_is_claimed_without_heads_is_refused(kwargs: dict[str, Any]) -> None:
    refused("E_NO_EVIDENCE", Evidence(where="old.ckpt", channels=BASE, **kwargs))
    refused("E_NO_EVIDENCE", Evidence(where="old.ckpt", channels=BASE), [0])


def test_heads_that_cannot_be_read_are_no_evidence() -> None:
    refused("E_NO_EVIDENCE", Evidence(where="old.ckpt", head_widths=(256,)))
    refused("E_NO_EVIDENCE", Evidence(where="old.ckpt", head_widths=(0,), channels=BASE))
    refused("E_HEAD_SHAPE", Evidence(where="old.ckpt", head_widths=(0,), channels=BASE, metadata_stages=[0]))


def test_heads_of_a_model_that_says_it_has_none_are_a_conflict() -> None:
    refused("E_EVIDENCE_CONFLICT", evidence((0,), use_vlm_film=False))


@pytest.mark.parametrize("key", ["metadata_stages", "hparams_stages"])
@pytest.mark.parametrize(
    ("value", "code"), [([0, 7], "E_RANGE"), ([-1], "E_RANGE"), ([True], "E_TYPE"), ([1, 1], "E_DUPLICATE")], ids=str
)
def test_evidence_that_is_not_even_legal(key: str, value: Any, code: str) -> None:
    text = refused(code, evidence((0,), **{key: value}))
    assert "import.film_stages" in text
    assert restore_stages(evidence((0,), **{key: value}), [0]).origin == "override"


def test_an_illegal_choice_of_the_user_is_refused() -> None:
    refused("E_RANGE", evidence((0,)), [7])


def test_backbone_and_hyper_parameters_must_have_the_same_channels() -> None:
    text = refused("E_EVIDENCE_CONFLICT", evidence((0,), hparams_channels=(256, 128, 64, 32)))
    assert "[128, 96, 64, 32]" in text
    assert "[256, 128, 64, 32]" in text


def native(stages: tuple[int, ...], channels: tuple[int, ...] = EQUAL) -> dict[str, tuple[int, ...]]:
    shapes = {f"backbone.dec.{s}.res1.block2.conv.weight": (c, c, 3, 3) for s, c in enumerate(channels)}
    return shapes | {f"film.{s}.fc2.weight": (2 * channels[s], 14) for s in stages}


@pytest.mark.parametrize("stages", SUBSETS, ids=str)
def test_our_own_names_are_exact_where_widths_are_not(stages: tuple[int, ...]) -> None:
    """Acceptance check 6."""
    assert restore_stages(native_evidence("m", native(stages), None)).stages == stages
    assert restore_stages(native_evidence("m", native(stages), list(stages))).origin == "metadata"
    other = next(s for s in SUBSETS if s != stages)
    with pytest.raises(CheckpointError) as error:
        restore_stages(native_evidence("m", native(stages), list(other)))
    assert error.value.code == "E_EVIDENCE_CONFLICT"


def test_our_own_heads_must_fit_their_decoder_stage() -> None:
    wrong = native((1, 3)) | {"film.3.fc2.weight": (128, 14)}
    with pytest.raises(CheckpointError, match=r"film\.3 has 128 outputs, expected 64") as error:
        restore_stages(native_evidence("m", wrong, None))
    assert error.value.code == "E_HEAD_SHAPE"
    with pytest.raises(CheckpointError) as error:
        restore_stages(native_evidence("m", native((1,)) | {"film.9.fc2.weight": (64, 14)}, None))
    assert error.value.code == "E_RANGE"
