"""The guide's spellings of the keys: what each is read as, what is refused and why. One table; no torch.

`models`, `training`, `paths`, `profile` and the keys of `stage_configs` are other names of ours, on the command line
too. `PANO_PROFILE` in the environment states the profile where the config does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stageline.config import KeyFault, KeySpellings, contradiction, flatten, get_key, nearest, note_once, put_key
from stageline.config.bounds import read_json, read_whole
from stageline.families.panorama_vlm.config.architectures import (
    known_language,
    known_vision,
    language_numbers,
    vision_numbers,
)
from stageline.families.panorama_vlm.config.stages import STAGES, TINY_STEPS

ALIASES = {
    "vision_pretraining": "vision",
    "resampler_training": "resampler",
    "instruction_tuning": "finetune",
}
"""Published names of stages."""
RENAMED = {
    "profile": "model.profile",
    "training.stages": "stages",
    "training.seed": "seed",
    "training.num_workers": "trainer.num_workers",
    "training.precision": "trainer.precision",
    "training.auto_eval.enabled": "evaluate.auto",
    "training.auto_eval.csv": "data.csv_test",
    "paths.results_dir": "evaluate.results_dir",
    "runtime.threads": "trainer.threads",
}
"""Two names of one setting: the left is read and stored as the right. `models.x` is `model.x`."""
OF_STAGE = {
    "epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
    "lr": "trainer.learning_rate",
    "batch_size": "trainer.batch_size",
    "accumulate_grad_batches": "trainer.accumulate_grad_batches",
    "weight_decay": "trainer.weight_decay",
    "warmup_ratio": "trainer.warmup_fraction",
    "schedule": "trainer.schedule",
    "grad_clip": "trainer.gradient_clip_val",
    "precision": "trainer.precision",
    "max_bad_steps": "trainer.max_bad_steps",
    "val_every_steps": "trainer.validate_every_steps",
    "vision_trainable_blocks": "model.vision_trainable_blocks",
    "train_resampler": "model.train_resampler",
    "max_text_length": "text.max_text_length",
}
"""The same below `stage_configs.<stage>`; keys of `data`, `image_processing`, `lora`, `text` and `vicreg` stay."""
STAGE_SECTIONS = ("data", "image_processing", "lora", "text", "vicreg", "model", "trainer")
SCHEDULES = {"none": "constant"}
PRECISIONS = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true", "32": "32-true"}
GUIDE_SECTIONS = ("models", "training", "stage_configs", "paths", "output")
"""Sections of the guide; what is left in them after reading is unknown."""
_CHECKED = "a stage ends after its steps and the best checkpoint is handed on; take it out"
REFUSED = {
    "paths.cache_dir": "caches lie in cache/ beside runs/, so that runs share them; take it out",
    "output.overwrite": "nothing finished is overwritten; start a new run with run: <new name>",
}


def rename(key: str) -> str:
    """The key that this one is another name of; itself where it is none."""
    first, _, rest = key.partition(".")
    if key in RENAMED:
        return RENAMED[key]
    if first == "models" and rest:
        return f"model.{rest}"
    for prefix in ("training.stage_configs.", "stage_configs."):
        name, _, inner = key.removeprefix(prefix).partition(".")
        if key.startswith(prefix) and (inner in OF_STAGE or inner.partition(".")[0] in STAGE_SECTIONS):
            return f"stage_overrides.{ALIASES.get(name, name)}.{OF_STAGE.get(inner, inner)}"
    return key


def _read(raw: dict[str, Any], faults: list[KeyFault]) -> None:
    """Readings that are more than another name."""
    _read_stages(raw, faults)
    _read_precision(raw)
    _read_root(raw, faults)
    _read_evaluation(raw, faults)
    _read_conflicts(raw, faults)
    _read_leftovers(raw, faults)
    _read_profile(raw)
    _read_shapes(raw)


def _read_stages(raw: dict[str, Any], faults: list[KeyFault]) -> None:
    """Published names of stages, wherever stages are named."""
    stages = raw.get("stages")
    if isinstance(stages, str):
        stages = [name.strip() for name in stages.split(",")]
    if isinstance(stages, list):
        raw["stages"] = [ALIASES.get(name, name) if isinstance(name, str) else name for name in stages]
    for section in ("stage_overrides", "parents"):
        node = raw.get(section)
        for old, new in ALIASES.items():
            if not isinstance(node, dict) or old not in node:
                continue
            if node.get(new, node[old]) != node[old]:
                faults.append(contradiction(f"{section}.{old}", node[old], f"{section}.{new}", node[new]))
            node[new] = node.pop(old)


def _sections(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """The raw config and what it says for each stage."""
    overrides = raw.get("stage_overrides")
    nodes = list(overrides.values()) if isinstance(overrides, dict) else []
    return [raw, *(node for node in nodes if isinstance(node, dict))]


def _map(node: dict[str, Any], dotted: str, change: Callable[[Any], Any]) -> None:
    """Change the value of a key, in whichever way it is written. A change to None takes the key out."""
    section, _, key = dotted.rpartition(".")
    inner = get_key(node, section)
    for holder, name in ((node, dotted), (inner, key)):
        if isinstance(holder, dict) and name in holder:
            value = change(holder[name])
            if value is None:
                del holder[name]
            else:
                holder[name] = value


def _read_precision(raw: dict[str, Any]) -> None:
    def read(value: Any) -> Any:
        if value == "auto":
            tiny = get_key(raw, "model.profile") == "tiny" or os.environ.get("PANO_PROFILE") == "tiny"
            if not tiny:
                note_once("precision 'auto' is read as 'bf16-mixed'; say '32-true' to train on a CPU")
            return "32-true" if tiny else "bf16-mixed"
        return PRECISIONS.get(value, value) if isinstance(value, str) else value

    for node in _sections(raw):
        _map(node, "trainer.precision", read)
        _map(node, "trainer.schedule", lambda value: SCHEDULES.get(value, value) if isinstance(value, str) else value)


def _read_root(raw: dict[str, Any], faults: list[KeyFault]) -> None:
    """`paths.runs_dir` names the folder `runs`, `root` the one above it."""
    paths = raw.get("paths")
    if not isinstance(paths, dict) or "runs_dir" not in paths:
        return
    given = paths.pop("runs_dir")
    text = str(given).rstrip("/")
    parent, _, last = text.rpartition("/")
    if last != "runs":
        sentence = f"the folder of the runs is called runs; say root: {text or '.'}, and runs lie in {text}/runs"
        faults.append(KeyFault(("paths", "runs_dir"), "", sentence, given))
        return
    root = parent or ("/" if text.startswith("/") else ".")
    if raw.setdefault("root", root) != root:
        note_once(f"root {raw['root']!r} takes the place of paths.runs_dir {given!r}")


def _read_evaluation(raw: dict[str, Any], faults: list[KeyFault]) -> None:
    auto = get_key(raw, "training.auto_eval")
    if not isinstance(auto, dict):
        return
    stage, which = auto.pop("stage", None), auto.pop("checkpoint", None)
    if which not in (None, "best"):
        sentence = (
            f"{which!r}: an evaluation is of what a stage hands on, its best; name others in evaluate.checkpoints"
        )
        faults.append(KeyFault(("training", "auto_eval", "checkpoint"), "", sentence, which))
    if stage is not None:
        name = ALIASES.get(stage, stage)
        if get_key(raw, "evaluate.checkpoints") is None:
            put_key(raw, "evaluate.checkpoints", {name: name})


def _read_conflicts(raw: dict[str, Any], faults: list[KeyFault]) -> None:
    output = raw.get("output")
    if isinstance(output, dict) and "on_conflict" in output:
        found = output.pop("on_conflict")
        if found != "error":
            sentence = f"{found!r}: another run under the same name is an error; say run: <new name>"
            faults.append(KeyFault(("output", "on_conflict"), "", sentence, found))


def _read_leftovers(raw: dict[str, Any], faults: list[KeyFault]) -> None:
    """What no reading took out of the guide's sections is unknown; empty ones go."""
    others = ("training.auto_eval.stage", "training.auto_eval.checkpoint", "paths.runs_dir", "output.on_conflict")
    known = [*RENAMED, *others]
    for section in GUIDE_SECTIONS:
        node = raw.pop(section, None)
        if node is not None and not isinstance(node, dict):
            faults.append(KeyFault((section,), "", f"expected a section, found {node!r}", node))
            continue
        for key, value in flatten(node or {}).items():
            path = (section, *key.split("."))
            if value == {} or value is None:
                continue
            of_stage = "stage_configs" in path
            if of_stage and path[-1] == "patience":
                faults.append(KeyFault(path, "E_REFUSED_KEY", f"known and refused: {_CHECKED}", value))
                continue
            near = nearest(path[-1], OF_STAGE) if of_stage else nearest(".".join(path), known)
            here = OF_STAGE if of_stage else [key for key in known if key.startswith(f"{section}.")]
            hint = f"; did you mean {near!r}?" if near else f"; known here: {', '.join(here)}"
            faults.append(KeyFault(path, "E_UNKNOWN_KEY", f"unknown key{hint}", value))


def _read_profile(raw: dict[str, Any]) -> None:
    """The profile of the environment, and its lengths of stages."""
    model = raw.setdefault("model", {})
    if not isinstance(model, dict):
        return
    asked = os.environ.get("PANO_PROFILE")
    if asked and "profile" not in model:
        model["profile"] = asked
    if model.get("profile") != "tiny":
        return
    _map(raw, "trainer.max_epochs", lambda _value: None)
    stated = get_key(raw, "trainer.max_steps") is not None
    overrides = raw.get("stage_overrides", {})
    for stage in STAGES if isinstance(overrides, dict) else ():
        own = overrides.get(stage.name, {})
        if not isinstance(own, dict):
            continue
        _map(own, "trainer.max_epochs", lambda _value: None)
        if not stated and flatten(own).get("trainer.max_steps") is None:
            own["trainer.max_steps"] = TINY_STEPS[stage.name]
            raw.setdefault("stage_overrides", overrides)[stage.name] = own


def _read_shapes(raw: dict[str, Any]) -> None:
    """The sizes of a tower or language model that lies in a folder, from its config.json."""
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("profile") == "tiny":
        return
    for name, key, known, numbers in (
        ("vision_name", "vision_config", known_vision, vision_numbers),
        ("language_model_name", "language_config", known_language, language_numbers),
    ):
        source = model.get(name)
        if not isinstance(source, str) or model.get(key) is not None or known(source) is not None:
            continue
        file = Path(source).expanduser() / "config.json"
        if file.is_file():
            found = numbers(_json(file))
            if found:
                model[key] = found


def _json(file: Path) -> Mapping[str, object]:
    try:
        plain = read_json(read_whole(file))
    except (OSError, ValueError):
        return {}  # the rule that asks for the sizes names the folder
    return plain if isinstance(plain, dict) else {}


SPELLINGS = KeySpellings(rename=rename, refused=REFUSED, read=_read)
