"""`stageline init --data DIR`: the config follows from the pictures, from headers and a few labels alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stageline.cli import main
from stageline.errors import DataError
from stageline.families import family_config, load_config, parse_config
from stageline.families.film_flow.config.presets import PRESETS
from stageline.families.film_flow.data import proposal
from stageline.families.film_flow.data.folder import check_folders
from stageline.families.film_flow.data.layout import Layout
from stageline.families.film_flow.data.proposal import propose
from stageline.plan import make_plan

PRESET = PRESETS["folder-small"]


def fill(
    folder: Path,
    names: Sequence[str],
    *,
    sizes: Sequence[tuple[int, int]] = ((70, 90),),
    colour: bool = False,
    parts: tuple[str, str] = ("image", "label"),
    endings: tuple[str, str] = (".png", ".png"),
    share: float = 0.1,
) -> Path:
    """Pictures and labels in a folder. share: of foreground."""
    for number, name in enumerate(names):
        height, width = sizes[number % len(sizes)]
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        label = np.zeros((height, width), np.uint8)
        label[: round(share * height)] = 255
        for part, ending, array in zip(parts, endings, (pixels if colour else pixels[..., 0], label), strict=True):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / part / f"{name}{ending}")
    return folder


def content(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_file_that_is_written_plans_and_the_folder_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("mine"), [f"p{n:02d}_{side}" for n in range(1, 7) for side in "lr"], sizes=[(70, 90), (120, 64)])
    before = content(Path("mine"))
    assert main(["init", "--data", "mine", "-o", "a.yaml"]) == 0
    told = capsys.readouterr().out
    assert main(["init", "--family", "film_flow", "--data", "mine", "--preset", "folder-small", "-o", "b.yaml"]) == 0
    assert Path("a.yaml").read_text() == Path("b.yaml").read_text()
    assert content(Path("mine")) == before
    config = load_config(Path("a.yaml"))
    plan = make_plan(config)
    assert (plan["backbone"].action, plan["backbone"].steps) == ("run", config.trainer.max_steps)
    assert config.trainer.validate_every_steps * 5 == config.trainer.max_steps
    assert "12 pictures, 70 x 90 to 120 x 64 (height x width); grey 12; 8 bit 12" in told
    assert "12 labels read: 10.0% foreground on average" in told
    assert config.data.image_size == config.model.image_size == 64  # type: ignore[attr-defined]


def test_groups_of_names_stay_together(tmp_path: Path) -> None:
    names = [f"p{n}_{eye}" for n in range(1, 13) for eye in ("left", "right")]
    found = propose(fill(tmp_path / "mine", names), PRESET)
    layout = Layout.of(parse_config(found.raw).data)  # type: ignore[attr-defined]
    val = {name for name in names if layout.splits_of("train", name) == ["val"]}
    assert 0.2 * len(names) <= len(val) <= 0.3 * len(names)
    assert {name.split("_")[0] for name in val}.isdisjoint({name.split("_")[0] for name in set(names) - val})
    assert not [line for line in found.told if line.startswith("warning")]


def test_one_patient_in_two_splits_and_inverted_labels_are_warned_of(tmp_path: Path) -> None:
    fill(tmp_path / "train", ["p1_a", "p2_a", "p3_a"], share=0.9)
    fill(tmp_path / "val", ["p1_b", "p4_a"])
    warnings = [line for line in propose(tmp_path, PRESET).told if line.startswith("warning")]
    assert ["'p1' in train and val" in line for line in warnings].count(True) == 1
    assert ["3 of 5 labels are foreground for more than half" in line for line in warnings].count(True) == 1


def test_a_published_set_is_taken_as_it_is(tmp_path: Path) -> None:
    for split, numbers in (("training", range(21, 27)), ("test", range(1, 5))):
        names = [f"{n:02d}_{split}" for n in numbers]
        folder = fill(tmp_path / split, names, colour=True, parts=("images", "1st_manual"), endings=(".tif", ".gif"))
        for path in (folder / "1st_manual").iterdir():
            path.rename(path.with_name(path.name.replace(f"_{split}", "_manual1")))
        fill(folder, names, parts=("images", "mask"), colour=True, endings=(".tif", ".gif"))
    found = propose(tmp_path, PRESET)
    data = found.raw["data"]
    assert (data["image_folder"], data["label_folder"]) == ("images", "1st_manual")
    assert data["label_pattern"] == "*_training -> *_manual1 | *_test -> *_manual1"
    assert [line for line in found.told if "1st_manual, mask" in line]
    config = parse_config(found.raw)
    assert config.model.image_channels == 3  # type: ignore[attr-defined]
    assert config.evaluate.split == "test"  # type: ignore[attr-defined]
    pairs = check_folders(Layout.of(config.data), lambda *_: None)  # type: ignore[attr-defined]
    assert [pair.split for pair in pairs].count("test") == 4
    assert len(pairs) == 10


@pytest.mark.parametrize(
    ("parts", "names", "pattern", "endings", "other"),
    [
        (("images", "labels"), "Image_{:02d}L {}_1stHO", "Image_*L -> Image_*L_1stHO", (".jpg", ".png"), None),
        (("stare-images", "labels-ah"), "im{:04d} {}.ah", "im* -> im*.ah", (".ppm", ".ppm"), "labels-vk"),
        (("images", "manual1"), "{:02d}_dr {}", None, (".JPG", ".tif"), "mask"),
        (("imagesTr", "labelsTr"), "case_{:03d}_0000 case_{:03d}", "case_*_0000 -> case_*", (".png", ".png"), None),
        (("Images", "Vessel_Masks"), "{:d} {}", None, (".webp", ".BMP"), None),
    ],
)
def test_folders_and_names_of_published_sets_are_known(
    tmp_path: Path, parts: tuple[str, str], names: str, pattern: str | None, endings: tuple[str, str], other: str | None
) -> None:
    image, label = names.split()
    stems = [image.format(n) for n in range(1, 7)]
    fill(tmp_path, stems, parts=parts, endings=endings)
    for number, stem in enumerate(stems, 1):
        path = tmp_path / parts[1] / f"{stem}{endings[1]}"
        path.rename(path.with_stem(label.format(number if "case" in label else stem)))
    if other is not None:
        (tmp_path / other).mkdir()
    found = propose(tmp_path, PRESET)
    data = found.raw["data"]
    assert (data["image_folder"], data["label_folder"], data.get("label_pattern")) == (*parts, pattern)
    assert [line for line in found.told if "several folders" in line and f"{parts[1]} is taken" in line] or not other
    layout = Layout.of(parse_config(found.raw).data)  # type: ignore[attr-defined]
    assert len(check_folders(layout, lambda *_: None)) == 6


def test_labels_of_a_second_observer_are_named(tmp_path: Path) -> None:
    fill(tmp_path, ["01L", "02L"], endings=(".png", "_1stHO.png"))
    fill(tmp_path, ["01L", "02L"], endings=(".png", "_2ndHO.png"))
    with pytest.raises(DataError, match=r"2 faults(?s:.*)02L_2ndHO.png': does not fit data.label_pattern '\*_1stHO'"):
        propose(tmp_path, PRESET)


def test_a_split_without_labels_is_left_out(tmp_path: Path) -> None:
    """So is the test half of a published set whose labels nobody gives away; masks of the camera are no labels."""
    for split in ("training", "test"):
        for part in ("1st_manual", "mask"):
            fill(tmp_path / split, ["01", "02"], parts=("images", part))
    shutil.rmtree(tmp_path / "test" / "1st_manual")
    found = propose(tmp_path, PRESET)
    assert ["test" in line and "has no labels (1st_manual): it is left out" in line for line in found.told].count(True)
    assert "test_dir" not in found.raw["data"]
    assert found.raw["evaluate"]["split"] == "val"
    fill(tmp_path / "test", ["03"], parts=("images", "labels"))
    with pytest.raises(DataError, match="folders of labels have several names: 1st_manual, labels"):
        propose(tmp_path, PRESET)


def test_labels_without_foreground_are_warned_of(tmp_path: Path) -> None:
    fill(tmp_path, ["a", "b"], share=0)
    assert ["none of 2 labels has any foreground" in line for line in propose(tmp_path, PRESET).told].count(True) == 1


def test_any_preset_can_be_what_it_starts_from(tmp_path: Path) -> None:
    fill(tmp_path, ["p1", "p2", "p3"], sizes=[(300, 260)])
    config = parse_config(propose(tmp_path, PRESETS["octa500"]).raw)
    assert (config.data.name, config.data.test_dir, config.evaluate.split) == ("folder", None, "val")  # type: ignore[attr-defined]
    assert (config.model.image_size, config.model.attn_resolutions) == (224, (56, 28))  # type: ignore[attr-defined]
    small = parse_config(propose(fill(tmp_path / "small", ["a", "b"], sizes=[(70, 70)]), PRESETS["octa500"]).raw)
    assert (small.model.image_size, small.model.attn_resolutions) == (64, (16, 8))  # type: ignore[attr-defined]


def test_prompts_bring_the_second_stage(tmp_path: Path) -> None:
    fill(tmp_path, ["a", "b", "c"])
    (tmp_path / "prompts.json").write_text(json.dumps({"a.png": "thin", "b.png": "thick", "c.png": "thin"}))
    config = parse_config(propose(tmp_path, PRESET).raw)
    assert config.stages is None
    assert [stage.name for stage in family_config("film_flow").selected(config)] == ["backbone", "film"]
    assert config.data.prompts_file == str(tmp_path / "prompts.json")  # type: ignore[attr-defined]


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    fill(tmp_path, ["fine", "grey", "cut", "lone"])
    Image.fromarray(np.arange(70 * 90, dtype=np.uint8).reshape(70, 90)).save(tmp_path / "label" / "grey.png")
    (tmp_path / "image" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "label" / "lone.png").unlink()
    with pytest.raises(DataError) as caught:
        propose(tmp_path, PRESET)
    for words in ("label not binary", "cut.png", "no label of that name"):
        assert words in str(caught.value)
    with pytest.raises(DataError, match=r"no folder `image` \(or images, .*\); folders there: none"):
        propose(tmp_path / "image", PRESET)
    with pytest.raises(DataError, match="6 picture files lie in it: move the images to image/"):
        propose(fill(tmp_path / "flat", ["a", "b", "c"], parts=(".", "."), endings=(".png", "_mask.png")), PRESET)
    fill(tmp_path / "zip" / "set", ["a", "b"])
    with pytest.raises(DataError, match=f"say --data '{tmp_path}/zip/set'"):
        propose(tmp_path / "zip", PRESET)
    with pytest.raises(DataError, match="one picture with a label, expected two"):
        propose(fill(tmp_path / "one", ["a"]), PRESET)
    turned = fill(tmp_path / "turned", ["a", "b"], endings=(".jpg", ".png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (90, 70)).save(turned / "image" / "a.jpg", exif=exif)
    Image.new("CMYK", (90, 70)).save(turned / "image" / "b.jpg")
    with pytest.raises(DataError, match=r"orientation 6.*(?s:.*)CMYK"):
        propose(turned, PRESET)
    with pytest.raises(DataError, match="no such folder"):
        propose(tmp_path / "nowhere", PRESET)


def test_of_many_labels_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, [f"n{n:02d}" for n in range(9)])
    monkeypatch.setattr(proposal, "MOST_LABELS", 4)
    assert "3 labels read: 10.0% foreground on average" in propose(tmp_path, PRESET).told


def test_a_family_without_picture_folders_names_its_guide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--family", "panorama_vlm", "--data", str(tmp_path), "-o", str(tmp_path / "a.yaml")]) == 2
    assert "stageline guide panorama_vlm DIR" in capsys.readouterr().err
    assert not (tmp_path / "a.yaml").exists()
