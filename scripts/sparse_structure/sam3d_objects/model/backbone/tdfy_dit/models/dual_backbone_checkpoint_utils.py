"""Files of both networks."""

from stageline.families.sparse_structure.checkpoint_utils import (
    create_dual_backbone_from_single_checkpoint,
    load_combined_checkpoint,
    load_dual_backbone_from_checkpoints,
    save_dual_backbone_checkpoint,
)

__all__ = [
    "create_dual_backbone_from_single_checkpoint",
    "load_combined_checkpoint",
    "load_dual_backbone_from_checkpoints",
    "save_dual_backbone_checkpoint",
]
