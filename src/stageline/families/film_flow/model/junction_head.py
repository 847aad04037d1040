"""The junction head: a small network on the image alone that says where vessel branches meet."""

from __future__ import annotations

from torch import Tensor, nn

PRIOR_BIAS = -4.6
"""log(0.01 / 0.99): one pixel in a hundred is a junction before anything is learned."""
_GROUPS = 4


class JunctionHead(nn.Module):
    """image (B, C_img, H, W) in [-1, 1], H and W even -> junction logits (B, 1, H, W).

    3x3 (c) -> 4x4 stride 2 (2c) -> 3x3 dilated by 2 -> 3x3 -> bilinear x2 -> 3x3 -> one logit. c divisible by 4.
    """

    def __init__(self, image_channels: int = 1, channels: int = 12) -> None:
        super().__init__()
        wide = 2 * channels
        self.conv1 = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(_GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, wide, 4, stride=2, padding=1)
        self.norm2 = nn.GroupNorm(_GROUPS, wide)
        self.conv3 = nn.Conv2d(wide, wide, 3, padding=2, dilation=2)
        self.norm3 = nn.GroupNorm(_GROUPS, wide)
        self.conv4 = nn.Conv2d(wide, wide, 3, padding=1)
        self.norm4 = nn.GroupNorm(_GROUPS, wide)
        self.out = nn.Conv2d(wide, 1, 3, padding=1)
        assert self.out.bias is not None
        nn.init.constant_(self.out.bias, PRIOR_BIAS)

    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.silu(self.norm1(self.conv1(image)))
        x = nn.functional.silu(self.norm2(self.conv2(x)))
        x = nn.functional.silu(self.norm3(self.conv3(x)))
        x = nn.functional.silu(self.norm4(self.conv4(x)))
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        logits: Tensor = self.out(x)
        return logits
