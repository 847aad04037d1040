"""The whole way of sparse_structure on made-up rooms: furniture and what stands beside it. `make demo-scenes` calls it.

All furniture of a made-up room is of one of three styles, which no object is told. A branch that sees one object at a
time draws styles at random; a second one that sees the scene is trained beside it, and both are measured by the share
of pairs of objects of one style. Everything is done by the commands it prints; what they write lies under
`demo/scenes`, and a second time they find it there.
"""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stageline.families.sparse_structure.words import ALONE, SAMPLED, TRUTH, WORDS, mode_of
from stageline.verbs.compare.samples import estimate, values_by_mode

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).with_name("stageline")
FOLDER = Path("demo/scenes")
CONFIG = FOLDER / "config.yaml"
RUN = "rooms"
MOST = 128
"""Steps of the usual mode."""
SETTINGS = ("-c", str(CONFIG), f"root={FOLDER}", f"run={RUN}")
STEPS = (
    (
        ("init", "--family", "sparse_structure", "--preset", "demo", "--output", str(CONFIG)),
        "A starter config, with a comment for every key.",
    ),
    (("plan", *SETTINGS), "What would be done?"),
    (
        ("run", *SETTINGS),
        "Rooms are made up; an autoencoder learns shapes, a branch learns objects by themselves, a second one scenes.\n"
        "Then rooms of shapes that never occurred in training are sampled in 1, 4 and 128 steps.",
    ),
)
"""Command and what it is for."""
MODES = (TRUTH, ALONE, mode_of(1), mode_of(4), SAMPLED)
MEASURES = {"agreement": "one style", "interpenetration": "inside others", "facing_error": "chairs miss by"}


def main() -> int:
    """Run every command, the first where there is no config yet; returns the exit code of the first one to fail."""
    begin = time.monotonic()
    (ROOT / FOLDER).mkdir(parents=True, exist_ok=True)
    for words, text in STEPS[(ROOT / CONFIG).exists() :]:
        code = run_command(words, text)
        if code:
            return code
    print()
    print_scores(ROOT / FOLDER / "runs" / RUN)
    print(f"Done in {time.monotonic() - begin:.0f} s. The report, one file, for a browser:")
    print(f"  {FOLDER}/runs/{RUN}/report.html")
    return 0


def run_command(words: Sequence[str], text: str) -> int:
    """Say what comes, print the command as it can be copied, run it to its end; returns its exit code."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")
    print(f"$ stageline {shlex.join(words)}", flush=True)
    return subprocess.run([str(PROGRAM), *words], cwd=ROOT, check=False).returncode


def print_scores(run: Path) -> None:
    """What objects of a scene know of each other, in every mode, with intervals over scenes."""
    (path,) = sorted((run / "evaluations").glob("*/metrics.json"))
    record = json.loads(path.read_text(encoding="utf-8"))
    metrics, said = record["metrics"], record["provenance"]
    with path.with_name("rows.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chance = 1 / said["styles"]
    print(f"{said['scenes']} rooms, {said['objects']} objects; pairs of one style by chance: {chance:.2f}")
    print(f"{'':<38}" + "".join(f"{caption:>28}" for caption in MEASURES.values()) + f"{'across':>10}{'distance':>12}")
    for mode in MODES:
        caption = f"{MOST} steps" if mode == SAMPLED else WORDS.modes[mode]
        told = "".join(f"{_with_interval(rows, measure, mode):>28}" for measure in MEASURES)
        suffix = "" if mode == SAMPLED else f"_{mode}"
        distance = metrics["distance_floor" if mode == TRUTH else f"distance{suffix}"]
        print(f"{caption:<38}{told}{_plain(metrics[f'agreement_across{suffix}']):>10}{distance:>12.4f}")
    print("(one style: share of pairs; inside others: share of an object's voxels; chairs miss the table by degrees;")
    print(" across: pairs of one style in different rooms, 1 where all rooms are alike;")
    print(" distance: sliced Wasserstein, beside the truth that of training rooms)")
    print(f"autoencoder: overlap {_with_interval(rows, 'iou_vae', SAMPLED)} with shapes that training never had")


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _with_interval(rows: Sequence[dict[str, str]], measure: str, mode: str) -> str:
    values = values_by_mode(rows, measure, WORDS).get(mode)
    if not values:
        return "-"
    found = estimate(list(values.values()))
    return f"{found.mean:.3f} ({found.interval})"


if __name__ == "__main__":
    sys.exit(main())
