"""Objects from `_target_` YAML of the published structure, through a table of known classes; nothing else is imported.

A mapping with `_target_` becomes a call of what the table has under that text, with the other entries as keywords,
built first; `_partial_: true` keeps the call for later. All other values stay what they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from stageline.config import nearest, read_yaml
from stageline.errors import ConfigError, Faults, StagelineError

_ROOM = "stageline.families.sparse_structure"
_BACKBONE = "sam3d_objects.model.backbone"
_MODELS = f"{_BACKBONE}.tdfy_dit.models"

ALIASES = {
    **{
        f"{_MODELS}.mm_latent.{name}": f"{_ROOM}.model:{name}"
        for name in ("Latent", "ShapePositionEmbedder", "LearntPositionEmbedder", "RandomPositionEmbedder")
    },
    **{
        f"{_MODELS}.{module}.{name}": f"{_ROOM}.model:{name}"
        for module, name in {
            "mot_sparse_structure_flow": "SparseStructureFlowTdfyWrapper",
            "global_sparse_structure_flow": "GlobalSparseStructureFlowTdfyWrapper",
            "dual_backbone_sparse_structure_flow": "DualBackboneSparseStructureFlowTdfyWrapper",
        }.items()
    },
    **{
        f"{_BACKBONE}.generator.{module}.{name}": f"{_ROOM}.shortcut:{name}"
        for module, name in (
            ("shortcut.model", "ShortCut"),
            ("flow_matching.model", "FlowMatching"),
            ("flow_matching.model", "lognorm_sampler"),
            ("classifier_free_guidance", "ClassifierFreeGuidance"),
            ("classifier_free_guidance", "ClassifierFreeGuidanceWithExternalUnconditionalProbability"),
        )
    },
    "sam3d_objects.config.utils.make_dict": f"{_ROOM}.aliases:make_dict",
}
"""Text of a `_target_` -> module and name of ours. A class of ours may also be named where it stands."""
GENERATOR = "module.generator.backbone"
"""Where files of the published structure hold the generator; what stands beside it belongs to other programs."""
MOST_VALUES = 20_000
"""Values of a file; the published one has some hundred. Lists that repeat each other by anchors count each time."""
MOST_LEVELS = 40
_CONTROL = ("_target_", "_partial_", "_args_")


def make_dict(**entries: Any) -> dict[str, Any]:
    """A mapping whose keys are no names, as `6drotation_normalized`."""
    return entries


def build(node: Any) -> Any:
    """The objects that a node describes; plain values and objects that are built already come back as they are.

    node: mappings, sequences and values, as YAML gives them.
    ConfigError with every fault before anything is built: unknown targets by name, unknown `_` keys, too many values.
    What a class raises of its arguments has a note that says where in the node it stands.
    """
    refuse_faults(node)
    return _built(node, "")


def refuse_faults(node: Any) -> None:
    """What `build` checks. node: as there."""
    faults = Faults(ConfigError, "_target_ config", f"known targets: {', '.join(sorted(ALIASES))}")
    for count, fault in enumerate(_faults(node, "", 0), 1):
        if fault:
            faults.add(fault)
        if count > MOST_VALUES:
            faults.add(f"more than {MOST_VALUES} values; anchors that repeat each other count each time")
            break
    faults.raise_if_any()


def build_file(path: str | Path, at: str = GENERATOR) -> Any:
    """What a YAML file describes at a dotted place.

    path: of the file.  at: the place; what stands elsewhere in the file is not looked at.
    """
    node: Any = read_yaml(path)
    for number, key in enumerate(at.split(".")):
        if not isinstance(node, Mapping) or key not in node:
            where = ".".join(at.split(".")[:number]) or "its top"
            raise ConfigError(
                f"{str(path)!r} has no {at!r}: no {key!r} at {where}", remedy="name another place with `at`"
            )
        node = node[key]
    return build(node)


def _faults(node: Any, where: str, level: int) -> Iterator[str]:
    """One text for every value below a node, empty where it is fine."""
    if level > MOST_LEVELS:
        yield f"{where}: nested more than {MOST_LEVELS} deep"
    elif isinstance(node, Mapping):
        yield _fault(node, where)
        for key, value in node.items():
            if key not in _CONTROL or key == "_args_":
                yield from _faults(value, f"{where}.{key}" if where else str(key), level + 1)
    elif _is_list(node):
        yield ""
        for number, value in enumerate(node):
            yield from _faults(value, f"{where}[{number}]", level + 1)
    else:
        yield f"{where}: {node!r} refers to other keys; write the value" if _is_reference(node) else ""


def _fault(node: Mapping[Any, Any], where: str) -> str:
    place = where or "the top"
    found = [key for key in node if not isinstance(key, str)]
    if found:
        return f"{place}: the key {found[0]!r} is no text"
    if "_target_" not in node:
        return f"{place}: `_partial_` without `_target_`" if "_partial_" in node else ""
    target = node["_target_"]
    if _place(target) is None:
        near = nearest(str(target), ALIASES)
        return f"{place}: unknown target {target!r}" + (f"; did you mean {near!r}?" if near else "")
    strange = [key for key in node if key.startswith("_") and key.endswith("_") and key not in _CONTROL]
    if strange:
        return f"{place}: {strange[0]!r} is not supported beside `_target_`"
    if not _is_list(node.get("_args_", ())):
        return f"{place}: `_args_` is {node['_args_']!r}, expected a list"
    return "" if isinstance(node.get("_partial_", False), bool) else f"{place}: `_partial_` is no true or false"


def _place(target: object) -> str | None:
    """Module and name of ours for a target: of the table, or one of its right sides in dots."""
    if not isinstance(target, str):
        return None
    own = {place.replace(":", "."): place for place in ALIASES.values()}
    return ALIASES.get(target) or own.get(target)


def _is_list(node: Any) -> bool:
    return isinstance(node, Sequence) and not isinstance(node, (str, bytes))


def _is_reference(node: Any) -> bool:
    return isinstance(node, str) and "${" in node


def _built(node: Any, where: str) -> Any:
    if isinstance(node, Mapping):
        at = f"{where}." if where else ""
        values = {key: _built(value, f"{at}{key}") for key, value in node.items() if key not in _CONTROL}
        if "_target_" not in node:
            return values
        place = _place(node["_target_"])
        assert place is not None, "checked before"
        module, _, name = place.partition(":")
        called = getattr(import_module(module), name)
        args = [_built(value, f"{at}_args_[{number}]") for number, value in enumerate(node.get("_args_", ()))]
        if node.get("_partial_"):
            return functools.partial(called, *args, **values)
        try:
            return called(*args, **values)
        except (TypeError, ValueError, LookupError, StagelineError) as error:
            error.add_note(f"while building {where or 'the top'}: {node['_target_']}")
            raise
    return [_built(value, f"{where}[{number}]") for number, value in enumerate(node)] if _is_list(node) else node
