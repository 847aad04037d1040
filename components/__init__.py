"""KFP components: one per kind of step; their bodies call `stageline.execute`."""

from __future__ import annotations
