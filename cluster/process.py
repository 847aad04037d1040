"""Processes that outlive the command which started them, found again by record and by mark; and short commands.

A daemon writes its own id and start time before it becomes itself, so there is no moment at which it runs unrecorded.
It and its children also carry a mark in their environment, which names the state directory: the net below the record.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import ClusterError
from cluster.state import NAME, State

DAEMON_MARK = "STAGELINE_CLUSTER_DAEMON"
WORK_MARK = "STAGELINE_CLUSTER_WORK"
NAME_MARK = "STAGELINE_CLUSTER_NAME"
WORKING: set[Path] = set()
"""State directories on which this process works as the only one; see `working`."""
STOPPING: list[bool] = []
"""Not empty once this process was asked to end: no further command begins."""
NETNS = Path("/var/run/netns")


def environment(state: State, mark: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command: this process's own where it works outside, a bare one for daemons."""
    system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    if mark == DAEMON_MARK:
        base = {"PATH": f"{state.bin}:{system}", "HOME": str(state.root), "LANG": "C.UTF-8"}
    else:
        base = dict(os.environ)
        base["PATH"] = f"{state.bin}:{base.get('PATH', '')}:{system}"
    marks = {mark: str(state.root), NAME_MARK: NAME} if mark == DAEMON_MARK or state.root in WORKING else {}
    return base | marks | dict(extra or {})


@contextmanager
def working(state: State) -> Iterator[None]:
    """For the holder of the lock: ends what a killed predecessor left running (a build, say), and marks its own."""
    end(marked(WORK_MARK, state.root))
    WORKING.add(state.root)
    try:
        yield
    finally:
        WORKING.discard(state.root)


def inside(netns: str | None, argv: Sequence[object]) -> list[str]:
    """The command, in a network namespace. Not `ip netns exec`: that remounts /sys, and the cgroups vanish."""
    words = [str(word) for word in argv]
    return words if netns is None else ["nsenter", f"--net={NETNS / netns}", "--", *words]


def run(
    state: State,
    argv: Sequence[object],
    *,
    netns: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    text: str | None = None,
    check: bool = True,
    timeout_seconds: float = 1800,
    log: Path | None = None,
) -> str:
    """Run a command to its end and give back what it printed. A failure raises with the end of its output.

    text: its standard input.  log: also keep all output in this file.
    """
    words = inside(netns, argv)
    if STOPPING:
        raise ClusterError(f"interrupted before `{' '.join(words)}`; run the same again to go on from here")
    try:
        done = subprocess.run(
            words,
            env=environment(state, WORK_MARK, env),
            cwd=cwd,
            input=text if text is not None else "",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if log else subprocess.PIPE,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except FileNotFoundError as e:
        raise ClusterError(f"{words[0]!r} is not on this machine; expected it in PATH; install it") from e
    except subprocess.TimeoutExpired as e:
        raise ClusterError(f"`{' '.join(words)}` did not end within {timeout_seconds:.0f} s; expected it to") from e
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.stdout)
    if check and done.returncode:
        tail = "\n".join(((done.stderr or "") + done.stdout).strip().splitlines()[-15:])
        where = f"; all of it: {log}" if log else ""
        raise ClusterError(f"`{' '.join(words)}` ended with code {done.returncode}; expected 0{where}\n{tail}")
    return done.stdout


def start_time(pid: int) -> str | None:
    """When a process started (ticks since boot), which with its id names it; None for one that is gone or dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def record(state: State, name: str) -> Path:
    """Where a daemon writes its id and start time."""
    return state.run / "pids" / name


def find(state: State, name: str) -> int | None:
    """The id of a daemon that lives, by its record."""
    try:
        pid, started = record(state, name).read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(pid) if start_time(int(pid)) == started else None


def start(
    state: State,
    name: str,
    argv: Sequence[object],
    *,
    netns: str | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Start a daemon, unless it lives already; its output goes to `logs/<name>.log`."""
    living = find(state, name)
    if living:
        return living
    path = record(state, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    state.logs.mkdir(parents=True, exist_ok=True)
    # nsenter and exec keep the process id, so what the shell writes is the daemon's own.
    script = 'echo $$ $(cut -d" " -f22 /proc/$$/stat) >"$0" && exec "$@"'
    with (state.logs / f"{name}.log").open("a") as log:
        subprocess.run(
            ["setsid", "--fork", "sh", "-c", script, str(path), *inside(netns, argv)],
            env=environment(state, DAEMON_MARK, env),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    wait_until(lambda: bool(path.exists() and path.read_text().strip()), f"{name} to write {path}", seconds=10)
    pid = find(state, name)
    if pid is None:
        raise ClusterError(f"{name} ended at once; expected it to stay; its last words:\n{log_tail(state, name)}")
    return pid


def log_tail(state: State, name: str, lines: int = 15) -> str:
    """The end of a daemon's log."""
    try:
        text = (state.logs / f"{name}.log").read_text(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:])


def stop(state: State, name: str, *, grace_seconds: float = 10) -> None:
    """End a daemon: asked first, then killed. Returns when it is gone."""
    pid = find(state, name)
    if pid is not None:
        end([pid], grace_seconds=grace_seconds)
    record(state, name).unlink(missing_ok=True)


def names(state: State) -> list[str]:
    """All daemons with a record, oldest first."""
    folder = state.run / "pids"
    return (
        [path.name for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns)] if folder.is_dir() else []
    )


def end(pids: Iterable[int], *, grace_seconds: float = 0) -> None:
    """End processes by id: asked first if there is grace, then killed; returns when all are gone."""
    living = {pid: start_time(pid) for pid in pids}
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
        if not seconds:
            continue
        until = time.monotonic() + seconds
        living = {pid: started for pid, started in living.items() if started and start_time(pid) == started}
        for pid in living:
            try:
                os.kill(pid, number)
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue
        while living and time.monotonic() < until:
            time.sleep(0.02)
            living = {pid: started for pid, started in living.items() if start_time(pid) == started}
    if living:
        raise ClusterError(f"processes {sorted(living)} don't die of SIGKILL; expected them gone; see `ps` and `dmesg`")


def marked(mark: str, root: Path | None = None) -> dict[int, str]:
    """Living processes that carry a mark, with the state directory it names.

    root: only those of this state directory; without, of any, if their cluster has the same name as ours.
    """
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            lines = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        variables = dict(line.split(b"=", 1) for line in lines if b"=" in line)
        place = os.fsdecode(variables.get(mark.encode(), b""))
        ours = place == str(root) if root else os.fsdecode(variables.get(NAME_MARK.encode(), b"")) == NAME
        if place and ours and start_time(int(folder.name)):
            found[int(folder.name)] = place
    return found


def stop_working() -> None:
    """End every command of this process and begin no other: for a signal, while threads wait for long builds."""
    STOPPING.append(True)
    for root in WORKING:
        end(marked(WORK_MARK, root))


def side_by_side(*calls: Callable[[], object], width: int) -> None:
    """Call all of these, so many at a time. After a failure no further one begins, and it is raised."""
    with ThreadPoolExecutor(width) as pool:
        tasks = [pool.submit(call) for call in calls]
        try:
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def wait_until(
    true: Callable[[], bool], what: str, *, seconds: float, advice: Callable[[], str] | None = None, every: float = 0.1
) -> None:
    """Wait for a condition; past the time it raises and says what was awaited, with the advice if there is one."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            more = f"\n{advice()}" if advice else ""
            raise ClusterError(f"waited {seconds:.0f} s for {what}; expected it by then{more}")
        time.sleep(every)
