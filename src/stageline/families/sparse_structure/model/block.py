"""One block: self-attention and feed-forward under modulation, cross-attention without.

Source: DiT (arXiv:2212.09748).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from stageline.families.sparse_structure.model.attention import (
    AttentionPattern,
    ConditionCache,
    CrossAttention,
    SelfAttention,
)
from stageline.families.sparse_structure.model.layers import FeedForward, LayerNorm, modulation


class Block(nn.Module):
    """One block of all streams; time and step move all streams alike.

    streams: names.
    channels: C.
    condition_channels: Cc.
    num_heads: H.
    mlp_ratio: hidden width of the feed-forward, in C.
    qk_norm, qk_norm_cross: normalise queries and keys of self-attention, of cross-attention.
    own_modulation: a modulation layer of its own; otherwise `forward` gets the six vectors ready.
    pattern: who attends to whom.
    """

    def __init__(
        self,
        streams: Sequence[str],
        channels: int,
        condition_channels: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        qk_norm: bool,
        qk_norm_cross: bool,
        own_modulation: bool,
        pattern: AttentionPattern,
    ) -> None:
        super().__init__()
        self.norm1, self.norm3 = LayerNorm(channels, affine=False), LayerNorm(channels, affine=False)
        self.norm2 = nn.ModuleDict({s: LayerNorm(channels, affine=True) for s in streams})
        self.self_attn = SelfAttention(streams, channels, num_heads, qk_norm=qk_norm, pattern=pattern)
        self.cross_attn = nn.ModuleDict(
            {s: CrossAttention(channels, condition_channels, num_heads, qk_norm=qk_norm_cross) for s in streams}
        )
        self.mlp = nn.ModuleDict({s: FeedForward(channels, int(channels * mlp_ratio)) for s in streams})
        self.adaLN_modulation = modulation(channels) if own_modulation else None

    def forward(
        self,
        x: Mapping[str, Tensor],
        e: Tensor,
        condition: Tensor,
        scene_sizes: tuple[int, ...],
        cache: ConditionCache | None = None,
        *,
        shortcuts: bool = True,
        unconditional: bool = False,
    ) -> dict[str, Tensor]:
        """Stream -> (N, L, C), of the same.

        e: (1 or N, C) embedding of time and step; (1 or N, 6 C) without a modulation of its own.
        condition: (1 or N, Lc, Cc).
        scene_sizes: objects per scene.
        cache, shortcuts, unconditional: as in `CrossAttention`.
        """
        vectors = e if self.adaLN_modulation is None else self.adaLN_modulation(e)
        # Scaled and shifted in two operations: half precision rounds where the public network rounds.
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors[:, None].chunk(6, dim=-1)
        mixed = self.self_attn({s: self.norm1(h) * (1 + scale1) + shift1 for s, h in x.items()}, scene_sizes)
        out = {}
        for s, h in x.items():
            h = h + gate1 * mixed[s]
            h = h + self.cross_attn[s](
                self.norm2[s](h), condition, cache, shortcuts=shortcuts, unconditional=unconditional
            )
            out[s] = h + gate2 * self.mlp[s](self.norm3(h) * (1 + scale2) + shift2)
        return out
