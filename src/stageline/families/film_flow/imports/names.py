"""Names of a legacy checkpoint and ours: a table of patterns, and what hyper-parameters and shapes say. No torch.

Legacy files are Lightning checkpoints of a MedSegDiff-style dual U-Net. The inner names follow the public ancestor
(lucidrains/med-seg-diff-pytorch, MIT); for the cross-attention of the mid transformer, which that ancestor lacks, they
are our reading and part of the import's assumptions. A name that no pattern knows is left over, and refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stageline.errors import CheckpointError
from stageline.families.film_flow.imports.evidence import Evidence, decoder_channels_of

RES = (
    (r"mlp\.1", "time"),
    (r"block1\.proj", "block1.conv"),
    (r"block1\.norm", "block1.norm"),
    (r"block2\.proj", "block2.conv"),
    (r"block2\.norm", "block2.norm"),
    (r"res_conv", "shortcut"),
)
ATTENTION = (
    (r"(?:fn\.)?prenorm\.g", "norm.weight"),
    (r"(?:fn\.)?to_qkv\.weight", "qkv.weight"),
    (r"(?:fn\.)?to_out\.1\.g", "out_norm.weight"),
    (r"(?:fn\.)?to_out(?:\.0)?\.(weight|bias)", r"out.\1"),
)
CROSS = (
    (r"(?:fn\.)?prenorm_qk\.g", "norm_match.weight"),
    (r"(?:fn\.)?prenorm_v\.g", "norm_value.weight"),
    (r"(?:fn\.)?to_qk\.weight", "qk.weight"),
    (r"(?:fn\.)?to_v\.weight", "v.weight"),
    (r"(?:fn\.)?to_out\.(weight|bias)", r"out.\1"),
)
FEED_FORWARD = (
    (r"(?:fn\.)?0\.g", "norm.weight"),
    (r"(?:fn\.)?1\.(weight|bias)", r"fc1.\1"),
    (r"(?:fn\.)?3\.(weight|bias)", r"fc2.\1"),
)
FUSION = (
    (r"ff_parser_attn_map", "filter.map"),
    (r"norm_input\.g", "norm_input.weight"),
    (r"norm_input\.b", "norm_input.bias"),
    (r"norm_condition\.g", "norm_condition.weight"),
    (r"norm_condition\.b", "norm_condition.bias"),
)
MID_PARTS = {"0": ("cross1", CROSS), "1": ("ff1", FEED_FORWARD), "2": ("ff2", FEED_FORWARD), "3": ("cross2", CROSS)}
LEVEL_PARTS = {"0": "res1", "1": "res2", "2": "attn"}
ROOTS = {
    "init_conv": "mask_stem",
    "cond_init_conv": "image_stem",
    "time_mlp.1": "time.fc1",
    "time_mlp.3": "time.fc2",
    "final_conv": "out",
}
RES_ROOTS = (
    ("mid_block1", "mid.res1"),
    ("cond_mid_block1", "mid.image_res1"),
    ("mid_block2", "mid.res2"),
    ("final_res_block", "tail"),
)
HEAD_PARTS = {"ln": "norm", "mlp.0": "fc1", "mlp.2": "fc2"}
COND_PARTS = {
    "image_to_cond.proj": "image_proj.proj",
    "image_to_cond.ln": "image_proj.norm",
    "text_to_cond.mlp.0": "text_proj.fc1",
    "text_to_cond.mlp.2": "text_proj.fc2",
}
MULTI_TASK = re.compile(r"(?:^|\.)(hard_head|soft_head)\.")
HEADS = re.compile(r"^(?:.*\.)?vlm_film_heads\.(\d+)\.(ln|mlp\.0|mlp\.2)\.(weight|bias)$")
CONDITIONER = re.compile(r"^(?:.*\.)?vlm_film_conditioner\.(.+)\.(weight|bias)$")
LEGACY_CHANNELS = "ups.{s}.0.block2.proj.weight"


def _inner(rest: str, table: Sequence[tuple[str, str]]) -> str | None:
    """The new inner name of `rest`, for patterns that end a name or stand before `.weight` / `.bias`."""
    for pattern, new in table:
        match = re.fullmatch(rf"{pattern}(?P<tail>\.(?:weight|bias))?", rest)
        if match:
            return match.expand(new) + (match["tail"] or "")
    return None


def _level_name(rest: str, ups: bool) -> str | None:
    """`{l}.{0..3}.…` of downs, cond_downs, ups."""
    match = re.fullmatch(r"(\d+)\.([0-3])\.(.+)", rest)
    if match is None:
        return None
    level, part, inner = match.groups()
    if part == "3":
        # The up-sampling of all decoder stages but the last is a sequence: nearest, then the convolution.
        conv = re.fullmatch(r"(?:1\.)?(weight|bias)" if ups else r"(weight|bias)", inner)
        return f"{level}.{'up' if ups else 'down'}.{conv[1]}" if conv else None
    new = _inner(inner, ATTENTION if part == "2" else RES)
    return f"{level}.{LEVEL_PARTS[part]}.{new}" if new else None


def _unet_name(rest: str) -> str | None:
    """Our name, after `backbone.`, of a U-Net tensor; `rest` is its name after the U-Net's prefix."""
    stem, _, kind = rest.rpartition(".")
    if stem in ROOTS and kind in ("weight", "bias"):
        return f"{ROOTS[stem]}.{kind}"
    for old, new in RES_ROOTS:
        if rest.startswith(old + "."):
            inner = _inner(rest.removeprefix(old + "."), RES)
            return f"{new}.{inner}" if inner else None
    for old, new in (("downs", "enc"), ("cond_downs", "img_enc"), ("ups", "dec")):
        if rest.startswith(old + "."):
            inner = _level_name(rest.removeprefix(old + "."), ups=old == "ups")
            return f"{new}.{inner}" if inner else None
    match = re.fullmatch(r"conditioners\.(\d+)\.(.+)", rest)
    if match:
        block = match[2].removeprefix("block.")
        inner = _inner(match[2], FUSION) if block == match[2] else _prefixed("block.", _inner(block, RES))
        return f"fuse.{match[1]}.{inner}" if inner else None
    match = re.fullmatch(r"mid_transformer\.layers\.(\d+)\.([0-3])\.(.+)", rest)
    if match:
        part, table = MID_PARTS[match[2]]
        return _prefixed(f"mid.layers.{match[1]}.{part}.", _inner(match[3], table))
    return None


def _prefixed(prefix: str, name: str | None) -> str | None:
    return None if name is None else prefix + name


def unet_prefix(names: Iterable[str], where: str) -> str:
    """What stands before the U-Net's own names (`unet.base_unet.`), found by its first convolution."""
    found = sorted(n.removesuffix("init_conv.weight") for n in names if re.search(r"(?:^|\.)init_conv\.weight$", n))
    if len(found) != 1:
        raise CheckpointError(
            f"{where}: {'no' if not found else 'more than one'} U-Net in the file (init_conv found under {found})",
            remedy="only checkpoints of the dual (MedSegDiff-style) backbone can be imported",
            code="E_UNSUPPORTED",
        )
    return found[0]


def map_names(names: Iterable[str], prefix: str, stages: Sequence[int]) -> tuple[dict[str, str], list[str]]:
    """Legacy name -> our name, and the names no rule knows.

    stages: decoder stage of each positional head.
    """
    mapped: dict[str, str] = {}
    taken: set[str] = set()
    unknown: list[str] = []
    for name in sorted(names):
        new = _new_name(name, prefix, stages)
        if new is None or new in taken:
            unknown.append(name)
        else:
            mapped[name] = new
            taken.add(new)
    return mapped, unknown


def _new_name(name: str, prefix: str, stages: Sequence[int]) -> str | None:
    head = HEADS.fullmatch(name)
    if head:
        index = int(head[1])
        return f"film.{stages[index]}.{HEAD_PARTS[head[2]]}.{head[3]}" if index < len(stages) else None
    conditioner = CONDITIONER.fullmatch(name)
    if conditioner:
        return _prefixed("cond.", _suffixed(COND_PARTS.get(conditioner[1]), f".{conditioner[2]}"))
    return _prefixed("backbone.", _unet_name(name.removeprefix(prefix))) if name.startswith(prefix) else None


def _suffixed(name: str | None, suffix: str) -> str | None:
    return None if name is None else name + suffix


def legacy_evidence(
    where: str, shapes: Mapping[str, Sequence[int]], hyper: Mapping[str, Any], metadata_stages: Any, prefix: str
) -> Evidence:
    """Evidence of a legacy file: positional heads in the order of their index, channels of its own U-Net."""
    widths: dict[int, int] = {}
    for name, shape in shapes.items():
        head = HEADS.fullmatch(name)
        if head:
            widths.setdefault(int(head[1]), 0)
            if head[2] == "mlp.2":
                widths[int(head[1])] = int(shape[0])
    model_channels, mult = hyper.get("model_channels"), hyper.get("channel_mult")
    stated = tuple(int(model_channels) * int(m) for m in reversed(mult)) if model_channels is not None and mult else ()
    use = hyper.get("use_vlm_film")
    return Evidence(
        where=where,
        metadata_stages=metadata_stages,
        hparams_stages=hyper.get("vlm_film_decoder_stages"),
        use_vlm_film=None if use is None else bool(use),
        head_widths=tuple(widths[i] for i in sorted(widths)),
        channels=decoder_channels_of(shapes, prefix + LEGACY_CHANNELS),
        hparams_channels=stated,
    )
