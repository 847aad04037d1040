"""`stageline-entry`, a pod's one attempt: its first line, what it is for, its end told where somebody looks for it."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from stageline.build import find_build
from stageline.errors import StagelineError
from stageline.jobs.processes import adopt_orphans
from stageline.pod.attempt import OWN_PREFIX, Attempt, Output, check_result, run_program, write_config
from stageline.pod.finished import check_ranks, find_finished
from stageline.pod.memory import count_oom_kills
from stageline.pod.settings import Pod, read_pod
from stageline.pod.sinks import LogSegments, clear_record, job_store, leave_record
from stageline.pod.trial import run_trial
from stageline.printing import say
from stageline.signals import CaughtSignals
from stageline.store import Store
from stageline.store.scratch import scratch_folder
from stageline.telemetry import FailureRecord


def main() -> int:
    """The console script; returns the pod's exit code."""
    return run_entry()


def run_entry(
    arguments: Sequence[str] | None = None,
    *,
    python: str = sys.executable,
    command: Sequence[str] | None = None,
    count_kills: Callable[[], int | None] = count_oom_kills,
) -> int:
    """Run the pod; returns its exit code. command: run instead of `python -m stageline`, by tests."""
    adopt_orphans()
    output, pod, record = Output(), Pod(("train", "")), None
    store: Store | None = None
    with CaughtSignals() as asked, ExitStack() as stack:
        try:
            pod = read_pod(sys.argv[1:] if arguments is None else arguments, os.environ)
            announce(pod, output)
            store = job_store(pod)
            if store is not None:
                folder = store.child("logs", pod.label)
                output.keep(LogSegments(folder, lambda text: say(f"{OWN_PREFIX} {text}")))
            scratch = stack.enter_context(scratch_folder("entry"))
            attempt = Attempt(pod, output, asked, scratch, python, command, store, count_kills)
            record = run_pod(attempt)
        except StagelineError as error:
            record = FailureRecord.of(error)
        except Exception as error:  # noqa: BLE001  # told in the record, like every other end of this pod
            output.say(traceback.format_exc())
            record = FailureRecord.of(error)
        return finish(pod, output, store, record)


def announce(pod: Pod, output: Output) -> None:
    """The first line: what runs where, made from what."""
    build = find_build()
    words = [
        f"job {pod.job or 'without a name'}",
        f"item {pod.item}",
        f"pod {pod.name or '-'} on node {pod.node or '-'}",
        f"{pod.nodes} nodes x {pod.processes} ranks" if pod.verb == "train" else "one process",
        f"fingerprint {pod.fingerprint[:12] or '-'}",
        f"stageline {build.version} revision {build.revision[:12]}",
        f"image {build.image or '-'}",
    ]
    output.say(", ".join(words))


def finish(pod: Pod, output: Output, store: Store | None, record: FailureRecord | None) -> int:
    """Leave the record, say the end, write the last lines; returns the exit code."""
    code = 0 if record is None else record.exit_code
    if record is None:
        _in_time(lambda: clear_record(pod, store))
    else:
        what = "try again" if record.is_interruption else "fix it"
        output.say(f"ended with {code} ({what}): {record.sentence}")
        if record.remedy:
            output.say(f"  -> {record.remedy}")
        found: list[str] = []
        _in_time(lambda: found.append(leave_record(pod, store, record)))
        if found and found[0]:
            output.say(f"the failure record could not be written everywhere: {found[0]}")
    if output.segments is not None:
        output.segments.close()
    return code


def _in_time(do: Callable[[], None], limit_seconds: float = 10.0) -> None:
    """Do something with the store, but do not wait for it longer than the kubelet waits for a pod."""
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(limit_seconds)


def run_pod(attempt: Attempt) -> FailureRecord | None:
    """Do what the pod is for; None for success. StagelineError for what is wrong before anything is started."""
    pod = attempt.pod
    if pod.verb == "trial":
        return run_trial(attempt)
    settings = check_ranks(pod)
    if settings is not None:
        attempt.lease_wait_seconds += settings.process_group_timeout_seconds
    done = find_finished(pod, before=True)
    if done:
        attempt.output.say(f"{pod.item} is committed already: {done}")
        return None
    words = list(pod.arguments)
    if pod.config:
        words += ["-c", str(write_config(attempt.scratch, pod.config))]
    record = run_program(attempt, words, pod.world_size)
    return check_result(attempt) if record is None else record
