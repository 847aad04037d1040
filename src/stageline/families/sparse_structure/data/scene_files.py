"""Folders of scenes: which scenes a split has, and what a `scene.json` of a user's own meshes says. No torch.

    <folder>/<split>/scenes.txt                optional: one scene a line, fixes which and in what order
    <folder>/<split>/<scene>/scene.json        {"up": "z", "objects": [{...}, ...]}
    <folder>/...                               meshes: .glb, .gltf, .obj, .ply

An object has `mesh` (path beside its scene.json, inside <folder>), `class` (a word), `translation` (three metres),
`scale` (one positive factor, or three along the mesh's axes) and one of `rotation` (3 x 3, rows) and `quaternion`
(w, x, y, z). A point v of the mesh lies in the scene at R (scale * v) + translation. `up` is the scene's vertical
axis, "z" or "y"; "z" where it is absent. Every fault of a file is told at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stageline.config import bounds
from stageline.errors import DataError

SCENE_FILE, SCENE_LIST = "scene.json", "scenes.txt"
SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
MAX_JSON_BYTES = 4 << 20
MAX_OBJECTS = 1024
MAX_CLASS_LENGTH = 64
MAX_NAME_LENGTH = 256
LARGEST = 1e6
"""Metres and factors beyond it are slips of a unit."""
OBJECT_KEYS = frozenset({"mesh", "class", "translation", "scale", "rotation", "quaternion"})
UNEVEN = 1e-3
"""By which the columns of a rotation may miss being of length one and at right angles."""
Y_UP_TO_Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


@dataclass(frozen=True)
class PlacedMesh:
    """An object of a scene file.

    mesh: its file.  rotation: (3, 3) proper.  translation, scale: (3,), in a scene whose z points up.
    """

    mesh: Path
    kind: str
    rotation: NDArray[Any]
    translation: NDArray[Any]
    scale: NDArray[Any]


def list_scenes(folder: Path, needed: str | None) -> list[str]:
    """The scenes of a split, in order: those of `scenes.txt`, else the sub-folders, sorted.

    folder: of the split.  needed: file that a sub-folder must hold to be a scene; None takes every one.
    FileNotFoundError without the folder; ValueError for a list with faults, all at once.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {str(folder)!r} of scenes; expected <folder>/<split>/<scene>/")
    listed = folder / SCENE_LIST
    if not listed.is_file():
        found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        return sorted(path.name for path in found if needed is None or (path / needed).is_file())
    try:
        lines = [line.strip() for line in bounds.read_whole(listed).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{listed} is no UTF-8 text: {error}") from error
    except bounds.TooLargeError as error:
        raise ValueError(f"{listed}: {error}") from error
    names = [line for line in lines if line]
    faults = [
        f"{name!r} is no name of a folder" for name in names if name in (".", "..") or {"/", "\\", "\0"} & {*name}
    ]
    faults += [f"{name!r} stands there twice" for name, count in Counter(names).items() if count > 1]
    if faults:
        raise ValueError(f"{listed}: {'; '.join(faults)}; expected one scene a line")
    return names


def read_json(path: Path) -> Any:
    """The JSON of a small file; ValueError that says what is wrong with it."""
    data = bounds.read_whole(path, MAX_JSON_BYTES)
    try:
        return bounds.read_json(data)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error


def read_scene(path: Path, root: Path) -> tuple[PlacedMesh, ...]:
    """The objects of a scene file. root: folder that holds all meshes.

    DataError with every fault.
    """
    try:
        plain = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}", remedy="write it as the docs of own scenes say") from error
    faults: list[str] = []
    if not isinstance(plain, dict) or not isinstance(plain.get("objects"), list):
        raise DataError(f"{path}: it has no list `objects`", remedy="write it as the docs of own scenes say")
    faults += [f"unknown key {key!r}" for key in plain if key not in ("up", "objects")]
    up = plain.get("up", "z")
    if up not in ("y", "z"):
        faults.append(f"up is {up!r}; expected 'z' or 'y'")
    if not 1 <= len(plain["objects"]) <= MAX_OBJECTS:
        faults.append(f"{len(plain['objects'])} objects; expected 1 to {MAX_OBJECTS}")
    turn = Y_UP_TO_Z_UP if up == "y" else np.eye(3)
    objects = []
    for place, item in enumerate(plain["objects"][:MAX_OBJECTS]):
        found, wrong = _placed(item, path, root, turn)
        faults += [f"objects[{place}]: {fault}" for fault in wrong]
        objects += [] if found is None else [found]
    if faults:
        raise DataError(f"{path}: {'; '.join(faults)}", remedy="write it as the docs of own scenes say")
    return tuple(objects)


def _placed(item: Any, path: Path, root: Path, turn: NDArray[Any]) -> tuple[PlacedMesh | None, list[str]]:
    """An object, or None with its faults."""
    if not isinstance(item, dict):
        return None, [f"{item!r:.60} is no mapping"]
    faults = [f"unknown key {key!r}" for key in item if key not in OBJECT_KEYS]
    mesh, wrong = _mesh_path(item.get("mesh"), path, root)
    faults += wrong
    kind = item.get("class")
    if not isinstance(kind, str) or not 1 <= len(kind) <= MAX_CLASS_LENGTH:
        faults.append(f"class is {kind!r:.60}; expected a word of at most {MAX_CLASS_LENGTH} letters")
    translation = _numbers(item.get("translation"), (3,))
    if translation is None:
        faults.append(f"translation is {item.get('translation')!r:.60}; expected three metres")
    scale = (
        _numbers(item.get("scale"), (3,)) if isinstance(item.get("scale"), list) else _numbers(item.get("scale"), ())
    )
    if scale is None or not (scale > 1 / LARGEST).all():
        faults.append(f"scale is {item.get('scale')!r:.60}; expected one positive factor or three")
    rotation = _rotation(item)
    if isinstance(rotation, str):
        faults.append(rotation)
    if faults or mesh is None or translation is None or scale is None or isinstance(rotation, str):
        return None, faults
    return PlacedMesh(mesh, str(kind), turn @ rotation, turn @ translation, np.broadcast_to(scale, 3).copy()), []


def _mesh_path(name: Any, path: Path, root: Path) -> tuple[Path | None, list[str]]:
    if not isinstance(name, str) or not name or "\0" in name:
        return None, [f"mesh is {name!r:.60}; expected a path beside {path.name}"]
    found = (path.parent / name).resolve()
    if not found.is_relative_to(root.resolve()):
        return None, [f"mesh {name!r} lies outside of {str(root)!r}"]
    if found.suffix.lower() not in SUFFIXES:
        return None, [f"mesh {name!r} is none of {', '.join(SUFFIXES)}"]
    if not found.is_file():
        return None, [f"there is no mesh {str(found)!r}"]
    return found, []


def _rotation(item: Mapping[str, Any]) -> NDArray[Any] | str:
    """(3, 3), or what is wrong."""
    if ("rotation" in item) == ("quaternion" in item):
        return "expected one of `rotation` and `quaternion`"
    if "rotation" in item:
        matrix = _numbers(item["rotation"], (3, 3))
        if matrix is None or np.abs(matrix @ matrix.T - np.eye(3)).max() > UNEVEN or np.linalg.det(matrix) < 0:
            return f"rotation is {item['rotation']!r:.80}; expected a 3 x 3 rotation, rows"
        left, _, right = np.linalg.svd(matrix)
        nearest: NDArray[Any] = left @ right
        return nearest
    four = _numbers(item["quaternion"], (4,))
    if four is None or abs(np.linalg.norm(four) - 1) > UNEVEN:
        return f"quaternion is {item['quaternion']!r:.80}; expected w, x, y, z of length one"
    w, x, y, z = four / np.linalg.norm(four)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _numbers(value: Any, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Finite numbers of a shape and of no absurd size; None for anything else."""
    if not _has_shape(value, shape):
        return None
    return np.array(value, dtype=np.float64)


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    if shape:
        return isinstance(value, Sequence) and len(value) == shape[0] and all(_has_shape(v, shape[1:]) for v in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) <= LARGEST


def mesh_sources(path: Path) -> list[Path]:
    """The files that a mesh is read from: itself, and a .gltf's buffers. What is not there is left out."""
    found = [path]
    if path.suffix.lower() == ".gltf":
        try:
            buffers = read_json(path).get("buffers", [])
            names = [buffer.get("uri") for buffer in buffers]
        except (OSError, ValueError, AttributeError, TypeError):
            names = []  # preparing says what is wrong with it
        beside = path.parent.resolve()
        texts = (name for name in names if isinstance(name, str) and "\0" not in name and len(name) < MAX_NAME_LENGTH)
        named = (path.parent / name for name in texts if not name.startswith("data:"))
        found += [file for file in named if file.resolve().is_relative_to(beside)]  # reading the mesh refuses others
    return [file for file in found if file.is_file()]
