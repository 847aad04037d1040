"""Where pictures and masks come from: made trees, the retina with its pseudo-label, or folders of files.

A source gives the number of pictures of a split and a function index -> `PreparedImage`; any picture can be made alone.
Folders are checked as a whole first. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stageline.data.names import same_name
from stageline.data.pictures import Pixels, to_channels
from stageline.errors import ConfigError, Faults
from stageline.families.film_flow.data.folder import Pair, check_folders, list_pairs, read_pair, read_prompts
from stageline.families.film_flow.data.junctions import find_junctions, junction_heat
from stageline.families.film_flow.data.layout import Layout
from stageline.families.film_flow.data.pictures import find_levels
from stageline.families.film_flow.data.prepared import PreparedImage
from stageline.families.film_flow.data.prompts import TREE_PROMPT, find_prompt, pseudo_prompt
from stageline.families.film_flow.data.read_files import FilesRead
from stageline.families.film_flow.data.retina import (
    MARGIN,
    PSEUDO_ORIGIN,
    SIZE,
    load_half,
    load_pseudo_retina,
    tile_boxes,
)
from stageline.families.film_flow.data.tree_pictures import (
    PictureLook,
    make_prompted_picture,
    make_tree_picture,
)

if TYPE_CHECKING:
    from stageline.families.film_flow.config import FilmFlowConfig

Progress = Callable[[int, int, str], None]
SOFT_SIGMA = 1.0
"""Blur in pixels that makes a soft label of a hard one, where the exact coverage of pixels is not known."""
DISTANCE_PIXELS = 8.0
"""Distance at which the signed distance target is cut off: +1 inside, -1 outside."""
NO_NODES = np.empty((0, 3))
EXACT_NODES = "exact: recorded while the trees grew (bifurcations and crossings of the whole picture)"
MASK_NODES = "from the skeleton of the mask"


@dataclass(frozen=True)
class Source:
    """The pictures of one split, and how their labels and junctions were made.

    make(index, annotate): one of the pictures; without `annotate` heat, nodes and targets are left out.
    read: what `make` found in files so far; None where there are none.
    """

    split: str
    num_images: int
    make: Callable[[int, bool], PreparedImage]
    label_origin: str
    junction_origin: str
    read: FilesRead | None = None


def make_target(
    mask: NDArray[np.uint8], coverage: NDArray[np.float32] | None, target_kind: str
) -> tuple[NDArray[np.float32], ...]:
    """Flow target (H, W) in [-1, 1] of a mask, in a tuple that is empty where it is 2 m - 1.

    soft: exact coverage where known, else the mask blurred by one pixel.  distance: signed distance to the mask's edge
    over 8 pixels, cut off at 1; its sign is the mask.
    """
    if target_kind == "hard":
        return ()
    if target_kind == "soft":
        share = coverage if coverage is not None else ndimage.gaussian_filter(mask.astype(np.float32), SOFT_SIGMA)
        return (np.clip(share * 2 - 1, -1, 1).astype(np.float32),)
    if target_kind != "distance":
        raise ConfigError(f"target_kind {target_kind!r}, expected hard, soft or distance")
    if not mask.any() or mask.all():
        return (np.full(mask.shape, 1.0 if mask.any() else -1.0, dtype=np.float32),)
    inside = np.asarray(ndimage.distance_transform_edt(mask)) - 0.5
    outside = np.asarray(ndimage.distance_transform_edt(mask == 0)) - 0.5
    return (np.clip(np.where(mask != 0, inside, -outside) / DISTANCE_PIXELS, -1, 1).astype(np.float32),)


def check_sources(config: FilmFlowConfig, splits: Collection[str], progress: Progress) -> None:
    """Raises DataError or ConfigError with every fault of everything that these splits are made from.

    splits: names of splits of pictures.
    """
    if config.data.name == "retina":
        _check_retina(config)
    if config.data.name == "folder":
        pairs = check_folders(Layout.of(config.data), progress, only=splits, max_pixels=config.data.max_pixels)
        _prompts(config, pairs)


def open_source(config: FilmFlowConfig, split: str) -> Source:
    """The pictures of one split of a config, whose sources were checked."""
    if config.data.name == "prompted_trees":
        return _tree_source(config, split, prompted=True)
    if config.data.name == "trees":
        return _tree_source(config, split, prompted=False)
    if config.data.name == "retina":
        return _retina_source(config, split)
    return _folder_source(config, split)


def _finish(
    config: FilmFlowConfig,
    name: str,
    pixels: Pixels,
    masks: tuple[NDArray[np.uint8], ...],
    nodes: NDArray[np.float64],
    prompts: tuple[str, ...],
    names: tuple[str, ...] = ("",),
    coverage: tuple[NDArray[np.float32], ...] = (),
    boxes: tuple[tuple[int, int, int, int], ...] = (),
    levels_of: Pixels | None = None,
    annotate: bool = True,
) -> PreparedImage:
    """Channels, levels, heat and targets of one picture. levels_of: the picture this is a part of, if it is one."""
    pixels = to_channels(pixels, config.model.image_channels)
    whole = pixels if levels_of is None else to_channels(levels_of, config.model.image_channels)
    low, high = find_levels(whole, config.data.image_norm)
    radius = config.model.junction_gating_config.radius_px
    height, width = pixels.shape[:2]
    known: tuple[NDArray[np.float32] | None, ...] = coverage or (None,) * len(masks)
    kind = config.model.target_kind if annotate else "hard"
    targets = [make_target(m, c, kind) for m, c in zip(masks, known, strict=True)]
    nodes = nodes if annotate else NO_NODES
    return PreparedImage(
        id=name,
        pixels=pixels,
        low=low,
        high=high,
        heat=junction_heat(nodes[:, :2], nodes[:, 2], (height, width), radius),
        nodes=nodes,
        masks=masks,
        prompts=prompts,
        names=names,
        targets=tuple(target for part in targets for target in part),
        boxes=boxes,
    )


def _nodes_of(config: FilmFlowConfig, mask: NDArray[np.uint8], *, annotate: bool) -> NDArray[np.float64]:
    """Junctions (N, 3) of a mask whose exact nodes are not known."""
    if not annotate:
        return NO_NODES
    found = find_junctions(mask, degree_threshold=config.model.junction_gating_config.degree_threshold)
    return np.concatenate([found.points, found.radii[:, None]], axis=1)


def _tree_source(config: FilmFlowConfig, split: str, *, prompted: bool) -> Source:
    data = config.data
    look = PictureLook(distractors=data.distractors)

    def make(index: int, annotate: bool) -> PreparedImage:
        build = make_prompted_picture if prompted else make_tree_picture
        made = build(config.seed, split, index, data.image_size, look)
        prompts = made.prompts if prompted else (find_prompt(config, TREE_PROMPT),)
        names = tuple(text.replace(" ", "-") for text in made.prompts) if prompted else ("",)
        name = f"{split}-{index:05d}"
        nodes, coverage = made.nodes, made.coverage
        return _finish(config, name, made.pixels, made.masks, nodes, prompts, names, coverage, annotate=annotate)

    counts = {"train": data.num_train, "val": data.num_val, "test": data.num_test}
    return Source(split, counts[split], make, "exact: synthetic trees", EXACT_NODES)


def _check_retina(config: FilmFlowConfig) -> None:
    size, largest = config.data.image_size, SIZE // 2 - MARGIN
    if size > largest:
        raise ConfigError(
            f"data.image_size {size} does not fit into a half of the retina picture ({SIZE} x {largest} pixels)",
            remedy=f"set data.image_size to {largest} or less",
        )


def _retina_source(config: FilmFlowConfig, split: str) -> Source:
    """Left half for random training crops; tiles of the right half for validation, the whole of it for testing."""
    prompt = pseudo_prompt(config)

    def make(index: int, annotate: bool) -> PreparedImage:  # noqa: ARG001
        half, whole = load_half(split), load_pseudo_retina()
        # Green shows vessels best; it is the one channel of a grey model.
        shown = slice(1, 2) if config.model.image_channels == 1 else slice(None)
        boxes: list[tuple[int, int, int, int]] = []
        if split == "val":
            boxes = tile_boxes(half.field, config.data.image_size)
            chosen = np.linspace(0, len(boxes) - 1, min(config.data.num_val, len(boxes)))
            boxes = [boxes[round(float(number))] for number in chosen]
        return _finish(
            config,
            f"{half.name}-{split}",
            half.pixels[..., shown],
            (half.mask,),
            _nodes_of(config, half.mask, annotate=annotate),
            (prompt,),
            boxes=tuple(boxes),
            # Both halves are parts of one picture and share its levels, or the darker one would gain contrast.
            levels_of=whole.pixels[..., shown],
            annotate=annotate,
        )

    return Source(split, 1, make, PSEUDO_ORIGIN, f"{MASK_NODES} (pseudo-label)")


def _prompts(config: FilmFlowConfig, pairs: Sequence[Pair]) -> dict[str, str]:
    """Prompts of pairs by name; refused where a text condition would have none."""
    prompts: dict[str, str] = {}
    if config.data.prompts_file:
        prompts = read_prompts(Path(config.data.prompts_file), {pair.name for pair in pairs})
    if config.model.use_vlm_film and "text" in config.model.cond_source:
        faults = Faults(ConfigError, "prompts", "set data.prompts_file or model.vlm_film_config.prompt_template")
        if pairs and not prompts and not find_prompt(config, ""):
            faults.add(f"cond_source {config.model.cond_source!r} needs a prompt for each of {len(pairs)} images")
        faults.raise_if_any()
    return prompts


def _folder_source(config: FilmFlowConfig, split: str) -> Source:
    pairs = list_pairs(Layout.of(config.data))
    prompts, members = _prompts(config, pairs), [pair for pair in pairs if pair.split == split]
    read = FilesRead(config.model.image_channels, config.data.image_size)

    def make(index: int, annotate: bool) -> PreparedImage:
        pair = members[index]
        found = read_pair(pair, config.model.image_channels, config.data.max_pixels)
        read.add(pair, found)
        prompt = prompts.get(same_name(pair.name)) or find_prompt(config, "")
        nodes, name = _nodes_of(config, found.mask, annotate=annotate), f"{pair.split}/{pair.name}"
        return _finish(config, name, found.pixels, (found.mask,), nodes, (prompt,), annotate=annotate)

    return Source(split, len(members), make, "label files", MASK_NODES, read)
