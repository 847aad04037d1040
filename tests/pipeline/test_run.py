"""`stageline run` end to end: film_flow's pipeline through kfp.local, with real processes and very few steps."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guards import HANG_SECONDS
from PIL import Image
from served_bucket import served_bucket

import stageline
from stageline.checkpoint.export import export
from stageline.checkpoint.layout import StageDir, resolve
from stageline.checkpoint.verify import refuse_damaged
from stageline.cli import main
from stageline.cli.configuration import raw_preset
from stageline.errors import CheckpointError, DataError, PlanError
from stageline.families import parse_config
from stageline.families.film_flow.sampling import read_prediction
from stageline.objectives.solvers import integrate
from stageline.pipeline.driver import run_pipeline
from stageline.plan import make_plan
from stageline.signals import REPEAT_SECONDS
from stageline.store import open_store
from stageline.telemetry import read_events

SMALL = (
    *("data.num_train=8", "data.num_val=2", "evaluate.compare_film=false", "evaluate.num_panels=1"),
    *("model.image_size=32", "data.image_size=32", "model.timesteps=1"),
    *("stage_overrides.backbone.trainer.max_steps=2", "stage_overrides.film.trainer.max_steps=2"),
    *("trainer.use_ema=false", "evaluate.weights=raw", "trainer.tensorboard=false"),
)


def command(root: Path, *overrides: str) -> list[str]:
    preset = ("--family", "film_flow", "--preset", "tiny")
    return [sys.executable, "-m", "stageline", "run", *preset, f"root={root}", *SMALL, *overrides]


def run(root: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run from an unrelated, empty folder: nothing may depend on where it is started."""
    elsewhere = root / "elsewhere"
    elsewhere.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        command(root, *overrides),
        cwd=elsewhere,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )


def environment() -> dict[str, str]:
    """Byte code is kept where it always lies: a run starts a dozen processes, and each would compile torch anew."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}


@dataclass(frozen=True)
class Finished:
    root: Path
    first: subprocess.CompletedProcess[str]
    again: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run from nothing, and the same command once more."""
    root = tmp_path_factory.mktemp("root") / "my runs, 100% = ä"  # any legal path works
    root.mkdir()
    first = run(root)
    assert first.returncode == 0, first.stdout + first.stderr
    return Finished(root, first, run(root))


def steps_of(root: Path, run_name: str = "tiny") -> list[tuple[str, str]]:
    """(item, state) as the run's own events tell it."""
    events = read_events(open_store(root).child("runs", run_name))
    return [(event["item"], event["state"]) for event in events]


def test_the_pipeline_makes_everything_and_says_where(finished: Finished) -> None:
    out = finished.first.stdout
    run_dir = finished.root / "runs" / "tiny"
    for item in ("prepare_data", "backbone", "film", "evaluate", "report"):
        assert f"{item}: done: " in out
    assert "dice" in out
    assert "samples" in out
    assert out.rstrip().splitlines()[-1] == f"report: {run_dir / 'report.html'}"
    assert (run_dir / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    film, backbone = resolve(str(run_dir / "film")), resolve(str(run_dir / "backbone"))
    assert film.metadata.final
    assert film.metadata.parents["default"].digest == backbone.digest
    plan = json.loads((run_dir / "plan.json").read_text())
    assert [item["action"] for item in plan["items"]] == ["reuse"] * 5, "the plan of the newest command"
    assert list((finished.root / "elsewhere").iterdir()) == []


def test_an_unchanged_run_reuses_everything_by_digest_and_says_so(finished: Finished) -> None:
    assert finished.again.returncode == 0, finished.again.stdout + finished.again.stderr
    out = finished.again.stdout
    film = resolve(str(finished.root / "runs" / "tiny" / "film"))
    assert f"film: reused: digest {film.digest[:12]}" in out
    assert "0 made, 5 reused" in out
    assert steps_of(finished.root)[-5:] == [
        (item, "reused") for item in ("prepare_data", "backbone", "film", "evaluate", "report")
    ]
    assert "dice" in out, "the metrics table is the last thing a run prints, also when nothing was made"


def test_one_change_makes_its_stage_and_what_follows_anew(finished: Finished) -> None:
    raw = raw_preset("film_flow", "tiny")
    config = parse_config(raw, [f"root={finished.root}", *SMALL, "stage_overrides.film.trainer.learning_rate=0.001"])
    plan = make_plan(config)
    assert [item.action for item in plan.items] == ["reuse", "reuse", "run", "run", "run"]
    assert plan["film"].reasons == ("trainer.learning_rate: 0.003 -> 0.001",)
    assert plan["film"].parameters is not None
    assert plan["film"].seconds is not None


def test_a_damaged_checkpoint_is_not_reused_and_refused_by_name(finished: Finished, tmp_path: Path) -> None:
    """The receipt rests on digests: another metadata file is another answer."""
    from stageline.pipeline.receipts import question, read_receipt, receipt_key

    store = open_store(finished.root)
    plain = json.loads(store.get(receipt_key("tiny", "film")))
    asked = plain["question"]
    assert read_receipt(store, "tiny", "film", asked) is not None
    assert read_receipt(store, "tiny", "film", question("film", "something else")) is None
    key = next(iter(plain["hashes"]))
    whole = store.get(key)
    try:
        store.put(key, whole.replace(b'"final": true', b'"final": false'))
        assert read_receipt(store, "tiny", "film", asked) is None
    finally:
        store.put(key, whole)
    tensors = next(key for key in plain["hashes"] if key.endswith("model.safetensors"))
    bytes_before = store.get(tensors)
    try:
        store.put(tensors, bytes_before[:-1] + bytes([bytes_before[-1] ^ 1]))
        assert read_receipt(store, "tiny", "film", asked) is None
        with pytest.raises(CheckpointError, match="its bytes changed"):
            refuse_damaged(resolve(str(finished.root / "runs" / "tiny" / "film")))
    finally:
        store.put(tensors, bytes_before)


def test_the_commands_that_look_agree_with_the_run(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    root, film = str(finished.root), str(finished.root / "runs" / "tiny" / "film")
    assert main(["runs", "list", "--root", root]) == 0
    assert "film 2/2" in capsys.readouterr().out
    assert main(["runs", "show", "tiny", "--root", root, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["failure"] is None
    assert shown["evaluations"][0]["checkpoint"]["stage"] == "film"
    assert shown["evaluations"][0]["num_samples"]
    assert main(["checkpoint", "verify", film]) == 0
    assert main(["checkpoint", "lineage", film, "--json"]) == 0
    captured = capsys.readouterr().out
    chain = json.loads(captured[captured.index("[") :])
    assert [entry["stage"] for entry in chain] == ["film", "backbone"]
    assert main(["checkpoint", "show", film, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stage"] == "film"
    assert main(["checkpoint", "prune", str(finished.root / "runs" / "tiny")]) == 0
    assert "nothing was deleted" in capsys.readouterr().out
    exported = finished.root / "exported"
    assert main(["checkpoint", "export", film, "--to", str(exported)]) == 0
    assert (exported / "model.safetensors").is_file()


def test_a_trained_model_is_loaded_and_predicts(finished: Finished, tmp_path: Path) -> None:
    model = stageline.load(str(finished.root / "runs" / "tiny" / "film"), ["evaluate.prompt=dark branches"])
    assert model.metadata.stage == "film"
    assert not model.training
    image = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    first, again = model.predict(image, tmp_path / "a"), model.predict([image], tmp_path / "b")
    assert len(first) == len(again) == 1
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert pictures
    assert pictures == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    (unwritten,) = model.predict(image)
    for kind in ("probability", "mask"):
        np.testing.assert_array_equal(unwritten[kind], np.asarray(Image.open(first[0][kind])))
    with pytest.raises(DataError, match="there is no such file"):
        model.predict(tmp_path / "nowhere.png")


def test_a_row_is_predicted_again_by_command(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its values and picture are the evaluation's; the checkpoint may stand first; what contradicts is refused."""
    run_dir = finished.root / "runs" / "tiny"
    (metrics,) = run_dir.glob("evaluations/*/metrics.json")
    row = json.loads((metrics.parent / "rows" / "00000001.jsonl").read_text().splitlines()[0])["row"]
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(run_dir / "film"), "--id", row["id"]]) == 0
    again = json.loads(Path("predictions/predictions.jsonl").read_text())
    assert again["differs"] == []
    assert {key: again[key] for key in row} == row
    assert Path("predictions", again["outlines-000"]).read_bytes() == (metrics.parent / "outlines-000.png").read_bytes()
    level = np.asarray(Image.open(Path("predictions", again["mask-000"])))
    assert level.shape == (32, 32)
    capsys.readouterr()
    words = ["predict", "--checkpoint", str(run_dir / "film"), "--id", row["id"]]
    assert main([*words, "evaluate.ensemble=3", "-o", "more", "--evaluation", str(run_dir)]) == 0
    more = json.loads(Path("more/predictions.jsonl").read_text())
    assert (more["nfe"], "nfe" in more["differs"], "spread-000" in more) == (3 * row["nfe"], True, True)
    assert main([*words, "picture.png"]) == main(["predict", str(run_dir / "film")]) == main(["predict"]) == 2
    assert main(["predict", "--checkpoint", str(run_dir / "backbone"), "--id", row["id"]]) != 0
    assert "nothing in" in capsys.readouterr().err
    assert main([*words[:3], "--id", "nobody"]) == 3
    assert "near are" in capsys.readouterr().err


def test_the_network_is_rebuilt_in_plain_torch_as_documented(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of docs/film_flow.md, executed: the tensors of `load`, and the probability of our own solver."""
    film = str(finished.root / "runs" / "tiny" / "film")
    page = Path(__file__).parents[2] / "docs" / "film_flow.md"
    (example,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    export(film, tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(example, made)  # noqa: S102  # what people copy
    model = stageline.load(film)
    own, plain = model.state_dict(), made["network"].state_dict()
    assert own.keys() == plain.keys()
    assert all(torch.equal(own[name], plain[name]) for name in own)
    with torch.no_grad():
        end = integrate(
            lambda x, t: read_prediction(model(x, t, made["image"]), "cfm_continuous", "endpoint"),
            made["noise"],
            steps=made["steps"],
            solver="euler",
            prediction="endpoint",
        ).last
    torch.testing.assert_close(made["probability"], (end + 1) / 2)


def test_counting_builds_the_models_and_agrees_with_what_was_trained(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [*SMALL, f"root={finished.root}"]
    assert main(["plan", "--family", "film_flow", "--preset", "tiny", *small, "run=counted", "--count", "--json"]) == 0
    counted = {item["name"]: item["parameters"] for item in json.loads(capsys.readouterr().out)["items"]}
    for stage in ("backbone", "film"):
        metadata = resolve(str(finished.root / "runs" / "tiny" / stage)).metadata
        recorded = sum(group.parameters for group in (*metadata.trained.values(), *metadata.frozen.values()))
        assert counted[stage]["total"] == recorded


def test_another_identity_under_the_name_is_blocked(finished: Finished) -> None:
    before = {path: path.read_bytes() for path in (finished.root / "runs" / "tiny").glob("*.json")}
    refused = run(finished.root, "seed=5")
    assert refused.returncode == PlanError.exit_code
    assert "seed: 0 -> 5" in refused.stderr
    assert "run=<new name>" in refused.stderr
    assert {path: path.read_bytes() for path in (finished.root / "runs" / "tiny").glob("*.json")} == before


def test_a_failing_step_ends_the_run_with_its_own_sentence_and_code(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    data = tmp_path / "data"
    for part in ("image", "label"):
        for split in ("train", "val"):
            (data / split / part).mkdir(parents=True)
            (data / split / part / "a.png").write_bytes(b"")
    overrides = ("data.name=folder", f"data.train_dir={data / 'train'}", f"data.val_dir={data / 'val'}")
    raw = raw_preset("film_flow", "tiny")
    template = "model.vlm_film_config.prompt_template=vessels"
    config = parse_config(raw, [f"root={tmp_path / 'root'}", *SMALL, *overrides, template])
    result = run_pipeline(config, lambda event: None, lambda plan: None)  # noqa: ARG005
    assert result.error is not None
    assert result.error.exit_code == DataError.exit_code
    assert "a.png" in str(result.error)
    assert steps_of(tmp_path / "root")[-1] == ("prepare_data", "failed")
    report = Path(result.report).read_text()
    assert "a.png" in report, "the report of a failed run says why"
    failure = json.loads((tmp_path / "root" / "runs" / "tiny" / "failure.json").read_text())
    assert failure["exit_code"] == DataError.exit_code
    assert not [pid for pid in started_by(os.getpid()) if pid != os.getpid()]


def started_by(pid: int) -> list[int]:
    """Living processes that carry the mark of a driver."""
    mark = f"STAGELINE_DRIVER_PID={pid}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mark in environment and state != "Z":
            found.append(int(entry.name))
    return found


class Background:
    """A run that can be talked to while it is under way."""

    def __init__(self, root: Path, run_name: str, *overrides: str) -> None:
        self.overrides = (f"run={run_name}", *overrides)
        self.process = subprocess.Popen(
            command(root, *self.overrides),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            start_new_session=True,
        )
        self.lines: list[str] = []

    def wait_for(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return
        raise AssertionError(f"the run ended without {text!r}:\n{''.join(self.lines)}")

    def finish(self) -> int:
        assert self.process.stdout is not None
        self.lines += list(self.process.stdout)
        return self.process.wait(HANG_SECONDS)


@pytest.fixture
def endless(finished: Finished, request: pytest.FixtureRequest) -> Iterator[Background]:
    """A run that trains its backbone for longer than anybody waits, over data that are there already."""
    overrides = ("stages=[backbone]", "stage_overrides.backbone.trainer.max_steps=100000", "trainer.log_every_steps=1")
    name = request.node.name[-30:].replace("_", "-").strip("-")
    background = Background(finished.root, name, *overrides)
    yield background
    for pid in started_by(background.process.pid):
        os.kill(pid, signal.SIGKILL)
    background.process.kill()
    background.process.wait()
    if background.process.stdout:
        background.process.stdout.close()


def wait_for_nobody(pid: int) -> None:
    end = time.monotonic() + HANG_SECONDS
    while started_by(pid):
        assert time.monotonic() < end, f"still there: {started_by(pid)}"
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_commits_leaves_no_process_and_the_run_can_be_continued(finished: Finished, endless: Background) -> None:
    endless.wait_for("step 2/100000")
    os.kill(endless.process.pid, signal.SIGINT)
    os.kill(endless.process.pid, signal.SIGINT)  # as `timeout` and container runtimes do: still one request
    assert endless.finish() == 143, "".join(endless.lines)
    assert started_by(endless.process.pid) == []
    text = "".join(endless.lines)
    assert "the run was stopped by Ctrl-C" in text
    assert ": Ctrl-C; checkpoint" in text, "its stage says so too"
    assert "SIGTERM" not in text
    assert "run the same command again to continue" in text
    raw = raw_preset("film_flow", "tiny")
    config = parse_config(raw, [f"root={finished.root}", *SMALL, *endless.overrides])
    newest = StageDir(open_store(finished.root), config.run, "backbone").newest()
    assert newest is not None
    assert newest.metadata.step >= 2
    assert not newest.metadata.final
    plan = make_plan(config)
    assert plan["backbone"].action == "continue"
    assert plan["backbone"].from_step == newest.metadata.step
    assert (finished.root / "runs" / config.run / "report.html").is_file()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_everything_now(endless: Background) -> None:
    endless.wait_for("step 1/100000")
    os.kill(endless.process.pid, signal.SIGINT)
    time.sleep(1.5 * REPEAT_SECONDS)
    while endless.process.poll() is None:  # also while it cleans up and leaves: the code stays what it is
        os.kill(endless.process.pid, signal.SIGTERM)
        time.sleep(0.002)
    assert endless.finish() == 143
    assert started_by(endless.process.pid) == []


@pytest.mark.slow
def test_nothing_outlives_a_driver_that_is_killed(endless: Background) -> None:
    endless.wait_for("step 1/100000")
    assert started_by(endless.process.pid)
    endless.process.kill()
    endless.process.wait()
    wait_for_nobody(endless.process.pid)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 bucket on a server of its own; its address and credentials stand in the environment, as usual."""
    key, secret = "key-of-the-lab", "secret-of-the-lab"
    with served_bucket("lab-bucket", key, secret) as endpoint:
        settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": key}
        settings |= {"AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1"}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        yield "s3://lab-bucket/team"


@pytest.mark.slow
def test_a_run_on_an_object_store_leaves_nothing_here_and_reuses(finished: Finished, bucket: str) -> None:
    overrides = (f"root={bucket}", "stages=[backbone]", "run=remote")
    first, again = run(finished.root, *overrides), run(finished.root, *overrides)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"report: {bucket}/runs/remote/report.html" in first.stdout
    assert "film: skipped: not selected" in first.stdout
    assert "0 made, 4 reused, 1 not selected" in again.stdout, again.stdout + again.stderr
    assert resolve(f"{bucket}/runs/remote/backbone").metadata.final
    log = open_store(bucket).get("runs/remote/pipeline/log.txt").decode()
    assert "secret-of-the-lab" not in log + first.stdout
    assert list((finished.root / "elsewhere").iterdir()) == []
    assert not (finished.root / "runs" / "remote").exists()


@pytest.mark.slow
def test_a_fault_of_a_rank_is_told_through_torchrun(finished: Finished) -> None:
    """torchrun ends in 1 whatever happened; the rank's own code and sentence arrive."""
    overrides = ("run=ranks", "stages=[backbone]", "trainer.processes=2", "trainer.precision=16-mixed")
    failed = run(finished.root, *overrides, "trainer.accelerator=cpu")
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "16-mixed" in failed.stderr
