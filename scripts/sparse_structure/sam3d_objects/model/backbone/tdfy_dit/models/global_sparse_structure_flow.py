"""The network of a scene."""

from stageline.families.sparse_structure.model import GlobalSparseStructureFlowTdfyWrapper

__all__ = ["GlobalSparseStructureFlowTdfyWrapper"]
