"""`python -m stageline`: the command line; jobs are started this way."""

from __future__ import annotations

import sys

from stageline.cli import main

if __name__ == "__main__":
    sys.exit(main())
