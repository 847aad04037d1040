"""Scenes prepared: made-up rooms, own meshes and latents become rows, and rows samples; faults are told at once."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families.sparse_structure.data.folders import LATENT_SPEC, latents, open_split, write_scene_files

from stageline.data.reading import SplitReader
from stageline.data.splits import silent
from stageline.errors import DataError
from stageline.families.sparse_structure.data.made import make_scene
from stageline.families.sparse_structure.data.meshes import read_mesh, write_made
from stageline.families.sparse_structure.data.origin import SceneSource
from stageline.families.sparse_structure.data.poses import PoseStatistics, decode_poses
from stageline.families.sparse_structure.data.preparation import POSE_PARTS, check_sources
from stageline.families.sparse_structure.data.prepared_scenes import (
    PreparedObjects,
    PreparedScenes,
    class_tokens,
    collate_objects,
)
from stageline.families.sparse_structure.data.scene_dataset import SceneDataset

COUNTS = {"train": 8, "val": 2, "test": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SplitReader:
    return open_split(SceneSource("made", counts=COUNTS, seed=1), "train", tmp_path_factory.mktemp("made"))


def statistics_of(rows: SplitReader) -> PoseStatistics:
    return PoseStatistics.from_json(rows.facts["pose_statistics"])


def test_a_made_scene_comes_back_as_a_sample(made: SplitReader) -> None:
    statistics = statistics_of(made)
    scenes = PreparedScenes(made, statistics=statistics, tokens=(2, 8))
    assert len(scenes) == 8
    for index in range(8):
        scene, truth = scenes[(5, index)], make_scene("train", index, 1)
        assert scene["scene_id"] == truth.name
        assert (scene["num_objects"], scene["row"]["style"]) == (len(truth.objects), truth.style)
        voxels = np.stack([thing.voxels for thing in truth.objects])
        np.testing.assert_array_equal(scene["voxels"].numpy(), voxels)
        seen = {name: value[:, 0].numpy() for name, value in scene["latents"].items()}
        poses = decode_poses(statistics.restore(seen))
        np.testing.assert_allclose(poses.rotation, truth.poses.rotation, atol=1e-5)
        np.testing.assert_allclose(poses.translation, truth.poses.translation, atol=1e-5)
        np.testing.assert_allclose(poses.scale, truth.poses.scale, rtol=1e-5)
    assert scenes.object_counts == [scenes[index]["num_objects"] for index in range(8)]


def test_shuffled_scenes_hold_shapes_and_sizes_of_other_scenes_in_their_places(made: SplitReader) -> None:
    statistics = statistics_of(made)
    scenes = PreparedScenes(made, statistics=statistics)
    shuffled = PreparedScenes(made, statistics=statistics, shuffled=True)
    things = [thing for index in range(8) for thing in make_scene("train", index, 1).objects]
    known: defaultdict[bytes, set[tuple[str, str]]] = defaultdict(set)
    for thing in things:
        known[thing.voxels.tobytes()].add((thing.kind, thing.style))
    styles = set()
    for index in range(8):
        scene, other = scenes[index], shuffled[index]
        shapes = [voxels.numpy().astype(bool).tobytes() for voxels in other["voxels"]]
        kinds = [{kind for kind, _ in known[shape]} for shape in shapes]
        assert all(kind in found for kind, found in zip(scene["row"]["classes"], kinds, strict=True))
        styles.add(len({style for shape in shapes for _, style in known[shape]}))
        for name in ("translation", "6drotation_normalized"):
            assert torch.equal(scene["latents"][name], other["latents"][name])
        assert torch.equal(other["voxels"], shuffled[(0, index)]["voxels"])
    assert max(styles) > 1
    assert any(not torch.equal(shuffled[(0, i)]["voxels"], shuffled[(1, i)]["voxels"]) for i in range(8))
    assert any(not torch.equal(scenes[i]["latents"]["scale"], shuffled[i]["latents"]["scale"]) for i in range(8))


def test_a_condition_shows_the_class_and_nothing_else(made: SplitReader) -> None:
    """Objects of one class have equal conditions in every scene, whatever its style."""
    scenes = PreparedScenes(made, statistics=statistics_of(made), tokens=(2, 8))
    found: dict[str, set[bytes]] = {}
    styles: dict[str, set[str]] = {}
    for index in range(8):
        scene = scenes[index]
        assert list(scene["conditionals"]) == ["cond"]
        assert scene["conditionals"]["cond"].shape == (scene["num_objects"], 2, 8)
        for kind, tokens in zip(scene["row"]["classes"], scene["conditionals"]["cond"], strict=True):
            found.setdefault(kind, set()).add(tokens.numpy().tobytes())
            styles.setdefault(kind, set()).add(scene["row"]["style"])
    assert all(len(tokens) == 1 for tokens in found.values())
    assert max(map(len, styles.values())) == 4
    assert len(set().union(*found.values())) == len(found)
    assert class_tokens("a word of one's own", 3, 64).var().item() == pytest.approx(1, abs=0.4)


def test_facts_count_and_statistics_are_of_the_training_split_alone(made: SplitReader, tmp_path: Path) -> None:
    facts = made.facts
    assert facts["rows"] == 8
    assert facts["objects"] == sum(facts["classes"].values()) == sum(made.numbers("num_objects"))
    assert facts["avg_objects_per_scene"] == facts["objects"] / 8
    assert set(facts["styles"].values()) == {2}
    assert dict(facts["told"])["scenes"] == "8"
    rows = np.concatenate([made.array(row, "translation") for row in range(8)])
    np.testing.assert_allclose(statistics_of(made).mean["translation"], rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(statistics_of(made).deviation["translation"], rows.std(0), atol=1e-6)
    val = open_split(SceneSource("made", counts=COUNTS, seed=1), "val", tmp_path)
    assert "pose_statistics" not in val.facts


def test_equal_sources_give_equal_splits_and_settings_their_own(made: SplitReader, tmp_path: Path) -> None:
    again = open_split(SceneSource("made", counts=COUNTS, seed=1), "train", tmp_path / "again")
    assert again.manifest.shards == made.manifest.shards
    assert again.manifest.lines == made.manifest.lines
    one, other = (SceneSource("made", counts=COUNTS, seed=seed).split("train") for seed in (1, 2))
    assert one.key != other.key
    assert SceneSource("made", counts={**COUNTS, "test": 3}, seed=1).split("train") == one
    fine = open_split(SceneSource("made", counts={"test": 1}, resolution=32), "test", tmp_path / "fine")
    assert fine.array(0, "voxels").shape[1:] == (32, 32, 32)


def test_large_scenes_are_shown_in_part(made: SplitReader) -> None:
    whole = PreparedScenes(made, statistics=statistics_of(made))
    part = PreparedScenes(made, statistics=statistics_of(made), max_objects=2)
    index = max(range(8), key=lambda row: made.numbers("num_objects")[row])
    full = whole[index]
    parts = [part[(epoch, index)] for epoch in range(6)]
    for scene in parts:
        places = [
            next(p for p in range(full["num_objects"]) if torch.equal(full["latents"]["translation"][p], row))
            for row in scene["latents"]["translation"]
        ]
        assert scene["num_objects"] == len(places) == 2
        assert torch.equal(scene["voxels"], full["voxels"][places])
        assert scene["row"]["classes"] == [full["row"]["classes"][place] for place in places]
        assert scene["row"]["style"] == full["row"]["style"]
    assert len({scene["voxels"].numpy().tobytes() for scene in parts}) > 1
    assert max(part.object_counts) == 2


def test_objects_are_those_of_all_scenes_in_order(made: SplitReader) -> None:
    objects = PreparedObjects(made)
    voxels = np.concatenate([made.array(row, "voxels") for row in range(8)])
    assert len(objects) == len(voxels)
    batch = collate_objects([objects[(3, number)] for number in range(len(objects))])
    np.testing.assert_array_equal(batch.numpy(), voxels)
    with pytest.raises(IndexError, match=f"object {len(voxels)} of"):
        objects[len(voxels)]


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_own_meshes_give_what_made_ones_give(tmp_path: Path, suffix: str) -> None:
    write_made(tmp_path / "own", counts={"train": 2}, seed=1, suffix=suffix)
    source = SceneSource("meshes", folder=tmp_path / "own", fill="solid")
    check_sources(source, ["train"], silent)
    rows = open_split(source, "train", tmp_path / "rows")
    made = open_split(SceneSource("made", counts={"train": 2}, seed=1), "train", tmp_path / "made")
    for row in range(2):
        assert rows.fields(row)["classes"] == made.fields(row)["classes"]
        differing = rows.array(row, "voxels") != made.array(row, "voxels")
        assert differing.mean() < 1e-3, "files keep coordinates in single precision"
        for part in POSE_PARTS.values():
            np.testing.assert_allclose(rows.array(row, part), made.array(row, part), atol=1e-5)
    thick = open_split(SceneSource("meshes", folder=tmp_path / "own"), "train", tmp_path / "surface")
    assert thick.array(0, "voxels").any()
    assert statistics_of(thick) == statistics_of(rows)


CUBE = """
v 0 0 0
v 2 0 0
v 2 1 0
v 0 1 0
v 0 0 1
v 2 0 1
v 2 1 1
v 0 1 1
f 1 4 3 2
f 5 6 7 8
f 1 2 6 5
f 2 3 7 6
f 3 4 8 7
f 4 1 5 8
"""
THING = {"mesh": "cube.obj", "class": "box", "translation": [1, 2, 3], "scale": 2, "rotation": np.eye(3).tolist()}


def own_scene(folder: Path, *objects: dict[str, Any], **more: Any) -> SceneSource:
    """A folder with one scene. objects: changes of `THING`."""
    scene = folder / "train" / "attic"
    scene.mkdir(parents=True, exist_ok=True)
    (scene / "cube.obj").write_text(CUBE)
    (scene / "scene.json").write_text(json.dumps({"objects": [THING | one for one in objects], **more}))
    return SceneSource("meshes", folder=folder, resolution=8, fill="solid")


def test_a_mesh_lies_where_its_pose_says(tmp_path: Path) -> None:
    """Scale before rotation before translation, about the mesh's own origin; y up is turned to z up."""
    half = 0.5**0.5
    quaternion = {"quaternion": [half, 0, 0, half], "rotation": None}
    objects = [{}, {"scale": [1, 2, 3]}, quaternion]
    plain = [{key: value for key, value in (THING | one).items() if value is not None} for one in objects]
    own_scene(tmp_path, {})
    for up in ("z", "y"):
        (tmp_path / "train" / "attic" / "scene.json").write_text(json.dumps({"up": up, "objects": plain}))
        rows = open_split(SceneSource("meshes", folder=tmp_path, fill="solid"), "train", tmp_path / up)
        numbers = {name: rows.array(0, part) for name, part in POSE_PARTS.items()}
        poses = decode_poses(numbers)
        # The mesh's box is 2 x 1 x 1 about (1, 0.5, 0.5): its corner (2, 1, 1) is (0.5, 0.25, 0.25), canonical.
        corner = poses.place(np.broadcast_to([0.5, 0.25, 0.25], (3, 1, 3)))[:, 0]
        expected = np.array([[5, 4, 5], [3, 4, 6], [1 - 2, 2 + 4, 3 + 2]], dtype=float)
        if up == "y":
            expected = np.stack([expected[:, 0], -expected[:, 2], expected[:, 1]], axis=1)
        np.testing.assert_allclose(corner, expected, atol=1e-5)
        voxels = rows.array(0, "voxels")
        assert voxels.shape == (3, 16, 16, 16)
        assert voxels[0].sum() == 16 * 8 * 8


def test_every_fault_of_every_scene_is_told_at_once(tmp_path: Path) -> None:
    bad = {
        "class": "",
        "translation": [0, 1, float("inf")],
        "scale": -1,
        "rotation": [[1, 0, 0], [0, 1, 0], [0, 0, -1]],
        "mesh": "../../../../etc/passwd",
        "colour": 1,
    }
    source = own_scene(
        tmp_path, {}, bad, {"quaternion": [1, 0, 0, 0]}, {"mesh": "no.obj"}, {"mesh": "scene.json"}, up="x", by="me"
    )
    folder = tmp_path / "train"
    (folder / "empty").mkdir()
    (folder / "empty" / "scene.json").write_text('{"objects": []}')
    (folder / "text").mkdir()
    (folder / "text" / "scene.json").write_text("{" * 100_000)
    with pytest.raises(DataError) as caught:
        check_sources(source, ["train", "val"], silent)
    message = caught.value.message
    for words in (
        "up is 'x'",
        "unknown key 'by'",
        "objects[1]: unknown key 'colour'",
        "lies outside of",
        "class is ''",
        "translation is [0, 1, inf]",
        "scale is -1",
        "expected a 3 x 3 rotation",
        "objects[2]: expected one of `rotation` and `quaternion`",
        "objects[3]: there is no mesh",
        "objects[4]: mesh 'scene.json' is none of .glb",
        "0 objects; expected 1 to",
        "it is no JSON",
        "there is no folder",
    ):
        assert words in message, words


def ply(vertices: int, faces: int) -> bytes:
    return (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {vertices}\nproperty float x\nproperty float y\n"
        f"property float z\nelement face {faces}\nproperty list uchar int vertex_indices\nend_header\n"
    ).encode() + b"\0" * 64


def gltf(**parts: Any) -> bytes:
    plain = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [{"componentType": 5126, "type": "VEC3", "count": 3}],
        **parts,
    }
    return json.dumps(plain).encode()


HOSTILE: dict[str, tuple[str, bytes]] = {
    "an empty file": ("a.obj", b""),
    "no mesh": ("a.glb", b"glTF" + b"\xff" * 40),
    "points that are not finite": ("a.obj", CUBE.replace("v 2 1 1", "v nan 1 1").encode()),
    "faces of points that are not there": ("a.obj", CUBE.replace("f 4 1 5 8", "f 4 1 5 99").encode()),
    "no extent": ("a.obj", b"v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n"),
    "a header of a huge file": ("a.ply", ply(10**13, 10**13)),
    "a huge accessor": ("a.gltf", gltf(accessors=[{"componentType": 5126, "type": "VEC3", "count": 10**12}])),
    "a node in itself": ("a.gltf", gltf(nodes=[{"mesh": 0, "children": [0]}])),
    "a file elsewhere": ("a.gltf", gltf(buffers=[{"uri": "../../../../../etc/passwd", "byteLength": 10}])),
    "a file of the net": ("a.gltf", gltf(buffers=[{"uri": "http://localhost:9/x.bin", "byteLength": 10}])),
    "a length that is none": ("a.glb", struct.pack("<4sIIII", b"glTF", 2, 2**31, 2**31, 0x4E4F534A) + b"{}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_mesh_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file, data = HOSTILE[name]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(DataError, match=rf"{file}' cannot be read"):
        read_mesh(tmp_path / file)


def test_an_open_mesh_has_a_surface_and_no_inside(tmp_path: Path) -> None:
    source = own_scene(tmp_path, {})
    path = tmp_path / "train" / "attic" / "cube.obj"
    path.write_text(CUBE.replace("f 5 6 7 8\n", ""))
    with pytest.raises(DataError, match=r"cube\.obj' is open along 32 of 64 lines"):
        check_sources(source, ["train"], silent)
    surface = SceneSource("meshes", folder=tmp_path, resolution=8, fill="surface")
    check_sources(surface, ["train"], silent)
    assert open_split(surface, "train", tmp_path / "rows").array(0, "voxels").any()


def test_a_split_depends_on_its_own_files(tmp_path: Path) -> None:
    """Scene files, meshes, a .gltf's buffers and the list; of each split its own."""
    source = own_scene(tmp_path, {}, {"mesh": "../../shared/a.gltf"})
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "a.gltf").write_bytes(gltf(buffers=[{"uri": "a.bin", "byteLength": 36}]))
    (shared / "a.bin").write_bytes(b"\0" * 36)
    (tmp_path / "train" / "scenes.txt").write_text("attic\n")
    names = [str(path.resolve().relative_to(tmp_path.resolve())) for path in source.split("train").source_files]
    scene = "train/attic/"
    assert sorted(names) == [
        "shared/a.bin",
        "shared/a.gltf",
        f"{scene}cube.obj",
        f"{scene}scene.json",
        "train/scenes.txt",
    ]
    assert source.split("val").unseen == (tmp_path / "val",)
    assert source.split("train").unseen == ()
    with pytest.raises(DataError, match="need a folder"):
        SceneSource("latents").split("train")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_come_back_as_the_dataset_gives_them(tmp_path: Path, dtype: torch.dtype) -> None:
    """The guide's folders, with a condition larger than a shard, in single precision and in bfloat16."""
    rng = torch.Generator().manual_seed(0)
    for name, count in (("a", 5), ("b", 2)):
        rows = torch.randn(count, 50, 16, generator=rng).to(dtype)
        conditions = {"cond": rows, "shared": torch.ones(1, 3), "word": "x", "level": 0.5}
        write_scene_files(tmp_path / "own", name, latents(count), conditions)
    source = SceneSource("latents", folder=tmp_path / "own", modalities=LATENT_SPEC)
    check_sources(source, ["train"], silent)
    rows = open_split(source, "train", tmp_path / "rows", shard_bytes=4096)
    assert len(list(rows.pieces(0, "condition-0"))) == (5 if dtype == torch.float32 else 3)
    plain = SceneDataset(tmp_path / "own", modalities=LATENT_SPEC, latent_spec=LATENT_SPEC, max_objects_per_scene=3)
    prepared = PreparedScenes(rows, max_objects=3)
    assert prepared.object_counts == plain.object_counts() == [3, 2]
    for item in ((0, 0), (7, 0), (0, 1)):
        one, other = prepared[item], plain[item]
        assert (one["scene_id"], one["num_objects"]) == (other["scene_id"], other["num_objects"])
        assert list(one["latents"]) == list(other["latents"])
        assert all(torch.equal(one["latents"][name], other["latents"][name]) for name in LATENT_SPEC)
        assert one["conditionals"].keys() == other["conditionals"].keys()
        assert one["conditionals"]["cond"].dtype == dtype
        assert torch.equal(one["conditionals"]["cond"], other["conditionals"]["cond"])
        assert (one["conditionals"]["word"], one["conditionals"]["level"]) == ("x", 0.5)
    nested = {"masks": [torch.ones(2)], "level": float("nan"), "word": ["x", 1]}
    write_scene_files(tmp_path / "own", "c", latents(1), nested)
    with pytest.raises(DataError, match="scene 'c': conditions masks, level are neither tensors nor plain values"):
        check_sources(source, ["train"], silent)
    (tmp_path / "own" / "train" / "b" / "latents.pt").write_bytes(b"")
    (tmp_path / "own" / "train" / "a" / "conditionals.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)conditionals\.pt' is no torch file.*latents\.pt' is no torch file"):
        check_sources(source, ["train"], silent)
