"""The verb predict, and `stageline.load(uri)`: a checkpoint as a module to call, through admission. Loads torch."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stageline.checkpoint.layout import CheckpointRef, resolve
from stageline.checkpoint.lineage import own_config
from stageline.checkpoint.metadata import CheckpointMetadata
from stageline.checkpoint.steps import find_root
from stageline.checkpoint.usercode import load_code, named_code
from stageline.config import RunConfig
from stageline.contract import Arrays, PredictedFile
from stageline.data.arrays import ACCEPTED, ArrayInput, read_array
from stageline.data.prepared import Progress, silent
from stageline.errors import CheckpointError, ConfigError, DataError, Faults
from stageline.families import load_family, parse_config
from stageline.store import open_below
from stageline.verbs.admitted import admit_model

OWN_NAMES = ("config", "metadata", "origin", "predict", "ref")
"""What a loaded module has beside its family's own."""
LIST = "predictions.jsonl"
"""Lists the results beside their files."""


@dataclass(frozen=True)
class Origin:
    """Where a loaded module comes from. Copies of the module share it."""

    config: RunConfig
    metadata: CheckpointMetadata
    ref: CheckpointRef

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self


class LoadedModel(nn.Module):
    """What `load` makes of a family's module: the same module, under the same names, that also knows its checkpoint.

    Names of `state_dict` and `named_parameters` are the checkpoint's; calling it is the family's own forward pass.
    """

    origin: Origin

    @property
    def config(self) -> RunConfig:
        """The checkpoint's config, with the overrides it was loaded with."""
        return self.origin.config

    @property
    def metadata(self) -> CheckpointMetadata:
        """What the checkpoint says about itself."""
        return self.origin.metadata

    @property
    def ref(self) -> CheckpointRef:
        """The checkpoint: where it lies, its digest."""
        return self.origin.ref

    def predict(
        self, inputs: Sequence[Any] | Any, target: str | Path | None = None, progress: Progress = silent
    ) -> list[dict[str, Any]]:
        """What the family makes of inputs, one mapping each. The module is in eval mode afterwards.

        inputs: what the family reads (paths, folders, texts), or pictures as arrays of numpy or torch, (H, W),
        (H, W, 1) or (H, W, 3): uint8, uint16, bool, or floats in [0, 1], which become 16 bits, or as pictures of
        Pillow; where the family wants a text with each, pairs `(array, text)`. One or several. An array gives what a
        file of the same pixels gives.
        target: folder for the files, which the mappings then name, with `predictions.jsonl`, all mappings one a line;
        None writes nothing, and the mappings hold what the family made: arrays, texts, bytes.
        DataError lists every input that is of no use.
        """
        family = load_family(self.config.family)
        single = isinstance(inputs, (str, Path, bytes, Image.Image)) or _array_of(inputs) is not None
        several = [inputs] if single or not isinstance(inputs, Iterable) else list(inputs)
        named = _checked(several, family.arrays, self.config.family)
        results = family.predict(self.config, self.eval(), named, progress)
        if target is None:
            return [_contents(result) for result in results]
        return list(written(results, Path(target)))


def load(uri: str, overrides: Iterable[str] = (), *, run_code: bool = False) -> LoadedModel:
    """The module of a checkpoint, in eval mode.

    uri: step directory, stage directory, best.ckpt or last.ckpt; also with `@sha256:<digest>`.
    overrides: `section.key=value`, for example `evaluate.weights=raw`.
    run_code: allow Python files that the config names under `code`, and under `data.code` where the family's readers
        need them, to be executed; without it ConfigError names them.
    """
    ref = resolve(os.path.expanduser(str(uri)))  # noqa: PTH111  # Path would take s3://a for s3:/a
    config = parse_config(raw_config(ref), overrides, f"config of {ref.uri}")
    execute_code(config, ref, run_code=run_code)
    built, model, _ = admit_model(config, ref)
    return as_loaded(model, Origin(built, ref.metadata, ref))


def as_loaded(model: nn.Module, origin: Origin) -> LoadedModel:
    """A module as a LoadedModel: its class becomes one that is both. The module itself is changed and returned.

    CheckpointError where it has something of its own by a name that LoadedModel needs.
    """
    kind = type(model)
    taken = sorted(name for name in OWN_NAMES if hasattr(model, name))
    if taken:
        raise CheckpointError(
            f"{kind.__name__} has {', '.join(taken)} of its own", remedy="a fault in the family's code: rename that"
        )
    object.__setattr__(model, "__class__", type(f"Loaded{kind.__name__}", (LoadedModel, kind), {}))
    assert isinstance(model, LoadedModel)
    model.origin = origin
    return model


def raw_config(ref: CheckpointRef) -> dict[str, Any]:
    """The config a checkpoint was made with, below the root that it lies in now."""
    raw = own_config(ref)
    if ref.root is not None:  # of a root that was copied since, too
        raw["root"] = ref.root.uri
    return raw


def execute_code(config: RunConfig, ref: CheckpointRef, *, run_code: bool) -> None:
    """Execute the user's own files that a checkpoint's model and its family's readers need.

    ConfigError that names them where they may not be.
    """
    sections = load_family(config.family).code_sections
    own_code = named_code(config, sections)
    if own_code and not run_code:
        raise ConfigError(
            f"{ref.uri} was trained with Python files of its user's own, which would be executed here: "
            f"{', '.join(own_code)}",
            remedy="read them, then say stageline.load(uri, run_code=True)",
        )
    if own_code:
        root = find_root(open_below(ref.store.uri.rsplit("/checkpoints/", 1)[0]))
        load_code(config, None if root is None else root.child("runs", ref.metadata.run), sections)


def _array_of(given: Any) -> tuple[np.ndarray[Any, Any], str] | None:
    """(array, text) of an input that is an array, or a pair of an array and a text; None for any other."""
    pixels, text = given if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str) else (given, "")
    if isinstance(pixels, Image.Image):
        pixels = _array_of_picture(pixels)
    if isinstance(pixels, Tensor):
        pixels = pixels.detach().cpu()
        pixels = (pixels.float() if pixels.dtype == torch.bfloat16 else pixels).numpy()
    return (pixels, text) if isinstance(pixels, np.ndarray) else None


def _array_of_picture(picture: Image.Image) -> np.ndarray[Any, Any]:
    """The pixels of an open picture of Pillow. DataError where its numbers are no light as they stand."""
    if picture.mode not in ("1", "L", "RGB", "F") and not picture.mode.startswith("I;16"):
        raise DataError(
            f"a picture of Pillow has mode {picture.mode!r}, expected L, RGB, I;16, 1 or F: "
            'convert it with picture.convert("RGB"), or name its file',
            remedy=ACCEPTED,
        )
    return np.asarray(picture)


def _checked(inputs: Sequence[Any], arrays: Arrays, family: str) -> list[str | Path | ArrayInput]:
    """The inputs as a family gets them; DataError with every array that it does not read."""
    faults = Faults(DataError, "arrays to predict", ACCEPTED)
    named: list[str | Path | ArrayInput] = []
    for number, given in enumerate(inputs):
        try:
            found = _array_of(given)
        except DataError as error:
            faults.add(f"input {number}: {error.message}")
            continue
        if found is None:
            if isinstance(given, (str, Path)):
                named.append(given)
            else:
                faults.add(f"input {number}: a {type(given).__name__}, no path, text or array")
            continue
        pixels, text = found
        if arrays == "none":
            faults.add(f"input {number}: {family} reads no arrays")
        elif text.strip() and arrays == "pictures":
            faults.add(f"input {number}: {family} takes no text with an array")
        elif not text.strip() and arrays == "pictures with texts":
            faults.add(f"input {number}: {family} wants a text with an array, `(array, text)`")
        else:
            try:
                named.append(ArrayInput(f"input-{number:04d}", read_array(pixels), text))
            except DataError as error:
                faults.add(f"input {number}: {error.message}")
    faults.raise_if_any()
    return named


def _contents(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.content if isinstance(value, PredictedFile) else value for key, value in result.items()}


def written(results: Iterable[Mapping[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    """Each result with the paths of its files, which are written as it comes, and all in `predictions.jsonl`.

    results: of JSON values and `PredictedFile`s.
    """
    taken, lines = {LIST}, None
    with ExitStack() as stack:
        for result in results:
            if lines is None:  # nothing is there, and what was there stays, until there is a result
                folder.mkdir(parents=True, exist_ok=True)
                lines = stack.enter_context((folder / LIST).open("w", encoding="utf-8"))
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
