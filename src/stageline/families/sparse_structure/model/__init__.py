"""The networks, under the names that the guides import: per object, for a scene, and both added.

Names are loaded on use, so that importing one module of this package does not load the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stageline.public_names import names_on_use

if TYPE_CHECKING:
    from stageline.families.sparse_structure.model.dual import (
        DualBackboneSparseStructureFlowTdfyWrapper as DualBackboneSparseStructureFlowTdfyWrapper,
    )
    from stageline.families.sparse_structure.model.dual import trainable_parameters as trainable_parameters
    from stageline.families.sparse_structure.model.flow import (
        SparseStructureFlowTdfyWrapper as SparseStructureFlowTdfyWrapper,
    )
    from stageline.families.sparse_structure.model.global_flow import (
        GlobalSparseStructureFlowTdfyWrapper as GlobalSparseStructureFlowTdfyWrapper,
    )
    from stageline.families.sparse_structure.model.latent import Latent as Latent
    from stageline.families.sparse_structure.model.latent import LearntPositionEmbedder as LearntPositionEmbedder
    from stageline.families.sparse_structure.model.latent import RandomPositionEmbedder as RandomPositionEmbedder
    from stageline.families.sparse_structure.model.latent import ShapePositionEmbedder as ShapePositionEmbedder

PUBLIC = {
    "Latent": "latent",
    "ShapePositionEmbedder": "latent",
    "LearntPositionEmbedder": "latent",
    "RandomPositionEmbedder": "latent",
    "SparseStructureFlowTdfyWrapper": "flow",
    "GlobalSparseStructureFlowTdfyWrapper": "global_flow",
    "DualBackboneSparseStructureFlowTdfyWrapper": "dual",
    "trainable_parameters": "dual",
}

__getattr__, __dir__ = names_on_use(__name__, PUBLIC)
