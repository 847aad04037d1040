"""The first process of a trainer pod, with real processes: lines, signals, deadlines, agents that hang, last words."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml
from guards import HANG_SECONDS

from stageline.jobs.processes import descendants

sys.path.insert(0, str(Path(__file__).parent))
from pods import run_pod, start_pod


def config(root: Path, **changes: object) -> dict[str, str]:
    """STAGELINE_CONFIG of a run below `root`."""
    plain = {"family": "film_flow", "run": "a", "root": str(root), "trainer": {"processes": 2}, **changes}
    return {"STAGELINE_CONFIG": yaml.safe_dump(plain)}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_lines_of_every_rank_come_with_its_number_and_the_first_line_says_what_runs(tmp_path: Path) -> None:
    end = run_pod(tmp_path, "print('out', flush=True); print('err', file=sys.stderr)")
    assert end.code == 0, end.output
    first, *rest = end.output.splitlines()
    for word in ("job a-film", "item film", "a-film-worker-0", "1 nodes x 2 ranks", "revision", "stageline 0"):
        assert word in first
    assert sorted(rest) == ["[rank 0] err", "[rank 0] out", "[rank 1] err", "[rank 1] out"]
    assert end.message == {}


def test_one_rank_alone_needs_no_torchrun(tmp_path: Path) -> None:
    end = run_pod(tmp_path, "print(sys.argv[1:]); sys.exit(4)", ranks=1)
    assert end.code == 4
    assert "['train', 'film']" in end.output
    assert "exit code 4" in end.message["sentence"]


def test_the_rank_at_fault_decides_and_says_why(tmp_path: Path) -> None:
    script = """
    signal.signal(signal.SIGTERM, lose_peers)
    if rank == 1:
        time.sleep(0.3)
        record("data", 3, "a.png is empty")
    sleep()
    """
    end = run_pod(tmp_path, script)
    assert end.code == 3, end.output
    assert (end.message["kind"], end.message["rank"], end.message["sentence"]) == ("data", 1, "a.png is empty")
    assert (end.message["pod"], end.message["exit_code"]) == ("a-film-worker-0", 3)
    assert "ended with 3 (fix it): a.png is empty" in end.output


def test_a_lost_peer_is_tried_again(tmp_path: Path) -> None:
    end = run_pod(tmp_path, "record('peer_lost', 138) if rank == 0 else sleep()")
    assert end.code in (138, 143), end.output
    assert end.code >= 128
    assert end.message["exit_code"] == end.code


def test_a_crash_in_native_code_is_not_tried_again(tmp_path: Path) -> None:
    script = """
    signal.signal(signal.SIGTERM, lose_peers)
    print("the last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV) if rank == 0 else sleep()
    """
    end = run_pod(tmp_path, script)
    assert end.code == 1, end.output
    assert end.message["kind"] == "crashed"
    assert "SIGSEGV" in end.message["sentence"]
    assert "the last words" in end.message["sentence"]


@pytest.mark.parametrize(("counter", "expected"), [(0, 137), (1, 8)], ids=["from-outside", "by-the-kernel"])
def test_killed_for_want_of_memory_or_from_outside(tmp_path: Path, counter: int, expected: int) -> None:
    groups = tmp_path / "groups" / "memory"
    groups.mkdir(parents=True)
    (groups / "memory.oom_control").write_text("oom_kill 0\n")
    script = f"""
    signal.signal(signal.SIGTERM, lose_peers)
    if rank == 0:
        pathlib.Path({str(groups)!r}, "memory.oom_control").write_text("oom_kill {counter}\\n")
        os.kill(os.getpid(), signal.SIGKILL)
    sleep()
    """
    end = run_pod(tmp_path / "pod", script, groups=tmp_path / "groups")
    assert end.code == expected, end.output
    assert ("cluster.resources" in end.message["remedy"]) == bool(counter)


def test_a_rank_that_cannot_even_begin_is_told_by_its_last_line(tmp_path: Path) -> None:
    end = run_pod(tmp_path, "import no_such_module")
    assert end.code == 1, end.output
    assert "No module named 'no_such_module'" in end.message["sentence"]


def test_success_is_what_the_ranks_say_not_torchrun(tmp_path: Path) -> None:
    assert run_pod(tmp_path, "pass", environment={"AGENT_ENDS": "1"}).code == 0


@pytest.mark.parametrize("code", [0, 138])
def test_a_torchrun_that_hangs_after_its_ranks_is_ended(tmp_path: Path, code: int) -> None:
    script, hangs = f"record('peer_lost', {code})", {"AGENT_HANGS": "yes"}
    end = run_pod(tmp_path, script, environment=hangs, patience={"FOLLOW_SECONDS": 0.0 if code == 0 else 1000.0})
    assert end.code == code, end.output
    assert ("torchrun did not follow" in end.output) is (code == 0), "a gang that is lost is not waited for"


def test_a_torchrun_that_hangs_is_ended_where_a_rank_was_stopped_before_it_left_word(tmp_path: Path) -> None:
    """The agent ends the other rank the moment one fails, perhaps before its process could say that it began."""
    slow = {"AGENT_HANGS": "yes", "FIRST_RANK_WAITS": "yes"}
    end = run_pod(tmp_path, "record('peer_lost', 138)", environment=slow, patience={"FOLLOW_SECONDS": 1000.0})
    assert end.code == 138, end.output


COMMITS = """
def stop(*_):
    print("committed", flush=True)
    record("interrupted", 143, "stopped after step 7")
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
sleep()
"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_rank_once_and_they_commit(tmp_path: Path, signum: int, ranks: int) -> None:
    pod = start_pod(tmp_path, COMMITS, ranks=ranks)
    for rank in range(ranks):
        pod.wait_for(f"[rank {rank}] ready" if ranks > 1 else "ready")
    pod.process.send_signal(signum)
    end = pod.end()
    assert end.code == 143, end.output
    assert end.output.count("committed") == ranks
    assert end.message["sentence"] == "stopped after step 7"


def test_a_signal_before_anything_began(tmp_path: Path) -> None:
    pod = start_pod(tmp_path, "print('ready', flush=True); sleep()")
    pod.wait_for("ready")
    pod.process.send_signal(signal.SIGTERM)
    end = pod.end()
    assert end.code == 143, end.output


def test_at_the_deadline_the_ranks_commit_and_the_job_is_over(tmp_path: Path) -> None:
    start = time.time()
    end = run_pod(tmp_path, COMMITS, environment={"STAGELINE_DEADLINE": str(start + 3)})
    assert end.code == 14, end.output
    assert "committed" in end.output
    assert end.message["kind"] == "deadline"


def test_after_the_deadline_nothing_begins(tmp_path: Path) -> None:
    end = run_pod(tmp_path, COMMITS, environment={"STAGELINE_DEADLINE": "1000000000"})
    assert end.code == 14
    assert "ready" not in end.output


def test_ranks_that_do_not_listen_are_killed_in_stated_time(tmp_path: Path) -> None:
    script = "signal.signal(15, signal.SIG_IGN); print('ready', flush=True); sleep()"
    pod = start_pod(tmp_path, script, environment={"PET_SHUTDOWN_TIMEOUT": "0.1"}, patience={"KILL_AFTER_SECONDS": 0.3})
    pod.wait_for("[rank 0] ready")
    pod.wait_for("[rank 1] ready")
    start = time.monotonic()
    pod.process.send_signal(signal.SIGTERM)
    end = pod.end()
    assert end.code >= 128, end.output
    assert 0.4 < time.monotonic() - start < 60
    assert "before it could commit" in end.message["sentence"]


def test_nothing_is_left_alive_and_orphans_are_reaped(tmp_path: Path) -> None:
    script = """
    import subprocess
    if rank == 0:
        code = "import os, time; os.setsid(); time.sleep(100)"
        child = subprocess.Popen([sys.executable, "-c", code])
        print("orphan", child.pid, flush=True)
        for _ in range(5):  # orphans of a moment, which become zombies unless somebody reaps them
            subprocess.run(["sh", "-c", "sleep 0.05 &"])
        print("ready", flush=True)
        sleep()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sleep()
    """
    pod = start_pod(tmp_path, script)
    pod.wait_for("[rank 0] ready")
    orphan = int(pod.output.split("orphan ")[1].split()[0])
    end_of_patience = time.monotonic() + HANG_SECONDS
    time.sleep(0.1)  # they live half as long
    while any(_is_zombie_of(p, pod.process.pid) for p in Path("/proc").glob("[0-9]*/stat")):
        assert time.monotonic() < end_of_patience
        time.sleep(0.05)
    below = descendants(pod.process.pid)
    assert orphan in below
    pod.process.send_signal(signal.SIGTERM)
    end = pod.end()
    assert end.code >= 128, end.output
    assert not [pid for pid in below if is_alive(pid)]


def _is_zombie_of(stat: Path, parent: int) -> bool:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] == "Z" and int(fields[1]) == parent


def test_a_rendezvous_that_fails_is_tried_again_in_the_same_pod(tmp_path: Path) -> None:
    counter = tmp_path / "left"
    counter.write_text("2")
    environment = {"AGENT_FAILS": str(counter)}
    end = run_pod(tmp_path / "pod", "pass", environment=environment, patience={"AGAIN_SECONDS": 0.1})
    assert end.code == 0, end.output
    assert end.output.count("trying again") == 2


def test_a_rendezvous_that_never_comes_together_is_tried_again_by_the_operator(tmp_path: Path) -> None:
    counter = tmp_path / "left"
    counter.write_text("1000")
    environment = {"AGENT_FAILS": str(counter), "STAGELINE_RENDEZVOUS_SECONDS": "0.5"}
    end = run_pod(tmp_path / "pod", "pass", environment=environment, patience={"AGAIN_SECONDS": 0.1})
    assert end.code == 138, end.output
    assert "did not find each other" in end.message["sentence"]


def test_ranks_get_what_they_need_and_not_the_whole_config(tmp_path: Path) -> None:
    script = """
    names = ("STAGELINE_LEASE_WAIT_SECONDS", "STAGELINE_CONFIG", "STAGELINE_ARGUMENTS", "PET_RDZV_CONF")
    print(json.dumps({name: os.environ.get(name) for name in names}))
    print(pathlib.Path(sys.argv[sys.argv.index("-c") + 1]).read_text())
    """
    end = run_pod(tmp_path, script, environment=config(tmp_path / "root"))
    assert end.code == 0, end.output
    line = next(line for line in end.output.splitlines() if line.startswith("[rank 0] {"))
    seen = json.loads(line.removeprefix("[rank 0] "))
    assert seen["STAGELINE_LEASE_WAIT_SECONDS"] == "720"
    assert seen["STAGELINE_CONFIG"] is None
    assert seen["STAGELINE_ARGUMENTS"] == "train film"
    assert re.fullmatch(r"rank=0,member=12345678-90,bind=127\.0\.0\.1,timeout=\d+", seen["PET_RDZV_CONF"])
    assert "family: film_flow" in end.output


def test_log_and_record_lie_in_the_store_without_credentials(tmp_path: Path) -> None:
    root = tmp_path / "root"
    script = "print('password=hunter2hunter2', flush=True); record('data', 3, 'bad api_token=abcdefghijkl')"
    end = run_pod(tmp_path / "pod", script, environment=config(root))
    assert end.code == 3, end.output
    folder = root / "runs" / "a" / "jobs" / "film"
    record = json.loads((folder / "failure-node-0.json").read_text())
    assert (record["exit_code"], record["kind"], record["pod"]) == (3, "data", "a-film-worker-0")
    log = "".join(path.read_text() for path in sorted((folder / "logs" / "a-film-worker-0-12345678").iterdir()))
    assert "] password=***" in log
    assert "ended with 3" in log
    assert "hunter2" not in log
    assert "abcdefgh" not in json.dumps(record) + json.dumps(end.message)
    run_pod(tmp_path / "pod", "pass", environment=config(root))
    assert not (folder / "failure-node-0.json").exists(), "what was mended is not told any more"


def test_a_store_that_fails_does_not_end_the_training(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "runs" / "a").mkdir(parents=True)
    (root / "runs" / "a" / "jobs").write_text("a file where a folder should be")
    end = run_pod(tmp_path / "pod", "print('trained')", environment=config(root))
    assert end.code == 0, end.output
    assert "the stage goes on" in end.output


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        ((), {}, 2, "stageline-entry train"),
        (("fly",), {}, 2, "'fly'"),
        (("train",), {}, 2, "name of a stage"),
        (("train", "film"), {"STAGELINE_CONFIG": "a: [1"}, 2, "STAGELINE_CONFIG"),
        (("train", "film"), {"STAGELINE_CONFIG": "family: nosuch\n"}, 2, "nosuch"),
        (("train", "film"), {"PET_NNODES": "two"}, 2, "PET_NNODES"),
        (("train", "film"), {"STAGELINE_CONFIG": "family: film_flow\ntrainer: {nodes: 3}\n"}, 2, "1 x 2 ranks"),
    ],
)
def test_a_wrong_job_is_refused_in_words(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], code: int, words: str
) -> None:
    end = run_pod(tmp_path, "print('started')", arguments=arguments, environment=environment)
    assert end.code == code, end.output
    assert words in end.message["sentence"] + end.message["remedy"]
    assert "started'" not in end.output
    assert "[rank" not in end.output
