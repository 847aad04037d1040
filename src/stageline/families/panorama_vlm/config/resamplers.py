"""Settings of the resamplers: one section with every key, and what it comes to for each type; no torch.

A key that is null has the default of the type; one that the type does not have is refused (`rules.py`). The tiny
profile has sizes of its own, whatever the config says. Defaults are for 256 tokens of 1152 numbers per view.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from stageline.config import Settings, operational
from stageline.families.panorama_vlm.image_tokens import (
    QUERIES_PER_PANORAMA,
    QUERIES_PER_VIEW,
    Pool,
    ResamplerType,
    Scope,
    TokenRules,
)
from stageline.families.panorama_vlm.stitching import ScanOrder, Stitching

ScanBackend = Literal["auto", "triton", "torch", "reference"]
Merge = Literal["mean", "sum", "concat"]


class ResamplerConfig(Settings):
    """Keys of all resampler types; null is the default of the type that is used."""

    scope: Scope | None = None
    """What an image token may see: `token` its own cell (mlp), `per_view` its view, `panorama` all views."""
    tokens_per_view: int | None = Field(default=None, ge=1)
    """Image tokens of a view, instead of `pooling` (mlp, bimamba) or of `queries` per view (qformer, perceiver)."""
    pooling: Literal[1, 2, 4] | None = None
    """r: an r x r cell becomes one token (mlp, and bimamba with pool `grid`)."""
    pool: Pool | None = None
    """How bimamba comes to its token budget."""
    queries: int | None = Field(default=None, ge=1)
    """Learned queries of a view, or of the panorama (qformer, perceiver, bimamba with pool `query`)."""
    chunk: int | None = Field(default=None, ge=1)
    """m of pool `last_of_chunk`: every m-th position is kept."""
    hidden: int | None = Field(default=None, ge=1)
    """Inner width of mlp."""
    width: int | None = Field(default=None, ge=1)
    """d of qformer, perceiver and bimamba."""
    depth: int | None = Field(default=None, ge=1)
    """Layers or blocks of qformer, perceiver and bimamba."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of qformer and perceiver."""
    head_dim: int | None = Field(default=None, ge=1)
    """Width of a head of perceiver (attention) and bimamba (P of the scan)."""
    feed_width: int | None = Field(default=None, ge=1)
    """Inner width of qformer's feed-forward layers."""
    cross_every: int | None = Field(default=None, ge=1)
    """Every how many layers qformer's queries attend to the picture."""
    state: int | None = Field(default=None, ge=1)
    """N of the scan."""
    merge: Merge | None = None
    """How the outputs of both directions are put together."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Of a bimamba block's branch."""
    query_heads: int | None = Field(default=None, ge=1)
    """Attention heads of bimamba's pool `query`."""
    scan_order: ScanOrder | None = None
    """In which order bimamba reads the tokens of a panorama."""
    circular_warmup_cols: int | None = Field(default=None, ge=0)
    """Columns from beyond the seam that bimamba reads first, at both ends, and gives no output for."""
    scan_backend: ScanBackend | None = operational(None)
    """auto: Triton where CUDA and mamba-ssm are, else torch; triton that cannot be had is an error."""
    chunk_size: int | None = operational(None, ge=1)
    """Q of the chunked scan; results differ by rounding only."""


class Mlp(Settings):
    """Space to depth, two linear layers."""

    scope: Scope = "token"
    pooling: int = 2
    hidden: int = 2048


class Qformer(Settings):
    """Queries with bidirectional self-attention and cross-attention to the tokens."""

    scope: Scope = "per_view"
    queries: int = QUERIES_PER_VIEW["qformer"]
    width: int = 768
    depth: int = 6
    heads: int = 12
    feed_width: int = 3072
    cross_every: int = 2


class Perceiver(Settings):
    """Latents that attend to tokens and latents."""

    scope: Scope = "per_view"
    queries: int = QUERIES_PER_VIEW["perceiver"]
    width: int = 1024
    depth: int = 3
    heads: int = 16
    head_dim: int = 64


class Bimamba(Settings):
    """Bidirectional Mamba-2 blocks, then pooling."""

    scope: Scope = "panorama"
    pooling: int = 2
    pool: Pool = "grid"
    queries: int | None = None
    chunk: int = 4
    width: int = 1024
    depth: int = 4
    head_dim: int = 64
    state: int = 64
    merge: Merge = "mean"
    dropout: float = 0.0
    query_heads: int = 16
    scan_order: ScanOrder = "sweep"
    circular_warmup_cols: int = 0
    scan_backend: ScanBackend = operational("auto")
    chunk_size: int = operational(64)


Resampler = Mlp | Qformer | Perceiver | Bimamba
TYPES: dict[str, type[Resampler]] = {"mlp": Mlp, "qformer": Qformer, "perceiver": Perceiver, "bimamba": Bimamba}
OF_TOKENS = ("scope", "pooling", "pool", "queries", "chunk", "scan_order", "circular_warmup_cols")
"""Settings that decide which tokens there are; all others are sizes of the module."""
TINY: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": 64},
    "qformer": {"width": 64, "depth": 2, "heads": 4, "feed_width": 128},
    "perceiver": {"width": 64, "depth": 2, "heads": 4, "head_dim": 16},
    "bimamba": {"width": 64, "depth": 2, "head_dim": 16, "state": 16, "query_heads": 4, "chunk_size": 32},
}
"""Sizes that the tiny profile puts in the place of whatever is stated."""
TINY_QUERIES = {"per_view": 4, "panorama": 32}
OF_SHAPES: dict[str, tuple[str, ...]] = {
    "mlp": ("pooling", "hidden"),
    "qformer": ("queries", "width", "depth", "heads", "feed_width", "cross_every"),
    "perceiver": ("queries", "width", "depth", "heads", "head_dim"),
    "bimamba": ("width", "depth", "head_dim", "state", "query_heads"),
}
"""Settings that the tensors of a type depend on."""


def stated(config: ResamplerConfig) -> dict[str, Any]:
    """The keys that are not null."""
    return {key: value for key, value in config.model_dump().items() if value is not None}


def foreign_keys(kind: ResamplerType, config: ResamplerConfig) -> list[str]:
    """The stated keys that a type does not have."""
    known = {*TYPES[kind].model_fields, "tokens_per_view"}
    return [key for key in stated(config) if key not in known]


def resolve(kind: ResamplerType, config: ResamplerConfig, grid: int, *, tiny: bool) -> Resampler:
    """What the section comes to for a type, with every key's value.

    kind: the type.  grid: G, tokens along an edge of a view.  tiny: whether the profile's sizes count.
    """
    model = TYPES[kind]
    values = {key: value for key, value in stated(config).items() if key in model.model_fields}
    scope = values.get("scope", model.model_fields["scope"].default)
    has_queries = kind in ("qformer", "perceiver") or values.get("pool") == "query"
    if has_queries and values.get("queries") is None:
        values["queries"] = QUERIES_PER_PANORAMA if scope == "panorama" else QUERIES_PER_VIEW[kind]
        if config.tokens_per_view is not None and scope == "per_view":
            values["queries"] = config.tokens_per_view
    elif config.tokens_per_view is not None and "pooling" in model.model_fields:
        values["pooling"] = max(1, round((grid * grid / config.tokens_per_view) ** 0.5))
    if tiny:
        values |= TINY[kind]
        if has_queries:
            values["queries"] = TINY_QUERIES[scope]
    return model.model_construct(**values)


def token_rules(
    kind: ResamplerType, resampler: Resampler, stitching: Stitching, canvas: tuple[int, int] | None
) -> TokenRules:
    """How tokens of the views become image tokens. Raises ConfigError for settings that do not fit each other."""
    values = {key: value for key, value in resampler.model_dump().items() if key in OF_TOKENS}
    return TokenRules(type=kind, stitching=stitching, canvas=canvas, **values)


def sizes(resampler: Resampler) -> dict[str, Any]:
    """Keyword arguments of the resampler's class beside its token rules and widths."""
    return {key: value for key, value in resampler.model_dump().items() if key not in OF_TOKENS}


def shape_settings(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a resolved resampler that decide the shapes of its tensors. settings: as JSON values."""
    found = {key: settings.get(key) for key in OF_SHAPES.get(kind, ())}
    if kind == "bimamba":
        found["merge"] = "concat" if settings.get("merge") == "concat" else "added"
        found["queries"] = settings.get("queries") if settings.get("pool") == "query" else None
        found["query_heads"] = None
    return found
