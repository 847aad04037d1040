"""A writer that stood still while its lease was taken over commits nothing, wherever it stood; waiting for a lease."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stageline.checkpoint.commit import CheckpointWriter
from stageline.checkpoint.fencing import FENCE_SECONDS, fence_leftovers
from stageline.checkpoint.layout import StageDir, open_checkpoint
from stageline.checkpoint.lease import StageLease, await_free
from stageline.checkpoint.metadata import METADATA_NAME, is_fence
from stageline.checkpoint.verify import verify
from stageline.config import RetentionConfig
from stageline.errors import BusyError, CheckpointError
from stageline.store import Store
from tests.checkpoint.samples import ALL, provenance, save, snapshot, writing

TTL_SECONDS = 0.5
COMMIT_CHECK = 4
"""Checks of the lease before that: taking over, tidying up, claiming the step directory."""


class PausingLease(StageLease):
    """Stops its whole process right after the n-th check, as a machine does that freezes or swaps."""

    pause_at = 0

    def check(self) -> None:
        super().check()
        self.pause_at -= 1
        if self.pause_at == 0:
            os.kill(os.getpid(), signal.SIGSTOP)


def start_old_writer(root: Path, pause_at: int) -> int:
    """Fork a writer that saves step 5 and stands still after that check; returns its process id once it stands."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            directory = StageDir(str(root), "a", "film")
            lease = PausingLease.acquire(directory, "old", TTL_SECONDS)
            assert isinstance(lease, PausingLease)
            lease.pause_at = pause_at
            CheckpointWriter(directory, lease, provenance(), ALL).save(snapshot(5))
            code = 0
        except BusyError:
            code = BusyError.exit_code
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"it ended with {status} before its {pause_at}th check"
    return pid


CHECKS = range(1, 7)


@pytest.fixture(scope="module")
def old_writers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, tuple[Path, int]]]:
    """Check -> (root, process) of a writer that stands still after it. They stop at once, so that we wait for one."""
    roots = {pause_at: tmp_path_factory.mktemp("old") for pause_at in CHECKS}
    writers = {pause_at: (root, start_old_writer(root, pause_at)) for pause_at, root in roots.items()}
    yield writers
    for _, pid in writers.values():  # those that no test woke
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("pause_at", CHECKS)
def test_a_writer_that_stood_still_longer_than_its_lease_commits_nothing(
    old_writers: dict[int, tuple[Path, int]], pause_at: int
) -> None:
    root, old = old_writers[pause_at]
    directory = StageDir(str(root), "a", "film")
    await_free(directory, 30, print, lambda: False)
    with StageLease.acquire(directory, "new") as lease:
        fence_leftovers(directory, lease)
        before = [ref.metadata.step for ref in directory.committed()]
        writer = CheckpointWriter(directory, lease, provenance(), ALL)
        new = writer.save(snapshot(7))
        os.kill(old, signal.SIGCONT)
        _, status = os.waitpid(old, 0)
        del old_writers[pause_at]
        assert os.waitstatus_to_exitcode(status) == BusyError.exit_code
        lease.check()
        assert [ref.metadata.step for ref in directory.committed()] == [*before, 7]
        assert before == ([] if pause_at <= COMMIT_CHECK else [5])
        assert all(verify(ref) == [] for ref in directory.committed())
        last = directory.pointer("last")
        assert last is not None
        assert last.digest == new.digest
        writer.save(snapshot(9))
    assert [ref.metadata.step for ref in directory.committed()] == [*before, 7, 9]


def test_a_fence_is_no_checkpoint_for_anybody(root: Store) -> None:
    directory = StageDir(root, "a", "film")
    save(directory, 5)
    directory.store.put("checkpoints/step-00000009/model.safetensors", b"half")
    with writing(directory) as writer:
        store = directory.step_store("step-00000009")
        assert [info.key for info in store.list()] == [METADATA_NAME]
        assert is_fence(store.get(METADATA_NAME))
        with pytest.raises(CheckpointError, match="never committed"):
            open_checkpoint(store)
        assert not directory.is_committed("step-00000009")
        assert [ref.metadata.step for ref in directory.committed()] == [5]
        assert writer.save(snapshot(9)).name == "step-00000009-2"


def test_a_fence_goes_when_nobody_can_need_it_any_more(directory: StageDir) -> None:
    old = {"fenced": time.time() - FENCE_SECONDS - 1, "by": "x", "lease": "y"}
    directory.store.put(f"checkpoints/step-00000009/{METADATA_NAME}", json.dumps(old).encode())
    young = {**old, "fenced": time.time()}
    directory.store.put(f"checkpoints/step-00000010/{METADATA_NAME}", json.dumps(young).encode())
    with writing(directory):
        assert directory.step_dirs() == ["step-00000010"]


def test_what_its_own_holder_left_needs_no_fence(directory: StageDir) -> None:
    with writing(directory, RetentionConfig()) as writer:
        writer.claim(3)
        writer.save(snapshot(5))
    assert directory.step_dirs() == ["step-00000005"]


def test_waiting_for_a_lease_says_so_once_and_ends_when_it_has_run_out(directory: StageDir) -> None:
    StageLease.acquire(directory, "killed pod", 0.8, keep_renewed=False)
    said: list[str] = []
    start = time.monotonic()
    await_free(directory, 30, said.append, lambda: False)
    assert 0.5 < time.monotonic() - start < 20
    assert len(said) == 1
    assert "killed pod" in said[0]
    StageLease.acquire(directory, "next", keep_renewed=False)


@pytest.mark.parametrize("limit", [0.0, 0.3])
def test_waiting_has_an_end_and_takes_nothing(directory: StageDir, limit: float) -> None:
    with StageLease.acquire(directory, "living"):
        await_free(directory, limit, print, lambda: False)
        with pytest.raises(BusyError, match="living"):
            StageLease.acquire(directory, "next")
        await_free(directory, 60, print, lambda: True)
