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
from stageline.checkpoint.steps import find_root
from stageline.checkpoint.usercode import load_code, named_code
from stageline.config import RunConfig
from stageline.data.prepared import Progress, silent
from stageline.errors import ConfigError, DataError
from stageline.families import load_family, parse_config
from stageline.store import open_store
from stageline.store.scratch import scratch_folder
from stageline.verbs.admitted import admit_model, own_config


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint's model with its config and metadata. `model` is in eval mode."""

    config: RunConfig
    metadata: CheckpointMetadata
    model: nn.Module
    ref: CheckpointRef

    def predict(
        self, inputs: Sequence[Any] | Any, target: str | Path | None = None, progress: Progress = silent
    ) -> list[dict[str, Any]]:
        """What the family makes of inputs, one mapping each.

        inputs: what the family reads (paths, folders, texts), or (H, W) or (H, W, 3) uint8 arrays, which it gets as PNG
        files; one or several.  target: folder for the files, which the mappings then name; None keeps none, and the
        mappings hold pictures as uint8 arrays and other files as bytes.  DataError lists every input that is of no use.
        """
        with scratch_folder("predict") as scratch:
            single = isinstance(inputs, (str, Path, np.ndarray))
            named = [_as_input(one, scratch, n) for n, one in enumerate([inputs] if single else inputs)]
            folder = Path(target) if target is not None else scratch / "out"
            folder.mkdir(parents=True, exist_ok=True)
            results = load_family(self.config.family).predict(self.config, self.model, named, folder, progress)
            return results if target is not None else [_with_contents(result, folder) for result in results]


def load(uri: str, overrides: Iterable[str] = (), *, run_code: bool = False) -> LoadedModel:
    """The model of a checkpoint.

    uri: step directory, stage directory, best.ckpt or last.ckpt; also with `@sha256:<digest>`.
    overrides: `section.key=value`, for example `evaluate.weights=raw`.
    run_code: allow Python files that the config names under `code`, and under `data.code` where the family's readers
        need them, to be executed; without it ConfigError names them.
    """
    ref = resolve(uri)
    raw = own_config(ref)
    if ref.root is not None:  # of a root that was copied since, too
        raw["root"] = ref.root.uri
    config = parse_config(raw, overrides, f"config of {ref.uri}")
    sections = load_family(config.family).code_sections
    own_code = named_code(config, sections)
    if own_code and not run_code:
        raise ConfigError(
            f"{ref.uri} was trained with Python files of its user's own, which would be executed here: "
            f"{', '.join(own_code)}",
            remedy="read them, then say stageline.load(uri, run_code=True)",
        )
    if own_code:
        root = find_root(open_store(ref.store.uri.rsplit("/checkpoints/", 1)[0]))
        load_code(config, None if root is None else root.child("runs", ref.metadata.run), sections)
    built, model, _ = admit_model(config, ref)
    return LoadedModel(built, ref.metadata, model, ref)


def _as_input(value: Any, scratch: Path, number: int) -> str | Path:
    """An input as the family gets it; arrays are written into `scratch`."""
    return _write_array(value, scratch / f"input-{number:04d}.png") if isinstance(value, np.ndarray) else value


def _with_contents(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A result whose files in `folder`, which is about to go, are read: PNG into arrays, others into bytes."""
    from PIL import Image

    def read(path: Path) -> Any:
        return np.asarray(Image.open(path)) if path.suffix == ".png" else path.read_bytes()

    return {
        key: read(Path(value)) if isinstance(value, str) and folder in Path(value).parents else value
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
