"""`stageline pipeline submit` against what answers as a KFP backend: what is sent, told, and meant at the end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from guards import HANG_SECONDS

from stageline.cli import main
from stageline.cli.checking import _setup as examined
from stageline.config import parse_yaml
from stageline.errors import ClusterError, ClusterUnavailableError, ConfigError, DataError
from stageline.families import parse_config, raw_preset
from stageline.pipeline.backend import Backend
from stageline.pipeline.submission import SubmittedRun, make_submission, namespace_defaults
from stageline.store import open_store
from stageline.telemetry import EventLog, write_failure
from stageline.telemetry.remedies import REMEDIES

from ..kube.serving import serving
from .backend_server import RUN_ID, BackendServer, backend_server, run_state


@pytest.fixture
def backend() -> Iterator[BackendServer]:
    with backend_server() as server:
        yield server


def words_of(root: Path, *overrides: str) -> list[str]:
    """A config whose claim is a folder of this machine, so that its store can be read from here."""
    where = ("cluster.image=trainer:1", "cluster.storage.claim=data", f"cluster.storage.mount_path={root}")
    return [f"root={root}", *where, *overrides]


def command(root: Path, *words: str) -> list[str]:
    return ["pipeline", "submit", "--family", "film_flow", "--preset", "tiny", *words_of(root), *words]


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster to ask for defaults."""
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")


def test_the_plan_is_shown_and_the_run_followed_to_its_end(
    backend: BackendServer, tmp_path: Path, outside: None, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.states = [
        run_state("RUNNING", prepare_data="RUNNING"),
        run_state("SUCCEEDED", prepare_data="SUCCEEDED", train_stage="SUCCEEDED"),
    ]
    code = main(command(tmp_path, "--endpoint", backend.endpoint, "--service-account", "steps"))
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "never recorded" in out, "the plan"
    assert "trainer:1' is a tag" in out
    assert f"submitted as KFP run {RUN_ID}" in out
    assert out.index("prepare data: running") < out.index("prepare data: succeeded")
    assert out.rstrip().endswith(f"report: {tmp_path}/runs/tiny/report.html")
    assert "root" not in [line.partition(":")[0] for line in out.splitlines()], "only steps are told"
    assert backend.created["service_account"] == "steps"
    given = backend.created["runtime_config"]["parameters"]
    assert given["claim"] == "data"
    assert json.loads(given["config"])["root"] == str(tmp_path)
    tasks = backend.created["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"]
    assert all(not task["cachingOptions"].get("enableCache") for task in tasks.values())
    assert not (tmp_path / "runs").exists(), "submitting writes nothing into the store"


def test_a_dry_run_submits_nothing(
    backend: BackendServer, tmp_path: Path, outside: None, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(command(tmp_path, "--endpoint", backend.endpoint, "--dry-run"))
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "film_flow_pvc.yaml" in out
    assert backend.created == {}


def following(backend: BackendServer, root: Path, lines: list[str]) -> SubmittedRun:
    submission = make_submission(parse_config(raw_preset("film_flow", "tiny"), words_of(root)))
    return SubmittedRun(Backend.connect(backend.endpoint), RUN_ID, submission, lines.append, poll_seconds=0.05)


def test_a_failed_run_ends_with_the_failed_steps_own_record(backend: BackendServer, tmp_path: Path) -> None:
    lines: list[str] = []
    follow = following(backend, tmp_path, lines)
    run = open_store(tmp_path).child("runs", "tiny")
    log = EventLog(run)
    log.emit("step", item="film", state="running", text="training 2 steps", seconds=0.1)
    log.close()
    write_failure(run, DataError("a.png is empty", remedy="mend it"))
    backend.states = [run_state("FAILED", prepare_data="FAILED")]
    error = follow.follow()
    assert error is not None
    assert (error.exit_code, error.message, error.remedy) == (3, "a.png is empty", REMEDIES["data"])
    assert "  film: running: training 2 steps" in lines


def test_the_record_of_an_earlier_run_is_not_this_ones(backend: BackendServer, tmp_path: Path) -> None:
    write_failure(open_store(tmp_path).child("runs", "tiny"), DataError("old"))
    time.sleep(0.01)
    follow = following(backend, tmp_path, [])
    backend.states = [run_state("FAILED", train_stage_2="FAILED")]
    error = follow.follow()
    assert error is not None
    assert error.exit_code == 1
    assert "step 'train film' failed" in error.message


def test_a_run_that_somebody_terminated_is_an_interruption(backend: BackendServer, tmp_path: Path) -> None:
    backend.states = [run_state("RUNNING"), run_state("CANCELING"), run_state("FAILED", train_stage_2="FAILED")]
    error = following(backend, tmp_path, []).follow()
    assert error is not None
    assert error.exit_code == 143


def test_ctrl_c_asks_the_backend_to_terminate_and_waits_for_it(
    backend: BackendServer, tmp_path: Path, outside: None
) -> None:
    backend.states = [run_state("RUNNING", train_stage_2="RUNNING")]
    process = subprocess.Popen(
        [sys.executable, "-m", "stageline", *command(tmp_path, "--endpoint", backend.endpoint)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "train film: running" in line:
            break
    process.send_signal(signal.SIGINT)
    assert backend.terminated.wait(HANG_SECONDS)
    backend.states = [run_state("FAILED", train_stage_2="FAILED")]
    _, errors = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 143
    assert "was terminated" in errors


def test_no_endpoint_no_answer_and_refusals_are_told_in_words(
    backend: BackendServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    with pytest.raises(ConfigError, match="no Kubeflow Pipelines endpoint") as missing:
        Backend.connect()
    assert "--endpoint" in missing.value.remedy
    with pytest.raises(
        ClusterUnavailableError, match=r"no Kubeflow Pipelines backend answers at http://127\.0\.0\.1:9"
    ):
        Backend.connect("http://127.0.0.1:9")
    for status, part in ((401, "--token"), (403, "--namespace"), (404, "--endpoint")):
        backend.refusal = (status, "no such luck")
        with pytest.raises(ClusterError, match="no such luck") as refused:
            Backend.connect(backend.endpoint)
        assert part in refused.value.remedy
    backend.refusal = (503, "starting")
    with pytest.raises(ClusterUnavailableError, match="starting"):
        Backend.connect(backend.endpoint)


def test_what_jobs_lack_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    config = parse_config(raw_preset("film_flow", "tiny"), [f"root={tmp_path}"])
    with pytest.raises(ConfigError, match=r"cluster\.image is empty"):
        make_submission(config)
    defaults = parse_yaml("root: /stageline\ncluster: {image: 'trainer:1', storage: {claim: data}}", "defaults")
    placed = make_submission(parse_config(raw_preset("film_flow", "tiny")), defaults=defaults)
    assert placed.config.root == "/stageline"
    assert placed.arguments["claim"] == "data"


def test_the_name_of_the_defaults_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for under that name, by submit and by doctor, and mounted under it into the steps."""
    asked: list[str] = []
    section = {"image": "trainer:1", "defaults": "imaging", "storage": {"claim": "data"}}
    data = {"cluster.yaml": json.dumps({"cluster": section}), "launcher_service_account": "imaging-launcher"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer = json.dumps({"metadata": {"name": "imaging"}, "data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nothing to say."""

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler), tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        config = parse_config(raw_preset("film_flow", "tiny"), ["cluster.defaults=imaging"])
        found = namespace_defaults(config, print)
        setup = examined(None, None, None, ["cluster.defaults=imaging"], "")
    assert asked == ["/api/v1/namespaces/train/configmaps/imaging"] * 2
    submission = make_submission(config, defaults=found)
    assert submission.arguments["defaults"] == "imaging"
    assert (setup.launcher, setup.cluster.defaults, setup.cluster.image) == ("imaging-launcher", "imaging", "trainer:1")
    usual = make_submission(parse_config(raw_preset("film_flow", "tiny"), words_of(tmp_path)))
    assert "defaults" not in usual.arguments
