"""Between torchrun and one rank: `python -m stageline.pod.rank <command>`. Standard library only.

torchrun tells nobody how its ranks ended. This process starts one, hands its lines on with the rank in front, passes
signals on and leaves a note: `rank-<n>.json` in the folder STAGELINE_RANK_NOTES.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from stageline.jobs.processes import die_with_parent
from stageline.printing import LONGEST_LINE
from stageline.signals import REPEAT_SECONDS, CaughtSignals

NOTES_VARIABLE = "STAGELINE_RANK_NOTES"
RANK_PREFIX = "[rank "
"""How lines of ranks begin; torchrun's own do not."""
LAST_LINES_SECONDS = 2.0
"""How long to read on after a rank has ended: its loader processes may hold its output open."""


def run_rank(command: Sequence[str]) -> int:
    """Run the rank to its end; returns its exit code, 128 + n for signal n."""
    die_with_parent()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,  # torchrun signals whole groups: the rank would get each signal from it and from us
        preexec_fn=die_with_parent,  # one prctl through an already loaded libc
    )
    assert process.stdout is not None
    # torchrun sends a signal once when it gets it and once when it closes.
    CaughtSignals(process.send_signal, (signal.SIGTERM, signal.SIGINT), repeat_seconds=REPEAT_SECONDS).catch()
    note = {"rank": int(os.environ["RANK"]), "local_rank": int(os.environ["LOCAL_RANK"]), "pid": process.pid}
    _leave(note)
    prefix = f"{RANK_PREFIX}{note['rank']}] ".encode()
    pump = threading.Thread(target=_hand_on, args=(process.stdout, prefix), daemon=True)
    pump.start()
    code = process.wait()
    pump.join(LAST_LINES_SECONDS)
    _leave({**note, "returncode": code, "time": round(time.time(), 3)})
    return code if code >= 0 else 128 - code


def _hand_on(output: IO[bytes], prefix: bytes) -> None:
    """One write per line, so that lines of several ranks do not mix."""
    while line := output.readline(LONGEST_LINE):
        try:
            os.write(1, prefix + line if line.endswith(b"\n") else prefix + line + b"\n")
        except OSError:  # nobody reads any more; the rank goes on
            continue


def _leave(note: Mapping[str, float]) -> None:
    path = Path(os.environ[NOTES_VARIABLE]) / f"rank-{note['rank']}.json"
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(note), encoding="ascii")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(run_rank(sys.argv[1:]))
