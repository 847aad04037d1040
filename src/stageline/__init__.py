"""stageline trains models that are trained in stages, and checks every seam between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stageline.public_names import names_on_use

if TYPE_CHECKING:
    from stageline.verbs.predict import LoadedModel as LoadedModel
    from stageline.verbs.predict import load as load

__version__ = "0.1.0"

__getattr__, __dir__ = names_on_use(__name__, {"load": "verbs.predict", "LoadedModel": "verbs.predict"})
"""They need torch."""
