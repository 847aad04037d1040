"""A verb as a process of its own: started, followed line by line, cancelled with its step, its own record passed on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stageline.errors import ConfigError, InterruptedRunError, StagelineError, StepFailedError
from stageline.execute.body import Body
from stageline.launch.job import Job, Verdict
from stageline.launch.local import start_job
from stageline.store.scratch import scratch_folder

LAUNCHERS = ("local",)


def check_launcher(launcher: str) -> None:
    """ConfigError for a launcher that does not exist here."""
    if launcher not in LAUNCHERS:
        raise ConfigError(
            f"there is no launcher {launcher!r}; a stage can run as: {', '.join(LAUNCHERS)}", remedy="launcher=local"
        )


def run_verb(
    body: Body, name: str, arguments: Sequence[str], config: Mapping[str, Any], *, processes: int, timeout_seconds: int
) -> None:
    """Run `python -m stageline <arguments> -c <config>` to its end.

    name: the job's name.  timeout_seconds: how long it may take to commit after SIGTERM.
    Raises StepFailedError or InterruptedRunError with the process's own sentence, remedy and exit code.
    """
    with scratch_folder("step") as folder:
        path = folder / "config.yaml"
        path.write_text(json.dumps(config), encoding="utf-8")
        job = Job(
            name=name,
            arguments=(*arguments, "-c", str(path)),
            processes=processes,
            shutdown_timeout_seconds=timeout_seconds,
        )
        process = start_job(job)
        body.on_cancel = process.cancel
        if body.cancelled:
            process.cancel()
        verdict = process.follow(body.line)
        body.on_cancel = None
    if verdict.exit_code:
        raise verdict_error(body, name, verdict)


def verdict_error(body: Body, name: str, verdict: Verdict) -> StagelineError:
    """The error of a process that did not succeed, in its own words where it left a record."""
    record = verdict.record or {}
    if record.get("log_tail"):
        body.tail.clear()
        body.tail.extend(str(line) for line in record["log_tail"])
    if verdict.exit_code == InterruptedRunError.exit_code:
        sentence = str(record.get("sentence") or f"{name} was stopped")
        return InterruptedRunError(sentence, remedy=str(record.get("remedy") or "run again to continue"))
    last = next((line for line in reversed(body.tail) if line.strip()), "it printed nothing")
    return StepFailedError(
        str(record.get("sentence") or f"{name} ended with exit code {verdict.exit_code}; its last line: {last}"),
        exit_code=verdict.exit_code,
        remedy=str(record.get("remedy") or ""),
        code=str(record.get("code") or ""),
        origin=str(record.get("kind") or ""),
    )
