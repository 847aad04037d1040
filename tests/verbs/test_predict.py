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
from PIL import Image
from torch import nn

from stageline.contract import PredictedFile
from stageline.errors import DataError
from stageline.families import FAMILIES
from stageline.verbs.predict import LoadedModel

WAVES = np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 2, 3)


def speak(config: Any, model: Any, inputs: Sequence[str | Path], progress: Any) -> Iterator[dict[str, Any]]:
    """A family that takes texts and pictures and makes a clip, a picture, a text and numbers of each."""
    for number, given in enumerate(inputs):
        yield {
            "clip": PredictedFile(f"{number}.mp4", str(given).encode()),
            "picture": PredictedFile(f"{number}.png", np.full((2, 3), number, dtype=np.uint8)),
            "waves": PredictedFile(f"{number}.npy", WAVES),
            "spoken": PredictedFile(f"{number}.txt", "ä"),
            "said": "a/b",
            "given": str(given),
            "is_file": isinstance(given, Path),
        }


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    module = ModuleType("talker.family")
    module.FAMILY = SimpleNamespace(predict=speak)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "talker", ModuleType("talker"))
    monkeypatch.setitem(sys.modules, "talker.family", module)
    monkeypatch.setitem(FAMILIES, "talker", "talker")
    nothing: Any = SimpleNamespace(family="talker")
    return LoadedModel(nothing, nothing, nn.Identity(), nothing)


def test_files_of_any_kind_are_written_where_a_folder_is_given(loaded: LoadedModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    question = "what is in the picture?"
    (one,) = loaded.predict(question, out)
    named = {"clip": "0.mp4", "picture": "0.png", "waves": "0.npy", "spoken": "0.txt"}
    plain = {"said": "a/b", "given": question, "is_file": False}
    assert one == {**{key: str(out / name) for key, name in named.items()}, **plain}
    assert (out / "0.mp4").read_bytes() == question.encode()
    np.testing.assert_array_equal(np.asarray(Image.open(out / "0.png")), np.zeros((2, 3), dtype=np.uint8))
    np.testing.assert_array_equal(np.load(out / "0.npy"), WAVES)
    assert (out / "0.txt").read_text(encoding="utf-8") == "ä"
    assert json.loads((out / "predictions.jsonl").read_text()) == {**named, **plain}


def test_a_caller_gets_what_the_family_made_where_no_folder_is_given(loaded: LoadedModel) -> None:
    text, array = loaded.predict(["say", np.zeros((4, 4), dtype=np.uint8)])
    assert (text["clip"], text["spoken"], text["said"], text["is_file"]) == (b"say", "ä", "a/b", False)
    assert text["waves"] is WAVES
    np.testing.assert_array_equal(array["picture"], np.ones((2, 3), dtype=np.uint8))
    assert array["is_file"] is True
    assert array["given"] == "input-0001.png", "no path of what is gone"


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
        sys.modules["talker.family"], "FAMILY", SimpleNamespace(predict=lambda *_: ({"it": file} for file in files))
    )
    with pytest.raises(DataError, match=files[-1].name):
        loaded.predict("say", tmp_path / "out")
    assert not (tmp_path / "a.txt").exists()
