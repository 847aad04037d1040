"""The U-Net: settings shared by both backbones, encoder level, decoder stage, and the `concat` backbone.

dims = [mc, mc * mult[0], ...]; encoder level l works on dims[l] at H / 2^l; decoder stage s on C_s = dims[S - s] at
H / 2^(S-1-s). There are S - 1 downsamplings: decoder stage 0 and the bottleneck share a resolution. FiLM enters only
through the `Modulation` of a decoder stage, looked up by its index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.errors import ConfigError
from stageline.families.film_flow.config.film_plan import ApplyPoint, decoder_channels
from stageline.families.film_flow.model.blocks import (
    AttentionKind,
    BackboneVariant,
    ResBlock,
    TimeEmbedding,
    make_attention,
)
from stageline.families.film_flow.model.film import FilmSite, Modulation, relative_change

Changes = dict[int, Tensor]
"""Per modulated decoder stage, ||delta|| / ||x|| per sample (B,)."""


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """What both backbones are built from.

    image_size: side of the training images; with `attn_resolutions` it says which levels have softmax attention (level
    resolutions are image_size, image_size / 2, ...).  level_attention: what the other levels have, None is `none` for
    plain and `linear` for msd_v0; the bottleneck always has softmax attention.  time_scale: factor on t before the
    sinusoid.
    fourier_grid: rows of the `dual` Fourier maps, which are resized to the size at hand;
    msd_v0 has maps of exactly image_size instead.
    mid_layers: depth of the `dual` mid transformer.
    """

    model_channels: int = 32
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    image_channels: int = 1
    image_size: int = 224
    attn_resolutions: tuple[int, ...] = ()
    level_attention: Literal["linear", "none"] | None = None
    backbone_variant: BackboneVariant = "plain"
    dropout: float = 0.0
    use_gradient_checkpointing: bool = False
    time_scale: float = 1000.0
    fourier_grid: int = 32
    mid_layers: int = 1

    def __post_init__(self) -> None:
        decoder_channels(self.model_channels, self.channel_mult)

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels at the stem and after each encoder level."""
        return (self.model_channels, *(self.model_channels * m for m in self.channel_mult))

    @property
    def num_levels(self) -> int:
        """S: encoder levels, and as many decoder stages."""
        return len(self.channel_mult)

    def attention_at(self, level: int) -> AttentionKind:
        """Attention of encoder level `level` and of the decoder stage that mirrors it."""
        if (self.image_size >> level) in self.attn_resolutions:
            return "full"
        return self.level_attention or ("linear" if self.backbone_variant == "msd_v0" else "none")

    def make_res(self, channels_in: int, channels_out: int) -> ResBlock:
        """A residual block with time."""
        return ResBlock(
            channels_in,
            channels_out,
            4 * self.model_channels,
            dropout=self.dropout,
            recompute=self.use_gradient_checkpointing,
        )


def check_size(x: Tensor, num_levels: int) -> None:
    """Refuse a height or width that the downsamplings do not divide (ConfigError E_SIZE)."""
    factor = 2 ** (num_levels - 1)
    height, width = x.shape[-2], x.shape[-1]
    if height % factor or width % factor:
        raise ConfigError(
            f"the network got an input of {height}x{width}; height and width must be divisible by {factor}",
            remedy="pad it, as `stageline predict` does by itself",
            code="E_SIZE",
        )


class EncoderLevel(nn.Module):
    """Res, Res, attention, (fusion), then stride 2 (a plain convolution at the last level).

    forward gives both skips and what goes down. fuse: of the image path, called with the mask path's features `mask`.
    """

    def __init__(self, settings: BackboneSettings, level: int) -> None:
        super().__init__()
        here, after = settings.dims[level], settings.dims[level + 1]
        self.res1 = settings.make_res(here, here)
        self.res2 = settings.make_res(here, here)
        self.attn = make_attention(settings.attention_at(level), here, settings.backbone_variant)
        last = level == settings.num_levels - 1
        self.down = nn.Conv2d(here, after, 3, padding=1) if last else nn.Conv2d(here, after, 4, stride=2, padding=1)

    def forward(
        self, x: Tensor, emb: Tensor, mask: Tensor | None = None, fuse: nn.Module | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        first: Tensor = self.res1(x, emb)
        second: Tensor = self.attn(self.res2(first, emb))
        if fuse is not None:
            second = fuse(mask, second)
        return first, second, self.down(second)


class DecoderStage(nn.Module):
    """concat skip -> res1 -> site -> concat skip -> res2 -> site -> attention -> up. One of the two sites is in use."""

    def __init__(self, settings: BackboneSettings, index: int, apply_point: ApplyPoint) -> None:
        super().__init__()
        level = settings.num_levels - 1 - index
        here, skip = settings.dims[level + 1], settings.dims[level]
        self.res1 = settings.make_res(here + skip, here)
        self.res2 = settings.make_res(here + skip, here)
        self.site = FilmSite()
        self.attn = make_attention(settings.attention_at(level), here, settings.backbone_variant)
        self.doubles = level > 0
        self.up = nn.Conv2d(here, skip, 3, padding=1)
        self.after_first = apply_point == "post_block1"

    def forward(
        self, x: Tensor, skips: tuple[Tensor, Tensor], emb: Tensor, modulation: Modulation | None, measure: bool
    ) -> tuple[Tensor, Tensor | None]:
        """x after this decoder stage, and the relative change by FiLM if `measure` asks for it."""
        change = None
        x = self.res1(torch.cat((x, skips[1]), dim=1), emb)
        if self.after_first:
            before, x = x, self.site(x, modulation)
            change = relative_change(before, x) if measure and modulation is not None else None
        x = self.res2(torch.cat((x, skips[0]), dim=1), emb)
        if not self.after_first:
            before, x = x, self.site(x, modulation)
            change = relative_change(before, x) if measure and modulation is not None else None
        x = self.attn(x)
        if self.doubles:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.up(x), change


def run_decoder(
    stages: nn.ModuleList,
    x: Tensor,
    skips: Sequence[tuple[Tensor, Tensor]],
    emb: Tensor,
    modulations: Mapping[int, Modulation],
    measure: bool,
) -> tuple[Tensor, Changes]:
    """All decoder stages, deepest first. skips: per encoder level, shallowest first."""
    changes: Changes = {}
    for index, stage in enumerate(stages):
        x, change = stage(x, skips[len(stages) - 1 - index], emb, modulations.get(index), measure)
        if change is not None:
            changes[index] = change
    return x, changes


class ConcatMiddle(nn.Module):
    """Res -> full attention -> Res."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        width = settings.dims[-1]
        self.res1 = settings.make_res(width, width)
        self.attn = make_attention("full", width, settings.backbone_variant)
        self.res2 = settings.make_res(width, width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        out: Tensor = self.res2(self.attn(self.res1(x, emb)), emb)
        return out


class ConcatUNet(nn.Module):
    """U-Net on [x_t, image] stacked at the stem.

    forward: x_t (B, 1, H, W), t (B,) in [0, 1], image (B, C_img, H, W) -> (B, 1, H, W), and the changes by FiLM where
    `measure` is set. modulations: decoder stage -> what it applies.
    """

    def __init__(self, settings: BackboneSettings, apply_point: ApplyPoint) -> None:
        super().__init__()
        width = settings.model_channels
        self.num_levels = settings.num_levels
        self.stem = nn.Conv2d(1 + settings.image_channels, width, 7, padding=3)
        self.time = TimeEmbedding(width, settings.time_scale, settings.backbone_variant)
        self.enc = nn.ModuleList(EncoderLevel(settings, level) for level in range(settings.num_levels))
        self.mid = ConcatMiddle(settings)
        self.dec = nn.ModuleList(DecoderStage(settings, index, apply_point) for index in range(settings.num_levels))
        self.tail = settings.make_res(2 * width, width)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        image: Tensor,
        modulations: Mapping[int, Modulation],
        measure: bool = False,
    ) -> tuple[Tensor, Changes]:
        check_size(x_t, self.num_levels)
        emb = self.time(t)
        stem = x = self.stem(torch.cat((x_t, image), dim=1))
        skips = []
        for level in self.enc:
            first, second, x = level(x, emb)
            skips.append((first, second))
        x = self.mid(x, emb)
        x, changes = run_decoder(self.dec, x, skips, emb, modulations, measure)
        return self.out(self.tail(torch.cat((x, stem), dim=1), emb)), changes
