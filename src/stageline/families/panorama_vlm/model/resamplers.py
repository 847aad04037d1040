"""The resamplers that keep the place of their tokens, `mlp` and `bimamba`, and the table of all four."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from stageline.families.panorama_vlm.image_tokens import ResamplerType
from stageline.families.panorama_vlm.model.bimamba import BiMamba, BlockSettings, compact
from stageline.families.panorama_vlm.model.query_resamplers import (
    CrossAttention,
    PerceiverResampler,
    QFormerResampler,
    QueryGroups,
)
from stageline.families.panorama_vlm.model.resampler import Connection, ImageTokens, Resampler, start_output
from stageline.families.panorama_vlm.orders import scan_sequences

GELU_SQUARE = 0.4252
"""Mean square of GELU(z) for a standard normal z."""


class MlpResampler(Resampler):
    """r x r cells to depth, LayerNorm, Linear, GELU, Linear.

    hidden: inner width.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        hidden: int = 2048,
    ) -> None:
        super().__init__(connection)
        deep = connection.rules.pooling**2 * self.vision_dim
        self.deep_norm = nn.LayerNorm(deep)
        self.fc1 = nn.Linear(deep, hidden)
        nn.init.normal_(self.fc1.weight, std=deep**-0.5)
        nn.init.zeros_(self.fc1.bias)
        self.fc2 = start_output(nn.Linear(hidden, self.language_dim), GELU_SQUARE)

    def resample(self, x: Tensor, valid: Tensor | None) -> ImageTokens:
        members = self.tables.tensor("members", self.tables.table.members, x.device)
        deep = self.deep_norm(x[:, members].flatten(2))
        tokens: Tensor = self.fc2(nn.functional.gelu(self.fc1(deep)))
        return ImageTokens(tokens, self.pooled_mask(valid))


class BiMambaResampler(Resampler):
    """Linear, bidirectional Mamba-2 blocks in the scan order of the rules, pooling to the budget, LayerNorm, Linear.

    width: d.  depth: number of blocks.  query_heads: of pool `query`'s attention.  block: of every block.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        width: int = 1024,
        depth: int = 4,
        query_heads: int = 16,
        **block: Unpack[BlockSettings],
    ) -> None:
        super().__init__(connection)
        rules = connection.rules
        self.proj_in = nn.Linear(self.vision_dim, width)
        self.mamba = BiMamba(width, depth, **block)
        self.queries: nn.Parameter | None = None
        if rules.has_queries:
            self.groups = QueryGroups(self.tables)
            self.queries = nn.Parameter(torch.randn(connection.rules.resolved_queries, width))
            self.key_norm = nn.LayerNorm(width)
            self.attention = CrossAttention(width, width, width, query_heads)
        self.norm_out = nn.LayerNorm(width)
        self.proj_out = start_output(nn.Linear(width, self.language_dim))
        sequences = scan_sequences(
            self.tables.table.stitched,
            rules.scan_order,
            per_view=rules.resolved_scope == "per_view",
            warmup_cols=rules.circular_warmup_cols,
        )
        longest = max(len(sequence.numbers) for sequence in sequences)
        self._numbers = np.zeros((len(sequences), longest), np.int64)
        self._real = np.zeros((len(sequences), longest), bool)
        back = np.zeros(self.tables.table.stitched.num_tokens, np.int64)
        for row, sequence in enumerate(sequences):
            length = len(sequence.numbers)
            self._numbers[row, :length], self._real[row, :length] = sequence.numbers, True
            back[sequence.numbers[sequence.emitted]] = row * longest + np.flatnonzero(sequence.emitted)
        self._back = back

    def scan(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, T_stitched, d) -> the same: every sequence through all blocks, outputs back in their places.

        valid: (B, T_stitched) or None. Invalid tokens are taken out before the scan, never masked inside of it.
        """
        tables, (rows, longest) = self.tables, self._numbers.shape
        numbers = tables.tensor("scan_numbers", self._numbers, x.device)
        back = tables.tensor("scan_back", self._back, x.device)
        batch = x.shape[0]
        inputs = x[:, numbers].flatten(0, 1)
        if valid is None and self._real.all():
            outputs = self.mamba(inputs)
        else:
            real = tables.tensor("scan_real", self._real, x.device)
            mask = real.expand(batch, -1, -1) if valid is None else real & valid[:, numbers]
            moved, mask, places = compact(inputs, mask.flatten(0, 1))
            outputs = self.mamba(moved, mask)
            outputs = outputs.gather(1, places.unsqueeze(-1).expand_as(outputs))
        placed: Tensor = outputs.reshape(batch, rows * longest, -1)[:, back]
        return placed

    def resample(self, x: Tensor, valid: Tensor | None) -> ImageTokens:
        y = self.scan(self.proj_in(x), valid)
        if self.queries is not None:
            keys, mask = self.groups.keys(self.key_norm(y), valid)
            queries = self.queries.expand(len(keys), -1, -1)
            read, seen = self.groups.join(self.attention(queries, keys, mask), valid, x.shape[0])
            return ImageTokens(self.proj_out(self.norm_out(read)), seen)
        members = self.tables.tensor("members", self.tables.table.members, x.device)
        pooled = y[:, members].mean(2)
        if valid is not None:
            count = valid[:, members].unsqueeze(-1).to(y.dtype)
            pooled = (y[:, members] * count).sum(2) / count.sum(2).clamp(min=1)
        return ImageTokens(self.proj_out(self.norm_out(pooled)), self.pooled_mask(valid))


RESAMPLERS: dict[ResamplerType, Callable[..., Resampler]] = {
    "mlp": MlpResampler,
    "qformer": QFormerResampler,
    "perceiver": PerceiverResampler,
    "bimamba": BiMambaResampler,
}


def make_resampler(connection: Connection, **sizes: Any) -> Resampler:
    """The resampler of the rules' type. sizes: keyword arguments of its class."""
    return RESAMPLERS[connection.rules.type](connection, **sizes)
