"""A family reads its own inputs and may make anything of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stageline.contract import PredictedFile
from stageline.data.arrays import ArrayInput, read_array
from stageline.errors import CheckpointError, DataError
from stageline.families import FAMILIES
from stageline.verbs.predict import LoadedModel, Origin, as_loaded, load

WAVES = np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 2, 3)


def speak(
    config: Any, model: Any, inputs: Sequence[str | Path | ArrayInput], progress: Any
) -> Iterator[dict[str, Any]]:
    """A family that takes texts and arrays and makes a clip, a picture, a text and numbers of each."""
    for number, given in enumerate(inputs):
        yield {
            "clip": PredictedFile(f"{number}.mp4", str(getattr(given, "file", given)).encode()),
            "picture": PredictedFile(f"{number}.png", np.full((2, 3), number, dtype=np.uint8)),
            "waves": PredictedFile(f"{number}.npy", WAVES),
            "spoken": PredictedFile(f"{number}.txt", "ä"),
            "said": "a/b",
            "given": given.name if isinstance(given, ArrayInput) else given,
        }


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    module = ModuleType("talker.family")
    module.FAMILY = SimpleNamespace(predict=speak, arrays="pictures")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "talker", ModuleType("talker"))
    monkeypatch.setitem(sys.modules, "talker.family", module)
    monkeypatch.setitem(FAMILIES, "talker", "talker")
    nothing: Any = SimpleNamespace(family="talker")
    return as_loaded(nn.Identity(), Origin(nothing, nothing, nothing))


def test_files_of_any_kind_are_written_where_a_folder_is_given(loaded: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    question = "what is in the picture?"
    (one,) = loaded.predict(question, out)
    named = {"clip": "0.mp4", "picture": "0.png", "waves": "0.npy", "spoken": "0.txt"}
    plain = {"said": "a/b", "given": question}
    assert one == {**{key: str(out / name) for key, name in named.items()}, **plain}
    assert (out / "0.mp4").read_bytes() == question.encode()
    np.testing.assert_array_equal(np.asarray(Image.open(out / "0.png")), np.zeros((2, 3), dtype=np.uint8))
    np.testing.assert_array_equal(np.load(out / "0.npy"), WAVES)
    assert (out / "0.txt").read_text(encoding="utf-8") == "ä"
    assert json.loads((out / "predictions.jsonl").read_text()) == {**named, **plain}


def test_a_caller_gets_what_the_family_made_where_no_folder_is_given(loaded: LoadedModel) -> None:
    text, array = loaded.predict(["say", np.zeros((4, 4), dtype=np.uint8)])
    assert (text["clip"], text["spoken"], text["said"], text["given"]) == (b"say", "ä", "a/b", "say")
    assert text["waves"] is WAVES
    np.testing.assert_array_equal(array["picture"], np.ones((2, 3), dtype=np.uint8))
    assert array["given"] == "input-0001"


@pytest.mark.parametrize(
    ("given", "pixels"),
    [
        (np.array([[0, 255]], np.uint8), np.array([[0, 255]], np.uint8)),
        (np.array([[[0], [65535]]], ">u2"), np.array([[0, 65535]], np.uint16)),
        (np.array([[False, True]]), np.array([[False, True]])),
        (np.array([[0.0, 0.5, 1.0]], np.float32), np.array([[0, 32768, 65535]], np.uint16)),
        (np.zeros((2, 3, 3), np.uint8)[:, ::-1], np.zeros((2, 3, 3), np.uint8)),
    ],
    ids=["uint8", "uint16", "bool", "float", "colour"],
)
def test_an_array_is_what_a_file_of_that_depth_holds(given: Any, pixels: Any) -> None:
    found = read_array(given).pixels
    np.testing.assert_array_equal(found, pixels)
    assert found.dtype == pixels.dtype


@pytest.mark.parametrize("bits", [8, 16])
def test_a_files_levels_as_floats_are_its_levels(bits: int) -> None:
    """All levels of 16 bits in single precision; those of 8 bits lie 257 apart there."""
    most = 2**bits - 1
    levels = np.arange(most + 1)[None]
    found = read_array((levels / most).astype(np.float32)).pixels
    np.testing.assert_array_equal(found, levels * (65535 // most))


def test_every_array_of_no_use_is_told_at_once(loaded: LoadedModel) -> None:
    nan, large = np.full((2, 2), np.nan), torch.full((2, 2), 128.0, dtype=torch.bfloat16)
    good = np.zeros((2, 2), np.uint8)
    wrong = [nan, large, np.zeros((3, 2, 4)), np.zeros((2, 2), np.int64), np.zeros((0, 2)), (good, "and a text"), good]
    with pytest.raises(DataError) as refused:
        loaded.predict([*wrong, good[None, None]])
    text = str(refused.value)
    for told in (
        "7 faults",
        "input 0: an array holds 4 numbers that are not finite",
        "input 1: an array holds floats from 128 to 128, outside of [0, 1]",
        "input 2: an array has shape (3, 2, 4), with channels in front: they stand last",
        "input 3: an array has type int64",
        "input 4: an array has shape (0, 2)",
        "input 5: talker takes no text with an array",
        "input 7: an array has shape (1, 1, 2, 2)",
        "uint8, uint16, bool, or floats in [0, 1]",
    ):
        assert told in text
    assert "input 6" not in text


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16"])
def test_a_picture_of_pillow_is_its_array(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    picture = Image.fromarray(np.array([[1, 200, 3]], np.uint16 if mode == "I;16" else np.uint8))
    picture = picture if mode == "I;16" else picture.convert(mode)
    read = []
    monkeypatch.setattr("stageline.verbs.predict.read_array", lambda pixels: read.append(pixels) or read_array(pixels))
    loaded.predict(picture)
    loaded.predict([np.asarray(picture)])
    np.testing.assert_array_equal(read[0], read[1])


def test_what_is_no_input_at_all_is_told(loaded: LoadedModel) -> None:
    with pytest.raises(DataError, match=r"(?s)2 faults.*input 0: a list, no path.*input 1: a list"):
        loaded.predict([[1, 2], [3, 4]])
    for given in (b"xx", 5, None):
        with pytest.raises(DataError, match=f"a {type(given).__name__}, no path, text or array"):
            loaded.predict(given)
    with pytest.raises(DataError, match=r"mode 'RGBA', expected .*convert\(.RGB.\)"):
        loaded.predict(Image.new("RGBA", (2, 2)))


def test_a_home_folder_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=f"there is no checkpoint at '{tmp_path}/runs/one/film'"):
        load("~/runs/one/film")


@pytest.mark.parametrize(
    ("arrays", "told"), [("none", "reads no arrays"), ("pictures with texts", r"wants a text with an array")]
)
def test_a_family_says_which_arrays_it_reads(
    loaded: LoadedModel, arrays: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["talker.family"].FAMILY, "arrays", arrays)
    with pytest.raises(DataError, match=told):
        loaded.predict(np.zeros((2, 2), np.uint8))


def test_a_module_whose_own_names_would_be_hidden_is_refused() -> None:
    nothing: Any = SimpleNamespace()
    module = nn.Identity()
    module.ref = nn.Identity()
    with pytest.raises(CheckpointError, match="Identity has ref of its own"):
        as_loaded(module, Origin(nothing, nothing, nothing))


@pytest.mark.parametrize(
    "files",
    [
        [PredictedFile("../a.txt", "")],
        [PredictedFile("a.txt", ""), PredictedFile("a.txt", "")],
        [PredictedFile("predictions.jsonl", "")],
        [PredictedFile("a.png", WAVES)],
        [PredictedFile("a.mp4", WAVES)],
    ],
    ids=["folder", "twice", "list", "floats", "clip"],
)
def test_what_cannot_be_written_as_named_is_refused(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[PredictedFile]
) -> None:
    monkeypatch.setattr(
        sys.modules["talker.family"],
        "FAMILY",
        SimpleNamespace(arrays="none", predict=lambda *_: ({"it": f} for f in files)),
    )
    with pytest.raises(DataError, match=files[-1].name):
        loaded.predict("say", tmp_path / "out")
    assert not (tmp_path / "a.txt").exists()
