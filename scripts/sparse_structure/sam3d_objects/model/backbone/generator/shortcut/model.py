"""The ShortCut objective."""

from stageline.families.sparse_structure.shortcut import ShortCut

__all__ = ["ShortCut"]
