"""The published spelling of some keys: which are moved, which are refused and why. Works on the raw mapping; no torch.

A moved key has one home; giving both with different values is a fault. A refused key is one that other programs'
configs of this model carry although nothing should read it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

LOG = logging.getLogger("stageline.film_flow")

MOVED = {
    "model.learning_rate": "trainer.learning_rate",
    "model.weight_decay": "trainer.weight_decay",
    "model.use_ema": "trainer.use_ema",
    "model.ema_decay": "trainer.ema_decay",
    "data.train_bs": "trainer.batch_size",
    "trainer.devices": "trainer.processes",
    "trainer.log_every_n_steps": "trainer.log_every_steps",
    "trainer.check_val_every_n_epoch": "trainer.validate_every_epochs",
}
"""Two names of one setting: the left is read and stored as the right."""
RENAMED_VALUES = {"trainer.accelerator": {"gpu": "cuda"}}
"""Published words for a value of ours."""
PUBLISHED_DATA = ("xca", "octa500_3m", "octa500_6m", "rossa")
"""Data sets that published configs name; each lies in folders of its own and is read as `folder`."""
SAME = (("model.image_size", "data.image_size"),)
"""Two keys that hold one number; giving one sets both."""

_UNUSED = "nothing reads it; take it out"
_LOCALITY = "the condition of a sample may not depend on its batch mates or on the training step; take it out"
REFUSED = {
    "model.vlm_film_config.gamma_scale": "it was never applied; to bound the heads set model.film_limit",
    "model.vlm_film_config.beta_scale": "it was never applied; to bound the heads set model.film_limit",
    "model.gamma_scale": "it was never applied; to bound the heads set model.film_limit",
    "model.beta_scale": "it was never applied; to bound the heads set model.film_limit",
    "model.channel_mult_emb": _UNUSED,
    "model.num_blocks": _UNUSED,
    "model.label_dim": _UNUSED,
    "model.augment_dim": _UNUSED,
    "model.num_classes": "masks are binary; take it out",
    "model.dim": "say model.model_channels",
    "model.data_name": "say data.name",
    "model.experiment_name": "say run",
    "model.debug_dfm": _UNUSED,
    "model.log_image_enabled": "say evaluate.num_panels",
    "model.log_image_names": "say evaluate.num_panels",
    "model.vlm_film_config.batch_strategy": _LOCALITY,
    "model.vlm_film_config.reuse_policy": _LOCALITY,
    "model.vlm_film_config.logits_center": _LOCALITY,
    "model.vlm_film_config.pred_warmup_epochs": _LOCALITY,
    "model.vlm_film_config.film_debug_enabled": "diagnostics are in the run's events; take it out",
    "data.use_sauna_transform": "say model.target_kind: soft",
    "trainer.enable_progress_bar": _UNUSED,
}
"""Known, refused, with the reason."""
REFUSED_PREFIXES = {
    "update_interval_steps": _LOCALITY,
    "film_debug_": "diagnostics are in the run's events; take it out",
}
"""The same for every key of these sections that starts so."""
REFUSED_ANYWHERE = ("batch_strategy", "reuse_policy", "logits_center", "pred_warmup_epochs")


class KeyFault(NamedTuple):
    """A fault of one raw key: where, its stable code, the sentence, what was found."""

    path: tuple[str, ...]
    code: str
    sentence: str
    found: Any


@cache
def note_once(text: str) -> None:
    """Say something about the config to the user, once per process."""
    LOG.warning(text)


def refusal(path: tuple[str, ...]) -> str | None:
    """Why the key at this path is refused, or None for a key this table does not know."""
    dotted = ".".join(path)
    if dotted in REFUSED:
        return REFUSED[dotted]
    if path[0] != "model":
        return None
    if path[-1] in REFUSED_ANYWHERE:
        return _LOCALITY
    return next((why for prefix, why in REFUSED_PREFIXES.items() if path[-1].startswith(prefix)), None)


def same_keys(key: str) -> tuple[str, ...]:
    """Every dotted key that means the same setting, the key itself among them."""
    home = MOVED.get(key, key)
    found = {key, home, *(old for old, new in MOVED.items() if new == home)}
    for pair in SAME:
        if home in pair:
            found |= set(pair)
    return tuple(sorted(found))


def normalise(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[KeyFault]]:
    """A copy of `raw` with moved keys at their home and refused keys out, and the faults found on the way."""
    result = _copy(raw)
    faults = _take_refused(result, ())
    for old, new in MOVED.items():
        faults += _move(result, old, new)
    for one, other in SAME:
        _fill(result, one, other, faults)
    for key, words in RENAMED_VALUES.items():
        value = _value(result, key)
        if isinstance(value, str) and value in words:
            _set(result, key, words[value])
    if _value(result, "trainer.use_ema") is False and _value(result, "evaluate.weights") is None:
        _set(result, "evaluate.weights", "raw")  # there are no others
    _name_architecture(result)
    _name_data(result)
    _count_crops(result, faults)
    for stage, overrides in _stage_overrides(result):
        faults += _rename_overrides(stage, overrides)
    return result, faults


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _take_refused(node: dict[str, Any], path: tuple[str, ...]) -> list[KeyFault]:
    faults: list[KeyFault] = []
    for key in list(node):
        here = (*path, str(key))
        if here[0] == "stage_overrides":
            continue
        why = refusal(here)
        if why is not None:
            faults.append(KeyFault(here, "E_REFUSED_KEY", f"known and refused: {why}", node.pop(key)))
        elif isinstance(node[key], dict):
            faults += _take_refused(node[key], here)
    return faults


def _section(raw: dict[str, Any], dotted: str) -> tuple[dict[str, Any] | None, str]:
    section, _, key = dotted.partition(".")
    node = raw.get(section)
    return (node if isinstance(node, dict) else None), key


def _value(raw: dict[str, Any], dotted: str) -> Any:
    node, key = _section(raw, dotted)
    return None if node is None else node.get(key)


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    section, _, key = dotted.partition(".")
    node = raw.setdefault(section, {})
    if isinstance(node, dict):
        node[key] = value


def _move(raw: dict[str, Any], old: str, new: str) -> list[KeyFault]:
    node, key = _section(raw, old)
    if node is None or key not in node:
        return []
    value = node.pop(key)
    home = _value(raw, new)
    if value is None:
        return []
    if home is not None and home != value:
        return [_contradiction(old, value, new, home)]
    _set(raw, new, value)
    return []


def _fill(raw: dict[str, Any], one: str, other: str, faults: list[KeyFault]) -> None:
    a, b = _value(raw, one), _value(raw, other)
    if a is not None and b is not None and a != b:
        faults.append(_contradiction(one, a, other, b))
    elif a is not None:
        _set(raw, other, a)
    elif b is not None:
        _set(raw, one, b)


def _contradiction(one: str, a: Any, other: str, b: Any) -> KeyFault:
    sentence = f"{a!r} contradicts {other} {b!r}: two names of one setting; give one of them"
    return KeyFault(tuple(one.split(".")), "E_CONTRADICTION", sentence, a)


def _name_architecture(raw: dict[str, Any]) -> None:
    if _value(raw, "model.arch_name") == "medsegdiff_flow":
        _set(raw, "model.arch_name", "filmflow_dual")
        note_once("model.arch_name 'medsegdiff_flow' is read as 'filmflow_dual'")
    conditioning = _value(raw, "model.image_conditioning")
    if _value(raw, "model.arch_name") is None and conditioning in ("concat", "dual"):
        _set(raw, "model.arch_name", f"filmflow_{conditioning}")


def _name_data(raw: dict[str, Any]) -> None:
    name = _value(raw, "data.name")
    if name not in PUBLISHED_DATA:
        return
    _set(raw, "data.name", "folder")
    note_once(f"data.name {name!r} is read as 'folder': pictures from data.train_dir, val_dir, test_dir")
    vlm = _value(raw, "model.vlm_film_config")
    prompts = vlm.get("prompt_templates") if isinstance(vlm, dict) else None
    if isinstance(prompts, dict) and name in prompts:
        prompts.setdefault("folder", prompts.pop(name))


def _count_crops(raw: dict[str, Any], faults: list[KeyFault]) -> None:
    plan = _value(raw, "model.patch_plan")
    if not isinstance(plan, list) or not all(isinstance(p, list) and len(p) == 2 for p in plan):
        return
    numbers = [number for _, number in plan]
    if not plan or not all(type(number) is int and number > 0 for number in numbers):
        return
    given = _value(raw, "data.num_samples_per_image")
    if given is not None and given != sum(numbers):
        faults.append(_contradiction("model.patch_plan", plan, "data.num_samples_per_image", given))
    else:
        _set(raw, "data.num_samples_per_image", sum(numbers))


def _stage_overrides(raw: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    stages = raw.get("stage_overrides")
    if not isinstance(stages, dict):
        return []
    return [(str(stage), overrides) for stage, overrides in stages.items() if isinstance(overrides, dict)]


def _rename_overrides(stage: str, overrides: dict[str, Any]) -> list[KeyFault]:
    faults: list[KeyFault] = []
    for old, new in MOVED.items():
        if old not in overrides:
            continue
        value = overrides.pop(old)
        if overrides.get(new, value) != value:
            fault = _contradiction(old, value, new, overrides[new])
            faults.append(fault._replace(path=("stage_overrides", stage, old)))
        overrides[new] = value
    for one, other in SAME:
        if (one in overrides) != (other in overrides):
            overrides[one] = overrides[other] = overrides.get(one, overrides.get(other))
    return faults
