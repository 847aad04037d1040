"""The verb predict, and `stageline.load(uri)`: a checkpoint as something to call, through admission. Loads torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stageline.checkpoint.layout import CheckpointRef, resolve
from stageline.checkpoint.metadata import CheckpointMetadata
from stageline.config import RunConfig
from stageline.data.prepared import Progress, silent
from stageline.errors import DataError
from stageline.families import load_family, parse_config
from stageline.store.scratch import scratch_folder
from stageline.verbs.admitted import admit_model, own_config

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint's model with its config and metadata. `model` is in eval mode."""

    config: RunConfig
    metadata: CheckpointMetadata
    model: nn.Module
    ref: CheckpointRef

    def predict(
        self, images: Sequence[Any] | Any, target: str | Path | None = None, progress: Progress = silent
    ) -> list[dict[str, Any]]:
        """What the family makes of images, one mapping each.

        images: paths, or (H, W) or (H, W, 3) uint8 arrays; one or several.  target: folder for the pictures, which
        the mappings then name; None writes none, and the mappings hold them as uint8 arrays.  DataError lists every
        image that cannot be used.
        """
        with scratch_folder("predict") as scratch:
            paths = image_paths(images, scratch)
            folder = Path(target) if target is not None else scratch / "out"
            folder.mkdir(parents=True, exist_ok=True)
            results = load_family(self.config.family).predict(self.config, self.model, paths, folder, progress)
            return results if target is not None else [_with_arrays(result, folder) for result in results]


def load(uri: str, overrides: Iterable[str] = ()) -> LoadedModel:
    """The model of a checkpoint.

    uri: step directory, stage directory, best.ckpt or last.ckpt; also with `@sha256:<digest>`.
    overrides: `section.key=value`, for example `evaluate.weights=raw`.
    """
    ref = resolve(uri)
    config = parse_config(own_config(ref), overrides, f"config of {ref.uri}")
    built, model, _ = admit_model(config, ref)
    return LoadedModel(built, ref.metadata, model, ref)


def image_paths(images: Sequence[Any] | Any, scratch: Path) -> list[Path]:
    """Paths of images; folders give the images in them, arrays are written into `scratch`."""
    single = isinstance(images, (str, Path, np.ndarray))
    paths: list[Path] = []
    faults: list[str] = []
    for number, image in enumerate([images] if single else images):
        if isinstance(image, np.ndarray):
            paths.append(_write_array(image, scratch / f"image-{number:04d}.png"))
            continue
        path = Path(image)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            paths += inside
            if not inside:
                faults.append(f"  - {str(path)!r}: no images in it ({', '.join(IMAGE_SUFFIXES)})")
        elif path.is_file():
            paths.append(path)
        else:
            faults.append(f"  - {str(path)!r}: there is no such file")
    if faults or not paths:
        raise DataError(
            "images to predict\n" + "\n".join(faults or ["  - none given"]), remedy="name images or folders"
        )
    return paths


def _with_arrays(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A result whose pictures in `folder`, which is about to go, are read into arrays."""
    from PIL import Image

    return {
        key: np.asarray(Image.open(value)) if isinstance(value, str) and Path(value).parent == folder else value
        for key, value in result.items()
    }


def _write_array(image: np.ndarray[Any, Any], path: Path) -> Path:
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise DataError(
            f"an image array has dtype {image.dtype} and shape {image.shape}",
            remedy="give uint8 arrays of shape (H, W) or (H, W, 3)",
        )
    Image.fromarray(image).save(path)
    return path
