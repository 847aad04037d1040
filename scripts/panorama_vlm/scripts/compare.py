"""Compares two evaluations or runs, with intervals: `stageline compare A B`.

python scripts/compare.py --a runs/<run A> --b runs/<run B>
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

PROGRAM = Path(sys.executable).with_name("stageline")


def main() -> None:
    """Say what the command means and become it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--a", required=True)
    parser.add_argument("--b", required=True)
    given, words = parser.parse_known_args()
    command = ["compare", given.a, given.b, *words]
    print(f"$ stageline {shlex.join(command)}", file=sys.stderr, flush=True)
    os.execv(PROGRAM, [str(PROGRAM), *command])  # noqa: S606  # a list of words, no shell wanted


if __name__ == "__main__":
    main()
