"""The resamplers with learned queries, `qformer` and `perceiver`: a fixed number of image tokens per view or panorama.

Queries read vision tokens through attention and have no place of their own. No attention here is causal.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.model.resampler import Connection, ImageTokens, Resampler, Tables, start_output


class QueryGroups:
    """Which stitched tokens each group of queries reads: those of one view, or all.

    tables: of the layout.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        groups = tables.table.groups
        longest = max(len(group) for group in groups)
        self._numbers = np.zeros((len(groups), longest), np.int64)
        self._real = np.zeros((len(groups), longest), bool)
        for row, group in enumerate(groups):
            self._numbers[row, : len(group)], self._real[row, : len(group)] = group, True

    def keys(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The keys of all groups, (B * groups, L, d), and which of them count, (B * groups, L) or None for all.

        x: (B, T_stitched, d).  valid: (B, T_stitched) or None.
        """
        numbers = self.tables.tensor("group_numbers", self._numbers, x.device)
        keys = x[:, numbers].flatten(0, 1)
        if valid is None and self._real.all():
            return keys, None
        real = self.tables.tensor("group_real", self._real, x.device)
        mask = real.expand(x.shape[0], -1, -1) if valid is None else real & valid[:, numbers]
        return keys, mask.flatten(0, 1)

    def join(self, queries: Tensor, valid: Tensor | None, batch: int) -> tuple[Tensor, Tensor | None]:
        """Groups side by side, (B, T, d), and (B, T) which of them had anything to read; None for all.

        queries: (B * groups, Q, d).  valid: (B, T_stitched) or None.  batch: B.
        """
        tokens = queries.reshape(batch, -1, queries.shape[-1])
        if valid is None:
            return tokens, None
        numbers = self.tables.tensor("group_numbers", self._numbers, valid.device)
        real = self.tables.tensor("group_real", self._real, valid.device)
        return tokens, (real & valid[:, numbers]).any(-1).repeat_interleave(queries.shape[1], dim=1)


class CrossAttention(nn.Module):
    """Softmax attention of queries over keys. Keys have no bias: the softmax would not notice it.

    width: of queries and output.  key_width: of keys.  inner: heads * head width.  heads: their number.  bias: of the
    other projections.
    """

    def __init__(self, width: int, key_width: int, inner: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        if inner % heads:
            raise ConfigError(f"{heads} heads do not divide the width {inner}", remedy="choose heads that do")
        self.heads = heads
        self.q = nn.Linear(width, inner, bias=bias)
        self.k = nn.Linear(key_width, inner, bias=False)
        self.v = nn.Linear(key_width, inner, bias=bias)
        self.out = nn.Linear(inner, width, bias=bias)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, Q, width).

        queries: (B, Q, width).  keys: (B, L, key_width).  mask: (B, L), true for keys that count; where none does,
        all are read, and the caller drops the result.
        """
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, queries), (self.k, keys), (self.v, keys))
        )
        allowed = None if mask is None else (mask | ~mask.any(-1, keepdim=True))[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def feed_forward(width: int, inner: int) -> nn.Sequential:
    """Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class QFormerLayer(nn.Module):
    """Attention among queries, attention over keys in some layers, feed-forward; each followed by a LayerNorm.

    width, heads, inner: of the layer.  key_width: D_v, or 0 for a layer without attention over keys.
    """

    def __init__(self, width: int, heads: int, inner: int, key_width: int) -> None:
        super().__init__()
        self.self_attention = CrossAttention(width, width, width, heads)
        self.self_norm = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, key_width, width, heads) if key_width else None
        self.cross_norm = nn.LayerNorm(width) if key_width else None
        self.feed = feed_forward(width, inner)
        self.feed_norm = nn.LayerNorm(width)

    def forward(self, q: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        q = self.self_norm(q + self.self_attention(q, q))
        if self.cross_attention is not None and self.cross_norm is not None:
            q = self.cross_norm(q + self.cross_attention(q, keys, mask))
        out: Tensor = self.feed_norm(q + self.feed(q))
        return out


class QFormerResampler(Resampler):
    """Learned queries through layers of BERT's kind (BLIP-2, arXiv:2301.12597); every query sees every other one.

    width, depth, heads, feed_width: of the layers.  cross_every: attention over keys in layers 0, n, 2n, ...
    """

    def __init__(
        self,
        connection: Connection,
        *,
        width: int = 768,
        depth: int = 6,
        heads: int = 12,
        feed_width: int = 3072,
        cross_every: int = 2,
    ) -> None:
        super().__init__(connection)
        self.groups = QueryGroups(self.tables)
        self.queries = nn.Parameter(torch.randn(connection.rules.resolved_queries, width))
        self.query_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            QFormerLayer(width, heads, feed_width, self.vision_dim if n % cross_every == 0 else 0) for n in range(depth)
        )
        self.norm_out = nn.LayerNorm(width)
        self.proj_out = start_output(nn.Linear(width, self.language_dim))

    def resample(self, x: Tensor, valid: Tensor | None) -> ImageTokens:
        keys, mask = self.groups.keys(x, valid)
        q = self.query_norm(self.queries).expand(len(keys), -1, -1)
        for layer in self.layers:
            q = layer(q, keys, mask)
        read, seen = self.groups.join(q, valid, x.shape[0])
        return ImageTokens(self.proj_out(self.norm_out(read)), seen)


class PerceiverLayer(nn.Module):
    """Latents attend to tokens and to themselves, then a feed-forward; both residual, norms first.

    width: d.  heads, head_dim: of the attention.
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.key_norm = nn.LayerNorm(width)
        self.latent_norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, width, heads * head_dim, heads, bias=False)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = feed_forward(width, 4 * width)

    def forward(self, latents: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.latent_norm(latents)
        both = torch.cat([self.key_norm(keys), normed], dim=1)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(normed.shape[:2])], dim=1)
        latents = latents + self.attention(normed, both, mask)
        out: Tensor = latents + self.feed(self.feed_norm(latents))
        return out


class PerceiverResampler(Resampler):
    """Learned latents that read tokens beside themselves (Flamingo, arXiv:2204.14198).

    width: of tokens and latents.  depth, heads, head_dim: of the layers.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        width: int = 1024,
        depth: int = 3,
        heads: int = 16,
        head_dim: int = 64,
    ) -> None:
        super().__init__(connection)
        self.groups = QueryGroups(self.tables)
        self.proj_in = nn.Linear(self.vision_dim, width)
        self.queries = nn.Parameter(torch.randn(connection.rules.resolved_queries, width))
        self.layers = nn.ModuleList(PerceiverLayer(width, heads, head_dim) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.proj_out = start_output(nn.Linear(width, self.language_dim))

    def resample(self, x: Tensor, valid: Tensor | None) -> ImageTokens:
        keys, mask = self.groups.keys(self.proj_in(x), valid)
        latents = self.queries.expand(len(keys), -1, -1)
        for layer in self.layers:
            latents = layer(latents, keys, mask)
        read, seen = self.groups.join(latents, valid, x.shape[0])
        return ImageTokens(self.proj_out(self.norm_out(read)), seen)
