"""Steps of KFP: tried again after what a retry mends, never after what it does not; no environment out of a config."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stageline.config import seal
from stageline.config.cluster import ClusterConfig
from stageline.errors import ConfigError, StoreUnavailableError
from stageline.families import family_config
from stageline.jobs.cluster.render.pytorchjob import render_job
from stageline.jobs.step_lines import DRIVER_VARIABLE
from stageline.pipeline import steps
from stageline.pipeline.attempts import LASTS_SECONDS, NUM_RETRIES, RETRY_VARIABLE, Attempts
from stageline.pipeline.items import make_job
from stageline.pipeline.request import read_request
from stageline.stage import stage_config
from stageline.store import Store, open_store
from stageline.telemetry import FAILURE_DIR_VARIABLE, read_events

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
GOLDENS = sorted(PIPELINES.glob("*.yaml"))
RUN = ("runs", "tiny")


# What is compiled ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=GOLDENS, ids=lambda path: path.stem)
def compiled(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """(pipeline, its settings for Kubernetes)"""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    pipeline, platforms = yaml.load_all(request.param.read_text(), loader)
    return pipeline, platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_every_step_says_how_often_it_is_tried_again(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    tasks = compiled[0]["root"]["dag"]["tasks"]
    assert len(tasks) >= 5
    for name, task in tasks.items():
        policy = task["retryPolicy"]
        assert policy["maxRetryCount"] == NUM_RETRIES, name
        assert policy["backoffDuration"] == "30s", name
        pauses = sum(30 * policy["backoffFactor"] ** index for index in range(NUM_RETRIES))
        assert pauses < LASTS_SECONDS / 3, "KFP's own retries come while the error is told again"
        assert policy["backoffMaxDuration"] == "604800s", "a stage takes days, and Argo counts from its first start"


def test_every_step_is_not_root_and_has_no_environment(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    pipeline, platform = compiled
    executors = pipeline["deploymentSpec"]["executors"]
    assert set(platform) == set(executors)
    for name, executor in executors.items():
        assert platform[name]["securityContext"] == {"runAsNonRoot": True}, name
        assert not {"secretAsEnv", "configMapAsEnv", "fieldPathAsEnv", "hostPath"} & set(platform[name]), name
        assert "env" not in executor["container"], name


# What a retry does --------------------------------------------------------------------------------------------------


class Shown:
    """An artifact of KFP, as a step is given it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.metadata: dict[str, Any] = {}

    def log_metric(self, metric: str, value: float) -> None:
        """Nobody looks at it here."""


Attempt = Callable[..., int]


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Attempt:
    """A stage whose parent is not there, which only a change mends; gives its exit code."""
    for name in (DRIVER_VARIABLE, FAILURE_DIR_VARIABLE):
        monkeypatch.delenv(name, raising=False)

    def run(index: int | None, **given: str) -> int:
        monkeypatch.delenv(RETRY_VARIABLE, raising=False)
        if index is not None:
            monkeypatch.setenv(RETRY_VARIABLE, str(index))
        fault = "parents.film.default=runs/none/backbone"
        usual = {"preset": "tiny", "root": str(tmp_path), "run": "tiny", "launcher": "local", "kfp_run": "r-1"}
        asked = {**usual, **given, "overrides": f"{fault} {given.get('overrides', '')}"}
        shown = Shown(tmp_path / "shown")
        with pytest.raises(SystemExit) as caught:
            steps.train_stage(shown, shown, "film", "", "", family="film_flow", **asked)
        capsys.readouterr()
        return int(str(caught.value.code))

    return run


def told(folder: Path) -> list[str]:
    """What the run's record says happened."""
    return [f"{event['state']}: {event['text']}" for event in read_events(open_store(str(folder)).child(*RUN))]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_retry_after_fix_it_ends_at_once_with_the_same_error_and_does_nothing(
    attempt: Attempt, tmp_path: Path
) -> None:
    code = attempt(0)
    assert 0 < code < 128
    before, record = everything(tmp_path), (tmp_path / "runs/tiny/failure.json").read_bytes()
    assert len(told(tmp_path)) == 1
    for index in range(1, NUM_RETRIES + 1):
        assert attempt(index) == code
        assert everything(tmp_path) == before
    assert (tmp_path / "runs/tiny/failure.json").read_bytes() == record, "the record is still the first one's"


@pytest.mark.parametrize(
    ("index", "given"),
    [
        pytest.param(0, {}, id="retried-by-hand"),
        pytest.param(NUM_RETRIES + 1, {}, id="retried-by-hand-and-counted-on"),
        pytest.param(None, {}, id="nobody-counts"),
        pytest.param(1, {"kfp_run": "r-2"}, id="another-run-of-kfp"),
        pytest.param(1, {"overrides": "seed=5"}, id="another-question"),
    ],
)
def test_whoever_asks_anew_gets_the_work_done(
    attempt: Attempt, tmp_path: Path, index: int | None, given: dict[str, str]
) -> None:
    attempt(0)
    attempt(index, **given)
    assert len(told(tmp_path)) == 2


@pytest.fixture
def attempts(tmp_path: Path) -> Callable[[int], Attempts]:
    """Attempts of one step by their number."""
    root = open_store(str(tmp_path))

    def at(index: int) -> Attempts:
        return Attempts.of_this_pod(root, "tiny", "film", "question", "r-1", {RETRY_VARIABLE: str(index)})

    return at


def test_after_an_error_of_try_again_or_an_end_without_a_word_the_work_is_done(
    attempts: Callable[[int], Attempts],
) -> None:
    attempts(0).begin()
    attempts(1).begin()  # the pod before was evicted
    attempts(1).leave(StoreUnavailableError("no answer"))
    attempts(2).begin()


def test_an_error_before_the_first_attempt_of_this_time_counts_for_none(attempts: Callable[[int], Attempts]) -> None:
    attempts(0).leave(ConfigError("bad"))
    attempts(0).begin()
    attempts(1).begin()


def damage(plain: dict[str, Any], how: str) -> bytes:
    """The note of an attempt, made into one that may not be believed."""
    failure = plain["failure"]
    if how == "half":
        return json.dumps(plain).encode()[:40]
    if how == "edited":
        return json.dumps({**plain, "failure": {**failure, "sentence": "forged"}}).encode()
    forged = {
        "interruption": {"exit_code": 143},
        "success": {"exit_code": 0},
        "word": {"exit_code": "2"},
        "old": {"time": time.time() - LASTS_SECONDS - 60},
        "from the future": {"time": time.time() + 3600},
    }[how]
    parts = {key: plain[key] for key in ("question", "kfp_run")}
    return json.dumps(seal({**parts, "failure": {**failure, **forged}})).encode()


@pytest.mark.parametrize("how", ["half", "edited", "interruption", "success", "word", "old", "from the future"])
def test_a_note_that_may_not_be_believed_is_none(attempts: Callable[[int], Attempts], tmp_path: Path, how: str) -> None:
    attempts(0).leave(ConfigError("bad", remedy="mend it"))
    with pytest.raises(Exception, match="bad") as caught:
        attempts(1).begin()
    assert getattr(caught.value, "exit_code", 0) == 2
    root: Store = open_store(str(tmp_path))
    key = "runs/tiny/pipeline/attempts/film.json"
    root.put(key, damage(json.loads(root.get(key)), how))
    attempts(1).begin()


# What environment ---------------------------------------------------------------------------------------------------

LOADING = {
    "LD_PRELOAD": "/stageline/a.so",
    "PYTHONPATH": "/stageline/lib",
    "PYTHONSTARTUP": "/stageline/a.py",
    "BASH_ENV": "/stageline/a.sh",
    "PATH": "/stageline/bin",
    "HOME": "/stageline",
    "AWS_ENDPOINT_URL": "https://elsewhere.example.com",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.2/x",
    "HF_ENDPOINT": "https://elsewhere.example.com",
    "KUBECONFIG": "/stageline/config",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "TORCH_EXTENSIONS_DIR": "/stageline",
    "NCCL_NET_PLUGIN": "/stageline/a.so",
    "NCCL_DEBUG_FILE": "out",
    "OMP_TOOL_LIBRARIES": "/stageline/a.so",
    "UCX_MODULE_DIR": "lib",
    "FI_PROVIDER_PATH": "lib",
    "CUDA_INJECTION64_PATH": "a.so",
    "HTTPS_PROXY": "http://169.254.169.254:80",
    "http_proxy": "169.254.169.254:80",
    "MLFLOW_TRACKING_URI": "file:///stageline/runs",
    "WANDB_BASE_URL": "http://metadata.google.internal",
    "nccl_debug": "INFO",
    "UCX_GDB_COMMAND": "curl evil.example.com",
    "UCX_ERROR_MAIL_TO": "someone@example.com",
    "UCX_STATS_DEST": "file:out",
    "NCCL_COMM_ID": "169.254.169.254:80",
    "NCCL_RAS_ADDR": "0.0.0.0:28028",
    "OMP_TOOL_VERBOSE_INIT": "out",
    "TORCH_LOGS": "+dynamo,antigravity",
}
LAWFUL = {
    "NCCL_DEBUG": "INFO",
    "NCCL_IB_HCA": "=mlx5_0:1,mlx5_1:1",
    "NCCL_NET_PLUGIN": "aws-ofi",
    "NCCL_TOPO_FILE": "/opt/microsoft/topo.xml",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "GLOO_SOCKET_IFNAME": "net1",
    "OMP_NUM_THREADS": "4",
    "UCX_ERROR_SIGNALS": "",
    "TORCH_LOGS": "+dynamo,recompiles, -inductor",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "HF_HUB_OFFLINE": "1",
    "HTTPS_PROXY": "http://proxy.example.com:3128",
    "no_proxy": ".svc,10.0.0.0/8",
    "MLFLOW_TRACKING_URI": "https://mlflow.example.com",
}


def asked(**given: str) -> ClusterConfig:
    """The section `cluster` of a pipeline's parameters."""
    usual = {"family": "film_flow", "launcher": "local", "run": "tiny", "preset": "tiny"}
    return read_request({**usual, **given}).config.cluster


@pytest.mark.parametrize("name", LOADING)
def test_a_parameter_sets_no_variable_that_loads_code_or_asks_another_server(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        asked(overrides=json.dumps([f"cluster.env.{name}={LOADING[name]!r}"]))


def test_no_way_into_a_config_leads_around_the_list_and_all_faults_are_told_at_once() -> None:
    stage = family_config("film_flow").stages["film"]
    nested, dotted = {"cluster": {"env": LOADING}}, {"cluster.env": LOADING}
    for config in (nested, {"stage_overrides": {"film": nested}}, {"stage_overrides": {"film": dotted}}):
        text = json.dumps({"family": "film_flow", **config})
        with pytest.raises(ConfigError) as caught:
            stage_config(read_request({"family": "film_flow", "launcher": "local", "config": text}).config, stage)
        assert [name for name in LOADING if name not in caught.value.message] == []


def test_variables_that_tune_reach_the_pods_and_win_over_nothing_of_ours() -> None:
    config = read_request(
        {
            "family": "film_flow",
            "launcher": "local",
            "root": "s3://bucket/a",
            "config": json.dumps({"family": "film_flow", "run": "a", "cluster": {"env": LAWFUL, "image": "a/b:1"}}),
        }
    ).config
    assert config.cluster.env == LAWFUL
    manifest = render_job(make_job(config, "evaluate", ("evaluate",), ""), config.cluster)
    (container,) = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert {name: given[name] for name in LAWFUL} == LAWFUL
    assert given["HOME"] == "/tmp"
