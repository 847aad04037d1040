"""Guidance."""

from stageline.families.sparse_structure.shortcut import (
    ClassifierFreeGuidance,
    ClassifierFreeGuidanceWithExternalUnconditionalProbability,
)

__all__ = ["ClassifierFreeGuidance", "ClassifierFreeGuidanceWithExternalUnconditionalProbability"]
