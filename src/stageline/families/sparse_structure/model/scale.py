"""What the numbers of a flow mean: mean and deviation by which latents and poses were standardised.

Buffers, so that they are in the checkpoint of the flow that was trained by them, and whoever decodes its samples, or
asks it about another test set, uses the same. Poses: from the facts of the training split. Latents: measured over
posterior means of the shape VAE on training objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from stageline.errors import DataError
from stageline.families.sparse_structure.data.poses import MODALITIES, SHAPE, WIDTHS, PoseStatistics

LEAST_DEVIATION = 1e-4


class SceneScale(nn.Module):
    """Standardises shape tokens and poses; identity until it is set, which is right for latents that come ready.

    channels: of shape tokens.
    """

    latent_mean: Tensor
    latent_deviation: Tensor
    pose_mean: Tensor
    pose_deviation: Tensor

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        for name, width in (("latent", channels), ("pose", sum(WIDTHS.values()))):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_deviation", torch.ones(width))

    @torch.no_grad()
    def set_poses(self, statistics: PoseStatistics) -> None:
        """Take the statistics of a training split."""
        mean, deviation = torch.from_numpy(statistics.to_array())
        self.pose_mean.copy_(mean)
        self.pose_deviation.copy_(deviation)

    @property
    def poses(self) -> PoseStatistics:
        """As they are here."""
        return PoseStatistics.from_array(torch.stack([self.pose_mean, self.pose_deviation]).double().cpu().numpy())

    @torch.no_grad()
    def measure_latents(self, batches: Iterable[Tensor]) -> None:
        """Take mean and deviation per channel. batches: tokens (B, L, C) that are not scaled.

        DataError without any.
        """
        count, total, square = 0, torch.zeros(0), torch.zeros(0)
        for tokens in batches:
            rows = tokens.detach().flatten(0, 1).double().cpu()
            total, square = (
                (rows.sum(0), rows.square().sum(0))
                if not count
                else (total + rows.sum(0), square + rows.square().sum(0))
            )
            count += len(rows)
        if not count:
            raise DataError("no objects to take the scale of latents over", remedy="give a training split with objects")
        mean = total / count
        deviation = (square / count - mean.square()).clamp_min(0).sqrt()
        self.latent_mean.copy_(mean)
        self.latent_deviation.copy_(torch.where(deviation < LEAST_DEVIATION, 1.0, deviation))

    def scale_shape(self, tokens: Tensor) -> Tensor:
        """Shape tokens (..., C) as the network sees them."""
        return (tokens - self.latent_mean) / self.latent_deviation

    def unscale_shape(self, tokens: Tensor) -> Tensor:
        """The inverse: as the shape VAE decodes them."""
        return tokens * self.latent_deviation + self.latent_mean

    def unscale_poses(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Modality -> (N, width), not standardised any more, for `poses.decode_poses`.

        latents: modality -> (N, 1, width) of the network; others than poses are left out.
        """
        found, start = {}, 0
        for name in MODALITIES:
            part = slice(start, start := start + WIDTHS[name])
            if name != SHAPE and name in latents:
                found[name] = latents[name][:, 0] * self.pose_deviation[part] + self.pose_mean[part]
        return found
