"""stageline trains models that are trained in stages, and checks every seam between them."""

from __future__ import annotations

__version__ = "0.1.0"
