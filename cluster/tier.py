"""The cluster tests as one command: on the cluster that the environment names, else on our own, made first.

`python -m cluster test [pytest's arguments]`. Where a machine can't carry a cluster it says what is missing; CI goes on
then, since not every runner is a root's Linux, but a person who asked for the tests gets exit code 3.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from cluster import lifecycle, machine
from cluster.errors import ClusterError, MissingError
from cluster.images import REPOSITORY
from cluster.progress import say, timed
from cluster.state import State, read_own

TESTS = "tests/cluster"
NOTHING_COLLECTED = 5
"""pytest's exit code where the marks choose no test."""


def run(state: State, arguments: list[str]) -> int:
    """Run the tests and give back the exit code."""
    argv = [sys.executable, "-m", "pytest", *arguments, TESTS]
    if os.environ.get("STAGELINE_TEST_KUBECONFIG"):
        check_foreign()
        say(f"tests on the cluster of {os.environ['STAGELINE_TEST_KUBECONFIG']}: nothing is made, ours is not used")
        return follow(argv)
    try:
        machine.check(state)
    except MissingError as e:
        if os.environ.get("CI") == "true" and not is_capable():
            say(f"the cluster tests are skipped: {e}")
            return 0
        raise
    lifecycle.up(state)
    own = read_own(state)
    if own is None:
        raise ClusterError(f"{state.document} is gone; expected it right after `up`; did somebody run `down`?")
    with timed("the cluster tests"):
        return follow(["nsenter", f"--net={own.netns}", "--", *argv])


def follow(argv: list[str]) -> int:
    """Run pytest in the repository, in sight; no test to run is not a failure."""
    code = subprocess.run(argv, cwd=REPOSITORY, check=False).returncode
    return 0 if code == NOTHING_COLLECTED else code


def is_capable() -> bool:
    """Whether this is the kind of machine on which CI insists on the cluster: Linux, root, and Go."""
    return platform.system() == "Linux" and os.geteuid() == 0 and shutil.which("go") is not None


def check_foreign() -> None:
    """What another cluster needs to be told: which image to test."""
    path = os.environ["STAGELINE_TEST_KUBECONFIG"]
    if not Path(path).is_file():
        raise ClusterError(f"STAGELINE_TEST_KUBECONFIG is {path!r}; expected a file; name one, or unset it for our own")
    if not os.environ.get("STAGELINE_TEST_IMAGE"):
        raise ClusterError(
            "STAGELINE_TEST_KUBECONFIG is set and STAGELINE_TEST_IMAGE is not; expected the trainer image as that "
            "cluster pulls it; build and push it (`make images`), or unset the first for our own cluster"
        )
