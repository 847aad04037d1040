"""Meshes of a user's own scenes: glTF, OBJ and PLY by trimesh, checked before use, as voxels and poses.

A file is hostile until it was looked at: sizes before bytes are read, counts of a glTF's accessors before they are
allocated, other files only where they lie beside the mesh. Also writes scenes as such folders.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from stageline.config.bounds import MAX_DEPTH, read_json
from stageline.errors import DataError
from stageline.families.sparse_structure.data.made import MadeScene, make_scene
from stageline.families.sparse_structure.data.poses import Poses
from stageline.families.sparse_structure.data.scene_files import LARGEST, SCENE_FILE, PlacedMesh
from stageline.families.sparse_structure.data.voxels import Box, Mesh, bounding_box, canonical, fill_solid, fill_surface

MAX_MESH_BYTES = 256 << 20
MAX_FACES = 2_000_000
MAX_COUNTS = 12 * MAX_FACES
"""Of all accessors of a glTF: corners, points, normals and a second set of them."""
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    UnicodeError,
    ValueError,
    struct.error,
)
"""What a reader raises on a file that is not what its name says."""

Array = NDArray[Any]


class _Beside(trimesh.resolvers.Resolver):
    """Gives a reader the files in a mesh's own folder, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def get(self, name: str) -> bytes:
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder) or not path.is_file():
            raise FileNotFoundError(f"it names {name!r}, which does not lie beside it")
        return _read_bytes(path)

    def namespaced(self, namespace: str) -> _Beside:
        return _Beside(self.folder / namespace)

    def write(self, name: str, data: Any) -> None:
        raise NotImplementedError(f"nothing is written beside a mesh: {name}")

    def keys(self) -> list[str]:
        return []


def _read_bytes(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_MESH_BYTES:
        raise ValueError(f"{path.name} has {size} bytes, at most {MAX_MESH_BYTES} are read")
    return path.read_bytes()


def read_mesh(path: Path) -> Mesh:
    """All triangles of a mesh file, in its own units. DataError that names the file and what is wrong with it."""
    try:
        return _read_mesh(path)
    except UNREADABLE as error:
        text = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        raise DataError(f"the mesh {str(path)!r} cannot be read: {text:.300}", remedy="export it anew") from error


def _read_mesh(path: Path) -> Mesh:
    kind, data = path.suffix.lower().removeprefix("."), _read_bytes(path)
    if kind in ("glb", "gltf"):
        _check_gltf(data)
    options: dict[str, Any] = {"skip_materials": True, "process": False}  # no picture of a material is opened
    with _quietly():
        loaded = trimesh.load_scene(BytesIO(data), file_type=kind, resolver=_Beside(path.parent), **options)
    faces = [len(loaded.geometry[name].faces) for _, name in _instances(loaded)]
    if sum(faces) > MAX_FACES:
        raise ValueError(f"it has {sum(faces)} faces, at most {MAX_FACES} are read")
    parts = [
        (trimesh.transform_points(loaded.geometry[name].vertices, matrix), np.asarray(loaded.geometry[name].faces))
        for matrix, name in _instances(loaded)
    ]
    if not parts:
        raise ValueError("it has no faces")
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in parts[:-1])])
    vertices = np.concatenate([part for part, _ in parts])
    joined = np.concatenate([part + start for (_, part), start in zip(parts, starts, strict=True)]).astype(np.int64)
    if not np.isfinite(vertices).all():
        raise ValueError("it has points that are not finite")
    if len(joined) and not (joined.min() >= 0 and joined.max() < len(vertices)):
        raise ValueError("its faces name points that are not there")
    mesh = Mesh(vertices, joined)
    bounding_box(mesh)  # refuses what has no extent
    return mesh


@contextmanager
def _quietly() -> Iterator[None]:
    """trimesh without its log, which quotes the file and holds stack traces; what is wrong with a file is told here."""
    log = trimesh.util.log
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _instances(scene: Any) -> list[tuple[Array, str]]:
    """Where each surface of a file's scene stands: transform (4, 4) and name."""
    found = [scene.graph[node] for node in scene.graph.nodes_geometry]
    return [(matrix, name) for matrix, name in found if hasattr(scene.geometry[name], "faces")]


def _check_gltf(data: bytes) -> None:
    """ValueError where a glTF describes more than a reader should allocate."""
    if data[:4] == b"glTF":
        length = int.from_bytes(data[12:16], "little")
        data = data[20 : 20 + length]
    plain, total = read_json(data), 0
    for accessor in plain.get("accessors", []):
        if not isinstance(accessor.get("count"), int) or not 0 <= accessor["count"] <= 3 * MAX_FACES:
            raise ValueError(f"an accessor has the count {accessor.get('count')!r}, at most {3 * MAX_FACES} are read")
        total += accessor["count"]
    if total > MAX_COUNTS:
        raise ValueError(f"its accessors hold {total} things together, at most {MAX_COUNTS} are read (MAX_COUNTS)")
    counts = [accessor["count"] for accessor in plain.get("accessors", [])]
    parts = [part for mesh in plain.get("meshes", []) for part in mesh["primitives"]]
    used = [part.get("indices") for part in parts] + [part["attributes"].get("POSITION") for part in parts]
    total = sum(counts[number] for number in used if number is not None)
    if total > MAX_COUNTS:  # each part gets points of its own, also where parts share them
        raise ValueError(f"its parts use {total} points and corners, at most {MAX_COUNTS} are read (MAX_COUNTS)")
    nodes = plain.get("nodes", [])
    if len(nodes) > MAX_FACES // 10:
        raise ValueError(f"it has {len(nodes)} nodes, at most {MAX_FACES // 10} are read")
    _check_levels([node.get("children", []) for node in nodes])


def _check_levels(children: list[list[int]]) -> None:
    """ValueError for nodes below nodes below nodes, whose places are looked for from the top each, or in a ring.

    children: numbers of the nodes directly below each node.
    """
    above = {number for below in children for number in below}
    level, levels = [number for number in range(len(children)) if number not in above], 0
    while level:
        level, levels = list({number for node in level for number in children[node]}), levels + 1
        if levels > MAX_DEPTH:
            raise ValueError(f"its nodes are nested deeper than {MAX_DEPTH} levels (MAX_DEPTH)")


@dataclass(frozen=True)
class VoxelScene:
    """A scene as voxels. voxels: (N, R, R, R) bool, canonical.  poses: of the canonical cubes.  kinds: of objects."""

    voxels: Array
    poses: Poses
    kinds: tuple[str, ...]


def read_voxels(objects: tuple[PlacedMesh, ...], *, resolution: int, fill: str) -> VoxelScene:
    """The objects of a scene file as voxels and poses.

    resolution: voxels along a side.  fill: `solid` or `surface`.
    DataError with the fault of every mesh.
    """
    voxels, centres, sizes, faults = [], [], [], []
    for thing in objects:
        status = thing.mesh.stat()
        found = _canonical_voxels(thing.mesh, (status.st_mtime_ns, status.st_size), resolution, fill)
        if isinstance(found, str):
            faults.append(found)
            continue
        centre, size = thing.translation + thing.rotation @ (thing.scale * found[1].centre), thing.scale * found[1].size
        if not (size > 1 / LARGEST).all() or max(size.max(), np.abs(centre).max()) > LARGEST:
            sides, place = (", ".join(f"{number:g}" for number in numbers) for numbers in (size, centre))
            faults.append(
                f"the mesh {str(thing.mesh)!r} is ({sides}) metres large at ({place}); expected {1 / LARGEST:g} to "
                f"{LARGEST:g}: say its unit by `scale`"
            )
            continue
        voxels.append(found[0])
        centres.append(centre)
        sizes.append(size)
    if faults:
        raise DataError("; ".join(dict.fromkeys(faults)), remedy="mend these meshes, or leave their objects out")
    rotation = np.stack([thing.rotation for thing in objects])
    kinds = tuple(thing.kind for thing in objects)
    return VoxelScene(np.stack(voxels), Poses(rotation, np.stack(centres), np.stack(sizes)), kinds)


@lru_cache(maxsize=256)
def _canonical_voxels(path: Path, stamp: tuple[int, int], resolution: int, fill: str) -> tuple[Array, Box] | str:
    """Voxels and box of a mesh file, or what is wrong with it; scenes often share meshes. stamp: time and size."""
    del stamp
    try:
        mesh = read_mesh(path)
    except DataError as error:
        return error.message
    box = bounding_box(mesh)
    if fill == "surface":
        return fill_surface(canonical(mesh), resolution), box
    voxels, num_open = fill_solid(canonical(mesh), resolution)
    if num_open:
        return f"the mesh {str(path)!r} is open along {num_open} of {resolution**2} lines; data.fill=surface takes it"
    if not voxels.any():
        return f"the mesh {str(path)!r} is too thin for {resolution} voxels a side; data.fill=surface takes it"
    return voxels, box


def write_scene(folder: Path, scene: MadeScene, *, suffix: str = ".glb") -> None:
    """Write a made-up scene as one of a user's own: a mesh per object and `scene.json`. folder: of the scene."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for place, thing in enumerate(scene.objects):
        name = f"{place:02d}-{thing.kind}{suffix}"
        mesh = trimesh.Trimesh(thing.mesh.vertices, thing.mesh.faces, process=False)
        (folder / name).write_bytes(_exported(mesh, suffix))
        rotation, box = scene.poses.rotation[place], bounding_box(thing.mesh)
        translation = np.array(thing.centre) - rotation @ box.centre
        objects.append(
            {
                "mesh": name,
                "class": thing.kind,
                "rotation": rotation.tolist(),
                "translation": translation.tolist(),
                "scale": 1.0,
            }
        )
    (folder / SCENE_FILE).write_text(json.dumps({"up": "z", "objects": objects}, indent=1), encoding="utf-8")


def _exported(mesh: Any, suffix: str) -> bytes:
    data: bytes | str = mesh.export(file_type=suffix.removeprefix("."))
    return data.encode() if isinstance(data, str) else data


def write_made(folder: Path, *, counts: Mapping[str, int], seed: int = 0, suffix: str = ".glb") -> None:
    """Write made-up scenes as a folder of a user's own. folder: gets `<split>/<scene>/`.  counts: by split."""
    for split, count in counts.items():
        for index in range(count):
            scene = make_scene(split, index, seed)
            write_scene(folder / split / scene.name, scene, suffix=suffix)
