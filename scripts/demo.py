"""The whole way on small data: a model that needs its prompt, and a real picture. Called by `make demo`.

Everything is done by the commands it prints, so each of them can be copied. Both pipelines run at once, since each
trains on one core. What they write lies under `demo/`; a second time they find it there and reuse it.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stageline.families import family_config
from stageline.verbs.report.measurements import metric_cells

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).with_name("stageline")
CONFIG = "demo/config.yaml"
SHOWN = ("dice", "cldice", "precision", "recall", "junction_f1", "betti0_error", "betti1_error")
"""Metrics of the closing tables; all of them stand in the reports."""

INIT = ("init", "--family", "film_flow", "--preset", "tiny", "--output", CONFIG)
TREES = ("-c", CONFIG, "root=demo", "run=trees", "trainer.validate_every_steps=50")
RETINA = (
    *("-c", CONFIG, "root=demo", "run=retina", "trainer.validate_every_steps=50"),
    *("data.name=retina", "data.num_samples_per_image=192", "data.num_test=1"),
    *("evaluate.split=test", "model.use_sliding_infer=true"),
    "model.vlm_film_config.prompt_template=vessels (pseudo-label)",
)
RUNS = {
    "trees": (
        ("run", *TREES),
        "Prompted trees: every picture has a dark and a bright tree, and the prompt says which one to segment.\n"
        "Without its prompt the task is ambiguous: FiLM at decoder stages [2, 3] has to bring it in.",
    ),
    "retina": (
        ("run", *RETINA),
        "A real picture, the retina in scikit-image: trained on patches of its left half, measured on the held-out\n"
        "right half. Its labels are PSEUDO-LABELS made by a ridge filter: numbers say how well that is imitated.\n"
        "The prompt is always the same here, so FiLM on and off ought to agree.",
    ),
}
"""Run -> its command, and what it is for."""


def main() -> int:
    """Run both pipelines, print metrics and reports; returns the exit code of the first command to fail."""
    begin = time.monotonic()
    if not (ROOT / CONFIG).exists():
        code = run_command(INIT, "A starter config, with a comment for every key.")
        if code:
            return code
    code = run_command(("plan", *TREES), "What would be done, and why?")
    if code:
        return code
    code = run_together({name: words for name, (words, _) in RUNS.items()})
    if code:
        return code
    print()
    for name in RUNS:
        print_evaluations(ROOT / "demo" / "runs" / name)
    print(f"Done in {time.monotonic() - begin:.0f} s. The reports, one file each, for a browser:")
    for name in RUNS:
        print(f"  demo/runs/{name}/report.html")
    return 0


def announce(words: Sequence[str], text: str) -> None:
    """Say what comes, and the command as it can be copied."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")
    print(f"$ stageline {shlex.join(words)}", flush=True)


def run_command(words: Sequence[str], text: str) -> int:
    """Run one command to its end; returns its exit code."""
    announce(words, text)
    return subprocess.run([str(PROGRAM), *words], cwd=ROOT, check=False).returncode


def run_together(commands: Mapping[str, Sequence[str]]) -> int:
    """Run commands at once, each line of their output behind the run's name; returns the first exit code but 0.

    Ctrl-C reaches all of them; each commits a checkpoint and ends by itself.
    """
    for name, words in commands.items():
        announce(words, RUNS[name][1])
    print()
    processes = {
        name: subprocess.Popen(
            [str(PROGRAM), *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for name, words in commands.items()
    }
    threads = [threading.Thread(target=relay, args=item) for item in processes.items()]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            print("stopping: each run commits what it has; Ctrl-C again ends at once", flush=True)
    return next((code for process in processes.values() if (code := process.wait())), 0)


def relay(name: str, process: subprocess.Popen[str]) -> None:
    """Print a process's lines behind its name until it ends."""
    for line in process.stdout or ():
        sys.stdout.write(f"{name:<6} | {line}")
        sys.stdout.flush()


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
    words = family_config("film_flow").words
    cells, modes = metric_cells(metrics, words)
    heads = [words.modes.get(mode, "value") for mode in modes]
    print(f"  {'metric':<24}" + "".join(f"{head:>21}" for head in heads) + f"{'samples':>10}")
    for name in SHOWN:
        if name in cells:
            values = [cells[name].get(mode) for mode in modes]
            shown = "".join(f"{value:>21.4f}" if isinstance(value, int | float) else f"{'':>21}" for value in values)
            print(f"  {name + suffix:<24}{shown}{counts.get(name, ''):>10}")
    print()


if __name__ == "__main__":
    sys.exit(main())
