"""Crops, flips and turns of training samples: by indexing, so that a label stays a label."""

from __future__ import annotations

import numpy as np
import pytest

from stageline.families.film_flow.data.augmentation import Transform, draw_transform
from stageline.families.film_flow.data.sets import open_data
from stageline.families.film_flow.data.tree_pictures import make_prompted_picture

from .conftest import make_data


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_augmentation_equals_the_transform_of_the_mask(turns, flips):
    made = make_prompted_picture(1, "train", 0, 48)
    transform = Transform((5, 9, 32, 32), *flips, turns)
    mask, pixels = made.masks[0], made.pixels
    expected = mask[5:37, 9:41]
    expected = expected[::-1] if flips[0] else expected
    expected = expected[:, ::-1] if flips[1] else expected
    expected = np.rot90(expected, turns)
    np.testing.assert_array_equal(transform(mask), expected)
    np.testing.assert_array_equal(transform.orient(transform.crop(pixels)), transform(pixels))
    channels = np.stack([pixels, mask])
    np.testing.assert_array_equal(transform(channels)[1], expected)
    assert set(np.unique(transform(mask))) <= {0, 1}
    again = Transform((0, 0, 32, 32), quarter_turns=4 - turns)(transform(mask))
    unflipped = again[:, ::-1] if flips[1] else again
    unflipped = unflipped[::-1] if flips[0] else unflipped
    np.testing.assert_array_equal(unflipped, mask[5:37, 9:41])


def test_train_samples_are_transforms_of_the_prepared_picture(make_config, make_folder, tmp_path):
    train, val = make_folder("train", ("a",), (60, 72)), make_folder("val", ("c",))
    config = make_config(
        "data.name=folder",
        f"data.train_dir={train}",
        f"data.val_dir={val}",
        "data.num_samples_per_image=6",
        "model.vlm_film_config.prompt_template=vessels",
    )
    data = open_data(config, make_data(config))
    assert len(data.train_set) == 6
    split, seen = data.train_set.split, set()
    whole, case = split.mask(split.cases[0]), split.cases[0]
    for index in range(6):
        sample = data.train_set[(3, index)]
        transform = draw_transform(config.seed, 3, index, (60, 72), 32, flips=True)
        seen.add(transform)
        np.testing.assert_array_equal(sample.mask[0], transform(whole))
        np.testing.assert_array_equal(sample.heat[0], transform(split.heat(0)))
        top, left, height, width = transform.box
        np.testing.assert_array_equal(split.pixels(0, transform.box), split.pixels(0)[top : top + 32, left : left + 32])
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 72 - width
        assert sample.id == case.id
    assert len(seen) == 6


def test_transforms_cover_all_crops_and_symmetries():
    drawn = [draw_transform(0, 0, index, (34, 33), 32, flips=True) for index in range(400)]
    assert {t.box[:2] for t in drawn} == {(top, left) for top in range(3) for left in range(2)}
    assert len({(t.flip_rows, t.flip_columns, t.quarter_turns) for t in drawn}) == 16
    plain = draw_transform(0, 0, 0, (32, 32), 32, flips=False)
    assert plain == Transform((0, 0, 32, 32))
