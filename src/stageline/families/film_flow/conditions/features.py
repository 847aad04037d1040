"""Condition features of many samples: from the cache where they are, from the encoder where they are not.

The encoder is loaded only when something is missing, and never under `cache_only`. What is asked twice in one call is
encoded once. A feature that is damaged in the cache is encoded again and counted, never used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stageline.config import canonical_json
from stageline.data.features import FeatureStore
from stageline.errors import ConfigError, DataError, MissingPartError
from stageline.families.film_flow.conditions.encoder import (
    ConditionEncoder,
    EncoderSettings,
    NoEncoder,
    Picture,
    PrecomputedEncoder,
    Vector,
    canonical_picture,
)
from stageline.families.film_flow.conditions.stub import StubEncoder
from stageline.store import Store

BATCH = 64
"""Samples encoded between two writes to the cache, so that an interrupted run keeps what it has."""
VERIFY_FRACTION = 0.01
COSINE_TOLERANCE = 1e-2
"""Largest cosine distance between a cached vector and a fresh one; room for another machine's arithmetic."""
Box = tuple[int, int, int, int]
Known = tuple[Vector, bool]
"""A feature (F,) float32, already rounded, and whether there is a condition."""


def feature_key(
    pixels: NDArray[np.uint8] | None, prompt: str, encoder: Mapping[str, Any], box: Sequence[int] | None = None
) -> str:
    """SHA-256 (hex) over all that a feature depends on.

    pixels: canonical picture, (H, W, 3) uint8 after the encoder's own resize; None where no picture is read.
    encoder: its identity (name, revision, dtype, preprocessing version, source, input mode, scope).
    box: (top, left, height, width) of a crop under `vlm_scope: crop`.
    """
    digest = hashlib.sha256()
    shape = list(pixels.shape) if pixels is not None else None
    about = {"encoder": dict(encoder), "prompt": prompt, "box": list(box) if box else None, "shape": shape}
    digest.update(canonical_json(about).encode())
    if pixels is not None:
        if pixels.dtype != np.uint8:
            raise DataError(f"pixels of type {pixels.dtype} under a feature key, expected uint8")
        digest.update(b"\x00" + np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


@dataclass
class CacheCounts:
    """What the cache did: features found, not found, encoded again because damaged, written."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    written: int = 0


def load_encoder(settings: EncoderSettings) -> ConditionEncoder:
    """The encoder that the settings name, frozen; loads weights where it has any.

    Raises MissingPartError for a package or weights that are not there.
    """
    if settings.encoder == "none":
        return NoEncoder(settings)
    if settings.encoder == "stub":
        return StubEncoder(settings)
    if settings.encoder == "precomputed":
        return PrecomputedEncoder(settings)
    if settings.encoder == "biomedclip":
        raise MissingPartError(
            "the encoder 'biomedclip' needs the package open_clip, which stageline does not install",
            remedy="use clip, siglip2 or qwen-vl, or make features elsewhere and use `precomputed`",
        )
    if settings.encoder in ("clip", "siglip2"):
        from stageline.families.film_flow.conditions.vlm import ContrastiveEncoder

        return ContrastiveEncoder(settings)
    if settings.encoder == "qwen-vl" and settings.source == "probe":
        from stageline.families.film_flow.conditions.questionnaire import ProbeEncoder

        return ProbeEncoder(settings)
    if settings.encoder == "qwen-vl":
        from stageline.families.film_flow.conditions.vlm import QwenEncoder

        return QwenEncoder(settings)
    raise ConfigError(
        f"there is no encoder {settings.encoder!r}",
        remedy="encoders: none, stub, clip, siglip2, biomedclip, qwen-vl, precomputed",
    )


class FeatureSource:
    """Features by (picture, prompt) under one encoder's settings.

    place: where features of all settings are kept; None keeps none.  cache_bytes: as `data.cache_bytes`.
    encoder_calls: samples given to the encoder so far.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        place: Store | None = None,
        load: Callable[[EncoderSettings], ConditionEncoder] = load_encoder,
        cache_bytes: int | None = None,
    ) -> None:
        self.settings = settings
        self.place = place
        keeps = place is not None and settings.encoder not in ("none", "precomputed")
        self.cache = FeatureStore(place, {"encoder": settings.identity()}, cache_bytes) if place and keeps else None
        self.counts = CacheCounts()
        self.encoder_calls = 0
        self._load = load
        self._encoder: ConditionEncoder | None = None
        if settings.cache_only and self.cache is None and settings.encoder not in ("none", "precomputed"):
            raise ConfigError("cache_only without a feature cache", remedy="set model.vlm_film_config.cache_dir")

    @property
    def encoder(self) -> ConditionEncoder:
        """The encoder, loaded on first use; refused under `cache_only`."""
        if self._encoder is None:
            if self.settings.cache_only and self.settings.encoder not in ("none", "precomputed"):
                raise DataError(
                    f"the feature cache {self._where()} knows nothing of the encoder {self._name()}, and cache_only "
                    "forbids loading it",
                    remedy="fill the cache first with model.vlm_film_config.cache_only: false",
                )
            self._encoder = self._load(self.settings)
            if self.cache is not None and self._encoder.settings.encoder not in ("none", "precomputed"):
                about = {"resize": self._encoder.resize, "width": self.settings.width, "name": self._name()}
                self.cache.note(about)
        return self._encoder

    def features(
        self,
        pictures: Sequence[Picture],
        prompts: Sequence[str],
        ids: Sequence[str],
        boxes: Sequence[Box] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Features (N, F) float32 and whether each is present (N,).

        pictures: (H, W, 3) uint8, the part the encoder sees.  boxes: where crops were taken, under scope `crop`.
        Raises DataError for a miss under cache_only.
        """
        if not len(pictures) == len(prompts) == len(ids):
            raise DataError(f"{len(pictures)} pictures, {len(prompts)} prompts and {len(ids)} ids; give one of each")
        if self.cache is None:
            self.encoder_calls += len(ids)
            return self.encoder.encode(pictures, prompts, ids)
        keys = self.keys(pictures, prompts, boxes)
        known = self._lookup(keys)
        first = {key: number for number, key in reversed(list(enumerate(keys)))}
        missing = [number for key, number in sorted(first.items(), key=lambda item: item[1]) if key not in known]
        if missing and self.settings.cache_only:
            shown = ", ".join(repr(ids[number]) for number in missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise DataError(
                f"{len(missing)} of {len(first)} features are not in the cache {self._where()} and cache_only is set: "
                f"{shown}",
                remedy="fill the cache first with model.vlm_film_config.cache_only: false",
            )
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            fresh = self._encode(pictures, prompts, ids, keys, part)
            self._keep(fresh)
            known |= fresh
        width = self.settings.width
        vectors = np.stack([known[key][0] for key in keys]) if keys else np.zeros((0, width), dtype=np.float32)
        return vectors, np.array([known[key][1] for key in keys], dtype=bool)

    def _lookup(self, keys: Sequence[str]) -> dict[str, Known]:
        """The features at hand among `keys`; a damaged one counts and is left out."""
        assert self.cache is not None
        wanted, before = list(dict.fromkeys(keys)), len(self.cache.damaged)
        missing = set(self.cache.missing(wanted))
        self.counts.damaged += max(0, len(self.cache.damaged) - before)
        found: dict[str, Known] = {}
        for key in wanted:
            if key in missing:
                continue
            try:
                vector, fields = self.cache.read(key), self.cache.fields(key)
            except DataError:
                self.counts.damaged += 1
                continue
            found[key] = vector.astype(np.float32), bool(fields.get("present", True))
        self.counts.hits += len(found)
        self.counts.misses += len(wanted) - len(found)
        return found

    def _keep(self, fresh: Mapping[str, Known]) -> None:
        """Put features into the cache, in its number format. fresh: key -> feature."""
        assert self.cache is not None
        with self.cache.writer() as writer:
            for key, (vector, present) in fresh.items():
                fields = {} if present else {"present": False}
                writer.add(key, vector.astype(self.settings.embedding_dtype), fields)
        self.counts.written += len(fresh)

    def keys(self, pictures: Sequence[Picture], prompts: Sequence[str], boxes: Sequence[Box] | None) -> list[str]:
        """Cache keys of some samples; the encoder's resize is read from the cache where it is known there."""
        identity = self.settings.identity()
        reads_picture = self.settings.source != "text"
        reads_prompt = self.settings.source != "image"
        resize = self._resize() if reads_picture else "none"
        result = []
        canonical: dict[int, Picture] = {}
        for number, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
            if reads_picture and id(picture) not in canonical:
                canonical[id(picture)] = canonical_picture(picture, resize)
            pixels = canonical[id(picture)] if reads_picture else None
            box = boxes[number] if boxes is not None and self.settings.scope == "crop" else None
            result.append(feature_key(pixels, prompt if reads_prompt else "", identity, box))
        return result

    def verify(
        self, pictures: Sequence[Picture], prompts: Sequence[str], ids: Sequence[str], seed: int = 0
    ) -> list[str]:
        """Encode a random 1 % (at least one) of these samples again; names of those whose cached vector is another.

        Samples that are not in the cache are not compared.
        """
        if self.cache is None:
            raise ConfigError("there is no feature cache to verify", remedy="set model.vlm_film_config.cache_dir")
        keys = self.keys(pictures, prompts, None)
        known = self._lookup(keys)
        cached = [number for number, key in enumerate(keys) if key in known]
        order = sorted(cached, key=lambda number: hashlib.sha256(f"{seed}/{keys[number]}".encode()).digest())
        chosen = order[: max(1, round(len(order) * VERIFY_FRACTION))]
        fresh = self._encode(pictures, prompts, ids, keys, chosen)
        return [
            ids[number]
            for number, (vector, present) in zip(chosen, fresh.values(), strict=True)
            if present != known[keys[number]][1] or cosine_distance(vector, known[keys[number]][0]) > COSINE_TOLERANCE
        ]

    def _encode(
        self, pictures: Sequence[Picture], prompts: Sequence[str], ids: Sequence[str], keys: list[str], part: list[int]
    ) -> dict[str, Known]:
        if not part:
            return {}
        fresh = self.encoder.encode([pictures[n] for n in part], [prompts[n] for n in part], [ids[n] for n in part])
        self.encoder_calls += len(part)
        return {keys[n]: (fresh.vec[row], bool(fresh.present[row])) for row, n in enumerate(part)}

    def _resize(self) -> str:
        if self.settings.encoder == "stub":
            return StubEncoder.resize
        assert self.cache is not None
        noted = self.cache.notes.get("resize")
        return noted if isinstance(noted, str) else self.encoder.resize

    def _name(self) -> str:
        revision = f"@{self.settings.revision}" if self.settings.revision else ""
        return f"{self.settings.encoder}:{self.settings.model_name}{revision}"

    def _where(self) -> str:
        return repr(self.place.uri) if self.place is not None else "(none)"


def cosine_distance(a: Vector, b: Vector) -> float:
    """1 - cosine of two vectors; 0 for two zero vectors, 1 if one of them is zero."""
    norms = float(np.linalg.norm(a.astype(np.float64)) * np.linalg.norm(b.astype(np.float64)))
    if norms == 0:
        return 0.0 if not a.any() and not b.any() else 1.0
    return float(1 - np.dot(a.astype(np.float64), b.astype(np.float64)) / norms)
