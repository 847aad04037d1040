"""Check 4: the encoding knows the direction of a token and nothing of its tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from stageline.errors import ConfigError
from stageline.families.panorama_vlm.image_tokens import TokenRules
from stageline.families.panorama_vlm.model.encoding import (
    DirectionEncodings,
    ViewDirectionEncoding,
    direction_features,
    make_encodings,
)
from stageline.families.panorama_vlm.model.resampler import Connection
from stageline.families.panorama_vlm.model.resamplers import make_resampler
from stageline.families.panorama_vlm.stitching import TokenLayout


def look(longitude_deg: float, latitude_deg: float) -> Tensor:
    lam, phi = np.radians(longitude_deg), np.radians(latitude_deg)
    return torch.tensor([np.cos(phi) * np.sin(lam), np.sin(phi), np.cos(phi) * np.cos(lam)], dtype=torch.float64)


def trained(encoding: ViewDirectionEncoding, seed: int = 0) -> ViewDirectionEncoding:
    rng = torch.Generator().manual_seed(seed)
    for parameter in encoding.parameters():
        parameter.data.normal_(generator=rng)
    return encoding


def tile_dirs(yaws: list[float], grid: int) -> Tensor:
    """(V, S, 3) of the global view and 90 degree tiles at pitch 0, from the formulas."""
    centre = (np.arange(grid) + 0.5) / grid
    whole = [look((c - 0.5) * 360, (0.5 - r) * 180).numpy() for r in centre for c in centre]
    views = [whole]
    for yaw in np.radians(yaws):
        rows = []
        for r in centre:
            for c in centre:
                x, y = c * 2 - 1, 1 - r * 2
                ray = np.array([x * np.cos(yaw) + np.sin(yaw), y, -x * np.sin(yaw) + np.cos(yaw)])
                rows.append(ray / np.linalg.norm(ray))
        views.append(rows)
    return torch.from_numpy(np.array(views))


def test_features_are_those_of_the_formula() -> None:
    lam, phi = 0.7, -0.4
    found = direction_features(look(np.degrees(lam), np.degrees(phi)))
    around, up = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32), (1, 2, 4, 8, 16)
    expected = sorted(
        [*look(np.degrees(lam), np.degrees(phi)).tolist()]
        + [np.cos(phi) * wave(k * lam) for k in around for wave in (np.sin, np.cos)]
        + [wave(k * phi) for k in up for wave in (np.sin, np.cos)]
    )
    assert len(expected) == 33
    assert sorted(found.tolist()) == pytest.approx(expected, abs=1e-12)


def test_equal_directions_of_different_tiles_have_equal_codes() -> None:
    """Check 4: also between plans of 5 and 9 views, whose tiles look elsewhere but share the front one."""
    five, nine = tile_dirs([-180, -90, 0, 90], 3), tile_dirs([-180 + 45 * k for k in range(8)], 3)
    encoding = trained(ViewDirectionEncoding(16))
    kinds = torch.ones(9, dtype=torch.long)
    a, b = (encoding(dirs.float()[1:], kinds[:1]) for dirs in (five, nine))
    for k, view in enumerate((0, 2, 4, 6)):
        assert float((a[k] - b[view]).detach().abs().max()) <= 1e-6
    # The middle of tile -45 is the direction in which tiles 0 and -90 meet, (lon -45, lat 0).
    meeting = encoding(look(-45, 0).float(), kinds[0])
    assert float((b[3][4] - meeting).detach().abs().max()) <= 1e-5


def test_seam_closes_and_poles_are_single() -> None:
    """Check 4: -180 and +180 agree, approached from both sides; at a pole the longitude does not matter."""
    for latitude in (-60, 0, 30):
        left, right = (direction_features(look(side, latitude)) for side in (-180, 180))
        assert torch.allclose(left, right, atol=1e-12)
        near, far = (direction_features(look(side, latitude)) for side in (-179.999, 179.999))
        assert float((near - far).abs().max()) < 2e-3
    poles = torch.stack([direction_features(look(longitude, 90)) for longitude in (-120, 0, 77)])
    assert float((poles - poles[0]).abs().max()) <= 1e-12


@pytest.mark.parametrize("after", [False, True])
def test_changes_nothing_at_the_start_but_learns(after: bool) -> None:
    """Check 4: zero effect at initialisation, gradients from the first step on."""
    torch.manual_seed(0)
    layout = TokenLayout.ring([-180, -90, 0, 90], 4, 90)
    model = make_resampler(Connection(layout, TokenRules(type="mlp"), 6, 8), hidden=8)
    dirs, x = tile_dirs([-180, -90, 0, 90], 4).float(), torch.randn(2, 5, 16, 6)
    encodings = make_encodings(6, 8, after=after)
    assert encodings is not None
    plain, encoded = model(x, dirs).tokens, model(x, dirs, encodings=encodings).tokens
    assert torch.equal(plain, encoded)
    encoded.square().sum().backward()
    grads = {name: p.grad for name, p in encodings.named_parameters()}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values()), grads
    assert any(name.startswith("after") for name in grads) == after


def test_off_has_no_parameters_and_rotary_is_refused_by_name() -> None:
    """Check 4: off."""
    assert make_encodings(6, 8, enabled=False) is None
    with pytest.raises(ConfigError, match="'rotary' is not offered"):
        make_encodings(6, 8, kind="rotary")


def test_after_gives_pooled_tokens_the_mean_direction() -> None:
    torch.manual_seed(0)
    layout = TokenLayout.ring([-180, -90, 0, 90], 2, 90, has_global=False)
    model = make_resampler(Connection(layout, TokenRules(type="mlp"), 6, 8), hidden=8)
    dirs, x = tile_dirs([-180, -90, 0, 90], 2).float()[1:], torch.randn(1, 4, 4, 6)
    encodings = DirectionEncodings(6, 8)
    assert encodings.after is not None
    trained(encodings.after)
    change = model(x, dirs, encodings=encodings).tokens - model(x, dirs).tokens
    centres = torch.stack([look(yaw, 0) for yaw in (-180, -90, 0, 90)]).float()
    expected = encodings.after(centres, torch.ones(4, dtype=torch.long))
    assert torch.allclose(change[0], expected, atol=1e-5)


def test_after_is_refused_for_queries() -> None:
    layout = TokenLayout.ring([-180, -90, 0, 90], 2, 90)
    sizes = {"width": 8, "depth": 1, "heads": 2, "head_dim": 4}
    model = make_resampler(Connection(layout, TokenRules(type="perceiver"), 6, 8), **sizes)
    with pytest.raises(ConfigError, match="queries have none"):
        model(torch.zeros(1, 5, 4, 6), torch.zeros(5, 4, 3), encodings=DirectionEncodings(6, 8))


def test_solid_angle_is_one_more_feature() -> None:
    encoding = trained(ViewDirectionEncoding(4, solid_angle=True))
    dirs, kinds = look(10, 20).float().expand(2, 3), torch.ones(2, dtype=torch.long)
    a, b = encoding(dirs, kinds, torch.tensor([-4.5, -3.5]))
    assert torch.allclose(b - a, encoding.linear.weight[:, -1], atol=1e-5)
    with pytest.raises(ConfigError, match="token_logsolid"):
        encoding(dirs, kinds)
