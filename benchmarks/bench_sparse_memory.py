"""Host memory of sparse_structure at public size: importing `ss_generator.ckpt`, and starting `global_flow` from it.

Run: `nice python benchmarks/bench_sparse_memory.py --folder DIR`. It writes a file of the public layout (945 tensors of
zeros in float32, 3.6 GiB), imports it (3.6 GiB more), starts the stage up to its first forward pass, and removes
everything; each of these is a process of its own, whose largest resident memory is told. Pages of a file that is mapped
count as resident, although the system may drop them. `--tiny` does the same at a small size.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PREFIX = "_base_models.generator.reverse_fn.backbone."
FILE = "ss_generator.ckpt"
PHASES = ("nothing", "make", "import", "start")
TINY = [
    f"model.{branch}.{key}"
    for branch in ("sparse_flow", "global_sparse_flow")
    for key in ("model_channels=256", "num_heads=4")
]


class StartedError(Exception):
    """The stage got to its first forward pass."""


def words(folder: Path, *, tiny: bool) -> list[str]:
    """Overrides of the preset `public` for one small scene."""
    own = [f"root={folder}", f"data.data_root={folder / 'scenes'}", "data.name=latents", "trainer.accelerator=cpu"]
    own += [
        "trainer.max_steps=1",
        "trainer.accumulate_grad_batches=1",
        "trainer.tensorboard=false",
        "reuse.across_runs=off",
    ]
    return own + (TINY if tiny else [])


def config_of(folder: Path, run: str, *more: str, tiny: bool) -> Any:
    from stageline.families import parse_config, raw_preset

    raw = raw_preset("sparse_structure", "public")
    return parse_config(raw, [*words(folder, tiny=tiny), f"run={run}", *more])


def make(folder: Path, *, tiny: bool) -> None:
    """The file, and a scene of one object in each split, with four condition tokens."""
    import torch

    from stageline.checkpoint.torch_files import write_torch_file
    from stageline.families.sparse_structure.assembly import build_model
    from stageline.families.sparse_structure.config import STAGES
    from stageline.stage import stage_config

    config = stage_config(config_of(folder, "made", tiny=tiny), STAGES["sparse_flow"])
    with torch.device("meta"):
        state = build_model(config, STAGES["sparse_flow"]).state_dict()
    tensors = {f"{PREFIX}{name.removeprefix('sparse_flow.')}": torch.zeros(x.shape) for name, x in state.items()}
    foreign = {"_base_models.decoder.x": torch.zeros(8)}
    write_torch_file(folder / FILE, {"state_dict": {**tensors, **foreign}})
    model = config.model
    for split in ("train", "val", "test"):
        scene = folder / "scenes" / split / "scene"
        scene.mkdir(parents=True)
        latents = {name: torch.zeros(1, model.tokens[name], model.channels[name]) for name in model.modalities}
        write_torch_file(scene / "latents.pt", latents)
        write_torch_file(scene / "conditionals.pt", {"cond": torch.zeros(1, 4, model.cond_channels)})


def bring_in(folder: Path, *, tiny: bool) -> None:
    """The verb `checkpoint import`."""
    from stageline.cli.imports import import_files

    given = [str(folder / FILE), *words(folder, tiny=tiny)]
    import_files(given, "public", stage="sparse_flow", family="sparse_structure", preset="public")


def start(folder: Path, *, tiny: bool) -> None:
    """The verb `train`, up to the first forward pass: model, weights, optimizer, average."""
    from dataclasses import replace

    from stageline.families.sparse_structure import family
    from stageline.verbs.prepare import prepare_data
    from stageline.verbs.train import train_stage

    def build_task(*given: Any) -> Any:
        def started(*_: Any) -> Any:
            raise StartedError

        task = record.build_task(*given)
        task.loss = task.validate = started  # validation is tried before the first step
        return task

    record = family.FAMILY
    family.FAMILY = replace(record, build_task=build_task)
    parents = ("stages=[global_flow]", "parents.global_flow.sparse=runs/public/sparse_flow")
    config = config_of(folder, "scenes", *parents, tiny=tiny)
    try:
        train_stage(config, "global_flow", data=str(prepare_data(config).reference))
    except StartedError:
        return
    raise AssertionError("the stage ended before it started")


def nothing(folder: Path, *, tiny: bool) -> None:
    """What torch and this package take by themselves."""
    config_of(folder, "none", tiny=tiny)
    from stageline.verbs.train import train_stage

    del train_stage


def phase(name: str, folder: Path, *, tiny: bool) -> None:
    """Do one thing in this process, and tell its seconds and its largest resident memory as JSON."""
    begun = time.monotonic()
    {"nothing": nothing, "make": make, "import": bring_in, "start": start}[name](folder, tiny=tiny)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"peak_gib": round(peak, 2), "seconds": round(time.monotonic() - begun)}))


def main() -> int:
    """Each phase in a process of its own; a table, and JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where 8 GiB are free; a temporary folder without it")
    parser.add_argument("--tiny", action="store_true", help="a sixteenth of the size")
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.phase:
        phase(given.phase, given.folder, tiny=given.tiny)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="sparse-memory-", dir=given.folder))
    figures: dict[str, Any] = {}
    try:
        for name in PHASES:
            command = [sys.executable, __file__, "--phase", name, "--folder", str(folder), *["--tiny"] * given.tiny]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            figures[name] = json.loads(told.splitlines()[-1])
            if name == "make":
                figures["file_gib"] = round((folder / FILE).stat().st_size / 2**30, 2)
            print(f"  {name:<8} {figures[name]['peak_gib']:6.2f} GiB  {figures[name]['seconds']:4} s", flush=True)
    finally:
        shutil.rmtree(folder)
    for name in ("import", "start"):
        figures[name]["of_file"] = round(figures[name]["peak_gib"] / figures["file_gib"], 2)
        print(f"  {name}: {figures[name]['of_file']} times the file of {figures['file_gib']} GiB")
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
