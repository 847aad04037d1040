"""How many image tokens a resampler makes: a pure function of its rules and the token layout; no torch.

Prompts are built from it before any forward pass, and the resamplers compute their outputs from the same tables, so
that the two cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from stageline.errors import ConfigError, Faults
from stageline.families.panorama_vlm.orders import pool, scan_sequences
from stageline.families.panorama_vlm.stitching import (
    Integers,
    ScanOrder,
    Stitched,
    Stitching,
    TokenLayout,
    stitch,
)

ResamplerType = Literal["mlp", "qformer", "perceiver", "bimamba"]
Scope = Literal["token", "per_view", "panorama"]
Pool = Literal["grid", "none", "query", "last_of_chunk"]

SCOPES: dict[str, tuple[Scope, ...]] = {
    "mlp": ("token",),
    "qformer": ("per_view", "panorama"),
    "perceiver": ("per_view", "panorama"),
    "bimamba": ("panorama", "per_view"),
}
"""Scopes of each type, its default first."""
QUERIES_PER_VIEW = {"qformer": 32, "perceiver": 64, "bimamba": 64}
"""BLIP-2 has 32 (arXiv:2301.12597), Flamingo 64 (arXiv:2204.14198); bimamba's is chosen here to match its grid."""
QUERIES_PER_PANORAMA = 128


@dataclass(frozen=True, kw_only=True)
class TokenRules:
    """How tokens of the views become image tokens.

    type: of the resampler.  scope: what a token sees: itself, its view, all views; null is the type's default.
    stitching: which tokens are kept.  pooling: r in {1, 2, 4}, edge of the cell that becomes one token (mlp, bimamba
    with pool grid).  pool: bimamba's way to the budget; null is `grid`.  queries: per view, or of the whole panorama;
    null is the type's default.  chunk: m > 0 of pool `last_of_chunk`: every m-th position is kept, and the last.
    scan_order, circular_warmup_cols: of bimamba.  canvas: rows and columns of stitching `resample`.

    ConfigError names every setting that the type does not have.
    """

    type: ResamplerType
    scope: Scope | None = None
    stitching: Stitching = "concat"
    pooling: int = 2
    pool: Pool | None = None
    queries: int | None = None
    chunk: int = 4
    scan_order: ScanOrder = "sweep"
    circular_warmup_cols: int = 0
    canvas: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        faults = Faults(ConfigError, "resampler_config", "mend the settings named above")
        for key, kind in (("type", ResamplerType), ("stitching", Stitching), ("scan_order", ScanOrder)):
            if getattr(self, key) not in get_args(kind):
                faults.add(f"{key} is {getattr(self, key)!r}, expected one of {', '.join(get_args(kind))}")
        faults.raise_if_any()
        scopes = SCOPES[self.type]
        if self.scope is not None and self.scope not in scopes:
            faults.add(f"scope is {self.scope!r}, {self.type} has {', '.join(scopes)}")
        if self.pool is not None and (self.type != "bimamba" or self.pool not in get_args(Pool)):
            faults.add(f"pool is {self.pool!r}; only bimamba has one: {', '.join(get_args(Pool))}")
        if self.pooling not in (1, 2, 4):
            faults.add(f"pooling is {self.pooling!r}, expected 1, 2 or 4")
        if self.queries is not None and (self.queries < 1 or not self.has_queries):
            faults.add(f"queries is {self.queries!r}; {self.type} without pool query has none, others need 1 or more")
        if self.chunk < 1:
            faults.add(f"chunk is {self.chunk!r}, expected 1 or more")
        if self.circular_warmup_cols < 0 or (self.circular_warmup_cols and self.type != "bimamba"):
            faults.add(f"circular_warmup_cols is {self.circular_warmup_cols!r}; only bimamba has it, 0 or more")
        if self.canvas is not None and (self.stitching != "resample" or min(self.canvas) < 1):
            faults.add(f"canvas is {self.canvas!r}; stitching resample has it, two numbers of 1 or more")
        faults.raise_if_any()

    @property
    def has_queries(self) -> bool:
        return self.type in ("qformer", "perceiver") or (self.type == "bimamba" and self.pool == "query")

    @property
    def resolved_scope(self) -> Scope:
        return self.scope or SCOPES[self.type][0]

    @property
    def resolved_pool(self) -> Pool:
        """`grid` or `none` for an mlp, what the config says for bimamba; types of queries always `query`."""
        if self.type in ("qformer", "perceiver"):
            return "query"
        return self.pool or "grid"

    @property
    def resolved_queries(self) -> int:
        """Queries per view, or of the panorama."""
        if self.queries is not None:
            return self.queries
        return QUERIES_PER_PANORAMA if self.resolved_scope == "panorama" else QUERIES_PER_VIEW[self.type]


@dataclass(frozen=True)
class TokenTable:
    """Where image tokens come from.

    stitched: the tokens that are kept.  groups: numbers of the stitched tokens that a query attends to, one array per
    view or one for all; empty without queries.  members: (T, m) stitched tokens whose mean is an image token; no row
    with queries, which have no place.  num_tokens: T.
    """

    stitched: Stitched
    groups: tuple[Integers, ...]
    members: Integers
    num_tokens: int


def token_table(layout: TokenLayout, rules: TokenRules) -> TokenTable:
    """The tables of one layout under one set of rules.

    Raises ConfigError where the rules do not fit the layout.
    """
    stitched = stitch(layout, rules.stitching, rules.canvas)
    per_view = rules.resolved_scope == "per_view"
    none = np.zeros((0, 1), np.int64)
    if rules.type == "bimamba":
        sequences = scan_sequences(
            stitched, rules.scan_order, per_view=per_view, warmup_cols=rules.circular_warmup_cols
        )
        if rules.pool == "last_of_chunk":
            read = [sequence.numbers[sequence.emitted] for sequence in sequences]
            ends = [np.unique(np.append(np.arange(rules.chunk - 1, len(r), rules.chunk), len(r) - 1)) for r in read]
            members = np.concatenate([r[end] for r, end in zip(read, ends, strict=True)])[:, None]
            return TokenTable(stitched, (), members, len(members))
    if rules.has_queries:
        groups = tuple(block.numbers.ravel() for block in stitched.blocks)
        groups = groups if per_view else (np.arange(stitched.num_tokens),)
        return TokenTable(stitched, groups, none, rules.resolved_queries * len(groups))
    members = pool(stitched, 1 if rules.resolved_pool == "none" else rules.pooling)
    return TokenTable(stitched, (), members, len(members))


def num_tokens(layout: TokenLayout, rules: TokenRules) -> int:
    """T, the image tokens of one panorama.

    layout: token grids of the views.  rules: of the resampler.  Raises ConfigError where the two do not fit.
    """
    return token_table(layout, rules).num_tokens
