"""Finished evaluations where the guide has them, `results/eval_results/<run>/predictions_<time>/`. No torch.

Such a folder is a copy of the evaluation in `runs/<run>/evaluations/`: its predictions and metrics, unchanged, with the
config and the words of the command that made them. Metrics can be made again from its predictions alone.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stageline.config import is_sealed, read_yaml, seal, to_yaml
from stageline.config.bounds import read_json, read_whole
from stageline.errors import CheckpointError, ConfigError, DataError
from stageline.families import load_config
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, PanoramaVlmConfig
from stageline.families.panorama_vlm.guide import find_sibling
from stageline.families.panorama_vlm.predictions import PREDICTIONS, read_predictions
from stageline.store import Reference, open_below
from stageline.telemetry import redact

METRICS = "metrics.json"
CONFIG = "eval_config.yaml"
LOG = "run.log"
EVALUATIONS = "evaluations"
"""Folder of a run whose files are never written again."""


def checkpoint_of(config: str, words: Sequence[str], asked: str | None) -> str | None:
    """The path of the checkpoint to evaluate; None leaves it to `stageline evaluate`.

    config: the config file.  words: overrides that come with it.
    asked: `best` or `last`, of the stage directory that the config lies in or else of the run's last stage; a path; or
    None, which is the best beside the config, if there is one.

    CheckpointError for one that is not there; it names the one of the run without overlap where that exists.
    """
    beside = Path(config).resolve().parent
    if asked in (None, "best", "last"):
        pointer = f"{asked or 'best'}.ckpt"
        if (beside / pointer).is_file():
            return str(beside / pointer)
        if asked is None:
            return None
        own = load_config(config, words)
        stage = FAMILY_CONFIG.selected(own)[-1].name
        asked = f"{own.root.rstrip('/')}/runs/{own.run}/{stage}/{FAMILY_CONFIG.variant(own)}/{pointer}"
    sibling = find_sibling(asked)
    if not Path(asked).exists() and sibling is not None:
        raise CheckpointError(
            f"there is no checkpoint at {asked}; the one without overlap is another run: {sibling}",
            remedy=f"say --checkpoint {sibling} if that is the one you mean",
        )
    return asked


def root_beside(folder: Path) -> list[str]:
    """The root of a run, for a config that lies in one of its stage directories; nothing for any other config."""
    for parent in folder.parents:
        if (parent / "run.json").is_file() and parent.parent.name == "runs":
            return [f"root={parent.parent.parent}"]
    return []


def copy_evaluation(reference: Reference, config: str, words: Sequence[str], log: str) -> Path:
    """Copy a finished evaluation to `<results_dir>/<run>/predictions_<time>/`; returns that folder.

    reference: of the evaluation.  config, words: what was evaluated with.  log: what the command printed.
    """
    source = open_below(reference.uri)
    own = load_config(config, words)
    assert isinstance(own, PanoramaVlmConfig)
    plain = read_json(source.get(METRICS))
    stamp = datetime.datetime.now().astimezone().strftime("predictions_%Y%m%d_%H%M%S")  # local time, as the guide says
    folder = Path(own.evaluate.results_dir) / str(plain["checkpoint"]["run"])
    target, number = folder / stamp, 1
    while target.exists():
        number += 1
        target = folder / f"{stamp}_{number}"
    unfinished = target.with_name(f".{target.name}.unfinished")
    unfinished.mkdir(parents=True)
    for name in (METRICS, PREDICTIONS):
        source.download(name, unfinished / name)
    (unfinished / CONFIG).write_text(str(redact(to_yaml(own))), encoding="utf-8")
    (unfinished / LOG).write_text(str(redact(log)), encoding="utf-8")
    unfinished.rename(target)
    return target


def repeat_metrics(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Make the metrics of a copied evaluation again from its predictions, and write them where they differ.

    folder: holds `predictions.csv`, and beside it `metrics.json` or `eval_config.yaml`, which say how texts are split.

    Returns what metrics.json says now, and a line for each value that changed. Metrics of other modes than the plain
    one (`exact_match_rolled`) are left as they are: the file holds the plain answers. ConfigError for what is no copy,
    DataError for files that are damaged.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        raise ConfigError(
            f"there is no {path}", remedy="name a folder results/eval_results/<run>/predictions_<time>, as eval.py says"
        )
    if folder.resolve().parent.name == EVALUATIONS:
        raise ConfigError(
            f"{folder} is the evaluation itself, which is never written again", remedy="name a copy of it in results/"
        )
    text = path.read_bytes()
    before = _metrics_in(folder)
    answers = read_predictions(text.decode("utf-8"), str(path))
    found = answers.measure(_split_in(folder, before))
    metrics = {**before["metrics"], **found}
    old_reasons = {name: why for name, why in before["reasons"].items() if name not in found}
    hashes = {PREDICTIONS: {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text), "type": "text/csv"}}
    plain = {
        **before,
        "metrics": metrics,
        "reasons": old_reasons | found.reasons,
        "num_samples": before["num_samples"] | dict.fromkeys(found, len(answers.predictions)),
        "files": before["files"] | hashes,
    }
    changed = [
        f"{name}: {before['metrics'].get(name, 'absent')} -> {value}"
        for name, value in metrics.items()
        if name not in before["metrics"] or before["metrics"][name] != value
    ]
    plain = seal({name: value for name, value in plain.items() if name != "seal"})
    if plain != before:
        unfinished = folder / f".{METRICS}.unfinished"
        unfinished.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(folder / METRICS)
    return plain, changed


def _metrics_in(folder: Path) -> dict[str, Any]:
    """What metrics.json says; the same without a value where there is none."""
    path = folder / METRICS
    if not path.is_file():
        empty: dict[str, Any] = {"metrics": {}, "reasons": {}, "num_samples": {}, "files": {}, "provenance": {}}
        return {"family": FAMILY_CONFIG.name, **empty, "notes": [f"made from {PREDICTIONS} alone"]}
    try:
        plain = read_json(read_whole(path))
    except ValueError:
        plain = None
    if not is_sealed(plain):
        raise DataError(
            f"{path} was changed after it was written",
            remedy=f"delete it: it is made again from {PREDICTIONS} and {CONFIG}",
        )
    result: dict[str, Any] = plain
    return result


def _split_in(folder: Path, plain: dict[str, Any]) -> str:
    """How texts are split into words: as metrics.json says, else as the config does."""
    if "tokenize" in plain["provenance"]:
        return str(plain["provenance"]["tokenize"])
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"neither {METRICS} nor {CONFIG} lies in {folder}, so that nobody knows how texts are split into words",
            remedy="name a folder that eval.py wrote",
        )
    return str(read_yaml(folder / CONFIG)["metrics"]["tokenize"])
