"""Condition encoders: what they are asked, the contract they keep, and the two that compute nothing.

Locality rule: the feature of a sample is a function of that sample, its prompt and the frozen encoder, never of its
batch mates or of the training step. Encoders therefore see one sample at a time, and what they give is rounded to the
cache's number format at once, so that a fresh feature and a cached one are the same numbers. Encoders are frozen and
never part of the trained model; the projection to the model's size is trained and lies in the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from stageline.checkpoint.header import read_local_header
from stageline.config import fingerprint
from stageline.encoders.lock import external_digests, read_lock
from stageline.errors import CheckpointError, ConfigError, DataError, Faults
from stageline.families.film_flow.externals import encoder_external
from stageline.store import open_store
from stageline.store.disk import lfs_pointer

if TYPE_CHECKING:
    from stageline.families.film_flow.config import FilmFlowConfig

Vector = NDArray[np.float32]
Picture = NDArray[np.uint8]

PREPROCESSING = "1"
"""Version of how pictures become encoder input; part of every cache key."""


@dataclass(frozen=True)
class EncoderSettings:
    """Everything a feature depends on beside picture and prompt, and where to run and cache.

    feature_dim: size of one vector; image+text gives two of them.  digest: of the encoder's files, "" while they are
    not locked.  device, cache_only and root, below which copies of the files lie, change no value.
    """

    encoder: str
    model_name: str = ""
    revision: str = ""
    dtype: str = "float32"
    source: str = "image"
    input_mode: str = "raw"
    scope: str = "image"
    feature_dim: int = 64
    overlay_alpha: float = 0.5
    max_new_tokens: int = 4
    embedding_dtype: str = "float16"
    device: str = "cpu"
    cache_only: bool = False
    digest: str = ""
    root: str = ""

    @property
    def width(self) -> int:
        """Size of the whole feature vector."""
        return self.feature_dim * (2 if self.source == "image+text" else 1)

    def identity(self) -> dict[str, Any]:
        """What a cached feature depends on: every field but those that only say where it is computed.

        The digest of the encoder's files stands for their name, where it is known.
        """
        fields = asdict(self)
        del fields["device"], fields["cache_only"], fields["root"]
        for name in ("model_name", "revision") if self.digest else ("digest",):
            del fields[name]
        return {**fields, "preprocessing": PREPROCESSING}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity())


def encoder_settings(config: FilmFlowConfig) -> EncoderSettings:
    """The encoder settings of a film_flow config, with what its root has locked; `none` where FiLM is off."""
    model, vlm = config.model, config.model.vlm_film_config
    encoder, digest = encoder_external(config), ""
    if encoder is not None:
        digest = external_digests(read_lock(open_store(config.root)), [encoder]).known.get(encoder.name, "")
    return EncoderSettings(
        encoder=(vlm.encoder or "stub") if model.use_vlm_film else "none",
        model_name=vlm.model_name or "",
        revision=vlm.revision or "",
        dtype=vlm.dtype,
        source=model.cond_source,
        input_mode=vlm.input_mode,
        scope=model.vlm_scope,
        feature_dim=(vlm.feature_dim or 0) if model.use_vlm_film else 0,
        overlay_alpha=vlm.overlay_alpha,
        max_new_tokens=vlm.max_new_tokens,
        embedding_dtype=vlm.embedding_dtype,
        device=vlm.device_map or "cpu",
        cache_only=vlm.cache_only,
        digest=digest,
        root=config.root,
    )


class Features(NamedTuple):
    """What an encoder gives for some samples.

    vec: (B, F) in the cache's number format.  present: (B,), False where there is no condition.
    """

    vec: NDArray[np.float32]
    present: NDArray[np.bool_]


class ConditionEncoder(Protocol):
    """A frozen encoder. Its features depend on each sample alone."""

    settings: EncoderSettings
    resize: str
    """How it brings a picture to its own size: see `canonical_picture`."""

    def encode(self, pictures: Sequence[Picture], prompts: Sequence[str], ids: Sequence[str]) -> Features:
        """Features of some samples. pictures: (H, W, 3) uint8 each.  Returns vec (B, settings.width)."""


def canonical_picture(picture: Picture, resize: str) -> Picture:
    """A picture (H, W, 3) uint8 at the encoder's own size, whole, nothing cut off.

    resize: `none`; `square:H,W` squeezes to H x W; `grid:F,MIN,MAX` keeps the aspect and rounds both sides to
    multiples of F with a number of pixels in [MIN, MAX].
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise DataError(f"an encoder's picture is {picture.shape} {picture.dtype}, expected (H, W, 3) uint8")
    kind, _, text = resize.partition(":")
    if kind == "none":
        return np.ascontiguousarray(picture)
    numbers = [int(part) for part in text.split(",")]
    if kind == "square":
        height, width = numbers
    elif kind == "grid":
        height, width = grid_size(picture.shape[0], picture.shape[1], *numbers)
    else:
        raise ConfigError(f"encoder resize {resize!r}, expected none, square:H,W or grid:F,MIN,MAX")
    if (height, width) == picture.shape[:2]:
        return np.ascontiguousarray(picture)
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def grid_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Sides that are multiples of `factor`, near the aspect of height x width, with MIN <= their product <= MAX."""
    if max(height, width) > 200 * min(height, width):
        raise DataError(f"a picture of {height} x {width} pixels is too narrow for this encoder (aspect over 200)")
    rows, columns = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if rows * columns > max_pixels:
        shrink = np.sqrt(height * width / max_pixels)
        rows = max(factor, int(height / shrink / factor) * factor)
        columns = max(factor, int(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        stretch = np.sqrt(min_pixels / (height * width))
        rows = int(np.ceil(height * stretch / factor)) * factor
        columns = int(np.ceil(width * stretch / factor)) * factor
    return rows, columns


def paint_mask(picture: Picture, mask: NDArray[Any], input_mode: str, alpha: float) -> Picture:
    """The picture an encoder sees in a second pass: a mask (H, W) painted on in red, or alone in white.

    input_mode: `overlay`, `mask_only`, or `raw` (the picture itself).  alpha: opacity in [0, 1]. The cache keys what
    comes out, so a painted picture is never taken for the plain one or for another mask's.
    """
    if mask.shape != picture.shape[:2]:
        raise DataError(f"a mask of {mask.shape} painted on a picture of {picture.shape[:2]}")
    if input_mode == "raw":
        return picture
    on = (mask != 0)[..., None]
    if input_mode == "mask_only":
        return np.ascontiguousarray(np.broadcast_to(np.where(on, 255, 0), picture.shape).astype(np.uint8))
    if input_mode != "overlay":
        raise ConfigError(f"input_mode {input_mode!r}, expected raw, overlay or mask_only")
    red = np.array([255.0, 0.0, 0.0])
    return np.where(on, np.rint((1 - alpha) * picture + alpha * red), picture).astype(np.uint8)


def round_feature(vector: NDArray[Any], settings: EncoderSettings, name: str) -> Vector:
    """A feature in the cache's number format, as float32; refused if it is not finite there or has another size."""
    with np.errstate(over="ignore"):
        rounded = np.asarray(vector).astype(settings.embedding_dtype).astype(np.float32)
    if rounded.shape != (settings.width,):
        raise ConfigError(
            f"the encoder {settings.encoder!r} {settings.model_name!r} gives {rounded.size} numbers per sample, but "
            f"feature_dim {settings.feature_dim} with cond_source {settings.source!r} makes {settings.width}",
            remedy=f"set model.vlm_film_config.feature_dim to what the encoder gives "
            f"({rounded.size // (2 if settings.source == 'image+text' else 1)})",
            code="E_FEATURE_DIM",
        )
    if not np.isfinite(rounded).all():
        raise DataError(
            f"the feature of {name!r} is not finite as {settings.embedding_dtype}",
            remedy="set model.vlm_film_config.embedding_dtype: float32",
        )
    return rounded


def make_features(vectors: Sequence[Vector], present: Sequence[bool], settings: EncoderSettings) -> Features:
    """Feature vectors of some samples, one below the other."""
    stacked = np.stack(vectors) if vectors else np.zeros((0, settings.width), dtype=np.float32)
    return Features(np.ascontiguousarray(stacked, dtype=np.float32), np.array(present, dtype=bool))


def check_lengths(pictures: Sequence[Any], prompts: Sequence[str], ids: Sequence[str]) -> None:
    """Refuse calls whose lists are of different lengths."""
    if not len(pictures) == len(prompts) == len(ids):
        raise DataError(f"{len(pictures)} pictures, {len(prompts)} prompts and {len(ids)} ids; give one of each")


class NoEncoder:
    """No condition: vectors of no size, absent for every sample."""

    resize = "none"

    def __init__(self, settings: EncoderSettings) -> None:
        self.settings = replace(settings, encoder="none", feature_dim=0)

    def encode(self, pictures: Sequence[Picture], prompts: Sequence[str], ids: Sequence[str]) -> Features:
        check_lengths(pictures, prompts, ids)
        return make_features([np.zeros(0, dtype=np.float32)] * len(ids), [False] * len(ids), self.settings)


class PrecomputedEncoder:
    """Vectors made elsewhere: a safetensors file with one vector per sample id, named by `model_name`."""

    resize = "none"

    def __init__(self, settings: EncoderSettings) -> None:
        path = Path(settings.model_name)
        if path.is_file() and (pointer := lfs_pointer(path)):
            raise DataError(f"precomputed features {settings.model_name!r} are {pointer}")
        try:
            read_local_header(path)
            self.vectors = load_file(path)
        except (SafetensorError, CheckpointError, OSError) as error:
            raise DataError(
                f"precomputed features {settings.model_name!r} cannot be read: {error}",
                remedy="set model.vlm_film_config.model_name to a safetensors file with one vector per sample id",
            ) from error
        self.settings = settings

    def encode(self, pictures: Sequence[Picture], prompts: Sequence[str], ids: Sequence[str]) -> Features:
        """Vectors by id, or by the picture's name inside it (`val/a` finds `a`); all missing ids are named at once."""
        check_lengths(pictures, prompts, ids)
        faults = Faults(DataError, f"precomputed features {self.settings.model_name!r}", "add a vector per sample id")
        vectors = []
        for name in ids:
            key = name if name in self.vectors else name.rsplit("/", 1)[-1]
            if key in self.vectors:
                vectors.append(round_feature(self.vectors[key], self.settings, name))
            else:
                faults.add(f"{name!r}: no vector of that name")
        faults.raise_if_any()
        return make_features(vectors, [True] * len(ids), self.settings)
