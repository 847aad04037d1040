"""A disk that is full: known before the save where possible, survived where it fills up during it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stageline.checkpoint.layout import StageDir, resolve
from stageline.checkpoint.tensors import read_tensors
from stageline.checkpoint.verify import verify
from stageline.errors import DiskFullError
from stageline.store import Store
from tests.checkpoint.samples import equal, save, snapshot, tensors, writing

MEBIBYTE = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB; needs root, so others skip and the file-size limit below covers them."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_intact(directory: StageDir, step: int) -> None:
    ref = resolve(directory.uri, prefer="last")
    assert ref.metadata.step == step
    assert verify(ref) == []
    assert equal(read_tensors(ref), tensors(step))
    assert directory.step_dirs() == [f"step-{step:08d}"], "nothing is left of the save that failed"


def test_a_save_that_will_not_fit_is_refused_before_its_first_byte(
    directory: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(directory, 5)
    monkeypatch.setattr(Store, "free_bytes", lambda _: 5 * MEBIBYTE)
    with writing(directory) as writer:
        writer.save(snapshot(6))
        claimed = directory.step_dirs()
        monkeypatch.setattr(writer, "claim", lambda _: pytest.fail("something was written"))
        with pytest.raises(DiskFullError, match="5 MiB free, 13 MiB needed") as caught:
            writer.save(snapshot(7, tensors={"big": torch.zeros(2 * MEBIBYTE)}, ema=None))
    assert "trainer.keep" in caught.value.remedy
    assert directory.step_dirs() == claimed


def test_a_disk_too_small_is_noticed_by_looking(small_disk: Path) -> None:
    directory = StageDir(str(small_disk), "a", "film")
    save(directory, 5)
    with writing(directory) as writer, pytest.raises(DiskFullError, match="needed"):
        writer.save(snapshot(6, tensors={"big": torch.zeros(4 * MEBIBYTE)}))
    assert_intact(directory, 5)


def test_a_disk_that_fills_up_during_the_save_leaves_the_last_checkpoint(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else takes the room between the look and the write: the kernel says ENOSPC in mid-file."""
    directory = StageDir(str(small_disk), "a", "film")
    save(directory, 5)
    monkeypatch.setattr(Store, "free_bytes", lambda _: None)
    with writing(directory) as writer:
        with pytest.raises(DiskFullError, match="no room to write"):
            writer.save(snapshot(6, tensors={"a": torch.zeros(3 * MEBIBYTE), "b": torch.zeros(2 * MEBIBYTE)}))
        assert_intact(directory, 5)
        writer.save(snapshot(7))
    assert resolve(directory.uri, prefer="last").metadata.step == 7


def test_a_file_that_hits_its_limit_leaves_the_last_checkpoint(directory: StageDir) -> None:
    """The same without root: RLIMIT_FSIZE in a forked child, whose write the kernel cuts off."""
    save(directory, 5)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE, MEBIBYTE))
            with writing(directory) as writer:
                writer.save(snapshot(6, tensors={"a": torch.zeros(MEBIBYTE)}))
        except DiskFullError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == DiskFullError.exit_code
    assert_intact(directory, 5)


def test_room_is_asked_of_the_stores_own_file_system(small_disk: Path) -> None:
    free = StageDir(str(small_disk), "a", "film").store.free_bytes()
    assert free is not None
    assert 0 < free <= 16 * MEBIBYTE
    assert sys.platform == "linux"
