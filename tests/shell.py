"""A shell in which a guide's own commands run: `python`, `torchrun` and `stageline` are those of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECONDS = 1200
"""A hang guard for one command."""
PROGRAMS = {"python": "", "torchrun": "-m torch.distributed.run", "stageline": "-m stageline"}


class Shell:
    """A shell in a folder, with the interpreter of the tests as `python`."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        programs.mkdir()
        for name, words in PROGRAMS.items():
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            (programs / name).chmod(0o755)
        paths = os.pathsep.join(path for path in sys.path if path)
        self.environment = {
            **{key: value for key, value in os.environ.items() if key != "PANO_PROFILE"},
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": paths,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, line: str, code: int = 0) -> str:
        """What a line prints, after it ended with `code`."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == code, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr
