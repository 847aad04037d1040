"""The process that runs a compiled pipeline with `kfp.local`; started by the driver, loads kfp, nothing of ours.

One JSON object comes in on stdin: {"pipeline": path, "arguments": {...}, "pipeline_root": path}. Exit code 0 or 1: what
a failed step has to say stands in its own record, kfp only knows that it failed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from types import FrameType

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def run_pipeline(pipeline: str, arguments: dict[str, object], pipeline_root: str) -> int:
    """Run one compiled pipeline to its end.

    `workspace_root` stays unset: kfp removes it recursively after every run, so that it must never be a folder that
    exists. kfp's own caching stays off: its key is not content.
    """
    runtime = "_KFP_RUNTIME"
    os.environ[runtime] = "true"  # kfp's own switch: leaves out its cluster client, which takes longer than our steps
    import kfp  # noqa: F401

    del os.environ[runtime]
    from kfp import local
    from kfp.components import load_component_from_file

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=pipeline_root, enable_caching=False)
    try:
        load_component_from_file(pipeline)(**arguments)
    except RuntimeError as error:
        print(COLOURS.sub("", str(error)), file=sys.stderr)
        return 1
    return 0


def _ignore(signum: int, frame: FrameType | None) -> None:
    """The running step was signalled too and ends by itself; kfp then sees it fail."""


def main() -> int:
    """Read the request from stdin and run it."""
    from stageline.launch.process import die_with_parent

    die_with_parent(signal.SIGTERM)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, _ignore)
    request = json.load(sys.stdin)
    return run_pipeline(request["pipeline"], request["arguments"], request["pipeline_root"])


if __name__ == "__main__":
    sys.exit(main())
