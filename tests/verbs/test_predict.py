"""A family reads its own inputs and may make anything of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from stageline.families import FAMILIES
from stageline.verbs.predict import LoadedModel


def speak(config: Any, model: Any, inputs: Sequence[str | Path], target: Path, progress: Any) -> list[dict[str, Any]]:
    """A family that takes texts and pictures and makes a clip and a picture of each."""
    results = []
    for number, given in enumerate(inputs):
        clip, picture = target / f"{number}.mp4", target / f"{number}.png"
        clip.write_bytes(str(given).encode())
        Image.fromarray(np.full((2, 3), number, dtype=np.uint8)).save(picture)
        is_file = isinstance(given, Path)
        results.append({"clip": str(clip), "picture": str(picture), "said": "a/b", "is_file": is_file})
    return results


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    module = ModuleType("talker.family")
    module.FAMILY = SimpleNamespace(predict=speak)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "talker", ModuleType("talker"))
    monkeypatch.setitem(sys.modules, "talker.family", module)
    monkeypatch.setitem(FAMILIES, "talker", "talker")
    nothing: Any = SimpleNamespace(family="talker")
    return LoadedModel(nothing, nothing, nn.Identity(), nothing)


def test_files_are_named_where_a_folder_is_given(loaded: LoadedModel, tmp_path: Path) -> None:
    (one,) = loaded.predict("what is in the picture?", tmp_path / "out")
    assert one == {
        "clip": str(tmp_path / "out" / "0.mp4"),
        "picture": str(tmp_path / "out" / "0.png"),
        "said": "a/b",
        "is_file": False,
    }
    assert Path(one["clip"]).read_bytes() == b"what is in the picture?"


def test_contents_are_handed_over_where_no_folder_is_given(loaded: LoadedModel) -> None:
    text, array = loaded.predict(["say", np.zeros((4, 4), dtype=np.uint8)])
    assert (text["clip"], text["said"], text["is_file"]) == (b"say", "a/b", False)
    assert array["clip"].endswith(b"input-0001.png")
    assert array["is_file"] is True
    np.testing.assert_array_equal(array["picture"], np.ones((2, 3), dtype=np.uint8))
