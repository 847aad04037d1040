"""Self-attention over the streams of one object, or over the objects of a scene.

A protected stream (`shape`) attends to its own tokens only. All other streams attend jointly, to their own tokens and
then to the protected ones, through which no gradient returns unless told otherwise. Objects of a scene are folded into
the sequence, (N, L, H, D) -> (scenes, n L, H, D): keys are never repeated per query object and no mask is made.

Shapes: N objects, n objects of a scene, L tokens of a stream, C width, H heads, D = C / H. Sources: MIDI-3D
(arXiv:2412.03558) and PartCrafter (arXiv:2506.05573) for attention across objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.families.sparse_structure.model.layers import HeadNorm, Linear

SCENE_ATTENTION = ("full", "pose", "pooled")
PER_OBJECT = "object"


@dataclass(frozen=True)
class AttentionPattern:
    """Who attends to whom.

    mode: `object`: every object for itself. `full`: all streams across the scene. `pose`: protected streams stay per
        object, the others see all tokens of the scene. `pooled`: own tokens in full, protected tokens of the other
        objects averaged over cubes.
    protected: streams that see their own tokens only.
    detach_protected: no gradient from the other streams into protected keys and values.
    pool: edge of the cubes of `pooled`, in tokens.
    """

    mode: str
    protected: tuple[str, ...]
    detach_protected: bool
    pool: int = 1


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (B, Lq, H, D) to (B, Lk, H, D) with the scale 1/sqrt(D), without a mask."""
    out = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def fold(x: Tensor, objects: int) -> Tensor:
    """(N, L, H, D) -> (N / n, n L, H, D); a view."""
    return x if objects == 1 else x.reshape(-1, objects * x.shape[1], *x.shape[2:])


def pooled_cubes(x: Tensor, pool: int) -> Tensor:
    """(N, r^3, H, D) -> (N, (r / pool)^3, H, D): averages over cubes of the grid, x slowest."""
    side = round(x.shape[1] ** (1 / 3)) // pool
    return x.reshape(-1, side, pool, side, pool, side, pool, *x.shape[2:]).mean((2, 4, 6)).flatten(1, 3)


def of_others(x: Tensor, objects: int) -> Tensor:
    """(N, P, H, D) -> (N, (n - 1) P, H, D): for each object what its scene's other objects hold."""
    numbers = torch.arange(objects, device=x.device)
    others = (numbers[:, None] + numbers[1:]) % objects
    return x.reshape(-1, objects, *x.shape[1:])[:, others].reshape(x.shape[0], -1, *x.shape[2:])


class SelfAttention(nn.Module):
    """Self-attention with projections per stream.

    streams: names; protected ones among them see themselves only.
    channels: C.
    num_heads: H.
    qk_norm: normalise queries and keys per head.
    pattern: who attends to whom.
    """

    def __init__(
        self, streams: Sequence[str], channels: int, num_heads: int, *, qk_norm: bool, pattern: AttentionPattern
    ) -> None:
        super().__init__()
        self.num_heads, self.pattern = num_heads, pattern
        self.protected = tuple(s for s in streams if s in pattern.protected)
        self.others = tuple(s for s in streams if s not in pattern.protected)

        def per_stream(make: Callable[[], nn.Module]) -> nn.ModuleDict:
            return nn.ModuleDict({stream: make() for stream in streams})

        self.to_qkv = per_stream(lambda: Linear(channels, 3 * channels))
        self.q_rms_norm = self.k_rms_norm = None
        if qk_norm:
            self.q_rms_norm = per_stream(lambda: HeadNorm(num_heads, channels // num_heads))
            self.k_rms_norm = per_stream(lambda: HeadNorm(num_heads, channels // num_heads))
        self.to_out = per_stream(lambda: Linear(channels, channels))

    def forward(self, h: Mapping[str, Tensor], scene_sizes: tuple[int, ...]) -> dict[str, Tensor]:
        """Stream -> (N, L, C), of the same.

        scene_sizes: objects per scene, in their order; used only across objects.
        """
        q: dict[str, Tensor] = {}
        k: dict[str, Tensor] = {}
        v: dict[str, Tensor] = {}
        for stream, project in self.to_qkv.items():
            x = h[stream]
            q[stream], k[stream], v[stream] = project(x).reshape(*x.shape[:2], 3, self.num_heads, -1).unbind(2)
            if self.q_rms_norm is not None and self.k_rms_norm is not None:
                q[stream], k[stream] = self.q_rms_norm[stream](q[stream]), self.k_rms_norm[stream](k[stream])
        mixed = self._over_scenes(q, k, v, scene_sizes)
        return {stream: project(mixed[stream].flatten(2)) for stream, project in self.to_out.items()}

    def _over_scenes(
        self, q: dict[str, Tensor], k: dict[str, Tensor], v: dict[str, Tensor], sizes: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """Attention within each scene: all at once where they are equally large, else one after the other."""
        if self.pattern.mode == PER_OBJECT or len(set(sizes)) == 1:
            return self._mix(q, k, v, objects=1 if self.pattern.mode == PER_OBJECT else sizes[0])
        mixed, start = [], 0
        for size in sizes:
            scene = slice(start, start + size)
            mixed.append(self._mix(*({s: x[scene] for s, x in part.items()} for part in (q, k, v)), objects=size))
            start += size
        return {s: torch.cat([part[s] for part in mixed]) for s in q}

    def _mix(
        self, q: dict[str, Tensor], k: dict[str, Tensor], v: dict[str, Tensor], *, objects: int
    ) -> dict[str, Tensor]:
        """Attention of equally large scenes. objects: n."""
        mode = self.pattern.mode
        pooled = mode == "pooled" and objects > 1
        out = {}
        for s in self.protected:
            if pooled:
                out[s] = attend(q[s], self._with_cubes(k[s], objects), self._with_cubes(v[s], objects))
            else:
                n = objects if mode == "full" else 1
                out[s] = attend(fold(q[s], n), fold(k[s], n), fold(v[s], n)).reshape(q[s].shape)
        if self.others:
            queries = torch.cat([q[s] for s in self.others], 1)
            if not pooled:
                queries = fold(queries, objects)
            mixed = attend(queries, self._joint(k, objects, pooled), self._joint(v, objects, pooled))
            mixed = mixed.reshape(q[self.others[0]].shape[0], -1, *mixed.shape[2:])
            out |= zip(self.others, torch.split(mixed, [q[s].shape[1] for s in self.others], 1), strict=True)
        return out

    def _joint(self, x: dict[str, Tensor], objects: int, pooled: bool) -> Tensor:
        """Keys or values that the streams without protection see: theirs, then the protected ones."""
        parts = [fold(torch.cat([x[s] for s in self.others], 1), objects)]
        if pooled:
            parts = [parts[0][:, None].expand(-1, objects, -1, -1, -1).flatten(0, 1)]
        for s in self.protected:
            seen = x[s].detach() if self.pattern.detach_protected else x[s]
            parts.append(self._with_cubes(seen, objects) if pooled else fold(seen, objects))
        return torch.cat(parts, 1)

    def _with_cubes(self, x: Tensor, objects: int) -> Tensor:
        """(N, L, H, D) and behind it the cubes of the scene's other objects."""
        return torch.cat([x, of_others(pooled_cubes(x, self.pattern.pool), objects)], 1)


class ConditionCache:
    """Keys and values of one condition, kept over evaluations of networks whose weights do not change.

    Filled by the first evaluation that records no gradient, read by the later ones. A change of the weights in place
    is noticed; after one by other means, as under sharding, make a new cache.
    """

    def __init__(self) -> None:
        self._kept: dict[CrossAttention, tuple[int, Tensor, Tensor]] = {}

    def keys_values(self, attention: CrossAttention, condition: Tensor) -> tuple[Tensor, Tensor]:
        """What `attention.keys_values(condition)` gives."""
        if torch.is_grad_enabled():
            return attention.keys_values(condition)
        weight = attention.to_kv.weight
        version = 0 if weight.is_inference() else weight._version
        found = self._kept.get(attention)
        if found is None or found[0] != version:
            found = self._kept[attention] = (version, *attention.keys_values(condition))
        return found[1:]

    @property
    def num_bytes(self) -> int:
        """Bytes that are kept."""
        return sum(x.nbytes for _, k, v in self._kept.values() for x in (k, v))


class CrossAttention(nn.Module):
    """Every token of a stream attends to all tokens of the condition.

    channels: C.
    condition_channels: Cc.
    num_heads: H.
    qk_norm: normalise queries and keys per head.
    """

    def __init__(self, channels: int, condition_channels: int, num_heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.channels, self.num_heads, self.head_dim = channels, num_heads, channels // num_heads
        self.to_q = Linear(channels, channels)
        self.to_kv = Linear(condition_channels, 2 * channels)
        self.q_rms_norm = HeadNorm(num_heads, self.head_dim) if qk_norm else None
        self.k_rms_norm = HeadNorm(num_heads, self.head_dim) if qk_norm else None
        self.to_out = Linear(channels, channels)

    def keys_values(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Lc, Cc) -> keys and values (B, Lc, H, D)."""
        kv = self.to_kv(condition).reshape(*condition.shape[:2], 2, self.num_heads, self.head_dim)
        k, v = kv.unbind(2)
        return (k if self.k_rms_norm is None else self.k_rms_norm(k)), v

    def forward(
        self, h: Tensor, condition: Tensor, cache: ConditionCache | None, *, shortcuts: bool, unconditional: bool
    ) -> Tensor:
        """(N, L, C) from h (N, L, C) and condition (B, Lc, Cc), B one of 1 and N; B = 1 is shared, its keys made once.

        cache: where keys and values of this condition are kept, or None.
        shortcuts: take the way of fewest operations with the same result.
        unconditional: the condition is all zero, and no gradient is recorded: all keys are equal then, and the result
            is that of the value's bias, (1, 1, C).
        """
        if unconditional:
            out: Tensor = self.to_out(self.to_kv.bias[self.channels :])
            return out.reshape(1, 1, -1).to(h.dtype)
        q = self.to_q(h).reshape(*h.shape[:2], self.num_heads, self.head_dim)
        if self.q_rms_norm is not None:
            q = self.q_rms_norm(q)
        folded = fold(q, q.shape[0] // condition.shape[0])
        if shortcuts and self.k_rms_norm is None and folded.shape[1] <= self.head_dim:
            mixed = self._absorbed(folded, condition)
        else:
            k, v = self.keys_values(condition) if cache is None else cache.keys_values(self, condition)
            mixed = attend(folded, k, v)
        out = self.to_out(mixed.reshape(h.shape))
        return out  # noqa: RET504  # typed by the first branch

    def _absorbed(self, q: Tensor, condition: Tensor) -> Tensor:
        """Attention with the key's weights multiplied into the query, and the value's applied to averaged tokens.

        For at most D queries per row of the condition this is cheaper than projecting the condition. The key's bias
        adds the same to every score of a query and falls out of the softmax. q: (B, Q, H, D).
        """
        batch, count = q.shape[:2]
        w_k, w_v = self.to_kv.weight.reshape(2, self.num_heads, self.head_dim, -1).unbind(0)
        b_v = self.to_kv.bias[self.channels :].reshape(self.num_heads, self.head_dim)
        queries = torch.einsum("bqhd,hdc->bhqc", q * (1 / math.sqrt(self.head_dim)), w_k)
        scores = queries.flatten(1, 2) @ condition.transpose(1, 2)
        dtype = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(-1, dtype=dtype).to(condition.dtype)
        averaged = (weights @ condition).reshape(batch, self.num_heads, count, -1)
        return torch.einsum("bhqc,hdc->bqhd", averaged, w_v) + b_v
