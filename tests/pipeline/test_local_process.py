"""A job on this machine: followed live, cancelled in order, never left behind. The jobs here are small scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from guards import HANG_SECONDS

from stageline.jobs import local
from stageline.jobs.job import Job
from stageline.jobs.local import LocalProcess, start_job
from stageline.jobs.processes import descendants, is_marked, kill_marked, watch_process


def interpreter(folder: Path, script: str) -> str:
    """Something that can be started like `python -m stageline …` and runs `script` instead."""
    code = folder / "job.py"
    code.write_text(textwrap.dedent(script))
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {code} "$@"\n')
    path.chmod(0o755)
    return str(path)


def start(folder: Path, script: str, *, shutdown_timeout_seconds: int = 5) -> LocalProcess:
    job = Job("lab-film", ("train", "film"), shutdown_timeout_seconds=shutdown_timeout_seconds)
    return start_job(job, interpreter(folder, script))


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_jobs_config_is_a_file_behind_c_while_it_runs(tmp_path: Path) -> None:
    script = """
    import pathlib, sys
    print(sys.argv[-2], pathlib.Path(sys.argv[-1]).read_text(), sys.argv[-1])
    """
    job = Job("lab-film", ("train", "film"), config={"run": "lab"})
    lines: list[str] = []
    assert start_job(job, interpreter(tmp_path, script)).follow(lines.append).exit_code == 0
    option, *text, path = lines[-1].split(" ")
    assert (option, " ".join(text)) == ("-c", '{"run": "lab"}')
    assert not Path(path).exists()


LEAVE_RECORD = """
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["STAGELINE_FAILURE_DIR"])
folder.mkdir(exist_ok=True)
record = {"kind": "data", "code": "", "sentence": "a.png: empty file", "remedy": "mend it", "exit_code": 3, "time": 1.0}
(folder / "failure.json").write_text(json.dumps(record))
"""


def test_lines_come_live_and_the_exit_code_is_passed_on(tmp_path: Path) -> None:
    seen: list[str] = []
    process = start(tmp_path, "import sys; print('one'); print('two', file=sys.stderr); sys.exit(7)")
    verdict = process.follow(seen.append)
    assert seen == ["one", "two"]
    assert verdict.exit_code == 7


def test_what_torchrun_left_in_a_shell_makes_no_rank_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "3")
    seen: list[str] = []
    start(tmp_path, "import os; print([n for n in os.environ if 'RANK' in n or 'WORLD' in n])").follow(seen.append)
    assert seen == ["[]"]


def test_the_jobs_own_record_decides_over_its_exit_code(tmp_path: Path) -> None:
    verdict = start(tmp_path, LEAVE_RECORD + "sys.exit(1)").follow(print)
    assert verdict.exit_code == 3
    assert verdict.record is not None
    assert verdict.record.sentence == "a.png: empty file"


def test_cancel_lets_the_job_finish_its_step(tmp_path: Path) -> None:
    done = tmp_path / "committed"
    process = start(
        tmp_path,
        f"""
        import pathlib, signal, sys, time
        from stageline.telemetry import asked_by
        def stop(*_):
            time.sleep(0.2)
            pathlib.Path({str(done)!r}).write_text(asked_by("SIGTERM"))
            sys.exit(143)
        signal.signal(signal.SIGTERM, stop)
        print("ready", flush=True)
        time.sleep(60)
        """,
    )
    verdict = process.follow(lambda line: process.cancel("Ctrl-C") if line == "ready" else None)
    assert done.read_text() == "Ctrl-C", "what made somebody cancel it"
    assert verdict.exit_code == 143


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(60)"],
                         start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("asked", ["twice", "once"])
def test_a_job_that_does_not_listen_is_killed_with_all_that_left_its_process_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """By the second cancel a while after the first, or in stated time after the only one."""
    monkeypatch.setattr(local, "REPEAT_SECONDS", 0.1)
    monkeypatch.setattr(local, "KILL_AFTER_SECONDS", HANG_SECONDS if asked == "twice" else 0.2)
    process = start(tmp_path, STUBBORN, shutdown_timeout_seconds=0)
    pids = [process.process.pid]

    def stop(line: str) -> None:
        pids.append(int(line))
        process.cancel()
        process.cancel()  # at once: still the same request
        assert process.process.poll() is None
        if asked == "twice":
            time.sleep(0.2)
            process.cancel()

    verdict = process.follow(stop)
    assert verdict.exit_code >= 128
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_an_error_while_following_ends_the_job(tmp_path: Path) -> None:
    process = start(tmp_path, STUBBORN)

    def fail(line: str) -> None:
        raise RuntimeError(line)

    with pytest.raises(RuntimeError) as caught:
        process.follow(fail)
    wait_until(lambda: not is_alive(int(str(caught.value))))
    assert not is_alive(process.process.pid)


def test_a_job_does_not_outlive_a_starter_that_is_killed(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    code = f"""
from stageline.jobs.job import Job
from stageline.jobs.local import start_job
start_job(Job("a-b", ()), {python!r}).follow(lambda line: print(line, flush=True))
"""
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    assert is_alive(pid)
    starter.kill()
    starter.wait()
    starter.stdout.close()
    wait_until(lambda: not is_alive(pid))


def test_only_marked_processes_are_killed(tmp_path: Path) -> None:
    mark = f"STAGELINE_TEST_MARK={tmp_path}"
    name, _, value = mark.partition("=")
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    marked = subprocess.Popen(command, env={**os.environ, name: value})
    other = subprocess.Popen(command)
    try:
        assert {marked.pid, other.pid} <= set(descendants(os.getpid()))
        wait_until(lambda: is_marked(marked.pid, mark))
        assert kill_marked(mark, spare=marked.pid) == []
        assert marked.wait() == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_watching_tells_of_the_end_once(tmp_path: Path) -> None:
    ended = threading.Event()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watch_process(process.pid, ended.set)
    assert not ended.wait(0.1)
    process.communicate(b"\n")
    assert ended.wait(HANG_SECONDS)
    again = threading.Event()
    watch_process(process.pid, again.set)
    assert again.wait(HANG_SECONDS)
