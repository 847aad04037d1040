"""The networks."""

from stageline.families.sparse_structure.model import (
    DualBackboneSparseStructureFlowTdfyWrapper,
    GlobalSparseStructureFlowTdfyWrapper,
    SparseStructureFlowTdfyWrapper,
)

__all__ = [
    "DualBackboneSparseStructureFlowTdfyWrapper",
    "GlobalSparseStructureFlowTdfyWrapper",
    "SparseStructureFlowTdfyWrapper",
]
