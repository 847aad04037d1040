"""Flow matching."""

from stageline.families.sparse_structure.shortcut import FlowMatching, lognorm_sampler

__all__ = ["FlowMatching", "lognorm_sampler"]
