"""The real torchrun: a signal to its agent reaches the ranks, they commit, and their own records say 143."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guards import HANG_SECONDS

from stageline.checkpoint.layout import StageDir
from stageline.telemetry import FAILURE_DIR_VARIABLE, read_failure


def command(root: Path, data: str) -> list[str]:
    trainer = {"processes": 2, "accelerator": "cpu", "max_steps": 4000, "batch_size": 2, "tensorboard": False}
    config = {"family": "toy", "run": "r", "root": str(root), "trainer": trainer}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=0"]
    return [sys.executable, *torchrun, str(Path(__file__).with_name("drive.py")), json.dumps(config), "base", data]


@pytest.mark.slow
def test_sigterm_to_torchrun_commits_on_all_ranks(tmp_path, data):
    running = tmp_path / "running"
    records = tmp_path / "records"
    environment = {
        **os.environ,
        "TOY_RUNNING_FILE": str(running),
        FAILURE_DIR_VARIABLE: str(records),
        "OMP_NUM_THREADS": "1",
        "PET_SHUTDOWN_TIMEOUT": "60",
    }
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(command(tmp_path, data), stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            end = time.monotonic() + HANG_SECONDS
            while not running.exists() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
            assert running.exists(), (tmp_path / "out.txt").read_text()
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=HANG_SECONDS)
        finally:
            process.kill()
    assert code != 0, "torchrun's own code says nothing but that it is no success"
    text = (tmp_path / "out.txt").read_text()
    assert {path.name for path in records.iterdir()} == {"failure.json", "failure-rank-1.json"}, text
    for rank, path in enumerate(("failure.json", "failure-rank-1.json")):
        record = json.loads((records / path).read_text())
        assert (record["kind"], record["exit_code"], record["rank"]) == ("interrupted", 143, rank), text
    assert read_failure(records).exit_code == 143
    left = StageDir(str(tmp_path), "r", "base").newest()
    assert left is not None
    assert 3 < left.metadata.step < 4000
    assert not left.metadata.final
