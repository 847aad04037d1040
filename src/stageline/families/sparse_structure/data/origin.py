"""Where scenes come from, and the splits that are made of them: what each depends on, and its files. No torch.

A row is a scene. Of made-up scenes and own meshes it has the arrays `voxels` (N, R, R, R) bool, and the poses
`rotation` (N, 6), `translation` (N, 3), `scale` (N, 3), `translation_scale` (N, 1) float32 as `poses.encode_poses`
gives them, not standardised; fields `id`, `classes`, and of made-up scenes `style` and `parameters`. Of latents it has
what `latents.pt` and `conditionals.pt` hold. Every row has the number `num_objects`. The facts of `train` hold
`pose_statistics`: a model that was trained by them keeps them, and other splits are standardised by the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stageline.data.splits import Split
from stageline.errors import DataError
from stageline.families.sparse_structure.data.furniture import STYLES
from stageline.families.sparse_structure.data.scene_files import (
    SCENE_FILE,
    SCENE_LIST,
    list_scenes,
    mesh_sources,
    read_scene,
)

LATENTS, CONDITIONALS, METADATA = "latents.pt", "conditionals.pt", "metadata.json"
COUNTS: Mapping[str, int] = {"train": 400, "val": 60, "test": 60}


@dataclass(frozen=True)
class SceneSource:
    """Where the scenes of all splits come from.

    kind: `made` (made-up rooms), `meshes` (own meshes and poses) or `latents` (the guide's layout).
    folder: of own scenes, `<folder>/<split>/<scene>/`.
    counts, seed, num_objects, styles: of made-up scenes: split -> how many, seed, fewest and most objects of one, and
        the styles they have.
    resolution: voxels along a side of an object's cube.
    fill: of own meshes: `solid` needs closed ones, `surface` takes any.
    modalities: of latents: name -> (tokens, channels) that the network has.
    zero_filled: of these, those that may be missing and are zero then: their loss has no weight.
    allow_extra: whether latents may hold further modalities, which are left out.
    cond_channels: width of the condition that scenes of latents must have; None where any will do.
    """

    kind: Literal["made", "meshes", "latents"]
    folder: Path | None = None
    counts: Mapping[str, int] = field(default_factory=lambda: dict(COUNTS))
    seed: int = 0
    num_objects: tuple[int, int] = (2, 6)
    styles: tuple[str, ...] = STYLES
    resolution: int = 16
    fill: Literal["solid", "surface"] = "surface"
    modalities: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    zero_filled: tuple[str, ...] = ()
    allow_extra: bool = False
    cond_channels: int | None = None

    @property
    def has_voxels(self) -> bool:
        """Whether rows hold occupied voxels, which a shape VAE can be trained on."""
        return self.kind != "latents"

    @property
    def scene_file(self) -> str:
        """The file that makes a folder a scene."""
        return SCENE_FILE if self.kind == "meshes" else LATENTS

    def split_folder(self, name: str) -> Path:
        """Where the scenes of a split lie. DataError without a folder."""
        if self.folder is None:
            raise DataError(f"data of kind {self.kind!r} need a folder", remedy="name it in the config's `data`")
        return self.folder.expanduser() / name

    def key(self, name: str) -> dict[str, Any]:
        """The part of the config that a split depends on."""
        if self.kind == "made":
            own = {"number": self.counts[name], "seed": self.seed, "num_objects": list(self.num_objects)}
            # Named only where some are left out, so that rooms of all styles keep their identity.
            some = {} if self.styles == STYLES else {"styles": list(self.styles)}
            return {"kind": self.kind, "resolution": self.resolution, **own, **some}
        if self.kind == "meshes":
            return {"kind": self.kind, "resolution": self.resolution, "fill": self.fill}
        shapes = {modality: list(shape) for modality, shape in self.modalities.items()}
        filled = sorted(self.zero_filled)
        return {"kind": self.kind, "modalities": shapes, "zero_filled": filled, "allow_extra": self.allow_extra}

    def files(self, name: str) -> tuple[Path, ...]:
        """The files that a split is read from, sorted; what is not there is left out: preparing names it."""
        if self.kind == "made":
            return ()
        folder = self.split_folder(name)
        try:
            scenes = list_scenes(folder, self.scene_file)
        except (FileNotFoundError, ValueError):
            scenes = []
        found = {folder / SCENE_LIST}
        for scene in scenes:
            found |= {folder / scene / file for file in self._scene_files}
            if self.kind == "meshes":
                found |= self._meshes(folder / scene / SCENE_FILE)
        return tuple(sorted(path for path in found if path.is_file()))

    @property
    def _scene_files(self) -> tuple[str, ...]:
        return (SCENE_FILE,) if self.kind == "meshes" else (LATENTS, CONDITIONALS, METADATA)

    def _meshes(self, path: Path) -> set[Path]:
        assert self.folder is not None
        try:
            objects = read_scene(path, self.folder.expanduser())
        except DataError:
            return set()
        return {file for thing in objects for file in mesh_sources(thing.mesh)}

    def unseen(self, name: str) -> tuple[Path, ...]:
        """The split's folder, where it is not there as seen from here."""
        if self.kind == "made":
            return ()
        folder = self.split_folder(name)
        return () if folder.is_dir() else (folder,)

    def split(self, name: str) -> Split:
        """A split: `train`, `val` or `test`."""
        return Split(name, self.key(name), self.files(name), unseen=self.unseen(name))
