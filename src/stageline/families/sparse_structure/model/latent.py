"""Modalities of an object as tokens: one Linear in, one Linear out, and a position embedding per token.

Shapes: N objects, L tokens of the modality, ch its channels, C the network's width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.families.sparse_structure.model.layers import MAX_PERIOD, Linear, at_least_float32

PositionEmbedder = Callable[[], Tensor]


class ShapePositionEmbedder:
    """Fixed sines and cosines of the three integer coordinates of a cube's cells, x slowest: ((r / p)^3, C).

    model_channels: C.
    resolution, patch_size: cells along an edge are resolution // patch_size.
    """

    def __init__(self, *, model_channels: int, resolution: int, patch_size: int = 1) -> None:
        self.model_channels, self.side = model_channels, resolution // patch_size

    def __call__(self) -> Tensor:
        count = self.model_channels // 6
        frequencies = torch.pow(float(MAX_PERIOD), -torch.arange(count, dtype=torch.float64) / max(count, 1))
        cells = torch.meshgrid(*3 * [torch.arange(self.side, dtype=torch.float64)], indexing="ij")
        angles = torch.stack(cells, dim=-1).reshape(-1, 3, 1) * frequencies
        values = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
        return functional.pad(values, (0, self.model_channels - values.shape[1])).to(torch.get_default_dtype())


class LearntPositionEmbedder:
    """A parameter, N(0, 1) at the start: (token_len, C).

    model_channels: C.
    token_len: number of tokens.
    """

    def __init__(self, *, model_channels: int, token_len: int) -> None:
        self.shape = (token_len, model_channels)

    def __call__(self) -> nn.Parameter:
        return nn.Parameter(torch.randn(self.shape))


class RandomPositionEmbedder(LearntPositionEmbedder):
    """The same as a buffer that never changes."""

    def __call__(self) -> Tensor:  # type: ignore[override]  # a buffer, since it is no parameter
        return torch.randn(self.shape)


EMBEDDERS: dict[str, Callable[..., PositionEmbedder]] = {
    embedder.__name__: embedder for embedder in (ShapePositionEmbedder, LearntPositionEmbedder, RandomPositionEmbedder)
}


class Latent(nn.Module):
    """One modality: (N, L, ch) -> tokens (N, L, C), and back.

    in_channels: ch.
    model_channels: C.
    pos_embedder: gives (L, C): a Parameter is trained, a plain tensor is kept as a buffer.
    """

    pos_emb: Tensor

    def __init__(self, in_channels: int, model_channels: int, pos_embedder: PositionEmbedder) -> None:
        super().__init__()
        self.in_channels, self.model_channels = in_channels, model_channels
        self.input_layer = Linear(in_channels, model_channels)
        self.out_layer = Linear(model_channels, in_channels)
        embedding = pos_embedder()
        if not isinstance(embedding, Tensor):
            raise TypeError(f"pos_embedder gave {type(embedding).__name__}, expected a Parameter or a tensor")
        if embedding.dim() != 2 or embedding.shape[1] != model_channels or not len(embedding):
            raise ValueError(
                f"pos_embedder gave the shape {list(embedding.shape)}, expected [tokens, {model_channels}]: "
                "its model_channels is that of the latent"
            )
        if isinstance(embedding, nn.Parameter):
            self.pos_emb = embedding
        else:
            self.register_buffer("pos_emb", embedding)

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.pos_emb.shape[0]

    def to_tokens(self, x: Tensor) -> Tensor:
        """(N, L, ch) -> (N, L, C), in the dtype of the weights."""
        tokens: Tensor = self.input_layer(x.to(self.input_layer.weight.dtype))
        return tokens + self.pos_emb

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """(N, L, C) -> (N, L, ch): a norm without weights (eps 1e-5), then the output layer."""
        dtype = at_least_float32(tokens.dtype)
        normed = functional.layer_norm(tokens.to(dtype), (self.model_channels,))
        out: Tensor = self.out_layer(normed.to(self.out_layer.weight.dtype))
        return out

    def zero_output(self) -> None:
        """Set the output layer to zero, so that the modality's output is exactly zero."""
        nn.init.zeros_(self.out_layer.weight)
        nn.init.zeros_(self.out_layer.bias)


def build_latents(latent_mapping: Mapping[str, Any]) -> dict[str, Latent]:
    """Name -> Latent, from modules, plain `{in_channels, model_channels, pos_embedder}` or `_target_` nodes.

    latent_mapping: not changed. A `pos_embedder` is a callable, a `_target_` node, or a plain mapping: with
        `resolution` and `patch_size` the grid's, with `token_len` the learned one.
    """
    if not isinstance(latent_mapping, Mapping) and not isinstance(latent_mapping, nn.ModuleDict):
        raise TypeError(f"latent_mapping is {type(latent_mapping).__name__}, expected a mapping name -> Latent")
    latent_mapping = dict(latent_mapping.items())
    if "_target_" in latent_mapping:
        latent_mapping = _built(latent_mapping)
    if not latent_mapping:
        raise ValueError("latent_mapping is empty; name at least one modality")
    return {str(name): _build_latent(str(name), entry) for name, entry in latent_mapping.items()}


def _build_latent(name: str, entry: Any) -> Latent:
    if isinstance(entry, Mapping) and "_target_" in entry:
        entry = _built(entry)
    if isinstance(entry, Latent):
        return entry
    expected = {"in_channels", "model_channels", "pos_embedder"}
    if not isinstance(entry, Mapping) or set(entry) != expected:
        found = sorted(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
        raise ValueError(f"latent_mapping.{name} is {found}, expected a Latent or a mapping of {sorted(expected)}")
    embedder = entry["pos_embedder"]
    if isinstance(embedder, Mapping):
        embedder = _build_embedder(f"latent_mapping.{name}.pos_embedder", embedder)
    return Latent(int(entry["in_channels"]), int(entry["model_channels"]), embedder)


def _build_embedder(where: str, entry: Mapping[str, Any]) -> PositionEmbedder:
    if "_target_" in entry:
        built: PositionEmbedder = _built(entry)
        return built
    keys = set(map(str, entry))
    if keys == {"model_channels", "token_len"}:
        return LearntPositionEmbedder(**entry)
    if {"model_channels", "resolution"} <= keys <= {"model_channels", "resolution", "patch_size"}:
        return ShapePositionEmbedder(**entry)
    raise ValueError(
        f"{where} has the keys {sorted(keys)}, expected model_channels with "
        "resolution and patch_size, or with token_len"
    )


def _built(node: Mapping[str, Any]) -> Any:
    """What a `_target_` node describes."""
    # Loaded here: the table of known classes names this module.
    from stageline.families.sparse_structure.aliases import build

    return build(node)
