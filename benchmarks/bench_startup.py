"""How long `stageline --help` takes, beside a bare interpreter and beside what it must not load.

Run: `python benchmarks/bench_startup.py`. The aim is 0.3 s or less.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from measure import print_table, side_by_side

AIM_SECONDS = 0.3
PYTHON = sys.executable
TORCH = "python -c 'import torch'"
COMMANDS = {
    "python -c pass": [PYTHON, "-c", "pass"],
    "stageline --help": [str(Path(PYTHON).parent / "stageline"), "--help"],
    "python -c 'import typer, pydantic'": [PYTHON, "-c", "import typer, pydantic"],
    "python -c 'import kfp'": [PYTHON, "-W", "ignore", "-c", "import kfp"],
    TORCH: [PYTHON, "-c", "import torch"],
}


def main() -> None:
    def runner(command: list[str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, check=True, capture_output=True)

    seconds = side_by_side({name: lambda c=command: runner(c) for name, command in COMMANDS.items()}, rounds=3)
    taken = seconds["stageline --help"]
    verdict = "within" if taken <= AIM_SECONDS else "beyond"
    print_table(
        "start-up, whole processes, median of 3",
        seconds,
        reference="python -c pass",
        note=f"stageline --help: {taken:.2f} s, {verdict} the aim of {AIM_SECONDS} s; "
        f"{seconds[TORCH] / taken:.1f} times faster than loading torch",
    )


if __name__ == "__main__":
    main()
