"""What objects of a scene know of each other after longer training, beside a control and flow matching.

Run: `nice -n 19 python benchmarks/bench_scenes.py`, an hour or more of two cores, one for each seed, by the commands
that it prints; it writes benchmarks/results/scenes.json and prints a table of it (`--table` prints it and trains
nothing). What it trains lies under `build/scenes`, with a log per seed, and a second time it is found there. Data and
recipe are those of the preset `demo`, seeds 0 and 1; the scene's branch is trained for longer in three ways: as it is;
on scenes whose objects were exchanged for others of their class (`data.shuffle_objects`), which must leave agreement
at chance; by flow matching alone (`objective.self_consistency_prob=0`). All of a seed have the same autoencoder and
the same branch of one object, and are sampled from the same noise. Intervals: bootstrap over test rooms, 95 %.
"""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from stageline.families.sparse_structure.words import ALONE, SAMPLED, TRUTH, WORDS, mode_of
from stageline.verbs.compare.samples import estimate, values_by_mode

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "scenes.json"
FOLDER = Path("build/scenes")
CONFIG = FOLDER / "config.yaml"
SEEDS = (0, 1)
STEPS = 2000
VARIANTS: dict[str, tuple[str, ...]] = {
    "scenes": (),
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
    """Train what is not there yet, evaluate, and give what the docs show."""
    first = f"seed-{seed}"
    log = ROOT / FOLDER / f"{first}.log"
    common = ("-c", str(CONFIG), f"root={FOLDER}", f"seed={seed}")
    stageline(log, "run", *common, f"run={first}", "stages=[shape_vae, sparse_flow]", "evaluate.max_scenes=1")
    run = f"{first}-{variant.replace(' ', '-')}"
    parents = (
        f"parents.global_flow.vae=runs/{first}/shape_vae",
        f"parents.global_flow.sparse=runs/{first}/sparse_flow",
    )
    longer = f"stage_overrides.global_flow.trainer.max_steps={STEPS}"
    stageline(log, "run", *common, f"run={run}", "stages=[global_flow]", longer, *parents, *VARIANTS[variant])
    return read(ROOT / FOLDER / "runs" / run)


def read(run: Path) -> dict[str, Any]:
    """Agreement with its interval and distance, mode by mode, of the one evaluation of a run."""
    (path,) = sorted((run / "evaluations").glob("*/metrics.json"))
    metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    with path.with_name("rows.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, Any] = {"iou_vae": round(metrics["iou_vae"], 4)}
    for mode, caption in MODES.items():
        agreement = estimate(list(values_by_mode(rows, "agreement", WORDS)[mode].values()))
        suffix = "" if mode == SAMPLED else f"_{mode}"
        distance = metrics["distance_floor" if mode == TRUTH else f"distance{suffix}"]
        numbers = (agreement.mean, agreement.low, agreement.high, distance)
        keys = ("agreement", "low", "high", "distance")
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
                f"{one['agreement']:.2f} ({one['low']:.2f} to {one['high']:.2f}), {one['distance']:.3f}"
                for one in (found[caption] for caption in captions)
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
    writing = Lock()

    def measure(seed: int) -> None:
        for variant in VARIANTS:
            found = measured(seed, variant)
            with writing:
                results["seeds"][str(seed)][variant] = found
                RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    with ThreadPoolExecutor(len(SEEDS)) as pool:
        list(pool.map(measure, SEEDS))  # raises what went wrong with a seed
    print(table(results))


if __name__ == "__main__":
    main()
