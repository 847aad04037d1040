"""The guide's training command, translated: whole scenes with ShortCut, as a stage of stageline.

    python train_shortcut_scene.py --data_root data/scenes --output_dir outputs/shortcut_scene
    torchrun --nproc_per_node=2 train_shortcut_scene.py --data_root data/scenes --output_dir outputs/shortcut_scene

Its flags become a config, which lies in the output folder; weights that the config's file names are brought in once;
then it prints the `stageline train` command and becomes it. Further `key=value` words are handed on. The scenes' class
and its collate function may be imported from here.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stageline.errors import StagelineError
from stageline.families.sparse_structure.guide import Weights, translate

PROGRAM = Path(sys.executable).with_name("stageline")
CONFIG = Path(__file__).with_name("checkpoints") / "hf" / "dual_backbone_generator.yaml"


def __getattr__(name: str) -> Any:
    """`SceneDataset` and `scene_collate_fn`, loaded when they are asked for: the command itself needs no torch."""
    if name not in ("SceneDataset", "scene_collate_fn"):
        raise AttributeError(name)
    from stageline.families.sparse_structure.data import scene_dataset

    return getattr(scene_dataset, name)


def make_parser() -> argparse.ArgumentParser:
    """The guide's flags, and three of our own: --config's default, --run and --stage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--data_root", required=True, help="folder with train/ and val/, a folder for each scene")
    add("--output_dir", required=True, help="checkpoints lie in <output_dir>/runs/<run>/")
    add("--config", default=str(CONFIG), help="YAML of the published structure with both branches")
    add("--run", default="shortcut_scene", help="name of the run")
    add("--stage", default="global_flow", choices=("sparse_flow", "global_flow", "joint"), help="what trains")
    add("--num_epochs", type=int, default=100)
    add("--learning_rate", type=float, default=1e-4)
    add("--weight_decay", type=float, default=0.01)
    add("--grad_clip", type=float, default=1.0, help="largest norm of the gradient; 0 does not clip")
    add("--max_objects_per_scene", type=int, default=32, help="of larger scenes others in each epoch")
    add("--accumulate_scenes", type=int, default=1, help="scenes per rank and optimizer step")
    add("--num_workers", type=int, default=0)
    add("--log_interval", type=int, default=10, help="in optimizer steps")
    add("--save_interval", type=int, default=10, help="in epochs")
    add("--seed", type=int, default=0)
    config = "; none leaves what the config says"
    add("--self_consistency_prob", type=float, help=f"share of the scenes that learn from self-consistency{config}")
    add("--shortcut_loss_weight", type=float, help=f"weight of that part{config}")
    add("--cfg_strength", type=float, help=f"guidance inside its targets{config}")
    add("--ratio_cfg_samples", type=float, help=f"share of its targets that are guided{config}")
    add("--fm_in_shortcut_target_prob", type=float, help=f"share of its targets made with step 0{config}")
    add("--fm_eps_max", type=float, help=f"largest half step of flow matching{config}")
    add("--loss_weights", help=f"shape=1.0,translation=0.5, or one number for all{config}")
    add("--use_checkpoint", action="store_true", help="compute activations again instead of keeping them")
    add("--use_fp16", action="store_true", help="mixed half precision with a scaled loss; needs a GPU")
    add("--resume", nargs="?", const="", metavar="CHECKPOINT", help="go on, as the same command does by itself")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Get everything ready and become the command; returns an exit code where something is wrong."""
    parser = make_parser()
    given, words = parser.parse_known_args(arguments)
    if strange := [word for word in words if "=" not in word or word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    try:
        if given.use_fp16:
            refuse_half_precision()
        root, weights, command = translate(vars(given), words, os.environ)
        code = 0 if weights is None else bring_in(weights, root, command[2:])
    except StagelineError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    if code == 0:
        say(command)
        os.execv(PROGRAM, [str(PROGRAM), *command])  # noqa: S606  # a list of words, no shell wanted
    return code


def refuse_half_precision() -> None:
    """ConfigError on a machine without a GPU, before anything is read."""
    import torch

    from stageline.config import TrainerConfig
    from stageline.trainer.refusals import refuse_settings

    refuse_settings(TrainerConfig(precision="16-mixed"), has_cuda=torch.cuda.is_available())


def bring_in(weights: Weights, root: Path, config: Sequence[str]) -> int:
    """Import weights once; of several ranks the first one does. config: the words that name it.

    Returns an exit code.
    """
    if weights.is_there(root):
        return 0
    if not is_first():
        weights.wait(root)
        return 0
    files = [str(file) for file in weights.files]
    words = ["checkpoint", "import", *files, "--to", weights.run, "--stage", weights.stage, *config]
    words.append("model.sparse_flow.freeze_shared_parameters=false")  # said of training, and this file is trained
    say(words)
    return subprocess.run([str(PROGRAM), *words], check=False).returncode


def is_first() -> bool:
    """Whether this process is alone, or the first of several ranks."""
    return os.environ.get("RANK", "0") == "0"


def say(command: Sequence[str]) -> None:
    """Tell which command runs, once for all ranks."""
    if is_first():
        print(f"$ stageline {shlex.join(command)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
