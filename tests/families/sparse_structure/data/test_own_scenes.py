"""Scenes of a user's own that slip: graphs saved with tensors, numbers out of range, conditions no network takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families.sparse_structure.data.folders import LATENT_SPEC, latents, open_split, write_scene_files
from torch import Tensor

from stageline.data.splits import silent
from stageline.errors import DataError
from stageline.families.sparse_structure.data.made import make_scene
from stageline.families.sparse_structure.data.origin import SceneSource
from stageline.families.sparse_structure.data.preparation import check_sources
from stageline.families.sparse_structure.data.scene_dataset import SceneDataset

from .test_preparation import CUBE, own_scene


def test_tensors_saved_with_a_graph_are_values(tmp_path: Path) -> None:
    """An encoder called without no_grad leaves a mark in its file, by which neither arrays nor loaders take tensors."""
    values = {name: value.half().requires_grad_() for name, value in latents(2).items()}
    cond: Any = {"cond": torch.ones(1, 5, 4, requires_grad=True), "more": [torch.ones(1, requires_grad=True)]}
    write_scene_files(tmp_path, "a", values, cond)
    scene = SceneDataset(tmp_path)[0]
    tensors: list[Tensor] = [*scene["latents"].values(), scene["conditionals"]["cond"], *scene["conditionals"]["more"]]
    assert [tensor.requires_grad for tensor in tensors] == [False] * 7
    write_scene_files(tmp_path / "rows", "a", values, {"cond": cond["cond"]})
    rows = open_split(SceneSource("latents", folder=tmp_path / "rows"), "train", tmp_path / "prepared")
    assert (rows.array(0, "condition-0") == 1).all()


def test_doubles_that_no_single_precision_holds_are_refused(tmp_path: Path) -> None:
    write_scene_files(tmp_path, "a", {**latents(2), "scale": torch.full((2, 1, 3), 1e300, dtype=torch.float64)})
    with pytest.raises(ValueError, match="scale: it holds values that are not finite, or too large for float32"):
        SceneDataset(tmp_path)[0]


def test_a_list_of_scenes_may_begin_with_a_mark_of_its_encoding(tmp_path: Path) -> None:
    write_scene_files(tmp_path, "a", latents(2))
    (tmp_path / "train" / "scenes.txt").write_bytes("a\r\n".encode("utf-8-sig"))
    assert SceneDataset(tmp_path)[0]["scene_id"] == "a"


def test_conditions_that_no_network_takes_are_told_before_a_row_is_written(tmp_path: Path) -> None:
    """All of them at once, by scene; one row for the scene and one per object are both right."""
    conditions: dict[str, Any] = {
        "each": {"cond": torch.ones(3, 5, 4)},
        "one": {"cond": torch.ones(1, 2, 4), "cfg": False},
        "absent": None,
        "name": {"tokens": torch.ones(1, 5, 4), "level": 2},
        "rows": {"cond": torch.ones(2, 5, 4)},
        "text": {"cond": "a chair"},
        "width": {"cond": torch.ones(1, 5, 3)},
    }
    for name, value in conditions.items():
        write_scene_files(tmp_path, name, latents(3), value)
    source = SceneSource("latents", folder=tmp_path, modalities=LATENT_SPEC, cond_channels=4)
    with pytest.raises(DataError) as caught:
        check_sources(source, ["train"], silent)
    told = str(caught.value)
    for fault in (
        "'absent': conditionals.pt: condition 'cond' is not there; expected (1 or 3, tokens, 4)",
        "'name': conditionals.pt: conditions level, tokens: a network takes one, 'cond'; condition 'cond' is not there",
        "'rows': conditionals.pt: condition 'cond' is of shape (2, 5, 4)",
        "'text': conditionals.pt: condition 'cond' is str",
        "'width': conditionals.pt: condition 'cond' is of shape (1, 5, 3)",
    ):
        assert f"scene {fault}" in told
    assert "5 faults" in told
    assert source.split("train") == SceneSource("latents", folder=tmp_path, modalities=LATENT_SPEC).split("train")


@pytest.mark.parametrize(("factor", "told"), [(1e30, "2e+30"), (1e-20, "2e-20")])
def test_a_mesh_of_absurd_size_is_refused_where_it_stands(tmp_path: Path, factor: float, told: str) -> None:
    """Not by the numbers of its scene file alone: they are multiplied by those of the mesh."""
    source = own_scene(tmp_path, {"scale": 1})
    corners = [line.split() for line in CUBE.splitlines()]
    lines = [f"v {' '.join(str(float(n) * factor) for n in w[1:])}" if w[:1] == ["v"] else " ".join(w) for w in corners]
    (tmp_path / "train" / "attic" / "cube.obj").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"cube\.obj' is \(.*\) metres large at .*: say its unit by `scale`") as caught:
        check_sources(source, ["train"], silent)
    assert told in str(caught.value)


def test_a_made_room_may_have_one_object() -> None:
    kinds = {make_scene("train", index, 0, num_objects=(1, 1)).objects[0].kind for index in range(12)}
    assert "chair" not in kinds, "a chair has a table"
    assert {"table"} < kinds
