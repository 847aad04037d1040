"""The whole way on small data: a model that needs its prompt, then a real picture. Called by `make demo`.

Everything is done by the commands it prints, so each of them can be copied. What they write lies under `demo/`; a
second time they find it there and reuse it.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stageline.report.measurements import MODES, metric_cells

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).with_name("stageline")
CONFIG = "demo/config.yaml"
RUNS = ("trees", "retina")
SHOWN = ("dice", "cldice", "iou", "precision", "recall", "junction_f1", "betti0_error", "betti1_error")
"""Metrics of the closing tables; all of them stand in the reports."""

TREES = ("root=demo", "run=trees")
RETINA = (
    "root=demo",
    "run=retina",
    "data.name=retina",
    "data.num_samples_per_image=192",
    "model.vlm_film_config.prompt_template=vessels (pseudo-label)",
)
STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "What would be done, and why?",
        ("plan", "-c", CONFIG, *TREES),
    ),
    (
        "Prompted trees: every picture has a dark and a bright tree, the prompt says which to segment.\n"
        "Without its prompt the task is ambiguous: FiLM at decoder stages [2, 3] has to bring it in.",
        ("run", "-c", CONFIG, *TREES),
    ),
    (
        "A real picture: the retina in scikit-image. Trained on its left half, measured on the held-out right half.\n"
        "Its labels are PSEUDO-LABELS, made by a ridge filter: numbers say how well that filter is imitated.",
        ("run", "-c", CONFIG, *RETINA),
    ),
)


def main() -> int:
    """Run both pipelines, print metrics and reports; returns the exit code of the first command to fail."""
    begin = time.monotonic()
    if not (ROOT / CONFIG).exists():
        code = run_command("A starter config, with a comment for every key.", ("init", "--output", CONFIG))
        if code:
            return code
    for text, words in STEPS:
        code = run_command(text, words)
        if code:
            return code
    print()
    for run in RUNS:
        print_evaluations(ROOT / "demo" / "runs" / run)
    print(f"Done in {time.monotonic() - begin:.0f} s. The reports, one file each, for a browser:")
    for run in RUNS:
        print(f"  demo/runs/{run}/report.html")
    return 0


def run_command(text: str, words: Sequence[str]) -> int:
    """Say what comes, print the command as it can be copied, run it; returns its exit code."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")
    print(f"$ stageline {shlex.join(words)}", flush=True)
    return subprocess.run([str(PROGRAM), *words], cwd=ROOT, check=False).returncode


def print_evaluations(run: Path) -> None:
    """A table per evaluation of a run."""
    for path in sorted((run / "evaluations").glob("*/metrics.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        is_pseudo = "pseudo" in json.dumps(record).lower()
        labels = "labels are PSEUDO-LABELS: no accuracy" if is_pseudo else "labels are exact"
        where = record["checkpoint"]
        print(f"{run.name}: stage {where['stage']}, step {where['step']}; {labels}")
        print_table(record["metrics"], record["num_samples"], " (pseudo)" if is_pseudo else "")


def print_table(metrics: Mapping[str, Any], counts: Mapping[str, Any], suffix: str) -> None:
    """Metrics as lines, FiLM on, off and shuffled as columns, the number of samples last."""
    cells, modes = metric_cells(metrics)
    heads = [MODES.get(mode, "value") for mode in modes]
    print(f"  {'metric':<24}" + "".join(f"{head:>21}" for head in heads) + f"{'samples':>10}")
    for name in SHOWN:
        if name in cells:
            values = [cells[name].get(mode) for mode in modes]
            shown = "".join(f"{value:>21.4f}" if isinstance(value, int | float) else f"{'':>21}" for value in values)
            print(f"  {name + suffix:<24}{shown}{counts.get(name, ''):>10}")
    print()


if __name__ == "__main__":
    sys.exit(main())
