"""The network of one object."""

from stageline.families.sparse_structure.model import SparseStructureFlowTdfyWrapper

__all__ = ["SparseStructureFlowTdfyWrapper"]
