"""Import of a legacy Lightning `.ckpt`: read without executing anything, restore the decoder stages, rename, account.

The result is a raw config, tensors under our names and a report. Every tensor of the file becomes one of ours, and
every one of ours comes from the file; what the file does not say about itself is either given in the config's `import`
section or assumed, and each assumption stands in the report.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stageline.checkpoint.legacy import load_torch_file
from stageline.errors import CheckpointError, Faults
from stageline.families.film_flow.imports.evidence import restore_stages
from stageline.families.film_flow.imports.names import MULTI_TASK, legacy_evidence, map_names, unet_prefix
from stageline.families.film_flow.imports.reading import LegacyReading
from stageline.families.film_flow.model.fourier import half_plane
from stageline.families.film_flow.model.network import FilmFlowModel


def import_files(
    paths: Sequence[Path],
    config_raw: Mapping[str, Any],
    stage: str,  # noqa: ARG001
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """One legacy checkpoint, see `import_legacy`; its tensors say which stage it is of.

    paths: exactly one.  config_raw: the user's raw config.  stage: unused, the file decides.
    """
    if len(paths) != 1:
        raise CheckpointError(
            f"film_flow imports one file at a time, {len(paths)} were named: {', '.join(map(str, paths))}",
            remedy="import them one after the other, each into a run of its own",
        )
    return import_legacy(paths[0], config_raw)


def import_legacy(
    path: Path, config_raw: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """A legacy checkpoint -> (raw config for stageline, tensors under our names, report).

    config_raw: the user's raw config; its `import` section answers what the file leaves open (`film_stages`,
    `apply_point`, `vlm_scope`, `allow_globals`), its other sections are kept.
    Raises CheckpointError with the codes of `restore_stages`, E_UNSUPPORTED, E_TENSORS.
    """
    answers = config_raw.get("import") or {}
    checkpoint = load_torch_file(path, tuple(answers.get("allow_globals") or ()))
    tensors, hyper = _contents(checkpoint, str(path))
    multi_task = sorted(name for name in tensors if MULTI_TASK.search(name))
    if multi_task:
        raise CheckpointError(
            f"{path}: a multi-task backbone ({', '.join(multi_task[:4])}, …)",
            remedy="only single-task checkpoints can be imported",
            code="E_UNSUPPORTED",
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    prefix = unet_prefix(tensors, str(path))
    evidence = legacy_evidence(str(path), shapes, hyper, _plain(checkpoint.get("vlm_film_trained_stages")), prefix)
    restored = restore_stages(evidence, answers.get("film_stages"))
    renamed, unknown = map_names(tensors, prefix, restored.stages)
    faults = Faults(CheckpointError, str(path), "the file is not of the supported kind; nothing was written")
    for name in unknown:
        faults.add(f"{name} {list(shapes[name])}: left over, no rule knows this tensor", code="E_TENSORS")
    new = {ours: _converted(ours, tensors[old]) for old, ours in renamed.items()}
    reading = LegacyReading(str(path), new, hyper, restored, answers)
    model = reading.build(faults)
    new |= {name: buffer.clone() for name, buffer in _strengths().items()}
    _account(model, new, {ours: old for old, ours in renamed.items()}, faults)
    faults.raise_if_any()
    report = {
        "source": str(path),
        "weights": "ema" if "current_model_state" in checkpoint else "raw",
        "film_stages": list(restored.stages),
        "stages_origin": restored.origin,
        "levels": dict(restored.levels),
        "warnings": list(restored.warnings),
        "assumptions": reading.assumptions,
        "num_tensors": len(renamed),
        "num_fourier_maps": sum(name.endswith("filter.map") for name in new),
        "hyper_parameters": {key: repr(value) for key, value in sorted(hyper.items())},
        "plan": model.plan.to_json(),
        "plan_fingerprint": model.plan_fingerprint,
    }
    return reading.raw_config(config_raw), new, report


def _contents(checkpoint: Any, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and hyper-parameters of a Lightning checkpoint, the latter as plain values."""
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"{where}: holds a {type(checkpoint).__name__}",
            remedy="give a Lightning checkpoint",
            code="E_UNSUPPORTED",
        )
    state, hyper = checkpoint.get("state_dict"), checkpoint.get("hyper_parameters") or {}
    hyper = vars(hyper) if isinstance(hyper, argparse.Namespace) else hyper
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{where}: no `state_dict` of tensors (keys: {sorted(map(str, checkpoint))})",
            remedy="give a Lightning checkpoint",
            code="E_UNSUPPORTED",
        )
    if not isinstance(hyper, Mapping):
        raise CheckpointError(
            f"{where}: hyper_parameters are a {type(hyper).__name__}, expected a mapping", code="E_UNSUPPORTED"
        )
    return dict(state), {str(key): _plain(value) for key, value in hyper.items()}


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's; containers likewise."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _converted(name: str, tensor: Tensor) -> Tensor:
    """Fourier maps lose their redundant half; everything else is copied as it is."""
    if name.endswith("filter.map") and tensor.ndim == 3:
        return half_plane(tensor)
    return tensor.detach().clone().contiguous()


def _strengths() -> dict[str, Tensor]:
    """A finished model applies FiLM fully; it has no gate."""
    return {"schedule.film_strength": torch.ones(()), "schedule.gate_strength": torch.ones(())}


def _account(model: FilmFlowModel, new: Mapping[str, Tensor], origin: Mapping[str, str], faults: Faults) -> None:
    """Names and shapes on both sides must be the same."""
    own = model.state_dict()
    for name in sorted(set(own) - set(new)):
        faults.add(f"{name} {list(own[name].shape)}: missing, no tensor of the file becomes it", code="E_TENSORS")
    for name in sorted(set(new) - set(own)):
        faults.add(f"{origin[name]} (ours: {name}): left over, the model has no such tensor", code="E_TENSORS")
    for name in sorted(set(new) & set(own)):
        if new[name].shape != own[name].shape:
            found, expected = list(new[name].shape), list(own[name].shape)
            faults.add(f"{origin[name]} (ours: {name}): shape {found}, expected {expected}", code="E_TENSORS")
