"""Folders of pictures: every bad input is named, all of them at once, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stageline.data.pictures import decode, list_pictures, read_file, read_picture, to_channels
from stageline.errors import DataError
from stageline.families import parse_config, raw_preset
from stageline.families.film_flow.data.folder import check_folders, read_prompts
from stageline.families.film_flow.data.layout import Layout
from stageline.families.film_flow.data.pictures import encoder_picture, find_levels, label_of, normalise
from stageline.families.film_flow.data.prompts import unseen_prompt
from stageline.families.film_flow.data.sets import open_data
from stageline.families.film_flow.predict import picture_sources

from .conftest import make_data, quiet


def faults_of(splits, **rules) -> str:
    with pytest.raises(DataError) as caught:
        check_folders(Layout(splits, **rules), quiet)
    return str(caught.value)


def label_at(path: Path):
    """The label in a file."""
    return label_of(read_file(path), path)


def save(path: Path, pixels, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def test_all_faults_of_a_folder_are_reported_at_once(make_folder, tmp_path):
    root = make_folder("train", ("fine", "empty", "corrupt", "small", "grey", "sized", "lone", "cut"))
    val = make_folder("val")
    (root / "image" / "empty.png").write_bytes(b"")
    (root / "image" / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"rubbish" * 20)
    whole = (root / "label" / "cut.png").read_bytes()
    (root / "label" / "cut.png").write_bytes(whole[: len(whole) // 2])
    save(root / "image" / "small.png", np.zeros((20, 48), np.uint8))
    save(root / "label" / "small.png", np.zeros((20, 48), np.uint8))
    save(root / "label" / "grey.png", np.arange(40 * 48, dtype=np.uint8).reshape(40, 48))
    save(root / "label" / "sized.png", np.zeros((41, 48), np.uint8))
    (root / "label" / "lone.png").unlink()
    save(root / "label" / "orphan.png", np.zeros((40, 48), np.uint8))
    (root / "image" / "notes.txt").write_text("not a picture")
    (val / "image" / "b.png").unlink()
    message = faults_of({"train": root, "val": val, "test": tmp_path / "nowhere"})
    for path, words in {
        "image/empty.png": "empty file",
        "image/corrupt.png": "no readable picture",
        "label/cut.png": "no readable picture",
        "label/grey.png": "not binary",
        "label/sized.png": "41 x 48 pixels (height x width), but its image 'sized.png' is 40 x 48",
        "image/lone.png": "no label of that name",
        "label/orphan.png": "no image of that name",
        "image/notes.txt": "no picture file",
        "val/label/b.png": "no image of that name",
        "nowhere": "no such folder (data.test_dir)",
    }.items():
        line = next((line for line in message.splitlines() if path in line), "")
        assert words in line, f"{path}: {line or message}"
    assert "image folders: 10 faults" in message
    assert "fine" not in message


def test_what_systems_leave_in_folders_is_no_data(make_folder, make_config, tmp_path):
    """Neither listed, nor refused, nor counted as a source: a file manager writes such at any time."""
    root = make_folder("train", ("a",))
    before = Layout({"train": root}).files("train")
    for part in ("image", "label"):
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._a.png", "Icon\r"):
            (root / part / name).write_bytes(b"\0\5\x16\7")
        for name in ("@eaDir", ".ipynb_checkpoints"):
            (root / part / name).mkdir()
    assert [pair.name for pair in check_folders(Layout({"train": root}), quiet)] == ["a"]
    assert Layout({"train": root}).files("train") == before
    assert picture_sources([root / "image"]) == [root / "image" / "a.png"]
    (root / "image" / "b.png").symlink_to(tmp_path / "gone.png")
    assert "gone.png', which is not there" in faults_of({"train": root})


def test_folders_without_files(make_folder, tmp_path):
    (tmp_path / "x" / "image").mkdir(parents=True)
    (tmp_path / "x" / "label").mkdir()
    assert "no picture files in image/ and label/" in faults_of({"train": tmp_path / "x"})
    (tmp_path / "x" / "label").rmdir()
    assert "label': no such folder" in faults_of({"train": tmp_path / "x"})


def test_a_name_that_stands_twice_is_a_fault(make_folder):
    root = make_folder("train", ("a",))
    save(root / "image" / "a.bmp", np.zeros((40, 48), np.uint8))
    assert "the name 'a' stands twice (also 'a.bmp')" in faults_of({"train": root})


def test_one_file_in_two_splits_is_a_fault(make_folder):
    root = make_folder("train")
    assert "the same file in train and val" in faults_of({"train": root, "val": root})


def test_pictures_may_be_smaller_than_a_crop(make_folder):
    splits = {"train": make_folder("train"), "val": make_folder("val", ("c",), (24, 48))}
    assert [pair.name for pair in check_folders(Layout(splits), quiet)] == ["a", "b", "c"]


def test_names_match_whatever_the_format(make_folder):
    root = make_folder("train", ("a",))
    for number, suffix in enumerate(("jpg", "tif", "bmp", "JPEG")):
        save(root / "image" / f"n{number}.{suffix}", np.full((40, 48), 60 * number, np.uint8))
        save(root / "label" / f"n{number}.png", np.zeros((40, 48), np.uint8))
    assert len(check_folders(Layout({"train": root}), quiet)) == 5
    assert sum(len(list_pictures(root / part)) for part in ("image", "label")) == 10


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("turned", "EXIF orientation 6"),
        ("transparent", "transparent pixels"),
        ("pages", "holds 2 pictures"),
        ("float", "mode 'F'"),
        ("cmyk", "mode 'CMYK'"),
        ("wide", "32-bit numbers from 0 to 70000"),
    ],
)
def test_files_readable_in_two_ways_are_refused_in_words(tmp_path, mode, words):
    grey = Image.fromarray(np.full((40, 48), 7, np.uint8))
    path = tmp_path / f"{mode}.tif"
    if mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        grey.save(path := tmp_path / "turned.jpg", exif=exif)
    elif mode == "transparent":
        Image.fromarray(np.full((40, 48, 4), 100, np.uint8)).save(path := tmp_path / "transparent.png")
    elif mode == "pages":
        grey.save(path, save_all=True, append_images=[grey])
    elif mode == "float":
        Image.fromarray(np.zeros((40, 48), np.float32)).save(path)
    elif mode == "cmyk":
        grey.convert("CMYK").save(path)
    else:
        wide = np.zeros((40, 48), np.int32)
        wide[0, 0] = 70000
        Image.fromarray(wide).save(path)
    with pytest.raises(DataError) as caught:
        decode(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_palette_sixteen_bit_and_opaque_alpha_are_handled(tmp_path):
    colours = np.zeros((40, 48, 3), np.uint8)
    colours[:, :24] = (200, 10, 30)
    palette = save(tmp_path / "p.png", Image.fromarray(colours).quantize(4))
    np.testing.assert_array_equal(read_picture(palette, 3), colours)
    deep = np.linspace(0, 65535, 40 * 48).reshape(40, 48).astype(np.uint16)
    read = read_picture(save(tmp_path / "d.png", deep), 1)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read[..., 0], deep)
    opaque = np.concatenate([colours, np.full((40, 48, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(read_picture(save(tmp_path / "o.png", opaque), 3), colours)


@pytest.mark.parametrize("top", [1, 255, 65535, "bool", "rgb", "palette"])
def test_binary_labels_of_every_kind(tmp_path, top):
    mask = np.zeros((40, 48), np.uint8)
    mask[5:9] = 1
    stored = {
        "bool": lambda: Image.fromarray(mask * 255).convert("1"),
        "rgb": lambda: Image.fromarray(np.repeat(mask[..., None] * 255, 3, axis=2)),
        "palette": lambda: Image.fromarray(mask * 255).convert("P"),
    }
    pixels = stored[top]() if isinstance(top, str) else mask.astype(np.uint16 if top > 255 else np.uint8) * top
    label = label_at(save(tmp_path / "label.png", pixels))
    np.testing.assert_array_equal(label, mask)
    assert label.dtype == np.uint8


@pytest.mark.parametrize("values", [(0, 128), (0, 1, 255), (1, 255), (0, 254)])
def test_labels_with_other_values_are_refused(tmp_path, values):
    mask = np.resize(np.array(values, np.uint8), (40, 48))
    with pytest.raises(DataError, match="not binary"):
        label_at(save(tmp_path / "label.png", mask))


def test_soft_edges_are_refused_with_what_to_do(tmp_path):
    edges = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1))
    with pytest.raises(DataError, match=r"48 values .*cut them at half and save as PNG"):
        label_at(save(tmp_path / "a.png", edges))


def test_coloured_label_is_refused(tmp_path):
    colours = np.zeros((40, 48, 3), np.uint8)
    colours[3:5, :, 0] = 255
    with pytest.raises(DataError, match="coloured label"):
        label_at(save(tmp_path / "label.png", colours))


def test_channels_become_what_the_model_has():
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 255, (6, 7, 3), dtype=np.uint8)
    grey = to_channels(colour, 1)
    expected = np.rint(colour @ np.array([0.299, 0.587, 0.114]))
    np.testing.assert_array_equal(grey[..., 0], expected.astype(np.uint8))
    np.testing.assert_array_equal(to_channels(colour[..., 0], 3), np.repeat(colour[..., :1], 3, axis=2))
    with pytest.raises(DataError, match="float64"):
        to_channels(np.zeros((4, 4)), 1)
    with pytest.raises(DataError, match="shape"):
        to_channels(np.zeros((4, 4, 2), np.uint8), 1)


def test_levels_and_normalisation():
    pixels = np.arange(1000, dtype=np.uint16).reshape(20, 50, 1)
    low, high = find_levels(pixels, "percentile")
    assert (low, high) == pytest.approx((999 * 0.005, 999 * 0.995))
    assert find_levels(pixels, "minmax") == (0.0, 999.0)
    image = normalise(pixels, low, high)
    assert image.shape == (1, 20, 50)
    assert image.min() == -1
    assert image.max() == 1
    np.testing.assert_allclose(image.ravel()[100:900], (np.arange(100, 900) - low) / (high - low) * 2 - 1, atol=1e-6)
    flat = np.full((5, 5, 1), 9, np.uint8)
    assert not normalise(flat, *find_levels(flat, "percentile")).any()
    sparse = np.zeros((50, 50, 1), np.uint8)
    sparse[0, 0] = 200
    assert find_levels(sparse, "percentile") == (0.0, 200.0)


def test_encoder_sees_eight_bits():
    deep = np.linspace(0, 65535, 64).reshape(8, 8, 1).astype(np.uint16)
    seen = encoder_picture(deep, 0.0, 65535.0)
    assert seen.shape == (8, 8, 3)
    assert seen.dtype == np.uint8
    assert (seen[0, 0, 0], seen[-1, -1, 2]) == (0, 255)
    eight = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    np.testing.assert_array_equal(encoder_picture(eight, 10.0, 20.0)[..., 1], eight[..., 0])


def folder_config(make_config, make_folder, *overrides):
    train, val = make_folder("train"), make_folder("val", ("c",))
    named = ["data.name=folder", f"data.train_dir={train}", f"data.val_dir={val}"]
    return make_config(*named, "model.vlm_film_config.prompt_template=vessels", *overrides)


def test_folders_are_prepared_and_read(make_config, make_folder, tmp_path):
    config = folder_config(make_config, make_folder)
    facts = make_data(config).prepared.facts["splits"]
    expected = {
        "labels": "label files",
        "images": 2,
        "cases": 2,
        "sizes": ["40x48"],
        "foreground_fraction": pytest.approx(0.1083, abs=1e-3),
        "num_junctions": 2,
    }
    assert {key: facts["train"][key] for key in expected} == expected
    assert facts["train-features"]["conditions_present"] == 2
    data = open_data(config, make_data(config))
    sample = data.val_set[0]
    assert (sample.id, sample.prompt, sample.image.shape) == ("val/c", "vessels", (1, 40, 48))
    assert sample.nodes.shape == (1, 2)
    assert data.train_set[(0, 1)].image.shape == (1, 32, 32)


def test_nothing_is_written_when_a_file_is_bad(make_config, make_folder, tmp_path):
    config = folder_config(make_config, make_folder)
    (Path(config.data.train_dir) / "image" / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match="empty file"):
        make_data(config)
    assert not (tmp_path / "cache").exists()


def test_prompts_file_names_every_fault(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"a.png": "left", "b.png": "", "zz.png": "what", "c": 3}))
    with pytest.raises(DataError) as caught:
        read_prompts(path, {"a", "b", "c", "d"})
    for words in ("'b.png': '' is no prompt", "'zz.png': no image", "'c': 3 is no prompt", "'d': no prompt"):
        assert words in str(caught.value)
    path.write_text("[1]")
    with pytest.raises(DataError, match="expected a mapping"):
        read_prompts(path, {"a"})
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "none.json", {"a"})


def test_prompts_file_gives_each_image_its_prompt(make_config, make_folder, tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"a.png": "first", "b.png": "second", "c.png": "third"}))
    config = folder_config(make_config, make_folder, f"data.prompts_file={path}")
    data = open_data(config, make_data(config))
    assert [case.prompt for case in data.train_set.split.cases] == ["first", "second"]
    assert data.val_set[0].prompt == "third"
    vectors, _ = data.train_set.split.features
    assert not np.array_equal(vectors[0], vectors[1])


FOLDER = ("data.name=folder", "data.train_dir=a", "data.val_dir=b", "model.vlm_film_config.prompt_template=vessels")


@pytest.mark.parametrize(
    ("words", "prompt", "sentences"),
    [
        pytest.param((), "dark branches", (), id="made"),
        pytest.param((), "vessel #1", ("'vessel #1' is none", "'dark branches', 'bright branches'"), id="unseen"),
        pytest.param((), "Dark branch", ("did you mean 'dark branches'?",), id="nearly"),
        pytest.param(FOLDER, "vessels", (), id="template"),
        pytest.param(FOLDER, "vessel", ("did you mean 'vessels'?",), id="template-unseen"),
        pytest.param((*FOLDER, "data.prompts_file={file}"), "thin", (), id="file"),
        pytest.param((*FOLDER, "data.prompts_file={file}"), "vessels", ("'thick', 'thin'",), id="file-unseen"),
        pytest.param((*FOLDER, "data.prompts_file=gone.json"), "thin", ("gone.json", "can't be read"), id="no-file"),
        pytest.param((*FOLDER, "model.cond_source=image"), "vessels", ("has no effect",), id="no-text"),
    ],
)
def test_a_prompt_that_training_never_sees_is_told(
    tmp_path: Path, words: tuple[str, ...], prompt: str, sentences: tuple[str, ...]
) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"1.png": "thin", "2.png": "thick", "3.png": "thin"}))
    named = [word.format(file=file) for word in words]
    told = unseen_prompt(parse_config(raw_preset("film_flow", "tiny"), [*named, f"evaluate.prompt={prompt}"]))
    assert bool(told) == bool(sentences)
    for sentence in sentences:
        assert sentence in told
