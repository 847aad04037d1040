"""The command line: `python -m cluster up | down | status | env | enter | test | missing | recycle-volumes`."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from types import FrameType

from cluster import lifecycle, machine, process, storage, tier
from cluster.errors import ClusterError, MissingError
from cluster.progress import say
from cluster.state import current, read_own


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="python -m cluster", description="A two-node Kubernetes cluster for tests.")
    commands = top.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring it up, or what is missing of it")
    up.add_argument("--no-images", action="store_true", help="without the trainer and launcher images")
    down = commands.add_parser("down", help="stop it; programs and images stay")
    down.add_argument("--purge", action="store_true", help="free the disk too")
    commands.add_parser("status", help="what runs; exit code 1 if it is not whole")
    commands.add_parser("env", help="print KUBECONFIG and a `cluster` command as shell text: eval it")
    commands.add_parser("enter", help="run what follows where the cluster can be reached")
    commands.add_parser("missing", help="say what this machine lacks; exit code 3 if it lacks anything")
    commands.add_parser("test", help="bring it up and run its tests; pytest's arguments may follow")
    commands.add_parser("recycle-volumes", help="offer volumes again whose claim is gone")
    return top


def interrupt(number: int, _frame: FrameType | None) -> None:
    """A signal ends what the command runs, and the command itself, in words."""
    process.stop_working()
    print("interrupted; `make cluster` goes on where this stopped", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def enter(argv: list[str]) -> int:
    """Replace this process by a command inside the cluster's network, with its kubeconfig and programs."""
    own = read_own()
    if own is None:
        raise ClusterError(f"no cluster is described in {current().root}; expected one that is up; run `make cluster`")
    os.environ["KUBECONFIG"] = own.kubeconfig
    os.environ["PATH"] = f"{current().bin}:{os.environ.get('PATH', '')}"
    words = argv[1:] if argv[:1] == ["--"] else argv
    os.execvp("nsenter", ["nsenter", f"--net={own.netns}", "--", *(words or ["bash"])])  # noqa: S606


def environment() -> int:
    """Shell text for a person: `eval "$(python -m cluster env)"`, then `cluster kubectl get nodes`."""
    own = read_own()
    if own is None:
        raise ClusterError(f"no cluster is described in {current().root}; expected one that is up; run `make cluster`")
    say(f"export KUBECONFIG={shlex.quote(own.kubeconfig)}")
    say(f"export PATH={shlex.quote(str(current().bin))}:$PATH")
    say(f'cluster() {{ nsenter --net={own.netns} -- "$@"; }}')
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a failure is a sentence and an exit code: 3 if the machine lacks something, 1 otherwise."""
    words = sys.argv[1:] if arguments is None else arguments
    # What follows these two belongs to another program, options and all.
    words, others = (words[:1], words[1:]) if words[:1] in (["enter"], ["test"]) else (words, [])
    chosen = parser().parse_args(words)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # whoever ignores it for us, as CI does, wants us to finish
            signal.signal(number, interrupt)
    state = current()
    try:
        match chosen.command:
            case "up":
                lifecycle.up(state, with_images=not chosen.no_images)
            case "down":
                lifecycle.down(state, purge=chosen.purge)
            case "status":
                return 0 if lifecycle.status(state) else 1
            case "env":
                return environment()
            case "enter":
                return enter(others)
            case "test":
                return tier.run(state, others)
            case "missing":
                machine.check(state)
                say("nothing is missing")
            case "recycle-volumes":
                say(" ".join(storage.recycle(state)) or "none was waiting")
    except ClusterError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return 3 if isinstance(e, MissingError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
