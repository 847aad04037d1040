"""What objects of a scene know of each other after longer training, beside a control and flow matching.

Run: `nice -n 19 python benchmarks/bench_scenes.py`, an hour and a half or more of two cores, one for each seed, by the
commands that it prints; at its end it writes benchmarks/results/scenes.json and prints a table of it (`--table` prints
it and trains nothing). What it trains lies under `build/scenes`, with a log per seed, and a second time it is found
there. Data and recipe are those of the preset `demo` with more steps, seeds 0 and 1. The branch of the scene is trained
in three ways: as it is; on scenes whose objects were exchanged for others of their class (`data.shuffle_objects`), that
must leave agreement at chance; by flow matching alone (`objective.self_consistency_prob=0`). After the first, both
branches are trained together (`joint`). All of a seed have the same autoencoder, start from the same branch of one
object, and are sampled from the same noise. Intervals: bootstrap over test rooms, 95 %.
"""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stageline.families.sparse_structure.words import ALONE, SAMPLED, TRUTH, WORDS, mode_of
from stageline.verbs.compare.samples import estimate, values_by_mode

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "scenes.json"
FOLDER = Path("build/scenes")
CONFIG = FOLDER / "config.yaml"
SEEDS = (0, 1)
STEPS = {"shape_vae": 650, "sparse_flow": 1300, "global_flow": 2000, "joint": 600}
"""Of each stage."""
SCENES, JOINT = "scenes", "scenes, then both branches"
VARIANTS: dict[str, tuple[str, ...]] = {
    SCENES: (),
    JOINT: (),
    "shuffled scenes": ("data.shuffle_objects=true",),
    "flow matching": ("stage_overrides.global_flow.objective.self_consistency_prob=0",),
}
"""Name -> what differs."""
MODES = {TRUTH: "truth", ALONE: "one object", mode_of(1): "1 step", mode_of(4): "4 steps", SAMPLED: "128 steps"}


def stageline(log: Path, *words: str) -> None:
    """Print a command and run it, its words going to a log; RuntimeError where it fails."""
    print(f"$ stageline {shlex.join(words)}", flush=True)
    program = str(Path(sys.executable).with_name("stageline"))
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run([program, *words], cwd=ROOT, check=False, stdout=file, stderr=file).returncode
    if code:
        raise RuntimeError(f"`stageline {words[0]}` ended with {code}: {log} says why")


def measured(seed: int, variant: str) -> dict[str, Any]:
    """Train and evaluate what is not there yet, and give what the docs show."""
    first = f"seed-{seed}"
    log = ROOT / FOLDER / f"{first}.log"
    longer = tuple(f"stage_overrides.{stage}.trainer.max_steps={steps}" for stage, steps in STEPS.items())
    common = ("-c", str(CONFIG), f"root={FOLDER}", f"seed={seed}", *longer)
    stageline(log, "run", *common, f"run={first}", "stages=[shape_vae, sparse_flow]", "evaluate.max_scenes=1")
    run = f"{first}-{variant.replace(',', '').replace(' ', '-')}"
    stage, role, parent = "global_flow", "sparse", f"{first}/sparse_flow"
    if variant == JOINT:
        stage, role, parent = "joint", "global", f"{first}-{SCENES}/global_flow"
    parents = (f"parents.{stage}.vae=runs/{first}/shape_vae", f"parents.{stage}.{role}=runs/{parent}")
    stageline(log, "run", *common, f"run={run}", f"stages=[{stage}]", *parents, *VARIANTS[variant])
    return read(ROOT / FOLDER / "runs" / run)


def read(run: Path) -> dict[str, Any]:
    """Agreement with its interval, that of different rooms, and distance, mode by mode, of a run's one evaluation."""
    (path,) = sorted((run / "evaluations").glob("*/metrics.json"))
    metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    with path.with_name("rows.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, Any] = {"iou_vae": round(metrics["iou_vae"], 4)}
    for mode, caption in MODES.items():
        agreement = estimate(list(values_by_mode(rows, "agreement", WORDS)[mode].values()))
        suffix = "" if mode == SAMPLED else f"_{mode}"
        distance = metrics["distance_floor" if mode == TRUTH else f"distance{suffix}"]
        across = metrics["agreement_across" if mode == SAMPLED else f"agreement_across_{mode}"]
        numbers = (agreement.mean, agreement.low, agreement.high, across, distance)
        keys = ("agreement", "low", "high", "across", "distance")
        found[caption] = {key: None if n is None else round(float(n), 4) for key, n in zip(keys, numbers, strict=True)}
    return found


def table(results: dict[str, Any]) -> str:
    """A table in Markdown."""
    captions = list(MODES.values())
    lines = [
        "| seed | the scene's branch learned from | " + " | ".join(captions) + " |",
        "|" + "---|" * (2 + len(captions)),
    ]
    for seed, variants in results["seeds"].items():
        for variant, found in variants.items():
            cells = [
                "{agreement:.2f} ({low:.2f} to {high:.2f}), {across:.2f}, {distance:.3f}".format(**found[caption])
                for caption in captions
            ]
            lines.append(f"| {seed} | {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train, measure, write and print; `--table` prints what was measured before."""
    if "--table" in sys.argv:
        print(table(json.loads(RESULT.read_text(encoding="utf-8"))))
        return
    (ROOT / FOLDER).mkdir(parents=True, exist_ok=True)
    if not (ROOT / CONFIG).exists():
        log = ROOT / FOLDER / "init.log"
        stageline(log, "init", "--family", "sparse_structure", "--preset", "demo", "--output", str(CONFIG))
    results: dict[str, Any] = {"steps": STEPS, "seeds": {str(seed): {} for seed in SEEDS}}

    def measure(seed: int) -> None:
        for variant in VARIANTS:
            results["seeds"][str(seed)][variant] = measured(seed, variant)

    with ThreadPoolExecutor(len(SEEDS)) as pool:
        list(pool.map(measure, SEEDS))  # raises what went wrong with a seed
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
