"""Modalities of the networks."""

from stageline.families.sparse_structure.model import (
    Latent,
    LearntPositionEmbedder,
    RandomPositionEmbedder,
    ShapePositionEmbedder,
)

__all__ = ["Latent", "LearntPositionEmbedder", "RandomPositionEmbedder", "ShapePositionEmbedder"]
