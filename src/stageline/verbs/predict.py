"""The verb predict, and `stageline.load(uri)`: a checkpoint as something to call, through admission. Loads torch."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stageline.checkpoint.layout import CheckpointRef, resolve
from stageline.checkpoint.lineage import own_config
from stageline.checkpoint.metadata import CheckpointMetadata
from stageline.checkpoint.steps import find_root
from stageline.checkpoint.usercode import load_code, named_code
from stageline.config import RunConfig
from stageline.contract import PredictedFile
from stageline.data.prepared import Progress, silent
from stageline.errors import ConfigError, DataError
from stageline.families import load_family, parse_config
from stageline.store import open_store
from stageline.store.scratch import scratch_folder
from stageline.verbs.admitted import admit_model

LIST = "predictions.jsonl"
"""Lists the results beside their files."""


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
        files; one or several.  target: folder for the files, which the mappings then name, with `predictions.jsonl`,
        all mappings one a line; None writes nothing, and the mappings hold what the family made: arrays, texts, bytes.
        DataError lists every input that is of no use.
        """
        with scratch_folder("predict") as scratch:
            single = isinstance(inputs, (str, Path, np.ndarray))
            named = [_as_input(one, scratch, n) for n, one in enumerate([inputs] if single else inputs)]
            found = load_family(self.config.family).predict(self.config, self.model, named, progress)
            results = (_without_scratch(result, scratch) for result in found)
            if target is None:
                return [_contents(result) for result in results]
            return list(_written(results, Path(target)))


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


def _without_scratch(result: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """A result in which an array that was given is called by a name, not by a path that is about to go."""
    prefix = f"{scratch}/"
    return {key: value.removeprefix(prefix) if isinstance(value, str) else value for key, value in result.items()}


def _contents(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.content if isinstance(value, PredictedFile) else value for key, value in result.items()}


def _written(results: Iterable[Mapping[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    """Each result with the paths of its files, which are written as it comes."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = {LIST}
    with (folder / LIST).open("w", encoding="utf-8") as lines:
        for result in results:
            files = {key: value for key, value in result.items() if isinstance(value, PredictedFile)}
            for file in files.values():
                if Path(file.name).name != file.name or file.name in taken:
                    raise _fault_of_family(file, "has a name that is no file's own here")
                taken.add(file.name)
                (folder / file.name).write_bytes(_encoded(file))
            lines.write(json.dumps({**result, **{k: f.name for k, f in files.items()}}, ensure_ascii=False) + "\n")
            lines.flush()
            yield {**result, **{key: str(folder / file.name) for key, file in files.items()}}


def _encoded(file: PredictedFile) -> bytes:
    """The bytes of a file, as its suffix says."""
    content, suffix = file.content, Path(file.name).suffix
    if isinstance(content, str):
        return content.encode()
    if isinstance(content, bytes):
        return content
    block = io.BytesIO()
    if suffix == ".npy":
        np.save(block, content, allow_pickle=False)
    elif suffix == ".png" and content.dtype == np.uint8 and content.ndim in (2, 3):
        from PIL import Image

        Image.fromarray(content).save(block, "png")
    else:
        raise _fault_of_family(file, f"holds an array of {content.dtype} and shape {content.shape}")
    return block.getvalue()


def _fault_of_family(file: PredictedFile, what: str) -> DataError:
    return DataError(
        f"the predicted file {file.name!r} {what}",
        remedy="a fault in the family's code: names are unique and without folders; uint8 pictures are .png, other "
        "arrays .npy, anything else bytes or text",
    )


def _write_array(image: np.ndarray[Any, Any], path: Path) -> Path:
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise DataError(
            f"an image array has dtype {image.dtype} and shape {image.shape}",
            remedy="give uint8 arrays of shape (H, W) or (H, W, 3)",
        )
    Image.fromarray(image).save(path)
    return path
