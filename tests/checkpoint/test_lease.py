"""One writer per stage directory: leases are taken over only when expired, and lost ones commit nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from guards import HANG_SECONDS

from stageline.checkpoint.layout import StageDir
from stageline.checkpoint.lease import LEASE_NAME, StageLease, held_by
from stageline.errors import BusyError
from stageline.store import Store
from tests.checkpoint.samples import expire_lease


def test_a_second_writer_is_told_who_is_first(root: Store) -> None:
    directory = StageDir(root, "a", "film")
    with StageLease.acquire(directory, "train on node-7", keep_renewed=False):
        with pytest.raises(BusyError, match="'train on node-7'") as caught:
            StageLease.acquire(directory, "me")
        assert str(os.getpid()) in caught.value.message
        assert socket.gethostname() in caught.value.message
        assert held_by(directory) == "train on node-7"
    assert held_by(directory) is None
    with StageLease.acquire(directory, "me", keep_renewed=False):
        assert held_by(directory) == "me"


def test_other_stages_do_not_disturb(tmp_path: Path) -> None:
    one, other = (StageDir(str(tmp_path), "a", stage) for stage in ("backbone", "film"))
    with StageLease.acquire(one, "x", keep_renewed=False), StageLease.acquire(other, "y", keep_renewed=False) as lease:
        lease.check()


def test_an_expired_lease_is_taken_over_and_its_holder_finds_out(root: Store) -> None:
    directory = StageDir(root, "a", "film")
    slow = StageLease.acquire(directory, "slow", keep_renewed=False)
    expire_lease(directory)
    with StageLease.acquire(directory, "quick", keep_renewed=False) as quick:
        with pytest.raises(BusyError, match="taken over by 'quick'"):
            slow.check()
        with pytest.raises(BusyError, match="taken over"):
            slow.renew()
        slow.release()
        quick.check()
        assert held_by(directory) == "quick", "the loser's release left it alone"


def test_what_was_lost_stays_lost(root: Store) -> None:
    """In between another may have written; that the file is ours again proves nothing."""
    directory = StageDir(root, "r", "s")
    lease = StageLease.acquire(directory, "first", keep_renewed=False)
    ours = directory.store.get(LEASE_NAME)
    directory.store.delete(LEASE_NAME)
    with pytest.raises(BusyError, match=r"lease\.json is gone"):
        lease.check()
    directory.store.put(LEASE_NAME, ours)
    for go_on in (lease.check, lease.renew):
        with pytest.raises(BusyError, match="nothing is committed any more"):
            go_on()


def test_of_many_taking_over_one_expired_lease_exactly_one_wins(root: Store) -> None:
    directory = StageDir(root, "a", "film")
    StageLease.acquire(directory, "gone", keep_renewed=False)
    expire_lease(directory)
    start = threading.Barrier(4)
    won: list[StageLease] = []
    lost: list[BusyError] = []

    def take(number: int) -> None:
        start.wait(HANG_SECONDS)
        try:
            won.append(StageLease.acquire(directory, f"number {number}", keep_renewed=False))
        except BusyError as error:
            lost.append(error)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert (len(won), len(lost)) == (1, 3)
    won[0].check()


def test_renewing_moves_the_expiry_and_keeps_the_lease(root: Store) -> None:
    directory = StageDir(root, "a", "film")
    with StageLease.acquire(directory, "x", ttl_seconds=1000, keep_renewed=False) as lease:
        before = json.loads(directory.store.get("lease.json"))["expires"]
        lease.renew()
        lease.renew()
        lease.check()
        after = json.loads(directory.store.get("lease.json"))["expires"]
        assert before < after <= time.time() + 1000


def test_a_lease_that_expired_while_its_holder_stood_still_is_renewed_if_nobody_took_it(root: Store) -> None:
    directory = StageDir(root, "a", "film")
    lease = StageLease.acquire(directory, "paused", ttl_seconds=1e-3, keep_renewed=False)
    time.sleep(0.01)
    assert held_by(directory) is None
    lease.ttl_seconds = 1000
    lease.check()
    assert held_by(directory) == "paused"
    with pytest.raises(BusyError, match="'paused'"):
        StageLease.acquire(directory, "me")


def test_a_check_leaves_at_least_half_the_time(directory: StageDir) -> None:
    with StageLease.acquire(directory, "x", ttl_seconds=1000, keep_renewed=False) as lease:
        lease.check()
        assert json.loads(directory.store.get("lease.json"))["serial"] == 1
        lease.ttl_seconds = 2500
        lease.check()
        plain = json.loads(directory.store.get("lease.json"))
    assert plain["serial"] == 2
    assert plain["expires"] > time.time() + 2000


def test_the_thread_renews_until_release(directory: StageDir) -> None:
    with StageLease.acquire(directory, "x", ttl_seconds=0.6) as lease:
        deadline = time.monotonic() + HANG_SECONDS
        while json.loads(directory.store.get("lease.json"))["serial"] < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        lease.renew()
        lease.check()
    serial = json.loads(directory.store.get("lease.json"))["serial"]
    time.sleep(0.3)
    assert json.loads(directory.store.get("lease.json"))["serial"] == serial


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    script = (
        "import os\nfrom stageline.checkpoint.layout import StageDir\n"
        "from stageline.checkpoint.lease import StageLease\n"
        f"StageLease.acquire(StageDir({str(tmp_path)!r}, 'a', 'film'), 'killed', ttl_seconds=1e6); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=HANG_SECONDS, check=False)
    assert done.returncode == 9
    directory = StageDir(str(tmp_path), "a", "film")
    plain = json.loads(directory.store.get("lease.json"))
    assert plain["expires"] > time.time() + 1e5
    assert held_by(directory) is None
    with StageLease.acquire(directory, "next", keep_renewed=False) as lease:
        lease.check()


def test_a_process_that_got_a_dead_ones_number_is_not_taken_for_it(directory: StageDir) -> None:
    StageLease.acquire(directory, "x", keep_renewed=False)
    plain = json.loads(directory.store.get("lease.json"))
    assert held_by(directory) == "x"
    directory.store.put("lease.json", json.dumps(plain | {"born": "12"}).encode())
    assert held_by(directory) is None


def test_a_living_process_elsewhere_keeps_its_lease(directory: StageDir) -> None:
    StageLease.acquire(directory, "x", keep_renewed=False)
    plain = json.loads(directory.store.get("lease.json"))
    # Nobody here can say whether process 1 of another machine lives.
    directory.store.put("lease.json", json.dumps(plain | {"host": "elsewhere", "pid": 2**22 + 1}).encode())
    with pytest.raises(BusyError, match="elsewhere"):
        StageLease.acquire(directory, "me")


def test_what_is_no_lease_is_neither_kept_nor_overwritten(directory: StageDir) -> None:
    for junk in (b"", b"[]", b'{"holder": "x"}', b"\xff"):
        directory.store.put("lease.json", junk)
        with pytest.raises(BusyError, match="no lease"):
            StageLease.acquire(directory, "me")
        assert directory.store.get("lease.json") == junk
