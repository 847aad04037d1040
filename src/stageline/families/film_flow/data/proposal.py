"""A config for a folder of one's own pictures: what `stageline init --data DIR` writes, and what it found there.

Headers of all pictures and at most 200 labels are read; nothing is written into the folder, and the same files give the
same config. No torch.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from stageline.contract import Proposal
from stageline.data.decoding import PictureError, open_picture
from stageline.data.names import NamePattern, find_pattern, group_names, joined, same_name
from stageline.data.pictures import check_header, list_pictures, read_file
from stageline.errors import DataError, Faults
from stageline.families.film_flow.data.find_folders import find_layout
from stageline.families.film_flow.data.folder import REMEDY, Pair, pair_files, read_prompts
from stageline.families.film_flow.data.layout import Layout
from stageline.families.film_flow.data.pictures import label_of
from stageline.families.film_flow.data.read_files import EMPTY, INVERTED

MOST_LABELS = 200
VALIDATION_SHARE = 0.2
CROPS = (320, 256, 224, 192, 128, 96, 64, 48, 32, 16)
"""Sides of a training crop, each a multiple of 8."""
MOST_CROP = 128
"""What a laptop trains on in reasonable time; a preset that has larger crops may have them."""
BATCH_PIXELS = 8 * 96**2
"""Pixels of one step."""
SHOWN = 60
"""How often each pixel of the training pictures is shown, within LEAST_STEPS and MOST_STEPS."""
LEAST_STEPS, MOST_STEPS = 500, 3000
PROMPTS = "prompts.json"


@dataclass(frozen=True)
class _Header:
    """What the header of a picture says. channels: 1 grey, 3 colour."""

    size: tuple[int, int]
    channels: int
    bits: int


def propose(folder: Path, preset: Mapping[str, Any]) -> Proposal:
    """The config for the pictures in a folder. preset: what it starts from.

    folder: with `image/` and `label/`, or with such in `train/`, `val/`, `test/`; usual other names are known.
    DataError with every fault: no such folders, names without a partner, files that cannot be read.
    """
    faults = Faults(DataError, f"pictures in {str(folder)!r}", REMEDY)
    layout, told = find_layout(folder, faults)
    faults.raise_if_any()
    layout, more = _pair_names(layout)
    told += more
    pairs = pair_files(layout, faults)
    if not pairs:
        faults.add(f"{str(folder)!r}: no picture with a label")
    headers = {pair.image: _header(pair.image, faults) for pair in pairs}
    shares = _read_labels(pairs, headers, faults)
    layout, pairs, more = _split(layout, pairs, faults)
    told += more
    prompts = folder / PROMPTS if (folder / PROMPTS).is_file() else None
    if prompts is not None:
        try:
            read_prompts(prompts, {pair.name for pair in pairs})
        except DataError as error:
            faults.extend(line.removeprefix("  - ") for line in error.message.splitlines())
    faults.raise_if_any()
    found = [header for header in headers.values() if header is not None]
    told += [*_tell_headers(found), *_tell_labels(shares)]
    raw = _fill(deepcopy(dict(preset)), layout, pairs, headers, prompts)
    return Proposal(raw, (*told, *_tell_choice(raw, prompts)))


def _pair_names(layout: Layout) -> tuple[Layout, list[str]]:
    """The layout with the pattern by which names go together, where they are not equal."""
    patterns = []
    for split in layout.roots:
        images, labels = ({same_name(path.stem) for path in list_pictures(folder)} for folder in layout.folders(split))
        found = find_pattern(images - labels, labels - images)
        patterns.append(NamePattern() if found is None else found)
    pattern = joined(patterns)
    if pattern == NamePattern():
        return layout, []
    return replace(layout, pattern=pattern), [f"labels go with images by data.label_pattern {pattern.text!r}"]


def _header(path: Path, faults: Faults) -> _Header | None:
    try:
        with open_picture(path, None) as opened:
            check_header(opened)
            mode = opened.picture.mode
            grey = mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;16") or opened.layout.startswith("LA")
            deep = opened.is_deep or mode == "I" or mode.startswith("I;16")
            width, height = opened.picture.size
            return _Header((height, width), 1 if grey else 3, 16 if deep else 8)
    except PictureError as error:
        faults.add(f"{str(path)!r}: {error.told}")
    except DataError as error:
        faults.add(error.message)
    return None


def _read_labels(pairs: Sequence[Pair], headers: Mapping[Path, _Header | None], faults: Faults) -> dict[str, float]:
    """Share of foreground of at most `MOST_LABELS` labels, evenly chosen, by `split/name`."""
    step = max(1, math.ceil(len(pairs) / MOST_LABELS))
    shares = {}
    for pair in pairs[::step]:
        try:
            mask = label_of(read_file(pair.label), pair.label)
        except DataError as error:
            faults.add(error.message)
            continue
        header = headers[pair.image]
        if header is not None and header.size != mask.shape:
            faults.add(
                f"{str(pair.label)!r}: {mask.shape[0]} x {mask.shape[1]} pixels (height x width), but its image is "
                f"{header.size[0]} x {header.size[1]}"
            )
        shares[f"{pair.split}/{pair.name}"] = float(mask.mean())
    return shares


def _split(layout: Layout, pairs: list[Pair], faults: Faults) -> tuple[Layout, list[Pair], list[str]]:
    """The layout with a validation split: the folder's own, or whole groups of the training pictures."""
    if "val" in layout.roots:
        return layout, pairs, _shared_groups(pairs)
    train = [pair for pair in pairs if pair.split == "train"]
    groups: dict[str, list[str]] = {}
    for name, group in group_names([pair.name for pair in train]).items():
        groups.setdefault(group, []).append(name)
    if len(groups) < 2:
        if train:
            faults.add(f"{str(layout.roots['train'])!r}: one picture with a label, expected two: one is for validation")
        return layout, pairs, []
    chosen: list[str] = []
    for group in sorted(groups, key=lambda group: hashlib.sha256(group.encode()).hexdigest())[: len(groups) - 1]:
        if sum(len(groups[name]) for name in chosen) >= VALIDATION_SHARE * len(train):
            break
        chosen.append(group)
    names = {name for group in chosen for name in groups[group]}
    patterns = _patterns(sorted(chosen), groups)
    roots = {**layout.roots, "val": layout.roots["train"]}
    found = replace(layout, roots=roots, names={"val": patterns})
    are_groups = len(groups) < len(train)
    of = f", {len(chosen)} of {len(groups)} groups of names," if are_groups else ""
    shown = ", ".join(patterns[:4]) + (", ..." if len(patterns) > 4 else "")
    told = [
        f"no folder for validation: {len(names)} of {len(train)} pictures{of} are set apart by data.val_names: {shown}"
    ]
    if not are_groups:
        told.append("warning: names do not tell which pictures are of one patient; those must be in one split")
    split = [replace(pair, split="val") if pair.name in names else pair for pair in pairs]
    return found, split, told + _shared_groups(split)


def _patterns(chosen: Sequence[str], groups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Patterns that fit the names of the chosen groups and no others."""
    patterns: list[str] = []
    for group in chosen:
        short = f"{escape(group)}*"
        others = [name for other, names in groups.items() if other != group for name in names]
        is_safe = len(groups[group]) > 1 and not any(fnmatchcase(same_name(name), short) for name in others)
        patterns += [short] if is_safe else [escape(same_name(name)) for name in sorted(groups[group])]
    return tuple(patterns)


def _shared_groups(pairs: Sequence[Pair]) -> list[str]:
    """A warning where names say that pictures of one patient are in two splits."""
    names = sorted({pair.name for pair in pairs})
    groups = group_names(names)
    where: dict[str, set[str]] = {}
    for pair in pairs:
        if groups[pair.name] != pair.name:
            where.setdefault(groups[pair.name], set()).add(pair.split)
    shared = sorted(group for group, splits in where.items() if len(splits) > 1)
    if not shared:
        return []
    shown = ", ".join(f"{group!r} in {' and '.join(sorted(where[group]))}" for group in shared[:3])
    more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
    return [
        f"warning: by their names, pictures of one patient or scene are in two splits: {shown}{more}; a result then "
        "says little about new patients"
    ]


def _tell_headers(found: Sequence[_Header]) -> list[str]:
    sizes = sorted({header.size for header in found}, key=lambda size: (size[0] * size[1], size))
    between = f"{sizes[0][0]} x {sizes[0][1]}" + (f" to {sizes[-1][0]} x {sizes[-1][1]}" if len(sizes) > 1 else "")
    colours, bits = Counter(header.channels for header in found), Counter(header.bits for header in found)
    shown = ", ".join(f"{words} {colours[n]}" for n, words in ((1, "grey"), (3, "colour")) if colours[n])
    depth = ", ".join(f"{number} bit {count}" for number, count in sorted(bits.items()))
    return [f"{len(found)} pictures, {between} (height x width); {shown}; {depth}"]


def _tell_labels(shares: Mapping[str, float]) -> list[str]:
    mean = sum(shares.values()) / len(shares)
    told = [f"{len(shares)} labels read: {mean:.1%} foreground on average"]
    if not any(shares.values()):
        told.append(f"warning: {EMPTY.format(len(shares))}")
    high = sorted(name for name, share in shares.items() if share > INVERTED)
    if high:
        shown = ", ".join(high[:3]) + (", ..." if len(high) > 3 else "")
        told.append(
            f"warning: {len(high)} of {len(shares)} labels are foreground for more than half ({shown}); if they are "
            "inverted: the structure has to be the value that is not 0"
        )
    return told


def _fill(
    raw: dict[str, Any],
    layout: Layout,
    pairs: Sequence[Pair],
    headers: Mapping[Path, _Header | None],
    prompts: Path | None,
) -> dict[str, Any]:
    """The preset with what the pictures say."""
    train = [header for pair in pairs if pair.split == "train" and (header := headers[pair.image]) is not None]
    least = float(np.median([min(header.size) for header in train]))
    most = max(MOST_CROP, raw["model"]["image_size"])
    crop = next((side for side in CROPS if side <= min(least, most)), CROPS[-1])
    pixels = sum(header.size[0] * header.size[1] for header in train)
    per_image = max(1, min(64, round(pixels / len(train) / crop**2)))
    batch = max(1, min(16, BATCH_PIXELS // crop**2, len(train) * per_image))
    steps = max(LEAST_STEPS, min(MOST_STEPS, math.ceil(SHOWN * pixels / (batch * crop**2))))
    steps = math.ceil(steps / 50) * 50
    data = raw["data"] = {
        key: value for key, value in raw["data"].items() if key not in ("test_dir", "num_train", "num_val")
    }
    data["name"] = "folder"
    data |= {f"{split}_dir": str(root) for split, root in layout.roots.items()}
    defaults = Layout({})
    if layout.image != defaults.image:
        data["image_folder"] = layout.image
    if layout.label != defaults.label:
        data["label_folder"] = layout.label
    if layout.pattern != defaults.pattern:
        data["label_pattern"] = layout.pattern.text
    data |= {f"{split}_names": list(names) for split, names in layout.names.items()}
    data |= {"image_size": crop, "num_samples_per_image": per_image}
    colour = sum(header.channels == 3 for header in headers.values() if header is not None)
    levels = raw["model"]["channel_mult"] if crop >= 32 else raw["model"]["channel_mult"][:3]
    attention = [crop >> level for level in range(len(levels)) if _has_attention(raw["model"], level)]
    raw["model"] |= {
        "attn_resolutions": attention,
        "image_size": crop,
        "image_channels": 3 if 2 * colour > len(headers) else 1,
        "channel_mult": levels,
    }
    if "max_epochs" not in raw["trainer"]:  # a preset that counts in epochs has its own length and batch
        raw["trainer"] |= {"batch_size": batch, "max_steps": steps, "validate_every_steps": steps // 5}
        raw.pop("stage_overrides", None)
    if prompts is not None:
        data["prompts_file"] = str(prompts)
    if prompts is not None and not raw["model"].get("use_vlm_film", True):
        raw.pop("stages", None)
        raw["model"] |= {
            "use_vlm_film": True,
            "cond_source": "text",
            "vlm_film_decoder_stages": list(range(len(levels)))[-2:],
            "vlm_film_config": {"encoder": "stub", "cond_dim": 32, "film_hidden_dim": 32, "text_mlp_hidden_dim": 32},
        }
    raw["evaluate"] = {**raw.get("evaluate", {}), "split": "test" if "test" in layout.roots else "val"}
    return raw


def _has_attention(model: Mapping[str, Any], level: int) -> bool:
    """Whether a preset's network has attention at a level of its resolutions."""
    return model["image_size"] >> level in model["attn_resolutions"]


def _tell_choice(raw: Mapping[str, Any], prompts: Path | None) -> list[str]:
    model, trainer = raw["model"], raw["trainer"]
    channels = "1 channel" if model["image_channels"] == 1 else f"{model['image_channels']} channels"
    length = f"{trainer.get('max_epochs')} epochs"
    if "max_steps" in trainer:
        length = f"{trainer['max_steps']} steps, validated every {trainer['validate_every_steps']}"
    shape = f"crops of {model['image_size']}, {channels}, {len(model['channel_mult'])} resolutions"
    told = [f"{shape}, {trainer['batch_size']} crops a step, {length}"]
    if prompts is not None:
        told.append(f"prompts from {prompts}: stages backbone and film")
    elif raw.get("stages") == ["backbone"]:
        told.append(f"no {PROMPTS} ({{image file name: prompt}}): stage backbone alone, without a condition")
    return told
