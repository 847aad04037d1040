"""Scene folders in, sampled objects out: what `stageline predict` does for sparse_structure.

A model of voxels reads `scene.json`, of which the classes of the objects alone count; one of latents `conditionals.pt`
and `metadata.json`, as in training. Where there are poses, the objects are also drawn, placed as sampled, and, with
trimesh, a mesh.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stageline.contract import PredictedFile, Progress
from stageline.errors import DataError, Faults
from stageline.families.sparse_structure.assembly import DualModel, SparseModel
from stageline.families.sparse_structure.data.furniture import CLASSES
from stageline.families.sparse_structure.data.latent_rules import (
    CONDITION_NAME,
    check_conditionals,
    check_metadata,
    condition_faults,
    read_torch_file,
)
from stageline.families.sparse_structure.data.origin import CONDITIONALS, METADATA
from stageline.families.sparse_structure.data.prepared_scenes import class_tokens
from stageline.families.sparse_structure.data.scene_files import MAX_OBJECTS, SCENE_FILE, read_json
from stageline.families.sparse_structure.data.voxels import Mesh
from stageline.families.sparse_structure.render import Frame, draw, surfaces
from stageline.families.sparse_structure.sampling import DecodedScene, SceneGenerator
from stageline.objectives.step import seeded

if TYPE_CHECKING:
    from stageline.data.arrays import ArrayInput
    from stageline.families.sparse_structure.config import SparseStructureConfig

Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""Turns a scene whose z points up into glTF's, whose y does."""
PICTURE_SIZE = 384
"""Pixels along a side of each view."""


@dataclass(frozen=True)
class AskedScene:
    """conditions: keywords of the network.  classes: of the objects, where they are known."""

    name: str
    num_objects: int
    conditions: Mapping[str, Any]
    classes: tuple[str, ...] = ()


def predict(
    config: SparseStructureConfig, model: nn.Module, inputs: Sequence[str | Path | ArrayInput], progress: Progress
) -> Iterator[dict[str, Any]]:
    """The objects of each scene, sampled together in the last number of `evaluate.steps`.

    inputs: scene folders, or the files in them.  DataError that lists every input that cannot be read.
    """
    assert isinstance(model, SparseModel | DualModel)
    paths = [given for given in inputs if isinstance(given, (str, Path))]
    scenes, steps = read_inputs(config, paths), config.evaluate.steps[-1]
    sampler = SceneGenerator(config, model.eval())
    for number, scene in enumerate(scenes):
        progress(number, len(scenes), f"sampling {scene.name}")
        rng = seeded("prediction", config.seed, scene.name)
        latents = sampler.sample([scene.num_objects], scene.conditions, steps, [rng])
        yield _result(f"{number}-{scene.name}", scene, steps, latents, sampler.decode(latents))
    progress(len(scenes), len(scenes), "sampled")


def read_inputs(config: SparseStructureConfig, inputs: Sequence[str | Path]) -> list[AskedScene]:
    """The scenes of all inputs. DataError with every fault."""
    wanted = SCENE_FILE if config.has_vae else CONDITIONALS
    faults = Faults(DataError, "scenes", f"give folders with a {wanted}")
    found = []
    for given in map(Path, inputs):
        folder = given if given.is_dir() else given.parent
        if not given.exists():
            faults.add(f"there is nothing at {str(given)!r}")
            continue
        try:
            found.append(_asked_classes(config, folder) if config.has_vae else _asked_conditions(config, folder))
        except (OSError, ValueError) as error:
            faults.add(f"{str(given)!r}: {error}")
    if not inputs:
        faults.add("none were given")
    faults.raise_if_any()
    return found


def _asked_classes(config: SparseStructureConfig, folder: Path) -> AskedScene:
    plain = read_json(folder / SCENE_FILE)
    objects = plain.get("objects") if isinstance(plain, dict) else None
    if not isinstance(objects, list) or not 1 <= len(objects) <= MAX_OBJECTS:
        raise ValueError(f"{SCENE_FILE} has no list `objects` of 1 to {MAX_OBJECTS}")
    classes = tuple(item.get("class") if isinstance(item, dict) else None for item in objects)
    wrong = [str(place) for place, kind in enumerate(classes) if not isinstance(kind, str) or not kind]
    if wrong:
        raise ValueError(f"{SCENE_FILE}: objects {', '.join(wrong)} have no `class`")
    unknown = sorted({str(kind) for kind in classes} - set(CLASSES)) if config.data.name == "made" else []
    if unknown:  # a class that the model never saw has tokens too, and they mean nothing to it
        raise ValueError(
            f"{SCENE_FILE}: {', '.join(unknown)}: no class of made-up rooms, which are {', '.join(CLASSES)}"
        )
    tokens = [class_tokens(str(kind), config.model.cond_tokens, config.model.cond_channels) for kind in classes]
    return AskedScene(
        folder.resolve().name, len(objects), {CONDITION_NAME: torch.stack(tokens)}, tuple(map(str, classes))
    )


def _asked_conditions(config: SparseStructureConfig, folder: Path) -> AskedScene:
    name = folder.resolve().name
    conditions = read_torch_file(folder / CONDITIONALS, what=f"scene {name!r}")
    has_metadata = (folder / METADATA).is_file()
    metadata = check_metadata(read_json(folder / METADATA) if has_metadata else {}, name)
    count = metadata.get("num_objects")
    if count is None:
        raise ValueError(f"{METADATA} does not say num_objects")
    if count > MAX_OBJECTS:
        raise ValueError(f"{METADATA} says {count} objects, at most {MAX_OBJECTS} are sampled together")
    checked, _ = check_conditionals(conditions, count, name, metadata)
    if wrong := condition_faults(checked, count, config.model.cond_channels):
        raise ValueError("; ".join(wrong))
    return AskedScene(name, count, checked)


def _result(
    name: str, scene: AskedScene, steps: int, latents: Mapping[str, Tensor], decoded: DecodedScene | None
) -> dict[str, Any]:
    """What is told of a sampled scene, and its files."""
    result: dict[str, Any] = {"scene": scene.name, "objects": scene.num_objects, "steps": steps}
    arrays = {key: value.cpu().numpy() for key, value in latents.items()}
    if decoded is None:
        return result | {"latents": PredictedFile(f"{name}.npz", _npz(arrays))}
    arrays = {"voxels": decoded.voxels.numpy()}
    poses = decoded.poses
    if poses is not None:
        parts = {part: getattr(poses, part) for part in ("rotation", "translation", "scale")}
        arrays |= parts
        result["poses"] = [
            {"class": kind, **{part: values[place].tolist() for part, values in parts.items()}}
            for place, kind in enumerate(scene.classes)
        ]
    result["voxels"] = PredictedFile(f"{name}.npz", _npz(arrays))
    if poses is not None:
        meshes = surfaces(decoded.logits.sigmoid().numpy(), poses)
        result["picture"] = PredictedFile(f"{name}.png", draw(meshes, Frame.around(poses), size=PICTURE_SIZE))
        if find_spec("trimesh") and any(mesh is not None for mesh in meshes):
            result["mesh"] = PredictedFile(f"{name}.glb", scene_mesh(meshes, scene.classes))
    return result


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # names of arrays, not options
    return file.getvalue()


def scene_mesh(meshes: Sequence[Mesh | None], classes: Sequence[str]) -> bytes:
    """A binary glTF of the objects in their places, in metres; one without an occupied voxel is left out.

    meshes: of the objects, z up, at least one of them.  classes: names for them.
    """
    import trimesh

    scene = trimesh.Scene()
    for place, (mesh, kind) in enumerate(zip(meshes, classes, strict=True)):
        if mesh is not None:
            turned = trimesh.Trimesh(mesh.vertices @ Y_UP.T, mesh.faces, process=False)
            scene.add_geometry(turned, geom_name=f"{place}-{kind}", node_name=f"{place}-{kind}")
    exported: bytes = scene.export(file_type="glb")  # type: ignore[no-untyped-call]
    return exported
