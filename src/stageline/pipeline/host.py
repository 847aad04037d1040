"""The process that runs a compiled pipeline with `kfp.local`; started by the driver, loads kfp, nothing of ours.

One JSON object comes in on stdin: {"pipeline": path, "arguments": {...}, "pipeline_root": path}. Exit code 0 or 1: what
a failed step has to say stands in its own record, kfp only knows that it failed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

from stageline.printing import say, without_colours


def load_kfp() -> tuple[Any, Callable[[str], Any]]:
    """(kfp.local, its loader of compiled pipelines), without kfp's cluster client.

    `_KFP_RUNTIME` is kfp's own switch for the inside of a step; the client takes longer to load than our steps to run.
    """
    runtime = "_KFP_RUNTIME"
    os.environ[runtime] = "true"
    import kfp  # noqa: F401

    del os.environ[runtime]
    from kfp import local
    from kfp.components import load_component_from_file

    return local, load_component_from_file


def main() -> int:
    """Read the request from stdin and run its pipeline to the end.

    `workspace_root` stays unset: kfp removes it recursively after every run, so that it must never be a folder that
    exists. kfp's own caching stays off: its key is not content.
    """
    from stageline.jobs.processes import die_with_parent
    from stageline.signals import CaughtSignals

    die_with_parent(signal.SIGTERM)
    # The running step is signalled too and ends by itself; kfp then sees it fail. Its steps must not inherit SIG_IGN.
    CaughtSignals().catch()
    local, load_pipeline = load_kfp()
    # What a cluster needs of a step (image, memory, its name for people) means nothing here, as kfp says at every step.
    warnings.filterwarnings("ignore", message="Task .* have no effect in the current local runner")
    warnings.filterwarnings("ignore", message="You may be attemping to run a task that uses custom or non-Python")
    text = sys.stdin.read()
    if not text:  # the driver ended before it had a plan
        return 1
    request = json.loads(text)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=request["pipeline_root"], enable_caching=False)
    try:
        pipeline = load_pipeline(request["pipeline"])
        for task in pipeline.component_spec.implementation.graph.root.dag.tasks.values():
            task.ClearField("retry_policy")  # a step that fails here ends the command, with its own words and code
        pipeline(**request["arguments"])
    except RuntimeError as error:
        say(*without_colours(str(error)).split("\n"), error=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
