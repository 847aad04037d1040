"""The objective: flow matching, shortcut steps of any size for scenes or objects, guidance, and the samplers.

Names are loaded on use, so that importing one module of this package does not load the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stageline.public_names import names_on_use

if TYPE_CHECKING:
    from stageline.families.sparse_structure.shortcut.draws import ShortCutDraws as ShortCutDraws
    from stageline.families.sparse_structure.shortcut.flow_matching import FlowMatching as FlowMatching
    from stageline.families.sparse_structure.shortcut.flow_matching import lognorm_sampler as lognorm_sampler
    from stageline.families.sparse_structure.shortcut.flow_matching import window_sampler as window_sampler
    from stageline.families.sparse_structure.shortcut.guidance import ClassifierFreeGuidance as ClassifierFreeGuidance
    from stageline.families.sparse_structure.shortcut.guidance import (
        ClassifierFreeGuidanceWithExternalUnconditionalProbability as ClassifierFreeGuidanceWithExternalUnconditionalProbability,  # noqa: E501
    )
    from stageline.families.sparse_structure.shortcut.shortcut import ShortCut as ShortCut
    from stageline.families.sparse_structure.shortcut.terms import ShortCutLoss as ShortCutLoss

PUBLIC = {
    "ShortCutDraws": "draws",
    "FlowMatching": "flow_matching",
    "lognorm_sampler": "flow_matching",
    "window_sampler": "flow_matching",
    "ClassifierFreeGuidance": "guidance",
    "ClassifierFreeGuidanceWithExternalUnconditionalProbability": "guidance",
    "ShortCut": "shortcut",
    "ShortCutLoss": "terms",
}

__getattr__, __dir__ = names_on_use(__name__, PUBLIC)
