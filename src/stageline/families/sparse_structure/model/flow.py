"""The per-object network: latents, time, step and condition -> velocity of every modality.

A transformer over streams of tokens (one for voxels, one for the pose in the public model) with cross-attention to
condition tokens. Tensors bear the public checkpoint's names. Sources: SAM 3D (arXiv:2511.16624), TRELLIS
(arXiv:2412.01506); step embedding from shortcut models (arXiv:2410.12557).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stageline.families.sparse_structure.model.arguments import (
    check_keywords,
    raise_faults,
    read_streams,
    read_torso_dtype,
    size_faults,
)
from stageline.families.sparse_structure.model.attention import PER_OBJECT, AttentionPattern, ConditionCache
from stageline.families.sparse_structure.model.block import Block
from stageline.families.sparse_structure.model.latent import Latent, build_latents
from stageline.families.sparse_structure.model.layers import TimestepEmbedder, modulation

TIME_INIT_STD = 0.02

Latents = Mapping[str, Tensor]


@dataclass(frozen=True)
class PreparedCondition:
    """A condition that was embedded once, for several evaluations; given to a network in the condition's place.

    tokens: (1 or N, Lc, Cc).
    cache: keys and values that were made of them, of every network that saw them.
    """

    tokens: Tensor
    cache: ConditionCache = field(default_factory=ConditionCache)

    def zeroed(self) -> PreparedCondition:
        """The same shape with zeros, and nothing kept yet."""
        return PreparedCondition(torch.zeros_like(self.tokens))


class SparseStructureFlowTdfyWrapper(nn.Module):
    """Velocity of N objects, each for itself.

    latent_mapping: modality -> Latent, or its config, see `build_latents`; the order is that of the outputs.
    latent_share_transformer: stream -> modalities that are one sequence with shared weights; others are streams alone.
    in_channels, out_channels: kept as attributes, otherwise unused.
    model_channels: width C.
    cond_channels: width of condition tokens.
    num_blocks: number of blocks.
    num_heads: heads; None for C // num_head_channels.
    num_head_channels: width of a head where num_heads is None.
    mlp_ratio: hidden width of the feed-forward, in C.
    pe_mode: `ape`; the network has no rotary embedding.
    qk_rms_norm, qk_rms_norm_cross: normalise queries and keys of self-attention, of cross-attention.
    share_mod: one modulation layer for all blocks.
    use_checkpoint: recompute each block's activations in the backward pass.
    use_fp16: short for torso_dtype float16.
    is_shortcut_model: has a step embedding, and so takes `d`.
    freeze_shared_parameters: time embedding and the blocks' own modulation do not train.
    condition_embedder: module that gives (1 or N, Lc, Cc) of the conditions; None for exactly one condition as it is.
    force_zeros_cond: `cfg=True` makes the embedded condition zero; otherwise `cfg` has no effect.
    protect_modality_list: streams that see themselves only, and into which the others return no gradient.
    torso_dtype: dtype that the blocks' linear weights are stored in and the blocks compute in: float32, float16 or
        bfloat16, as a name or a torch dtype. Norms, embeddings and latents stay float32.
    exact_shortcuts: cheaper ways to the same result: weights of the pose's keys absorbed by its queries, the
        unconditional pass in closed form where no gradient is recorded. Also an attribute.
    shape_attend_pose, freeze_d_time_embedder, resolution, patch_size: accepted, without effect.

    Raises TypeError for an unknown keyword, ValueError that lists all values which do not fit.
    """

    def __init__(
        self,
        latent_mapping: Mapping[str, Any],
        latent_share_transformer: Mapping[str, Sequence[str]] | None = None,
        *,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        cond_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int = 64,
        mlp_ratio: float = 4,
        pe_mode: str = "ape",
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        share_mod: bool = False,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        is_shortcut_model: bool = False,
        freeze_shared_parameters: bool = False,
        condition_embedder: Callable[..., Tensor] | None = None,
        force_zeros_cond: bool = False,
        protect_modality_list: Sequence[str] = ("shape",),
        torso_dtype: str | torch.dtype | None = None,
        exact_shortcuts: bool = True,
        **more: Any,
    ) -> None:
        super().__init__()
        check_keywords(type(self), more)
        if condition_embedder is not None and not callable(condition_embedder):
            found = type(condition_embedder).__name__
            raise TypeError(f"{type(self).__name__}: condition_embedder is {found}, expected a module or None")
        latents = build_latents(latent_mapping)
        streams = read_streams(latents, latent_share_transformer or {})
        heads = num_heads if num_heads is not None else max(model_channels // num_head_channels, 1)
        dtype, faults = read_torso_dtype(torso_dtype, use_fp16)
        faults += size_faults(latents, streams, model_channels, cond_channels, num_blocks, heads, protect_modality_list)
        if int(model_channels * mlp_ratio) < 1:
            faults.append(f"mlp_ratio is {mlp_ratio}, expected a hidden width of at least 1")
        if pe_mode != "ape":
            faults.append(f"pe_mode is {pe_mode!r}; this network has position embeddings only, expected 'ape'")
        raise_faults(type(self), faults)

        self.in_channels, self.out_channels, self.model_channels = in_channels, out_channels, model_channels
        self.cond_channels, self.num_blocks, self.num_heads = cond_channels, num_blocks, heads
        self.mlp_ratio, self.qk_rms_norm, self.qk_rms_norm_cross = mlp_ratio, qk_rms_norm, qk_rms_norm_cross
        self.share_mod, self.use_checkpoint, self.is_shortcut_model = share_mod, use_checkpoint, is_shortcut_model
        self.force_zeros_cond, self.exact_shortcuts = force_zeros_cond, exact_shortcuts
        self.streams, self.protected = streams, tuple(protect_modality_list)

        self.t_embedder = TimestepEmbedder(model_channels)
        for layer in (0, 2):
            nn.init.normal_(cast(Tensor, self.t_embedder.mlp[layer].weight), std=TIME_INIT_STD)
        self.d_embedder = None
        if is_shortcut_model:
            self.d_embedder = TimestepEmbedder(model_channels)
            nn.init.zeros_(cast(Tensor, self.d_embedder.mlp[2].weight))
        self.adaLN_modulation = modulation(model_channels) if share_mod else None
        self.blocks = nn.ModuleList(map(self._block, self._patterns()))
        self.latent_mapping = nn.ModuleDict(latents)
        self.condition_embedder = condition_embedder

        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
        if freeze_shared_parameters:
            self.t_embedder.requires_grad_(False)
            for block in self.blocks:
                if block.adaLN_modulation is not None:
                    cast(nn.Module, block.adaLN_modulation).requires_grad_(False)

    def _patterns(self) -> list[AttentionPattern]:
        """Who attends to whom, per block."""
        return self.num_blocks * [AttentionPattern(PER_OBJECT, self.protected, detach_protected=True)]

    def _block(self, pattern: AttentionPattern) -> Block:
        return Block(
            tuple(self.streams),
            self.model_channels,
            self.cond_channels,
            self.num_heads,
            mlp_ratio=self.mlp_ratio,
            qk_norm=self.qk_rms_norm,
            qk_norm_cross=self.qk_rms_norm_cross,
            own_modulation=not self.share_mod,
            pattern=pattern,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.t_embedder.mlp[0].weight.device  # type: ignore[return-value]  # a Linear's weight

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights outside the blocks."""
        return self.t_embedder.mlp[0].weight.dtype  # type: ignore[return-value]  # a Linear's weight

    @property
    def torso_dtype(self) -> torch.dtype:
        """Of the blocks' linear weights, and of what flows between blocks."""
        return cast(Block, self.blocks[0]).self_attn.to_out[next(iter(self.streams))].weight.dtype  # type: ignore[return-value]

    def forward(
        self,
        latents_dict: Latents,
        t: Tensor | float,
        *condition_args: Any,
        d: Tensor | float | None = None,
        cfg: bool = False,
        **condition_kwargs: Any,
    ) -> dict[str, Tensor]:
        """Modality -> velocity (N, L, ch), in the order of `latent_mapping`, shapes and dtype of the inputs.

        latents_dict: modality -> (N, L, ch); other keys are ignored.
        t: times the generator's scale, 0-dim, (1,) or (N,).
        condition_args, condition_kwargs: go to the condition embedder; without one exactly one tensor
            (1 or N, Lc, Cc), or a `PreparedCondition`, positional or as `cond`.
        d: step times the same scale, shaped like t; None skips the embedding, which zero does not.
        cfg: make the condition zero, where the network has `force_zeros_cond`.
        """
        return self._evaluate(latents_dict, t, self.prepare_condition(*condition_args, **condition_kwargs), d, cfg)

    def prepare_condition(self, *condition_args: Any, **condition_kwargs: Any) -> PreparedCondition:
        """The condition, embedded; given to `forward` in its place, keys and values are made once.

        Keys and values are kept and reused by evaluations that record no gradient, for as long as the result lives.
        Every tensor is as in `forward`.
        """
        given = (*condition_args, *condition_kwargs.values())
        if len(given) == 1 and isinstance(given[0], PreparedCondition):
            return given[0]
        if self.condition_embedder is not None:
            return PreparedCondition(self.condition_embedder(*condition_args, **condition_kwargs))
        if len(given) != 1 or not set(condition_kwargs) <= {"cond"}:
            raise TypeError(
                f"{type(self).__name__} got {len(condition_args)} positional conditions and the keywords "
                f"{sorted(condition_kwargs)}; without a condition_embedder it takes exactly one condition, "
                "positional or as `cond`"
            )
        return PreparedCondition(given[0])

    def _evaluate(
        self,
        latents: Latents,
        t: Tensor | float,
        condition: PreparedCondition,
        d: Tensor | float | None,
        cfg: bool,
        sizes: tuple[int, ...] | None = None,
        places: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`forward` with an embedded condition.

        sizes: objects per scene; one scene where None.
        places: (N, 1, C), added to every token of an object.
        """
        objects, dtype = self._check_latents(latents)
        tokens = condition.tokens
        cache: ConditionCache | None = condition.cache
        self._check_condition(tokens, objects)
        zero = cfg and self.force_zeros_cond
        sizes = sizes or (objects,)
        torso = self.torso_dtype
        e = self._embed_times(t, d, objects).to(torso)
        x = {name: h.to(torso) for name, h in self._to_streams(latents, places).items()}
        unconditional = zero and self.exact_shortcuts and not torch.is_grad_enabled()
        if zero and not unconditional:
            tokens, cache = torch.zeros_like(tokens), None
        tokens = tokens.to(torso)
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(
                    block,
                    x,
                    e,
                    tokens,
                    sizes,
                    shortcuts=self.exact_shortcuts,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                x = block(x, e, tokens, sizes, cache, shortcuts=self.exact_shortcuts, unconditional=unconditional)
        return self._from_streams(x, dtype)

    def _embed_times(self, t: Tensor | float, d: Tensor | float | None, objects: int) -> Tensor:
        """Embedding of time and step: (1 or N, C), or (1 or N, 6 C) where the modulation is shared."""
        e: Tensor = self.t_embedder(self._times("t", t, objects))
        if d is not None:
            if self.d_embedder is None:
                raise ValueError(
                    "a step `d` was given to a network without a step embedding; "
                    "build it with is_shortcut_model=True, or leave `d` out"
                )
            e = e + self.d_embedder(self._times("d", d, objects))
        return e if self.adaLN_modulation is None else self.adaLN_modulation(e)

    def _times(self, name: str, value: Tensor | float, objects: int) -> Tensor:
        """A time or step as (1,) or (N,)."""
        value = torch.as_tensor(value, device=self.device)
        if value.dim() > 1 or (value.dim() == 1 and value.shape[0] not in (1, objects)):
            raise ValueError(f"{name} has the shape {list(value.shape)}, expected [], [1] or [{objects}]")
        return value.reshape(-1)

    def _to_streams(self, latents: Latents, places: Tensor | None) -> dict[str, Tensor]:
        """Modalities -> streams of tokens (N, L, C)."""
        tokens = {name: self._latent(name).to_tokens(latents[name]) for name in self.latent_mapping}
        if places is not None:
            tokens = {name: x + places for name, x in tokens.items()}
        return {
            stream: tokens[names[0]] if len(names) == 1 else torch.cat([tokens[name] for name in names], 1)
            for stream, names in self.streams.items()
        }

    def _from_streams(self, x: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """Streams of tokens -> modalities in the order of `latent_mapping`."""
        out = {}
        for stream, names in self.streams.items():
            latents = [self._latent(name) for name in names]
            parts = torch.split(x[stream].to(dtype), [latent.num_tokens for latent in latents], 1)
            for name, latent, part in zip(names, latents, parts, strict=True):
                out[name] = latent.from_tokens(part).to(dtype)
        return {name: out[name] for name in self.latent_mapping}

    def _latent(self, name: str) -> Latent:
        return cast(Latent, self.latent_mapping[name])

    def _check_latents(self, latents: Latents) -> tuple[int, torch.dtype]:
        """Number of objects and common dtype.

        KeyError for a missing modality, TypeError for what is no tensor, ValueError for wrong shapes.
        """
        missing = [name for name in self.latent_mapping if name not in latents]
        if missing:
            raise KeyError(f"latents lack {missing}; they have {sorted(latents)}, expected {list(self.latent_mapping)}")
        given = {name: latents[name] for name in self.latent_mapping}
        if strange := {name: type(x).__name__ for name, x in given.items() if not isinstance(x, Tensor)}:
            raise TypeError(f"{type(self).__name__}: latents are {strange}, expected tensors (N, L, channels)")
        first = next(iter(given.values()))
        objects = first.shape[0] if first.dim() else 0
        faults = []
        for name, x in given.items():
            latent = self._latent(name)
            if x.dim() != 3 or x.shape[0] != objects or x.shape[1:] != (latent.num_tokens, latent.in_channels):
                faults.append(
                    f"{name} has the shape {list(x.shape)}, "
                    f"expected [{objects or 'N'}, {latent.num_tokens}, {latent.in_channels}]"
                )
        if objects == 0:
            faults.append("there are no objects")
        if len({x.dtype for x in given.values()}) > 1:
            faults.append(f"dtypes differ: { {name: str(x.dtype) for name, x in given.items()} }; expected one")
        raise_faults(type(self), faults)
        return objects, first.dtype

    def _check_condition(self, tokens: Any, objects: int) -> None:
        """TypeError for what is no tensor, ValueError for a shape that fits neither one scene nor its objects."""
        if not isinstance(tokens, Tensor):
            raise TypeError(f"the embedded condition is {type(tokens).__name__}, expected a tensor (1 or N, Lc, Cc)")
        right = tokens.dim() == 3 and tokens.shape[0] in (1, objects) and tokens.shape[1] > 0
        if not right or tokens.shape[2] != self.cond_channels:
            rows = "1" if objects == 1 else f"1 or {objects}"
            raise ValueError(
                f"the condition has the shape {list(tokens.shape)}, expected [{rows}, tokens, {self.cond_channels}]"
            )
