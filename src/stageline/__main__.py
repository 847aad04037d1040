"""`python -m stageline`: the command line; jobs are started this way."""

from __future__ import annotations

import atexit
import gc
import sys

from stageline.cli import main

if __name__ == "__main__":
    # torch alone makes half a million objects that stay. Looking through all of them for garbage, again and again as
    # they come and once more at the end, is a quarter of what it takes to start and end a job; new ones are looked
    # through as often as ever.
    gc.set_threshold(700, 10, 200)
    atexit.register(gc.freeze)
    sys.exit(main())
