"""`python -m stageline`: the command line; jobs are started this way."""

from __future__ import annotations

import atexit
import gc
import sys

from stageline.cli import main

if __name__ == "__main__":
    # torch alone makes half a million objects that stay. Looking for garbage among them, at every 700 new ones and once
    # more at the end, would be a third of what it takes to start and end a job.
    gc.set_threshold(20_000)
    atexit.register(gc.freeze)
    sys.exit(main())
