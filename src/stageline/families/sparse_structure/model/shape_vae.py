"""A small 3-D variational autoencoder: occupied voxels (R, R, R) <-> latents (R/4, R/4, R/4) of 8 channels.

Occupancy is coded by a Gaussian posterior against a standard normal prior (Kingma & Welling 2014, arXiv:1312.6114; the
weight of the divergence as in Higgins et al. 2017). Convolutions run on R/2 and R/4 alone: two voxels along each axis
are channels at input and output. What the flows are trained on are posterior means as tokens, scaled by `scale`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

FACTOR = 4
"""Voxels of a latent along each axis."""
GROUPS = 8


class VaeOutput(NamedTuple):
    """logits: (B, R, R, R) of occupancy.  mean, log_variance: (B, C, r, r, r) of the posterior."""

    logits: Tensor
    mean: Tensor
    log_variance: Tensor


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        self.conv1 = nn.Conv3d(width, width, 3, padding=1)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.silu(self.norm2(h)))
        return out


class ShapeVAE(nn.Module):
    """The autoencoder.

    channels: of a latent.  width: of the convolutions on R/4, a multiple of 16; on R/2 it is half.
    blocks: residual blocks at each size.
    """

    def __init__(self, channels: int = 8, width: int = 64, blocks: int = 1) -> None:
        super().__init__()
        if width % (2 * GROUPS) or min(channels, width, blocks) < 1:
            raise ValueError(
                f"width {width}, channels {channels}, blocks {blocks}: width is a multiple of {2 * GROUPS}"
            )
        self.channels = channels
        half = width // 2
        self.encoder = nn.Sequential(
            nn.Conv3d(8, half, 3, padding=1),
            *(_ResidualBlock(half) for _ in range(blocks)),
            nn.Conv3d(half, width, 2, stride=2),
            *(_ResidualBlock(width) for _ in range(blocks)),
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            nn.Conv3d(width, 2 * channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv3d(channels, width, 3, padding=1),
            *(_ResidualBlock(width) for _ in range(blocks)),
            nn.ConvTranspose3d(width, half, 2, stride=2),
            *(_ResidualBlock(half) for _ in range(blocks)),
            nn.GroupNorm(GROUPS, half),
            nn.SiLU(),
            nn.Conv3d(half, 8, 3, padding=1),
        )

    def encode(self, voxels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior, (B, C, r, r, r) each.

        voxels: (B, R, R, R) of 0 and 1, any type; R a multiple of 4.
        """
        if voxels.ndim != 4 or any(size % FACTOR for size in voxels.shape[1:]):
            raise ValueError(f"voxels of shape {tuple(voxels.shape)}; expected (B, R, R, R), R a multiple of {FACTOR}")
        x = 2 * voxels.to(next(self.encoder.parameters()).dtype) - 1
        mean, log_variance = self.encoder(split_voxels(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, latents: Tensor) -> Tensor:
        """Logits of occupancy, (B, R, R, R). latents: (B, C, r, r, r)."""
        return merge_voxels(self.decoder(latents))

    def forward(self, voxels: Tensor, noise: Tensor) -> VaeOutput:
        """Reconstruction of a draw from the posterior. voxels: (B, R, R, R).  noise: as `noise_shape`, N(0, 1)."""
        mean, log_variance = self.encode(voxels)
        return VaeOutput(self.decode(mean + (0.5 * log_variance).exp() * noise), mean, log_variance)

    def noise_shape(self, voxels: Tensor) -> tuple[int, ...]:
        """Of the noise of a batch. voxels: (B, R, R, R)."""
        return (len(voxels), self.channels, *(size // FACTOR for size in voxels.shape[1:]))

    def to_tokens(self, voxels: Tensor) -> Tensor:
        """Posterior means as tokens (B, r^3, C), x-major, then y, then z; not scaled. voxels: (B, R, R, R)."""
        return self.encode(voxels)[0].flatten(2).transpose(1, 2)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Logits of occupancy, (B, R, R, R). tokens: (B, r^3, C), not scaled."""
        side = round(tokens.shape[1] ** (1 / 3))
        if side**3 != tokens.shape[1]:
            raise ValueError(f"{tokens.shape[1]} tokens are no cube")
        return self.decode(tokens.transpose(1, 2).reshape(len(tokens), self.channels, side, side, side))


def split_voxels(x: Tensor) -> Tensor:
    """(B, R, R, R) -> (B, 8, R/2, R/2, R/2): neighbours become channels."""
    b, r = len(x), [size // 2 for size in x.shape[1:]]
    x = x.reshape(b, r[0], 2, r[1], 2, r[2], 2).permute(0, 2, 4, 6, 1, 3, 5)
    return x.reshape(b, 8, *r)


def merge_voxels(x: Tensor) -> Tensor:
    """The inverse of `split_voxels`."""
    b, r = len(x), list(x.shape[2:])
    x = x.reshape(b, 2, 2, 2, *r).permute(0, 4, 1, 5, 2, 6, 3)
    return x.reshape(b, *(2 * size for size in r))


def vae_loss(output: VaeOutput, voxels: Tensor, *, positive_weight: float = 1.0) -> dict[str, tuple[Tensor, float]]:
    """Parts of the loss as (sum over objects, number of objects); the loss is `occupancy` + beta * `kl`.

    output: of the model.  voxels: (B, R, R, R) of 0 and 1.  positive_weight: of occupied voxels, above 1 where they are
    so few that a network leaves them out.
    `occupancy`: binary cross entropy, nats per voxel.  `kl`: divergence from the prior, nats per voxel too.
    """
    target = voxels.to(output.logits.dtype)
    weight = torch.tensor(positive_weight, dtype=target.dtype, device=target.device)
    error = F.binary_cross_entropy_with_logits(output.logits, target, pos_weight=weight, reduction="none")
    mean, log_variance = output.mean, output.log_variance
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    count = float(len(voxels))
    return {
        "occupancy": (error.flatten(1).mean(1).sum(), count),
        "kl": (divergence.sum() / target[0].numel(), count),
    }


def voxel_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union, (B,); 1 where both are empty. first, second: (B, R, R, R) bool."""
    first, second = first.flatten(1).bool(), second.flatten(1).bool()
    union = (first | second).sum(1)
    return torch.where(union > 0, (first & second).sum(1) / union.clamp_min(1), torch.ones_like(union).float())
