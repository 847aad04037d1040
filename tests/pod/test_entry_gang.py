"""Two pods of one stage as two entries on this machine, with the real torchrun: one is killed, both train again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from guards import HANG_SECONDS

from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.verify import verify
from stageline.families import parse_config, raw_preset
from stageline.jobs.processes import descendants
from stageline.work.decision import decide_stage
from stageline.work.given import Given

pytestmark = pytest.mark.slow

STEPS = 40
EVERY = 10
ENTRY = "import sys; from stageline.pod.entry import main; sys.exit(main())"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Gang:
    """The pods of one stage; the test is their operator."""

    def __init__(self, folder: Path, config: dict[str, Any], data: str) -> None:
        self.folder, self.config, self.data = folder, config, data
        self.port = free_port()
        self.attempts = 0
        self.pods: dict[int, subprocess.Popen[bytes]] = {}
        self.fingerprint = decide_stage(parse_config(config), "backbone", given=Given(data)).fingerprint

    def start(self, index: int, **changes: str) -> None:
        self.attempts += 1
        own = {key: value for key, value in os.environ.items() if not key.startswith(("STAGELINE_", "PET_"))}
        variables = {
            **own,
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_RDZV_BACKEND": "stageline",
            "PET_RDZV_ENDPOINT": f"127.0.0.1:{self.port}",
            "PET_RDZV_ID": "gang",
            "POD_IP": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PET_SHUTDOWN_TIMEOUT": "60",
            "STAGELINE_CONFIG": yaml.safe_dump(self.config),
            "STAGELINE_ITEM": "backbone",
            "STAGELINE_FINGERPRINT": self.fingerprint,
            "STAGELINE_TERMINATION_LOG": str(self.folder / f"message-{index}"),
            "POD_NAME": f"gang-worker-{index}",
            "POD_UID": f"{self.attempts:08d}",
            **changes,
        }
        words = changes.pop("ARGUMENTS", f"train backbone --data={self.data}").split()
        with (self.folder / f"output-{index}.txt").open("ab") as output:
            command = [sys.executable, "-c", ENTRY, *words]
            self.pods[index] = subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT)

    def output(self, index: int) -> str:
        return (self.folder / f"output-{index}.txt").read_text()

    def end(self, index: int) -> int:
        try:
            return self.pods[index].wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill(index)
            raise AssertionError(f"pod {index} hangs:\n{self.output(0)}\n{self.output(1)}") from None

    def kill(self, index: int) -> None:
        """All processes of a pod at once, as the kubelet does at the end of the grace period."""
        pid = self.pods[index].pid
        for each in (pid, *descendants(pid)):
            os.kill(each, signal.SIGKILL)
        self.pods[index].wait()

    def message(self, index: int) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads((self.folder / f"message-{index}").read_text())
        return plain

    def wait_for_step(self, step: int) -> None:
        directory = StageDir(str(self.config["root"]), "a", "backbone")
        end = time.monotonic() + HANG_SECONDS
        while not any(ref.metadata.step >= step for ref in directory.committed()):
            assert time.monotonic() < end, self.output(0) + self.output(1)
            assert all(pod.poll() is None for pod in self.pods.values()), self.output(0) + self.output(1)
            time.sleep(0.05)

    def final(self) -> CheckpointRef:
        ref = StageDir(str(self.config["root"]), "a", "backbone").newest()
        assert ref is not None
        assert ref.metadata.final
        assert verify(ref) == []
        return ref


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prepared data that all gangs share."""
    from stageline.families import parse_config
    from stageline.verbs.prepare import prepare_data

    raw = raw_preset("film_flow", "tiny") | {"root": str(tmp_path_factory.mktemp("data"))}
    return str(prepare_data(parse_config(raw)).reference)


def make_gang(folder: Path, data: str) -> Gang:
    raw = raw_preset("film_flow", "tiny")
    trainer = {
        **raw["trainer"],
        "nodes": 2,
        "processes": 1,
        "max_steps": STEPS,
        "checkpoint_every_steps": EVERY,
        "accelerator": "cpu",
        "process_group_timeout_seconds": 60,
        "tensorboard": False,
    }
    return Gang(folder, {**raw, "root": str(folder / "root"), "run": "a", "trainer": trainer}, data)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: str) -> str:
    """Content of the checkpoint that nobody disturbed."""
    gang = make_gang(tmp_path_factory.mktemp("undisturbed"), data)
    for index in (0, 1):
        gang.start(index)
    assert [gang.end(0), gang.end(1)] == [0, 0], gang.output(0) + gang.output(1)
    return gang.final().content


@pytest.mark.parametrize("victim", [1, 0], ids=["worker-1", "rendezvous-host"])
def test_a_pod_is_killed_and_the_gang_trains_again_to_the_same_weights(
    tmp_path: Path, data: str, undisturbed: str, victim: int
) -> None:
    gang = make_gang(tmp_path, data)
    for index in (0, 1):
        gang.start(index)
    gang.wait_for_step(EVERY)
    killed = time.monotonic()
    gang.kill(victim)
    survivor = 1 - victim
    gang.start(victim)  # the operator makes the new pod while the old peer may still be there
    code = gang.end(survivor)
    assert code >= 128, gang.output(survivor)
    assert gang.message(survivor)["exit_code"] == code
    gang.start(survivor)
    for _ in range(4):  # as often as the restart budget allows
        codes = {index: gang.pods[index].poll() for index in (0, 1)}
        while None in codes.values():
            if any(found for found in codes.values()):
                break
            time.sleep(0.2)
            assert time.monotonic() - killed < HANG_SECONDS, gang.output(0) + gang.output(1)
            codes = {index: gang.pods[index].poll() for index in (0, 1)}
        bad = [index for index, found in codes.items() if found]
        assert all((codes[index] or 0) >= 128 for index in bad), gang.output(0) + gang.output(1)
        if not bad:
            break
        for index in bad:
            gang.start(index)
    assert [gang.end(0), gang.end(1)] == [0, 0], gang.output(0) + gang.output(1)
    ref = gang.final()
    assert ref.content == undisturbed
    text = gang.output(0) + gang.output(1)
    resumed = [int(line.split("resumed at step ")[1].split()[0]) for line in text.splitlines() if "resumed at" in line]
    assert resumed, text
    assert min(resumed) >= EVERY, "no more than one checkpoint interval was lost"


def test_an_edited_job_is_refused_when_old_and_new_pods_meet(tmp_path: Path, data: str) -> None:
    gang = make_gang(tmp_path, data)
    gang.start(0)
    gang.start(1, ARGUMENTS=f"train backbone --data={data} trainer.log_every_steps=5")
    codes = [gang.end(0), gang.end(1)]
    assert all(0 < code < 128 for code in codes), gang.output(0) + gang.output(1)
    assert "differs among ranks" in gang.message(1)["sentence"] + gang.message(0)["sentence"]


def test_a_trial_prepares_trains_and_checks_in_one_pod(tmp_path: Path) -> None:
    raw = raw_preset("film_flow", "tiny")
    raw |= {"data": {**raw["data"], "num_train": 16, "num_val": 8}, "root": "s3://is/not/used"}
    raw["trainer"] = {**raw["trainer"], "accelerator": "cpu", "nodes": 2}
    raw["stage_overrides"] = {stage: {"trainer.max_steps": 3} for stage in ("backbone", "film")}
    own = {key: value for key, value in os.environ.items() if not key.startswith(("STAGELINE_", "PET_"))}
    variables = {**own, "STAGELINE_CONFIG": yaml.safe_dump(raw), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, "trial", "film"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "film trained 3 steps; its checkpoint is sound" in done.stdout
    shared = tmp_path / f"stageline-data-{os.getuid()}"
    assert list(tmp_path.glob("stageline-*")) == [shared], "nothing else is left on the disk"
    assert all(file.name.endswith(".lock") and file.stat().st_size == 0 for file in shared.iterdir()), "locks, no data"
