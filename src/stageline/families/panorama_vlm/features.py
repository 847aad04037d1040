"""From panoramas of a batch to views on the device, and from views to features of the tower."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stageline.data.features import FeatureStore
from stageline.families.panorama_vlm.data.sets import Picture, PictureSet
from stageline.families.panorama_vlm.geometry.projection import global_picture, project
from stageline.families.panorama_vlm.geometry.tokens import seen_tokens
from stageline.families.panorama_vlm.geometry.views import View, wrap
from stageline.families.panorama_vlm.model.tower import packed

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig
    from stageline.families.panorama_vlm.model.assembly import PanoramaModel

WAITING_BYTES, WAITING_SECONDS = 64 << 20, 30.0
"""Features that were computed are written as soon as one of these is reached: what a kill can cost."""


def cut_views(config: PanoramaVlmConfig, pictures: Sequence[Picture]) -> Tensor:
    """All views of the plan: (B, V, 3, T, T) float32 in [0, 1]."""
    return _projected(pictures, [list(config.image_processing.plan.views)] * len(pictures), config)


def cut_turned(config: PanoramaVlmConfig, pictures: Sequence[Picture], offsets_deg: Tensor) -> Tensor:
    """The tiles of the plan, turned to the right by an offset per picture: (B, N, 3, T, T). offsets_deg: (B,)."""
    turned = [
        [replace(tile, yaw_deg=wrap(tile.yaw_deg + float(offset))) for tile in config.image_processing.plan.tiles]
        for offset in offsets_deg
    ]
    return _projected(pictures, turned, config)


def _projected(pictures: Sequence[Picture], views: Sequence[Sequence[View]], config: PanoramaVlmConfig) -> Tensor:
    processing, plan = config.image_processing, config.image_processing.plan
    found = []
    for picture, chosen in zip(pictures, views, strict=True):
        assert picture.pixels is not None
        whole = _packed_global(config, picture.pixels) if chosen[0].kind == "global" else None
        views_here = project(
            picture.pixels,
            list(chosen if whole is None else chosen[1:]),
            config.tile_size,
            pixel_centres=plan.pixel_centres,
            antialias=processing.antialias,
            global_mode=plan.global_mode,
        )
        found.append(views_here if whole is None else torch.cat([whole[None].to(views_here), views_here]))
    return torch.stack(found)


def _packed_global(config: PanoramaVlmConfig, pixels: Tensor) -> Tensor | None:
    """The whole panorama with the grid of a NaFlex tower, its patches in a square (3, T, T); None for other modes."""
    if config.global_grid is None:
        return None
    patch = config.model.vision.patch_size
    rows, columns = config.global_grid
    return packed(global_picture(pixels, (rows * patch, columns * patch)), config.tile_size, patch)


def batch_tokens(model: PanoramaModel, pictures: Sequence[Picture], features: Tensor) -> Tensor:
    """Image tokens (B, T, D_llm) of pictures from their features (B, V, S, D_v)."""
    if all(picture.seen is None for picture in pictures):
        return model.image_tokens(features).tokens
    dirs = model.token_dirs
    whole = dirs.new_ones((1, 1), dtype=torch.bool)
    seen = [seen_tokens(whole if p.seen is None else p.seen.to(dirs.device), dirs) for p in pictures]
    return model.image_tokens(features, torch.stack(seen)).tokens


@dataclass
class TowerPace:
    """What the tower took so far. views: that went through it.  seconds: it was at work, cutting views left out."""

    views: int = 0
    seconds: float = 0.0

    def encode(self, model: PanoramaModel, views: Tensor) -> Tensor:
        """Features of views, timed; a CUDA device is waited for."""
        _finish(views.device)
        began = time.perf_counter()
        features = model.encode(views)
        _finish(views.device)
        self.seconds += time.perf_counter() - began
        self.views += views.shape[0] * views.shape[1]
        return features


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batch_features(
    config: PanoramaVlmConfig,
    model: PanoramaModel,
    pictures: Sequence[Picture],
    *,
    keeper: FeatureKeeper | None = None,
    pace: TowerPace | None = None,
) -> Tensor:
    """Features (B, V, S, D_v) of pictures: those that are computed already, and the frozen tower's for the others.

    keeper: keeps what is computed here.  pace: measures the tower where nothing is kept.
    """
    missing = [picture for picture in pictures if picture.features is None]
    device = next(model.parameters()).device
    found: dict[int, Tensor] = {}
    if keeper is not None:
        found = {picture.number: keeper.features(config, model, picture) for picture in missing}
    elif missing:
        with torch.no_grad():
            views = cut_views(config, missing).to(device)
            made = model.encode(views) if pace is None else pace.encode(model, views)
        found = {picture.number: features for picture, features in zip(missing, made, strict=True)}
    parts = [found[p.number] if p.features is None else p.features for p in pictures]
    return torch.stack([part.to(device).float() for part in parts])


@dataclass
class FeatureKeeper:
    """Features of a frozen tower, computed when a picture is first used, and kept for whoever comes next.

    store: where they are kept.  waiting: id of a picture -> (V, S, D_v) on the CPU, computed here and not written yet.
    """

    store: FeatureStore
    waiting: dict[str, Tensor] = field(default_factory=dict)
    _since: float = 0.0

    def refuse_full(self, pictures: Sequence[PictureSet], shape: tuple[int, ...], kind: torch.dtype) -> None:
        """DiskFullError where the features of these pictures that are not kept yet have no room.

        shape: of one picture's features.  kind: number format in which they are kept.
        """
        self.store.refresh()
        missing = sum(not self.store.has(found.id(number)) for found in pictures for number in range(len(found)))
        self.store.refuse_full(missing * torch.Size(shape).numel() * kind.itemsize)

    @torch.no_grad()
    def features(self, config: PanoramaVlmConfig, model: PanoramaModel, picture: Picture) -> Tensor:
        """Features (V, S, D_v) of a picture that are not in the store, as they will be read from there.

        Each picture goes through the tower alone and without autocast, so that they depend on nothing else.
        """
        if picture.id not in self.waiting:
            device = next(model.parameters()).device
            with torch.autocast(device.type, enabled=False):
                (made,) = model.encode(cut_views(config, [picture]).to(device))
            if not self.waiting:
                self._since = time.monotonic()
            self.waiting[picture.id] = made.to(kept_format(device)).cpu()
        found = self.waiting[picture.id]
        size = found.nbytes * len(self.waiting)
        if size >= WAITING_BYTES or time.monotonic() - self._since >= WAITING_SECONDS:
            self.write()
        return found

    def write(self) -> None:
        """Put what waits into the store."""
        if self.waiting:
            with self.store.writer() as writer:
                for name, value in self.waiting.items():
                    writer.add(name, value)
            self.waiting.clear()


def kept_format(device: torch.device) -> torch.dtype:
    """Number format in which features of a device are kept."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
