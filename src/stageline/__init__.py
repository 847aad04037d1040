"""stageline trains models that are trained in stages, and checks every seam between them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stageline.verbs.predict import LoadedModel as LoadedModel
    from stageline.verbs.predict import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`stageline.load` and `stageline.LoadedModel`, loaded on use: they need torch."""
    if name in ("load", "LoadedModel"):
        return getattr(import_module("stageline.verbs.predict"), name)
    raise AttributeError(f"module 'stageline' has no attribute {name!r}")
