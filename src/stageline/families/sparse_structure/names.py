"""The guides' own module paths for Python code that was written by them: `install()` fills in what is missing.

The guides import `sam3d_objects....dual_backbone_sparse_structure_flow` and the like. Where that package is installed
its modules stay what they are, and only those that it lacks are added; nothing is ever replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from stageline.families.sparse_structure.aliases import ALIASES

_UTILITIES = "stageline.families.sparse_structure.checkpoint_utils"
UTILITIES = (
    *("load_dual_backbone_from_checkpoints", "create_dual_backbone_from_single_checkpoint"),
    *("save_dual_backbone_checkpoint", "load_combined_checkpoint"),
)
_MODELS = "sam3d_objects.model.backbone.tdfy_dit.models"
_NETWORKS = ("mot_sparse_structure_flow", "global_sparse_structure_flow", "dual_backbone_sparse_structure_flow")


def guide_modules() -> Mapping[str, Mapping[str, str]]:
    """Module of the guides -> its names -> `module:name` of ours."""
    found: dict[str, dict[str, str]] = {}
    for path, place in ALIASES.items():
        module, _, name = path.rpartition(".")
        found.setdefault(module, {})[name] = place
    networks = {name: place for module in _NETWORKS for name, place in found[f"{_MODELS}.{module}"].items()}
    utilities = {name: f"{_UTILITIES}:{name}" for name in UTILITIES}
    return found | {_MODELS: networks, f"{_MODELS}.dual_backbone_checkpoint_utils": utilities}


def install() -> list[str]:
    """Make the guides' modules importable in this process; returns those that were added, sorted.

    A module that is there, installed or on the path, is left alone; a package that had to be imported, since modules
    are added below it, gets the names that it lacks.
    """
    added = []
    for module in sorted(guide_modules()):
        parent = ""
        for part in module.split("."):
            full = f"{parent}.{part}" if parent else part
            if full not in sys.modules and not _is_there(full):
                sys.modules[full] = _package(full)
                added.append(full)
                if parent:
                    setattr(sys.modules[parent], part, sys.modules[full])
            elif full not in sys.modules and full != module:
                import_module(full)
            parent = full
    for module, names in guide_modules().items():
        for name, place in names.items() if module in added or module == _MODELS else ():
            if not hasattr(sys.modules[module], name):
                own, _, attribute = place.partition(":")
                setattr(sys.modules[module], name, getattr(import_module(own), attribute))
    return sorted(added)


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # a module of this process without a spec, one of ours
        return True


def _package(name: str) -> ModuleType:
    """An empty module below which others may stand."""
    module = ModuleType(name, "Names of stageline under the guides' paths.")
    module.__path__ = []
    return module
