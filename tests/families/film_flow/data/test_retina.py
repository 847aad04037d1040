"""The retina picture: its pseudo-label is named so everywhere, and its halves do not touch."""

from __future__ import annotations

import numpy as np
import pytest

from stageline.errors import ConfigError
from stageline.families.film_flow.data.retina import (
    HYSTERESIS_QUANTILES,
    MARGIN,
    RIDGE_SIGMAS,
    SIZE,
    load_half,
    load_pseudo_retina,
    make_pseudo_label,
    tile_boxes,
)
from stageline.families.film_flow.data.sets import open_data

from .conftest import make_data


def test_pseudo_label_covers_a_tenth_of_the_field():
    whole = load_pseudo_retina()
    assert whole.pixels.shape == (SIZE, SIZE, 3)
    assert 0.09 < whole.mask.sum() / whole.field.sum() < 0.13
    assert not whole.mask[~whole.field].any()
    vessel = whole.mask.astype(bool)
    green = whole.pixels[..., 1].astype(float)
    assert green[vessel].mean() < green[whole.field & ~vessel].mean()


def test_pseudo_label_finds_a_dark_line_and_nothing_else():
    green = np.full((128, 128), 0.5)
    green[60:64] = 0.3
    field = np.ones((128, 128), dtype=bool)
    field[:8] = field[-8:] = field[:, :8] = field[:, -8:] = False
    mask = make_pseudo_label(green, field)
    assert mask[61, 10:118].all()
    assert not mask[:50].any()
    assert not mask[75:].any()


def test_halves_have_a_margin_between_them():
    left, right, whole = load_half("train"), load_half("test"), load_pseudo_retina()
    assert left.pixels.shape == right.pixels.shape == (SIZE, SIZE // 2 - MARGIN, 3)
    np.testing.assert_array_equal(left.pixels, whole.pixels[:, : SIZE // 2 - MARGIN])
    np.testing.assert_array_equal(right.mask, whole.mask[:, SIZE // 2 + MARGIN :])
    # No held-out pixel lies within the ridge filter's reach of a training pixel.
    assert 4 * max(RIDGE_SIGMAS) <= 2 * MARGIN
    assert HYSTERESIS_QUANTILES == (0.88, 0.96)


def test_tiles_cover_the_field_without_overlap():
    half = load_half("val")
    boxes = tile_boxes(half.field, 96)
    taken = np.zeros(half.field.shape, dtype=int)
    for top, left, height, width in boxes:
        taken[top : top + height, left : left + width] += 1
        assert (height, width) == (96, 96)
        assert half.field[top : top + height, left : left + width].mean() >= 0.5
    assert taken.max() == 1
    assert len(boxes) > 10


def test_pseudo_is_in_every_name_prompt_and_manifest(make_config, tmp_path):
    config = make_config(
        "data.name=retina",
        "model.image_size=64",
        "model.vlm_film_config.prompt_template=blood vessels",
        "data.num_test=1",
        "evaluate.split=test",
        "data.num_val=5",
        "data.num_samples_per_image=4",
    )
    prepared = make_data(config)
    for name in ("train", "test"):
        assert "pseudo" in prepared.prepared.splits[name].facts["labels"]
        assert "pseudo" in prepared.prepared.splits[name].facts["junctions"]
    data = open_data(config, prepared)
    sets = (data.train_set.split, data.val_set.split, data.case_set("test").split)
    for split in sets:
        for case in split.cases:
            assert "pseudo" in case.id
            assert "pseudo" in case.prompt
        for image in range(split.num_images):
            assert "pseudo" in split.id(image)
    assert data.train_set[(0, 0)].prompt == "blood vessels (pseudo-label)"
    assert len(data.val_set) == 5
    assert data.val_set[0].image.shape == (1, 64, 64)
    assert data.case_set("test")[0].image.shape == (1, SIZE, SIZE // 2 - MARGIN)
    tile, whole = data.val_set[2], load_half("val")
    top, left, height, width = data.val_set.case(2).box
    np.testing.assert_array_equal(tile.mask[0], whole.mask[top : top + height, left : left + width])
    green = whole.pixels[top : top + height, left : left + width, 1:2]
    np.testing.assert_array_equal(data.val_set.split.pixels(0, data.val_set.case(2).box), green)


def test_crops_larger_than_a_half_are_refused(make_config, tmp_path):
    config = make_config("data.name=retina", "model.image_size=344", "model.vlm_film_config.prompt_template=vessels")
    with pytest.raises(ConfigError, match="does not fit into a half"):
        make_data(config)
    assert not (tmp_path / "cache").exists()
