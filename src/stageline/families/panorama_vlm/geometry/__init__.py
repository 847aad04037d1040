"""Views of a panorama: which there are, what their pixels and tokens look at, and which tokens see the same thing.

views        one view: where it looks, how wide it is, its camera                                 no torch
rings        how many tiles and rings a request needs                                             no torch
tiles        the plan: all views, which are neighbours, their share of the sphere                 no torch
tokens       unit direction and solid angle of every token of a plan
matching     where the centre of a token of one view lies in another view
resolution   when a panorama is reduced before it is sampled, and to what                         no torch
projection   pixels: from the panorama to the views

The four functions of the room's public interface stand here, which is an exception to an empty `__init__`; they are
loaded when asked for, because the room's config reads plans without torch.

Conventions. World axes: X right, Y up, Z forward. Longitude atan2(X, Z), latitude atan2(Y, hypot(X, Z)). A panorama of
H x W pixels has its front in the middle and the seam (180 degrees) at its left and right border: column j is at
longitude ((j + 1/2) / W - 1/2) * 360, row i at latitude (1/2 - (i + 1/2) / H) * 180. Yaw turns right, pitch looks up,
roll turns the camera clockwise. Angles are degrees, wrapped to [-180, 180), until they enter a formula.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stageline.public_names import names_on_use

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.geometry.matching import pairs
    from stageline.families.panorama_vlm.geometry.projection import project
    from stageline.families.panorama_vlm.geometry.tiles import plan
    from stageline.families.panorama_vlm.geometry.tokens import directions

__all__ = ["directions", "pairs", "plan", "project"]

_PLACES = {"plan": "tiles", "project": "projection", "pairs": "matching", "directions": "tokens"}

__getattr__, __dir__ = names_on_use(__name__, _PLACES)
