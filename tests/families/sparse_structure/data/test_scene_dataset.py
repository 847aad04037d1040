"""Scenes of latents in the guide's folders: every row of the table of checks, parts of large scenes, collate, order."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families.sparse_structure.data.folders import LATENT_SPEC as SPEC
from families.sparse_structure.data.folders import latents
from families.sparse_structure.data.folders import write_scene_files as write
from torch import Tensor
from torch.utils.data import DataLoader

from stageline.families.sparse_structure.data.order import SceneSampler, scene_order
from stageline.families.sparse_structure.data.scene_dataset import (
    SceneDataset,
    multi_scene_collate_fn,
    scene_collate_fn,
)


def read(root: Path, **more: Any) -> dict[str, Any]:
    return SceneDataset(root, **{"modalities": SPEC, "latent_spec": SPEC} | more)[0]


def changed(**parts: Any) -> dict[str, Any]:
    """Latents of three objects with some modalities changed, by short name; None takes one away."""
    found: dict[str, Any] = latents(3)
    for name, value in parts.items():
        key = "6drotation_normalized" if name == "rotation" else name
        if value is None:
            del found[key]
        else:
            found[key] = value(found[key]) if callable(value) else value
    return found


def test_a_scene_is_what_its_files_say(tmp_path: Path) -> None:
    """Check 15: a whole scene, in the network's order of modalities; no conditions are none."""
    values = dict(reversed(latents(3).items()))
    write(tmp_path, "b", values, {"cond": torch.ones(1, 5, 4), "word": "chair", "level": 2})
    write(tmp_path, "a", latents(2, 1))
    data = SceneDataset(tmp_path, modalities=SPEC, latent_spec=SPEC)
    assert data.scene_ids == ["a", "b"]
    assert data.object_counts() == [2, 3]
    first, second = data[0], data[(4, 1)]
    assert (first["scene_id"], first["num_objects"], first["conditionals"]) == ("a", 2, {})
    assert list(second["latents"]) == list(SPEC)
    assert all(torch.equal(second["latents"][name], values[name]) for name in SPEC)
    assert second["conditionals"]["cond"].shape == (1, 5, 4)
    assert (second["conditionals"]["word"], second["conditionals"]["level"]) == ("chair", 2)
    assert torch.equal(data[-1]["latents"]["scale"], values["scale"])
    with pytest.raises(IndexError, match="scene 2 of 2"):
        data[2]


def test_folders_and_lists_of_scenes(tmp_path: Path) -> None:
    """Check 15: a split that is missing, one without scenes, a list that fixes which and in what order."""
    with pytest.raises(FileNotFoundError, match="no folder"):
        SceneDataset(tmp_path)
    (tmp_path / "train" / "notes").mkdir(parents=True)
    with pytest.raises(ValueError, match="no scene"):
        SceneDataset(tmp_path)
    for name in ("a", "b", "c"):
        write(tmp_path, name, latents(1))
    listed = tmp_path / "train" / "scenes.txt"
    listed.write_text("c\n\na\nd\n")
    data = SceneDataset(tmp_path, modalities=SPEC)
    assert data.scene_ids == ["c", "a", "d"]
    assert data[1]["scene_id"] == "a"
    with pytest.raises(FileNotFoundError, match=r"scene 'd'.*d/latents\.pt"):
        data[2]
    listed.write_text("../a\nb\nb\n")
    with pytest.raises(ValueError, match=r"'\.\./a' is no name.*'b' stands there twice"):
        SceneDataset(tmp_path)


FAULTS: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "a list": ([1], {}, ValueError, "no dict of tensors"),
    "a value that is no tensor": ({**latents(3), "scale": 1.0}, {}, ValueError, "scale: no tensor but a float"),
    "no tensor, and the others missing": ({"shape": [1]}, {}, ValueError, "lacks .*shape: no tensor but a list"),
    "one axis": (changed(scale=torch.zeros(3)), {}, ValueError, "scale: .*fewer than 2 axes"),
    "integers": (
        changed(scale=torch.zeros(3, 1, 3, dtype=torch.int64)),
        {},
        ValueError,
        "scale: .*expected plain floats",
    ),
    "missing": (changed(shape=None, scale=None), {}, KeyError, "lacks shape, scale"),
    "extra": ({**latents(3), "colour": torch.zeros(3, 1, 1)}, {}, KeyError, "has beside them colour"),
    "counts": (changed(scale=lambda x: x[:2]), {}, ValueError, "numbers of objects .*'scale': 2"),
    "no object": ({name: value[:0] for name, value in latents(3).items()}, {}, ValueError, "at least 1"),
    "two axes of a shape": (changed(shape=torch.zeros(3, 96)), {}, ValueError, r"shape: shape \(3, 96\)"),
    "another size": (changed(shape=torch.zeros(3, 11, 8)), {}, ValueError, r"expected \(N, 12, 8\)"),
    "two sizes": (
        changed(shape=torch.zeros(3, 11, 8), scale=torch.zeros(3, 1, 4)),
        {},
        ValueError,
        r"expected \(N, 12, 8\); scale: .*expected \(N, 1, 3\)",
    ),
    "not finite": (changed(rotation=lambda x: x / 0), {}, ValueError, "6drotation_normalized: .*not finite"),
    "another count": (latents(3), {"num_objects": 4}, ValueError, "3 objects, metadata.json says 4"),
    "metadata": (
        latents(3),
        {"num_objects": 0, "shape_layout": "x", "per_object": 1},
        ValueError,
        "num_objects is 0.*shape_layout is 'x'.*per_object is 1",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_with_scene_and_modality(tmp_path: Path, name: str) -> None:
    """Check 15: whatever is wrong with latents or metadata."""
    values, metadata, kind, words = FAULTS[name]
    write(tmp_path, "attic", values, metadata=metadata)
    with pytest.raises(kind, match=words) as caught:
        read(tmp_path)
    assert "attic" in str(caught.value)


def test_all_faults_of_a_scene_are_told_at_once(tmp_path: Path) -> None:
    """Names, sizes, values, conditions and metadata, whichever kind of error the first of them is."""
    values = changed(shape=None, translation=lambda x: x / 0, rotation=lambda x: x[:2], scale=torch.zeros(3))
    write(tmp_path, "attic", {**values, "colour": 1.0}, {"cond": torch.full((3, 1, 4), torch.nan)}, {"num_objects": 0})
    with pytest.raises(ValueError, match="num_objects is 0") as caught:
        read(tmp_path)
    told = str(caught.value)
    assert isinstance(caught.value, KeyError), "of both kinds, since modalities are missing too"
    for words in (
        "lacks shape and has beside them colour",
        "colour: no tensor but a float",
        "translation: it holds values that are not finite",
        "'6drotation_normalized': 2",
        "scale: shape (3,) has fewer than 2 axes",
        "conditions: cond holds values that are not finite",
    ):
        assert told.count(words) == told.count("scene 'attic'") == 1, (words, told)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (pytest.fail, ("a file was executed",))


@pytest.mark.parametrize("name", ["latents.pt", "conditionals.pt"])
def test_a_torch_file_is_never_executed(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, "a", latents(1))
    for data in (Evil(), b"no torch file", b""):
        if isinstance(data, bytes):
            (folder / name).write_bytes(data)
        else:
            torch.save({"shape": data}, folder / name)
        words = "no archive" if isinstance(data, bytes) else r"it holds _pytest\S+, and nothing in it is executed"
        with pytest.raises(ValueError, match=f"{name}' is no torch file of tensors alone: .*{words}") as caught:
            read(tmp_path)
        assert "weights_only" not in str(caught.value), "torch's advice to execute it is not handed on"
    (folder / name).write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(ValueError, match="no torch file"):
        read(tmp_path)


def test_a_small_file_that_describes_a_huge_tensor_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", changed(shape=torch.zeros(1).expand(3, 1 << 20, 1 << 12)))
    with pytest.raises(ValueError, match="'shape' asks for 51539607552 bytes, the file holds 4"):
        read(tmp_path)


def test_what_may_be_missing_or_more(tmp_path: Path) -> None:
    """Check 15: extras are dropped where allowed; `translation_scale` may be zero, said once."""
    for name in ("a", "b"):
        write(tmp_path, name, changed(translation_scale=None) | {"colour": torch.zeros(3, 1, 1)})
    with pytest.raises(KeyError, match=r"lacks translation_scale and has beside them colour"):
        read(tmp_path)
    data = SceneDataset(
        tmp_path, modalities=SPEC, latent_spec=SPEC, allow_extra=True, zero_filled=["translation_scale"]
    )
    with pytest.warns(UserWarning, match="translation_scale") as caught:
        scenes = [data[0], data[1]]
    assert len(caught) == 1
    assert all(list(scene["latents"]) == list(SPEC) for scene in scenes)
    assert torch.equal(scenes[1]["latents"]["translation_scale"], torch.zeros(3, 1, 1))
    plain = SceneDataset(tmp_path, allow_extra=True)[0]["latents"]
    assert "translation_scale" not in plain, "the least four where nobody says what the network has"
    assert set(plain) == set(SPEC) - {"translation_scale"}


def test_a_pose_may_lack_its_token_axis(tmp_path: Path) -> None:
    """Check 15: (N, channels) becomes (N, 1, channels)."""
    values = latents(3)
    write(tmp_path, "a", {name: value[:, 0] if name != "shape" else value for name, value in values.items()})
    found = read(tmp_path)["latents"]
    assert all(torch.equal(found[name], values[name]) for name in SPEC)


def test_a_shape_that_lies_the_other_way_is_transposed(tmp_path: Path) -> None:
    """Check 15: (N, channels, tokens) is told once and turned; where both are equal, the metadata say the layout."""
    values = latents(3)
    turned = values["shape"].transpose(1, 2)
    for name in ("a", "b"):
        write(tmp_path, name, {**values, "shape": turned})
    data = SceneDataset(tmp_path, modalities=SPEC, latent_spec=SPEC)
    with pytest.warns(UserWarning, match="transposed") as caught:
        assert all(torch.equal(data[index]["latents"]["shape"], values["shape"]) for index in (0, 1))
    assert len(caught) == 1
    square = torch.arange(3 * 64.0).reshape(3, 8, 8)
    spec = SPEC | {"shape": (8, 8)}
    for layout, expected in ((None, square), ("channels_last", square), ("tokens_last", square.transpose(1, 2))):
        root = tmp_path / str(layout)
        write(root, "a", {**values, "shape": square}, metadata={"shape_layout": layout} if layout else None)
        assert torch.equal(read(root, latent_spec=spec)["latents"]["shape"], expected)


def test_conditions_with_a_row_per_object(tmp_path: Path) -> None:
    """Check 15: a flagged condition has 1 or N rows; names without tensor and numbers that are not finite are told."""
    for name, conditions, flags, words in (
        ("rows", {"cond": torch.zeros(2, 5, 4)}, ["cond"], r"cond has the shape \(2, 5, 4\).*3 objects, or 1"),
        ("absent", {}, ["cond"], "'cond' has a row per object, and there is no such tensor"),
        ("finite", {"cond": torch.full((3, 1, 4), torch.nan)}, None, "cond holds values that are not finite"),
        ("no dict", [1], None, "no dict of names"),
    ):
        metadata = None if flags is None else {"per_object": flags}
        write(tmp_path / name, "a", latents(3), conditions, metadata)
        with pytest.raises(ValueError, match=words):
            read(tmp_path / name)
    write(tmp_path, "a", latents(3), {"cond": torch.zeros(2, 5, 4)})
    assert read(tmp_path)["conditionals"]["cond"].shape == (2, 5, 4), "unflagged: whatever it is"


def test_large_scenes_are_shown_in_part(tmp_path: Path) -> None:
    """Check 15: the objects of a scene above the limit are a function of (seed, epoch, scene) and go together."""
    values = latents(40)
    values["scale"] = torch.arange(40.0).reshape(40, 1, 1).expand(40, 1, 3)
    rows = torch.arange(40.0).reshape(40, 1, 1).expand(40, 2, 4)
    conditions = {"cond": rows, "table": torch.arange(40.0), "shared": torch.zeros(1, 2, 4)}
    write(tmp_path, "a", values, conditions, {"num_objects": 40, "per_object": ["cond"]})
    write(tmp_path, "b", values, {"cond": rows})
    data = SceneDataset(tmp_path, modalities=SPEC, latent_spec=SPEC, seed=1)
    assert data.object_counts() == [32, 32]
    first = data[0]
    chosen = first["latents"]["scale"][:, 0, 0]
    assert first["num_objects"] == len(chosen) == len(set(chosen.tolist())) == 32
    assert torch.equal(first["conditionals"]["cond"][:, 0, 0], chosen)
    assert torch.equal(first["latents"]["shape"], values["shape"][chosen.long()])
    assert len(first["conditionals"]["table"]) == 40, "not flagged: no row per object"
    assert len(first["conditionals"]["shared"]) == 1
    again = SceneDataset(tmp_path, modalities=SPEC, latent_spec=SPEC, seed=1)
    assert torch.equal(again[0]["latents"]["scale"], first["latents"]["scale"])
    assert not torch.equal(data[1]["latents"]["scale"], first["latents"]["scale"]), "another scene, another part"
    assert torch.equal(data[1]["conditionals"]["cond"][:, 0, 0], data[1]["latents"]["scale"][:, 0, 0])
    data.set_epoch(1)
    other = data[0]["latents"]["scale"]
    assert not torch.equal(other, first["latents"]["scale"])
    assert torch.equal(again[(1, 0)]["latents"]["scale"], other)
    with pytest.raises(ValueError, match="max_objects_per_scene is 0"):
        SceneDataset(tmp_path, max_objects_per_scene=0)


class OwnScenes(SceneDataset):
    """A user's own: nothing but folders on disk."""

    def _load_scene_latents(self, scene_id: str) -> dict[str, Tensor]:
        return latents(int(scene_id))

    def _load_scene_conditionals(self, scene_id: str) -> dict[str, Any]:
        return {"cond": torch.full((1, 1, 4), float(scene_id) if scene_id != "3" else torch.nan)}


def test_subclasses_load_their_own_and_are_checked(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        (tmp_path / "val" / name).mkdir(parents=True)
    data = OwnScenes(tmp_path, "val", modalities=SPEC, latent_spec=SPEC)
    assert data.scene_ids == ["1", "2", "3"]
    assert data[1]["num_objects"] == 2
    assert data[1]["conditionals"]["cond"].unique().tolist() == [2.0]
    with pytest.raises(ValueError, match="cond holds values that are not finite"):
        data[2]


def test_one_scene_is_one_batch(tmp_path: Path) -> None:
    """Check 15: collate returns the scene unchanged and rejects two."""
    for name, count in (("a", 2), ("b", 3)):
        write(tmp_path, name, latents(count), {"cond": torch.ones(1, 5, 4), "each": torch.zeros(count, 2), "word": "x"})
    data = SceneDataset(tmp_path, modalities=SPEC, latent_spec=SPEC)
    batch = next(iter(DataLoader(data, batch_size=1, collate_fn=scene_collate_fn)))
    assert batch["latents"]["shape"].shape == (2, 12, 8)
    for scenes in ([], [data[0], data[1]]):
        with pytest.raises(ValueError, match="batch_size must be 1"):
            scene_collate_fn(scenes)
    both = multi_scene_collate_fn([data[0], data[1]])
    assert (both["scene_sizes"], both["num_objects"]) == ([2, 3], 5)
    assert torch.equal(both["latents"]["shape"], torch.cat([data[i]["latents"]["shape"] for i in (0, 1)]))
    assert both["conditionals"]["cond"].shape == (5, 5, 4)
    assert both["conditionals"]["word"] == "x"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"word": "y"}, "'word' differs"),
        ({"cond": torch.ones(1, 6, 4)}, "'cond' has different sizes"),
        ({"cond": torch.ones(2, 5, 4)}, "'cond' is no tensor with a row for each of 3 objects"),
        ({"more": 1}, "different conditionals"),
    ],
)
def test_scenes_that_do_not_go_together_are_refused(change: dict[str, Any], words: str) -> None:
    def scene(count: int, **conditions: Any) -> dict[str, Any]:
        own = {"cond": torch.ones(1, 5, 4), "word": "x"} | conditions
        return {"latents": latents(count), "conditionals": own, "scene_id": str(count), "num_objects": count}

    with pytest.raises(ValueError, match=words):
        multi_scene_collate_fn([scene(2), scene(3, **change)])


@pytest.mark.parametrize("group", [1, 2, 3, 4])
def test_an_epoch_has_each_scene_once_in_steps_of_like_sizes(group: int) -> None:
    counts = [2, 6, 3, 5, 4, 2, 3, 6, 5, 4, 2]
    orders = [scene_order(counts, seed, epoch, group) for seed in (0, 1) for epoch in range(20)]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert scene_order(counts, 0, 3, group) == orders[3]
    assert len({tuple(order) for order in orders}) > 35
    for order in orders:
        steps = [
            [counts[scene] for scene in order[start : start + group]] for start in range(0, 11 // group * group, group)
        ]
        ranges = sorted((min(step), max(step)) for step in steps)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(ranges)), "steps overlap"
    assert {order[-1] for order in orders} == set(range(11)), "whatever its size, any scene may be left over"


def test_ranks_see_disjoint_scenes_and_validation_counts_each_once() -> None:
    """Check 16: two ranks, five scenes; training repeats one, validation none."""
    counts = [2, 5, 3, 5, 2]
    for epoch in range(4):
        ranks = [SceneSampler(counts, rank=rank, world_size=2, seed=1) for rank in (0, 1)]
        for rank in ranks:
            rank.set_epoch(epoch)
        own = [list(rank) for rank in ranks]
        assert [len(scenes) for scenes in own] == [len(rank) for rank in ranks] == [3, 3]
        assert {*own[0], *own[1]} == set(range(5))
        assert all(first != second for first, second in zip(*own, strict=True))
        assert not {*own[0][:2]} & {*own[1][:2]}
        quiet = [SceneSampler(counts, rank=rank, world_size=2, seed=1, shuffle=False) for rank in (0, 1)]
        assert [list(rank) for rank in quiet] == [[0, 2, 4], [1, 3]]
        assert [len(rank) for rank in quiet] == [3, 2]
    assert [len(list(SceneSampler([3], rank=rank, world_size=4))) for rank in range(4)] == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="rank 2 of 2"):
        SceneSampler(counts, rank=2, world_size=2)
