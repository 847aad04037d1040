"""View-direction encoding: Fourier features of where on the sphere a token looks, nothing of which tile it is from.

Whole frequencies in longitude close at the seam, the factor cos(latitude) removes the poles' singularity, and two tiles
that see the same direction get the same vector. So weights that were learned with nine views are valid for five. It
starts at zero and changes nothing at first; gradients flow, for the features are not zero.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.stitching import KINDS

LONGITUDE = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
LATITUDE = (1, 2, 4, 8, 16)
NUM_FEATURES = 3 + 2 * len(LONGITUDE) + 2 * len(LATITUDE)
LOGSOLID_MEAN, LOGSOLID_STD = -4.5, 1.0
"""Roughly those of 16 x 16 tokens of 90 degree tiles; fixed, so that the feature does not depend on the plan."""

EncodingKind = Literal["direction", "rotary"]


def direction_features(dirs: Tensor) -> Tensor:
    """d, cos(phi) sin/cos(k lambda) and sin/cos(k phi), computed in float32 or better.

    dirs: (..., 3) unit directions, X right, Y up, Z to the front of the panorama. Returns (..., 33).
    """
    d = dirs if dirs.dtype == torch.float64 else dirs.float()
    x, y, z = d.unbind(-1)
    flat = torch.hypot(x, z)
    lam, phi = torch.atan2(x, z).unsqueeze(-1), torch.atan2(y, flat).unsqueeze(-1)
    around = lam * lam.new_tensor(LONGITUDE)
    up = phi * phi.new_tensor(LATITUDE)
    weight = flat.unsqueeze(-1)
    return torch.cat([d, weight * around.sin(), weight * around.cos(), up.sin(), up.cos()], dim=-1)


class ViewDirectionEncoding(nn.Module):
    """Linear(features) + an embedding of the view's kind; zero at the start.

    width: of the tokens it is added to.  solid_angle: whether ln of a token's solid angle is one more feature; it
    differs between tiles that see the same direction.
    """

    def __init__(self, width: int, *, solid_angle: bool = False) -> None:
        super().__init__()
        self.solid_angle = solid_angle
        self.linear = nn.Linear(NUM_FEATURES + solid_angle, width)
        self.kinds = nn.Embedding(len(KINDS), width)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, dirs: Tensor, kinds: Tensor, logsolid: Tensor | None = None) -> Tensor:
        """(..., width), to be added to tokens.

        dirs: (..., 3) unit directions.  kinds: (...), index into `KINDS`.  logsolid: (...), ln of steradians; needed
        with `solid_angle` only.
        """
        features = direction_features(dirs)
        if self.solid_angle:
            if logsolid is None:
                raise ConfigError(
                    "pe.solid_angle is true, but no solid angles of the tokens were given",
                    remedy="pass token_logsolid beside token_dirs, or set pe.solid_angle: false",
                )
            scaled = (logsolid.to(features.dtype) - LOGSOLID_MEAN) / LOGSOLID_STD
            features = torch.cat([features, scaled.unsqueeze(-1)], dim=-1)
        out: Tensor = self.linear(features.to(self.linear.weight.dtype)) + self.kinds(kinds)
        return out


class DirectionEncodings(nn.Module):
    """The encoding of vision tokens before the resampler, and of image tokens after it where that is asked for.

    vision_dim: D_v, width of the tower's tokens.  language_dim: width of image tokens; null makes no second encoding.
    solid_angle: as in `ViewDirectionEncoding`, of the first one.
    """

    def __init__(self, vision_dim: int, language_dim: int | None = None, *, solid_angle: bool = False) -> None:
        super().__init__()
        self.before = ViewDirectionEncoding(vision_dim, solid_angle=solid_angle)
        self.after = None if language_dim is None else ViewDirectionEncoding(language_dim)


def make_encodings(
    vision_dim: int,
    language_dim: int,
    *,
    enabled: bool = True,
    kind: EncodingKind = "direction",
    after: bool = False,
    solid_angle: bool = False,
) -> DirectionEncodings | None:
    """The model's direction encodings, or None where they are off: then there are no parameters.

    vision_dim: D_v.  language_dim: width of image tokens.  enabled: `use_projection_positional_encoding`.  kind: of
    encoding.  after: whether image tokens get one, too.  solid_angle: as in `ViewDirectionEncoding`.

    Raises ConfigError for `rotary`, which this version does not have.
    """
    if not enabled:
        return None
    if kind != "direction":
        raise ConfigError(
            f"pe.kind {kind!r} is not offered: query positions have no anchored directions here",
            remedy="use pe.kind: direction",
        )
    return DirectionEncodings(vision_dim, language_dim if after else None, solid_angle=solid_angle)
