"""From the ends of ranks to "fix it" or "try again": a table, and what the kernel says about memory."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from stageline.pod.memory import count_oom_kills
from stageline.pod.program import ProgramEnd, RankEnd
from stageline.pod.sinks import MESSAGE_BYTES, shorten
from stageline.pod.verdict import is_rendezvous_failure, judge
from stageline.telemetry import FailureRecord

DATA = {"kind": "data", "sentence": "a.png is empty", "exit_code": 3, "time": 5.0}
LOST = {"kind": "peer_lost", "sentence": "another rank went away", "exit_code": 138, "time": 4.0}
STOPPED = {"kind": "interrupted", "sentence": "stopped after step 7", "exit_code": 143, "time": 4.5}
LOADER = {
    "kind": "fault",
    "sentence": "RuntimeError: DataLoader worker is killed by signal: Killed.",
    "time": 1,
}
GLOO = {
    "kind": "fault",
    "sentence": "RuntimeError: [gloo/tcp/pair.cc] Connection closed by peer",
    "time": 1.0,
}
STARTING = {"kind": "fault", "sentence": "DistNetworkError: Failed to recv, got 0 bytes.", "time": 1.0}
INTERFACE = {
    "kind": "fault",
    "sentence": "RuntimeError: gloo/tcp/device.cc: Unable to find address for: eth9",
    "time": 1,
}
NCCL = "[rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE)"


NO_FAILURE = FailureRecord("", "")


def verdict(
    folder: Path, codes: list[int | None], records: dict[int, Any], *, out_of_memory: bool = False, **ended: Any
) -> tuple[int, FailureRecord]:
    """(exit code, record) of ranks that ended with `codes` and left `records`."""
    for rank, record in records.items():
        name = "failure.json" if rank == 0 else f"failure-rank-{rank}.json"
        (folder / name).write_text(json.dumps({"exit_code": 1, **record, "rank": rank}))
    ends = tuple(RankEnd(rank, code, 10.0 + rank) for rank, code in enumerate(codes))
    full = {"returncode": 1, "tail": ("line one", "[rank 0] the last of rank 0"), **ended}
    record = judge(ProgramEnd(ranks=ends, **full), folder, memory_ran_out=out_of_memory, world_size=2)
    return (0, NO_FAILURE) if record is None else (record.exit_code, record)


@pytest.mark.parametrize(
    ("codes", "records", "out_of_memory", "expected", "kind"),
    [
        pytest.param([0, 0], {}, False, 0, None, id="success-whatever-torchrun-says"),
        pytest.param([0, 0], {1: LOST}, False, 0, None, id="success-although-a-record-lies-there"),
        pytest.param([138, 3], {0: LOST, 1: DATA}, False, 3, "data", id="a-fault-comes-before-the-peers-it-took-along"),
        pytest.param([138, 0], {0: LOST}, False, 138, "peer_lost", id="a-lost-peer"),
        pytest.param([138, 143], {0: LOST, 1: STOPPED}, False, 143, "interrupted", id="stopped-and-lost"),
        pytest.param([-9, 138], {1: LOST}, False, 137, "killed", id="killed-from-outside"),
        pytest.param([-9, 138], {1: LOST}, True, 8, "out_of_memory", id="killed-for-want-of-memory"),
        pytest.param([1, 138], {0: LOADER, 1: LOST}, True, 8, "out_of_memory", id="its-loader-was-killed"),
        pytest.param([1, 138], {0: LOADER, 1: LOST}, False, 1, "fault", id="its-loader-was-killed-with-memory-left"),
        pytest.param([138, 0], {0: LOST}, True, 138, "peer_lost", id="somebody-else-was-killed-for-memory"),
        pytest.param([-11, 138], {1: LOST}, False, 1, "crashed", id="a-crash-would-come-again"),
        pytest.param([-6, -15], {}, False, 1, "crashed", id="abort-without-nccl"),
        pytest.param([1, 0], {0: GLOO}, False, 138, "peer_lost", id="words-of-a-collective"),
        pytest.param([1, 0], {0: STARTING}, False, 138, "peer_lost", id="a-peer-lost-while-starting"),
        pytest.param([1, 0], {0: INTERFACE}, False, 1, "fault", id="a-wrong-interface-is-no-lost-peer"),
        pytest.param([2, -15], {}, False, 2, "fault", id="an-exit-code-without-a-record"),
        pytest.param([1, -15], {}, False, 1, "fault", id="died-at-an-import"),
        pytest.param([None, 138], {1: LOST}, False, 137, "killed", id="killed-with-the-process-around-it"),
        pytest.param([-15, -15], {}, False, 138, "peer_lost", id="stopped-by-the-end-of-another-nodes-rank"),
        pytest.param([-15, 138], {1: LOST}, False, 138, "peer_lost", id="stopped-by-the-end-of-another-rank"),
        pytest.param([140, 138], {1: LOST}, False, 140, "fault", id="an-unknown-code-above-128-is-passed-on"),
    ],
)
def test_the_first_cause_decides(
    tmp_path: Path, codes: Any, records: Any, out_of_memory: bool, expected: int, kind: str | None
) -> None:
    code, record = verdict(tmp_path, codes, records, out_of_memory=out_of_memory)
    assert (code, record.kind) == (expected, kind or "")


def test_an_nccl_abort_is_a_lost_peer(tmp_path: Path) -> None:
    assert verdict(tmp_path, [-6, -15], {}, tail=(NCCL,))[0] == 138
    assert verdict(tmp_path, [-6, 0], {}, tail=(NCCL,))[0] == 138


def test_every_crash_says_which_code_stands_for_which(tmp_path: Path) -> None:
    _, record = verdict(tmp_path, [-int(signal.SIGSEGV)], {})
    assert "SIGSEGV" in record.sentence
    assert "instead of 139" in record.remedy


def test_out_of_memory_names_the_setting(tmp_path: Path) -> None:
    _, record = verdict(tmp_path, [-9], {}, out_of_memory=True)
    assert "cluster.resources" in record.remedy


def test_torchrun_itself_may_be_what_the_kernel_takes(tmp_path: Path) -> None:
    code, record = verdict(tmp_path, [], {}, out_of_memory=True, returncode=-9, tail=())
    assert (code, record.kind) == (8, "out_of_memory")
    assert verdict(tmp_path, [-15, None], {}, out_of_memory=True, returncode=-9)[0] == 8
    assert verdict(tmp_path, [], {}, returncode=-9, tail=())[0] == 137


def test_the_deadline_is_a_cause_of_its_own_but_not_above_a_fault(tmp_path: Path) -> None:
    code, record = verdict(tmp_path, [143, 143], {0: STOPPED, 1: STOPPED}, late=True)
    assert (code, record.kind) == (14, "deadline")
    assert "stopped after step 7" in record.sentence
    assert verdict(tmp_path, [0, 0], {}, late=True)[0] == 0
    assert verdict(tmp_path, [3, 143], {0: DATA, 1: STOPPED}, late=True)[0] == 3


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("RendezvousTimeoutError", 138),
        ("RendezvousConnectionError: The connection to the C10d store has failed", 138),
        ("ModuleNotFoundError: No module named 'torch'", 1),
        ("error: unrecognized arguments", 1),
    ],
)
def test_torchrun_that_started_no_rank(tmp_path: Path, tail: str, expected: int) -> None:
    code, record = verdict(tmp_path, [], {}, tail=(tail,))
    assert code == expected
    assert tail in record.sentence
    assert is_rendezvous_failure(ProgramEnd(1, tail=(tail,))) == (expected == 138)
    assert not is_rendezvous_failure(ProgramEnd(1, asked="SIGTERM", tail=(tail,)))


def test_stopped_before_any_rank_began(tmp_path: Path) -> None:
    assert verdict(tmp_path, [], {}, asked="SIGTERM")[0] == 143
    assert verdict(tmp_path, [-15, -15], {}, asked="SIGTERM")[0] == 143


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\noom_group_kill 0\n"}, "0::/\n", 2),
        ({"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"}, "9:memory:/\n", 5),
        (
            {"memory.events": "oom_kill 1\n", "kubepods/pod1/c/memory.events": "oom_kill 7\n"},
            "0::/kubepods/pod1/c\n",
            7,
        ),
        (
            {"memory/memory.oom_control": "oom_kill 1\n", "memory/kubepods/x/memory.oom_control": "oom_kill 3\n"},
            "4:cpu,cpuacct:/y\n9:memory:/kubepods/x\n",
            3,
        ),
        ({"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, "9:memory:/\n", None),
        ({}, "", None),
    ],
    ids=["version-2", "version-1", "version-2-not-own-root", "version-1-not-own-root", "old-kernel", "none"],
)
def test_the_kernels_counter(tmp_path: Path, files: dict[str, str], own: str, expected: int | None) -> None:
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert count_oom_kills(tmp_path / "groups", tmp_path / "own") == expected


@pytest.mark.parametrize("sentence", ["short", "long " * 3000, "ä" * 9000])
def test_a_termination_message_always_fits_and_stays_a_record(sentence: str) -> None:
    record = FailureRecord("data", sentence, "r" * 2000, 3, log_tail=("x" * 500,) * 50)
    data = shorten(record)
    assert len(data) <= MESSAGE_BYTES
    read = FailureRecord.from_bytes(data)
    assert (read.kind, read.exit_code) == ("data", 3)
    assert read.sentence[:5] == sentence[:5]
    assert len(data) > MESSAGE_BYTES // 2, "no more is cut than has to be"
