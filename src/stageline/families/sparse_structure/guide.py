"""What the guide's script needs: its flags as a config, the weights it starts from, tiny data to try it. No torch here.

<output_dir>/<run>.yaml                  the config that the flags stand for
<output_dir>/runs/base-<digest>/         weights of others, brought in once for each file
<output_dir>/runs/<run>/                 what is trained
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stageline.checkpoint.layout import resolve
from stageline.errors import CheckpointError, ConfigError, Faults, PeerLostError
from stageline.families.sparse_structure.data.origin import LATENTS
from stageline.families.sparse_structure.data.scene_files import list_scenes
from stageline.families.sparse_structure.published import Published, read_published

OBJECTIVE_FLAGS = {
    "self_consistency_prob": "self_consistency_prob",
    "shortcut_loss_weight": "shortcut_loss_weight",
    "cfg_strength": "self_consistency_cfg_strength",
    "ratio_cfg_samples": "ratio_cfg_samples_in_self_consistency_target",
    "fm_in_shortcut_target_prob": "fm_in_shortcut_target_prob",
    "fm_eps_max": "fm_eps_max",
}
"""Flag -> key of `objective`; one that is not given leaves what the file says."""
TRAINER_FLAGS = {
    "num_epochs": "max_epochs",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "grad_clip": "gradient_clip_val",
    "accumulate_scenes": "accumulate_grad_batches",
    "num_workers": "num_workers",
    "log_interval": "log_every_steps",
}
"""Flag -> key of `trainer`."""
LONGEST_WAIT_SECONDS = 1800.0
"""How long a rank waits for rank 0 to bring weights in; chosen here: some GB from a slow disk."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Weights:
    """Weights of other programs, and what they are here.

    files: of the sparse branch, or of both.  run: that gets them.  stage: whose checkpoint they become.
    """

    files: tuple[Path, ...]
    run: str
    stage: str

    def is_there(self, root: Path) -> bool:
        """Whether they were brought in before. root: the folder of runs."""
        try:
            resolve(str(root / "runs" / self.run / self.stage))
        except CheckpointError:
            return False
        return True

    def wait(self, root: Path) -> None:
        """Return when another rank has brought them in; PeerLostError when that takes too long."""
        end = time.monotonic() + LONGEST_WAIT_SECONDS
        while not self.is_there(root):
            if time.monotonic() > end:
                raise PeerLostError(
                    f"rank 0 has not brought in {self.files[0]} for {LONGEST_WAIT_SECONDS:.0f} seconds",
                    remedy="start again; its own message says why",
                )
            time.sleep(POLL_SECONDS)


def weights_of(published: Published) -> Weights | None:
    """The weights that a file names; None where it names none. ConfigError for those that do not go together."""
    sparse, scene = published.weights
    faults = Faults(ConfigError, "weights to start from", "mend the paths; they are relative to the working folder")
    named = [file for file in (sparse, scene) if file is not None]
    faults.extend(f"there is no file {str(file)!r}" for file in named if not file.is_file())
    if scene is not None and sparse is None:
        faults.add("global_sparse_flow_checkpoint without sparse_flow_checkpoint")
    if scene is not None and not scene.name.startswith("global"):
        faults.add(f"{scene.name!r}: the file of the scene's branch is called global...")
    faults.raise_if_any()
    if not named:
        return None
    digest = hashlib.sha256()
    for file in named:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    stage = "global_flow" if scene is not None else "sparse_flow"
    return Weights(tuple(named), f"base-{digest.hexdigest()[:12]}", stage)


def scene_config(
    flags: Mapping[str, Any], published: Published, weights: Weights | None, environment: Mapping[str, str]
) -> dict[str, Any]:
    """The raw config that the script's flags stand for.

    flags: name -> value, None for one that is not given.  environment: torchrun's variables tell processes and nodes.
    """
    processes = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(environment.get("WORLD_SIZE", "1")) // processes
    objective = {**published.objective, "batch_mode": True}
    objective |= {key: flags[flag] for flag, key in OBJECTIVE_FLAGS.items() if flags[flag] is not None}
    if flags["loss_weights"] is not None:
        objective["loss_weights"] = _loss_weights(flags["loss_weights"], published)
    trainer = {key: flags[flag] for flag, key in TRAINER_FLAGS.items()}
    trainer |= {"batch_size": 1, "processes": processes, "nodes": nodes}
    trainer |= {"precision": "16-mixed"} if flags["use_fp16"] else {}
    data_root = Path(flags["data_root"]).resolve()
    trainer["checkpoint_every_steps"] = flags["save_interval"] * _steps_of_epoch(data_root, flags, processes * nodes)
    branches: dict[str, dict[str, Any]] = {
        "sparse_flow": dict(published.model["sparse_flow"]),
        "global_sparse_flow": {**published.model["global_sparse_flow"], "start": "fresh"},
    }
    for branch in branches.values() if flags["use_checkpoint"] else ():
        branch["use_checkpoint"] = True
    config: dict[str, Any] = {
        "family": "sparse_structure",
        "run": flags["run"],
        "root": str(Path(flags["output_dir"]).resolve()),
        "seed": flags["seed"],
        "model": {**published.model, **branches},
        "data": {
            "name": "latents",
            "data_root": str(data_root),
            "max_objects_per_scene": flags["max_objects_per_scene"],
        },
        # The guide's data have no split of their own for evaluation.
        "evaluate": {"split": "test" if (data_root / "test").is_dir() else "val"},
        "objective": objective,
        "trainer": trainer,
    }
    if weights is not None:
        place = f"runs/{weights.run}/{weights.stage}"
        config["parents"] = {stage: {"sparse": place} for stage in ("sparse_flow", "global_flow")}
    return config


def _steps_of_epoch(data_root: Path, flags: Mapping[str, Any], ranks: int) -> int:
    """Optimizer steps of a pass over the training scenes."""
    try:
        scenes = len(list_scenes(data_root / "train", LATENTS))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error), remedy="mend --data_root") from error
    return max(-(-scenes // (ranks * int(flags["accumulate_scenes"]))), 1)


def _loss_weights(text: str, published: Published) -> dict[str, float]:
    """Weights per modality from `shape=1,translation=0.5`, over those of the file; one number is for all."""
    names = list(published.model["modalities"])
    weights = dict(published.objective.get("loss_weights") or dict.fromkeys(names, 1.0))
    try:
        if "=" not in text:
            return dict.fromkeys(names, float(text))
        given = {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise ConfigError(f"--loss_weights {text!r}", remedy="write shape=1.0,translation=0.5") from error
    if unknown := sorted(set(given) - set(names)):
        raise ConfigError(f"--loss_weights names {unknown}", remedy=f"the modalities are {', '.join(names)}")
    return weights | given


def check_resume(path: str, root: Path, run: str, stage: str) -> None:
    """ConfigError unless a checkpoint is one that the run goes on from by itself. path: "" for whatever is there."""
    if not path:
        return
    reference = resolve(path)
    found, place = reference.metadata, Path(reference.uri).resolve()
    says = [f"--run {found.run}"] if found.run != run else []
    says += [f"--stage {found.stage}"] if found.stage != stage else []
    is_below = place.is_relative_to((root / "runs" / found.run / found.stage).resolve())
    says += [] if is_below else ["the --output_dir that it lies in"]
    if says:
        raise ConfigError(
            f"{path} is of stage {found.stage!r} of run {found.run!r} at {place}; going on is for {stage!r} of {run!r} "
            f"in {root}",
            remedy=f"say {' and '.join(says)} to go on with it, or, to start from its weights, leave --resume out and "
            f"say parents.global_flow.sparse={path}",
        )


def write_config(config: Mapping[str, Any]) -> Path:
    """Write `<root>/<run>.yaml`; ranks that write it together write the same."""
    path = Path(config["root"]) / f"{config['run']}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(yaml.safe_dump(dict(config), sort_keys=False, width=120), encoding="utf-8")
    unfinished.replace(path)
    return path


def translate(
    flags: Mapping[str, Any], words: Sequence[str], environment: Mapping[str, str]
) -> tuple[Path, Weights | None, list[str]]:
    """(root, weights to bring in first, words of the `stageline` command); writes the config that they name.

    flags: as of `scene_config`.  words: `key=value`, handed on.
    """
    published = read_published(flags["config"])
    weights = weights_of(published)
    config = scene_config(flags, published, weights, environment)
    root, stage = Path(config["root"]), flags["stage"]
    if flags["resume"] is not None:
        check_resume(flags["resume"], root, flags["run"], stage)
    return root, weights, ["train", stage, "-c", str(write_config(config)), *words]
