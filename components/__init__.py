"""KFP components: one per kind of step; their bodies call `stageline.pipeline`."""

from __future__ import annotations
