"""What config files call."""

from stageline.families.sparse_structure.aliases import make_dict

__all__ = ["make_dict"]
