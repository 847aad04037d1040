"""Both networks, added."""

from stageline.families.sparse_structure.model import DualBackboneSparseStructureFlowTdfyWrapper

__all__ = ["DualBackboneSparseStructureFlowTdfyWrapper"]
