"""The `dual` backbone in the manner of MedSegDiff (arXiv:2211.00611): a second encoder for the image.

Both encoders have the same shapes and weights of their own. At each level the image path is fused with the mask path
after attention; at the bottleneck the two are added and pass through a cross-attending mid transformer. Imported
checkpoints run here with `backbone_variant` msd_v0 and their Fourier maps at the original grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from stageline.families.film_flow.config.film_plan import ApplyPoint
from stageline.families.film_flow.model.blocks import (
    HEAD_DIM,
    HEADS,
    BackboneVariant,
    ChannelNorm,
    ResBlock,
    TimeEmbedding,
    join_heads,
    split_heads,
    start_at_zero,
)
from stageline.families.film_flow.model.film import Modulation
from stageline.families.film_flow.model.fourier import FourierFilter
from stageline.families.film_flow.model.unet import (
    BackboneSettings,
    Changes,
    DecoderStage,
    EncoderLevel,
    check_size,
    run_decoder,
)


class Fusion(nn.Module):
    """x_f = Fourier filter of x; c <- (LN(x_f) * LN(c)) * c; then a residual block without time."""

    def __init__(self, settings: BackboneSettings, level: int) -> None:
        super().__init__()
        channels = settings.dims[level]
        fixed = settings.backbone_variant == "msd_v0"
        rows = settings.image_size >> level if fixed else settings.fourier_grid
        self.filter = FourierFilter(channels, (rows, rows // 2 + 1), fixed_width=rows if fixed else 0)
        self.norm_input = ChannelNorm(channels, bias=True)
        self.norm_condition = ChannelNorm(channels, bias=True)
        self.block = ResBlock(channels, channels, 0, recompute=settings.use_gradient_checkpointing)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        fused: Tensor = self.block(self.norm_input(self.filter(x)) * self.norm_condition(c) * c)
        return fused


class CrossAttention(nn.Module):
    """Queries and keys from one map, values from another; both (B, C, H, W). Not residual by itself."""

    def __init__(self, channels: int, variant: BackboneVariant) -> None:
        super().__init__()
        self.norm_match = ChannelNorm(channels)
        self.norm_value = ChannelNorm(channels)
        self.qk = nn.Conv2d(channels, 2 * HEADS * HEAD_DIM, 1, bias=False)
        self.v = nn.Conv2d(channels, HEADS * HEAD_DIM, 1, bias=False)
        self.out = nn.Conv2d(HEADS * HEAD_DIM, channels, 1)
        if variant == "plain":
            start_at_zero(self.out)

    def forward(self, match: Tensor, value: Tensor) -> Tensor:
        q, k = (split_heads(part) for part in self.qk(self.norm_match(match)).chunk(2, dim=1))
        v = split_heads(self.v(self.norm_value(value)))
        mixed: Tensor = self.out(join_heads(functional.scaled_dot_product_attention(q, k, v), value))
        return mixed


class FeedForward(nn.Module):
    """Residual ChannelNorm -> 1x1 to 4C -> GELU -> 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.fc1 = nn.Conv2d(channels, 4 * channels, 1)
        self.fc2 = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide: Tensor = self.fc2(functional.gelu(self.fc1(self.norm(x))))
        return x + wide


class MidLayer(nn.Module):
    """Cross-attention (match: image, value: mask), two parallel feed-forwards, cross-attention of their outputs.

    All residual. The first feed-forward's output is the mask side (values), the second's the image side (match).
    """

    def __init__(self, channels: int, variant: BackboneVariant) -> None:
        super().__init__()
        self.cross1 = CrossAttention(channels, variant)
        self.ff1 = FeedForward(channels)
        self.ff2 = FeedForward(channels)
        self.cross2 = CrossAttention(channels, variant)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = x + self.cross1(c, x)
        value, match = self.ff1(x), self.ff2(x)
        out: Tensor = value + self.cross2(match, value)
        return out


class DualMiddle(nn.Module):
    """Res on each path -> sum -> mid transformer -> Res."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        width = settings.dims[-1]
        self.res1 = settings.make_res(width, width)
        self.image_res1 = settings.make_res(width, width)
        self.layers = nn.ModuleList(MidLayer(width, settings.backbone_variant) for _ in range(settings.mid_layers))
        self.res2 = settings.make_res(width, width)

    def forward(self, x: Tensor, c: Tensor, emb: Tensor) -> Tensor:
        c = self.image_res1(c, emb)
        x = self.res1(x, emb) + c
        for layer in self.layers:
            x = layer(x, c)
        out: Tensor = self.res2(x, emb)
        return out


class DualUNet(nn.Module):
    """U-Net with an encoder for the mask and one for the image; called like `ConcatUNet`."""

    def __init__(self, settings: BackboneSettings, apply_point: ApplyPoint) -> None:
        super().__init__()
        width, levels = settings.model_channels, range(settings.num_levels)
        self.num_levels = settings.num_levels
        self.mask_stem = nn.Conv2d(1, width, 7, padding=3)
        self.image_stem = nn.Conv2d(settings.image_channels, width, 7, padding=3)
        self.time = TimeEmbedding(width, settings.time_scale, settings.backbone_variant)
        self.enc = nn.ModuleList(EncoderLevel(settings, level) for level in levels)
        self.img_enc = nn.ModuleList(EncoderLevel(settings, level) for level in levels)
        self.fuse = nn.ModuleList(Fusion(settings, level) for level in levels)
        self.mid = DualMiddle(settings)
        self.dec = nn.ModuleList(DecoderStage(settings, index, apply_point) for index in levels)
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
        stem = x = self.mask_stem(x_t)
        c = self.image_stem(image)
        skips = []
        for level, image_level, fuse in zip(self.enc, self.img_enc, self.fuse, strict=True):
            first, second, x = level(x, emb)
            _, _, c = image_level(c, emb, second, fuse)
            skips.append((first, second))
        x = self.mid(x, c, emb)
        x, changes = run_decoder(self.dec, x, skips, emb, modulations, measure)
        return self.out(self.tail(torch.cat((x, stem), dim=1), emb)), changes
