# ruff: noqa: F811
"""Stages in a real S3 server: trained half in one place and half in another, and a writer that was overtaken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from stageline.checkpoint.commit import CheckpointWriter
from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.lease import StageLease
from stageline.checkpoint.metadata import METADATA_NAME
from stageline.checkpoint.verify import verify
from stageline.errors import BusyError
from stageline.store import open_store

from ..checkpoint.samples import expire_lease, provenance, snapshot
from ..store.gate import Gate, mount_secret
from .s3_server import BUCKET, ROOT, ROOT_SECRET, S3Server, s3, server  # noqa: F401

pytestmark = pytest.mark.cluster

SMALL = (
    *("--family", "film_flow", "--preset", "tiny", "stages=[backbone]", "run=moving", "evaluate.weights=raw"),
    *("data.num_train=8", "data.num_val=2", "trainer.use_ema=false", "trainer.tensorboard=false"),
    *("stage_overrides.backbone.trainer.max_steps=30", "trainer.checkpoint_every_steps=5", "trainer.log_every_steps=1"),
)


def start(root: str, environment: dict[str, str], folder: Path) -> subprocess.Popen[str]:
    """The pipeline up to its first stage. environment: how this place reaches the store."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "stageline", "run", *SMALL, f"root={root}"],
        env={**inherited, **environment},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def newest(root: str) -> CheckpointRef:
    ref = StageDir(root, "moving", "backbone").newest()
    assert ref is not None
    return ref


@pytest.mark.slow
@pytest.mark.usefixtures("s3")
def test_a_stage_moves_between_cluster_and_laptop_and_stays_the_same(server: S3Server, tmp_path: Path) -> None:
    """In the cluster keys come from a mounted Secret, on the laptop from the environment; names differ too."""
    root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    mount_secret(tmp_path / "secret", "v1", AWS_ACCESS_KEY_ID=ROOT, AWS_SECRET_ACCESS_KEY=ROOT_SECRET)
    cluster = {"STAGELINE_S3_CREDENTIALS": str(tmp_path / "secret"), "AWS_ENDPOINT_URL_S3": server.endpoint}
    laptop = {
        "AWS_ACCESS_KEY_ID": ROOT,
        "AWS_SECRET_ACCESS_KEY": ROOT_SECRET,
        "AWS_ENDPOINT_URL": server.endpoint.replace("127.0.0.1", "localhost"),
    }
    for place, until in ((cluster, "step 7/30"), (laptop, "step 17/30")):
        with start(root, place, tmp_path) as process:
            assert process.stdout is not None
            text = ""
            for line in process.stdout:
                text += line
                if until in line:
                    process.send_signal(signal.SIGTERM)
            assert process.wait(300) == 143, text
        assert 0 < newest(root).metadata.step < 30
    for place, where in ((cluster, root), ({}, str(tmp_path / "disk"))):
        with start(where, place, tmp_path) as process:
            text = process.communicate(timeout=300)[0]
        assert process.returncode == 0, text
    moved, stayed = newest(root), newest(str(tmp_path / "disk"))
    assert moved.metadata.final
    assert verify(moved) == []
    assert moved.content == stayed.content


def test_a_writer_that_was_overtaken_while_its_commit_was_on_the_way_cannot_commit(
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its last request stands still in the network until another pod has taken the stage over."""
    folder = uuid.uuid4().hex
    with Gate(s3.endpoint) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", gate.url)
        slow = StageDir(open_store(f"s3://{BUCKET}/{folder}"), "a", "film")
        lease = StageLease.acquire(slow, "the old pod", keep_renewed=False)
        old = CheckpointWriter(slow, lease, provenance())
        first = old.save(snapshot(1))
        gate.hold = f"step-00000002/{METADATA_NAME}"
        faults: list[BaseException] = []

        def save() -> None:
            try:
                old.save(snapshot(2))
            except BusyError as error:
                faults.append(error)

        thread = threading.Thread(target=save)
        thread.start()
        assert gate.held.wait(60)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint)
        fast = StageDir(open_store(f"s3://{BUCKET}/{folder}"), "a", "film")
        expire_lease(fast)
        with StageLease.acquire(fast, "the new pod", keep_renewed=False) as taken:
            new = CheckpointWriter(fast, taken, provenance())
            assert [ref.digest for ref in fast.committed()] == [first.digest]
            third = new.save(snapshot(3))
            gate.released.set()
            thread.join(60)
        assert len(faults) == 1
        newest_now = fast.newest()
        assert newest_now is not None
        assert newest_now.digest == third.digest
        assert [ref.metadata.step for ref in fast.committed()] == [1, 3]
