"""Picture files of every kind: what is accepted has the right pixels, what is refused says why."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stageline.data.arrays import read_array
from stageline.data.decoding import DEEP_RULE, reading_rule
from stageline.data.names import NamePattern, find_pattern, group_names
from stageline.data.pictures import as_pixels, pixel_hash, read_file, read_picture
from stageline.errors import DataError
from stageline.families.film_flow.data.pictures import label_of

from .picture_files import DEEP, GREY, LABELS, PICTURES, palette_label, png, saved, tiff, whole, write


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_of_every_kind_has_the_right_pixels(tmp_path: Path, kind: str) -> None:
    suffix, make, expected = PICTURES[kind]
    data = make()
    found = read_file(write(tmp_path, f"a.{suffix}", data))
    pixels = expected(data)
    resolved = found.pixels[..., 0] if pixels.ndim == 2 and found.pixels.ndim == 3 else found.pixels
    assert resolved.dtype == pixels.dtype
    np.testing.assert_array_equal(resolved, pixels)
    assert (kind == "mpo") == any("camera" in note for note in found.notes)
    if "orientation" in kind:
        assert ["EXIF orientation" in note for note in found.notes] == [True]


@pytest.mark.parametrize("kind", ["rgb16-png", "rgba16-tiff", "grey-alpha16-png", "grey-alpha8-png"])
def test_an_array_holds_what_its_file_holds(tmp_path: Path, kind: str) -> None:
    """At full depth, so that both have one hash of pixels; another depth or shape has another."""
    suffix, data, right = PICTURES[kind]
    file, array = read_file(write(tmp_path, f"a.{suffix}", data())), read_array(right(data()))
    assert (array.bits, array.channels) == (file.bits, file.channels)
    for channels in (1, 3):
        hashes = [pixel_hash(as_pixels(one, channels)) for one in (file, array)]
        assert hashes[0] == hashes[1] != pixel_hash(as_pixels(array, 4 - channels))
    assert pixel_hash(GREY[..., None]) != pixel_hash(GREY[..., None].astype(np.uint16))
    assert pixel_hash(GREY[..., None]) != pixel_hash(GREY.reshape(34, 21, 1)), "the same bytes in another shape"


@pytest.mark.parametrize("kind", LABELS)
def test_a_label_of_every_kind_has_the_right_mask(tmp_path: Path, kind: str) -> None:
    suffix, make, mask = LABELS[kind]
    np.testing.assert_array_equal(label_of(read_file(path := write(tmp_path, f"a.{suffix}", make())), path), mask)


def test_a_palette_of_three_colours_is_no_label(tmp_path: Path) -> None:
    three = np.arange(21 * 34, dtype=np.uint8).reshape(21, 34) % 3
    path = write(tmp_path, "a.png", palette_label([0, 0, 0, 255, 0, 0, 0, 0, 255], three))
    with pytest.raises(DataError, match="3 colours of its palette"):
        label_of(read_file(path), path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(lambda: png(np.concatenate([DEEP, whole(65534)], 2), colour=6), "transparent", id="rgba16"),
        pytest.param(lambda: png(np.concatenate([DEEP[..., :1], whole(7)], 2), colour=4), "transparent", id="la16"),
        pytest.param(
            lambda: tiff(DEEP.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
            "separate planes",
            id="planes",
        ),
        pytest.param(lambda: tiff(np.stack([GREY, GREY]), photometric="minisblack"), "holds 2 pictures", id="pages"),
        pytest.param(lambda: b"P6 34 21 65535\n" + DEEP.astype(">u2").tobytes(), "0 to 65535 in a PPM", id="ppm16"),
        pytest.param(lambda: b"P6 34 21 4095\n" + (DEEP >> 4).astype(">u2").tobytes(), "0 to 4095", id="ppm12"),
        pytest.param(lambda: tiff(GREY.astype(np.float32), metadata=None), "floating point numbers", id="float"),
        pytest.param(
            lambda: saved(Image.fromarray(GREY), "WEBP", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
            "holds 2 pictures",
            id="moving-webp",
        ),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_by_name(tmp_path: Path, data, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=words):
        read_file(write(tmp_path, "a.png", data()))


def test_a_picture_beyond_the_limit_names_the_limit_and_its_key(tmp_path: Path) -> None:
    path = write(tmp_path, "a.png", saved(Image.fromarray(GREY), "PNG"))
    with pytest.raises(DataError, match=r"34 x 21 pixels, expected at most 713 \(data.max_pixels\)"):
        read_picture(path, 1, max_pixels=713)
    assert read_picture(path, 1, max_pixels=714).shape == (21, 34, 1)


@pytest.mark.parametrize("kind", ["rgb16-png", "rgb16-tiff", "rgb16-tiff-deflate", "mpo", "two-colour-gif"])
def test_the_limit_of_the_library_does_not_count(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suffix, make, expected = PICTURES[kind]
    data = make()
    pixels = expected(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    found = read_file(write(tmp_path, f"a.{suffix}", data)).pixels
    np.testing.assert_array_equal(found if found.ndim == pixels.ndim else found[..., 0], pixels)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("kind", ["rgb16-png", "rgb16-tiff", "broken-exif", "broken-tiff-tags", "mpo"])
def test_pixels_that_break_off_are_still_refused(tmp_path: Path, kind: str) -> None:
    suffix, make, _ = PICTURES[kind]
    data = make()
    cut = data[:500] if kind != "broken-tiff-tags" else data[:-200]
    with pytest.raises(DataError, match="no readable picture"):
        read_file(write(tmp_path, f"a.{suffix}", cut))


def test_only_files_that_are_read_otherwise_than_before_have_a_rule(tmp_path: Path) -> None:
    before = {"rgb16-png", "rgb16-png-filtered", "rgba16-png", "grey-alpha16-png", "broken-exif-png", "broken-text"}
    before |= {kind for kind in PICTURES if "16-tiff" in kind}
    for kind, (suffix, make, _) in PICTURES.items():
        path = write(tmp_path, f"{kind}.{suffix}", make())
        assert reading_rule(path) == (DEEP_RULE if kind in before else ""), kind
    deep_grey = io.BytesIO()
    Image.fromarray(DEEP[..., 0]).save(deep_grey, "PNG")
    assert not reading_rule(write(tmp_path, "grey16.png", deep_grey.getvalue()))
    assert not reading_rule(write(tmp_path, "no.png", struct.pack(">Q", 1)))


def test_names_go_together_by_a_pattern() -> None:
    drive = find_pattern([f"{n}_training" for n in range(21, 41)], [f"{n}_manual1" for n in range(21, 41)])
    assert drive == NamePattern((("*_training", "*_manual1"),))
    assert find_pattern(["img_1", "img_2", "img_7"], ["1_mask", "2_mask", "7_mask"]) == NamePattern(
        (("img_*", "*_mask"),)
    )
    assert find_pattern(["a", "b"], ["c", "d"]) is None
    observers = [f"Image_{n:02d}L_{observer}HO" for n in range(1, 12) for observer in ("1st", "2nd", "3rd")]
    assert find_pattern([f"Image_{n:02d}L" for n in range(1, 12)], observers) == NamePattern((("*", "*_1stHO"),))
    assert find_pattern(["1", "10"], ["x1_a", "y10_a", "z"]) is None
    parsed = NamePattern.parse("*_training -> *_manual1")
    assert (parsed.key("image", "21_training"), parsed.key("label", "21_manual1")) == ("21", "21")
    assert parsed.key("image", "21_test") is None
    both = NamePattern.parse("*_training -> *_manual1 | *_test -> *_manual1")
    assert (both.key("image", "21_test"), both.images_of("3_manual1")) == ("21", ["3_training", "3_test"])
    assert NamePattern.parse(both.text) == both
    assert NamePattern.parse("*_mask") == NamePattern((("*", "*_mask"),))


def test_names_are_grouped_by_what_stands_before_the_first_number() -> None:
    groups = group_names(["p01_left", "p01_right", "p02_left", "p10_left"])
    assert groups == {"p01_left": "p01", "p01_right": "p01", "p02_left": "p02", "p10_left": "p10"}
    assert group_names(["01", "02", "03"]) == {"01": "01", "02": "02", "03": "03"}
    assert group_names(["a", "b"]) == {"a": "a", "b": "b"}
