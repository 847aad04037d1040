"""The objective: flow matching, shortcut steps of any size in scenes or objects, guidance, and the samplers."""

from stageline.families.sparse_structure.shortcut.draws import ShortCutDraws
from stageline.families.sparse_structure.shortcut.flow_matching import FlowMatching, lognorm_sampler
from stageline.families.sparse_structure.shortcut.guidance import (
    ClassifierFreeGuidance,
    ClassifierFreeGuidanceWithExternalUnconditionalProbability,
)
from stageline.families.sparse_structure.shortcut.shortcut import ShortCut, ShortCutLoss

__all__ = ["ClassifierFreeGuidance", "ClassifierFreeGuidanceWithExternalUnconditionalProbability", "FlowMatching"]
__all__ += ["ShortCut", "ShortCutDraws", "ShortCutLoss", "lognorm_sampler"]
