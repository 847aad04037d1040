"""film_flow through the whole chain: prepare, train both stages, evaluate, load; and what is refused on the way.

Acceptance checks 9 (tampering), 11 (no route to heads that differ from the plan), 12 (evaluation takes the path of
training, also in the middle of a warm-up) and 22 (resume).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stageline.checkpoint.layout import resolve
from stageline.checkpoint.metadata import CheckpointMetadata
from stageline.config import to_yaml
from stageline.errors import CheckpointError, ConfigError, PlanError, StagelineError
from stageline.families.film_flow import evaluate as evaluation_module
from stageline.families.film_flow.config import FilmFlowConfig
from stageline.families.film_flow.measures import validation as validation_module
from stageline.families.film_flow.model.construction import build_model
from stageline.families.film_flow.model.network import FilmFlowModel
from stageline.families.film_flow.sampling import predict_probability
from stageline.store import open_store
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint, named_checkpoints
from stageline.verbs.predict import load
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import StageResult, train_stage
from stageline.work.evaluations import EvaluationRecord

from .small import make_config

STEPS = {"backbone": {"trainer.max_steps": 2}, "film": {"trainer.max_steps": 4}}
KEYS: dict[str, Any] = {
    "stage_overrides": STEPS,
    "trainer.checkpoint_every_steps": 2,
    "trainer.keep": {"last": 9},
    "trainer.ema_decay": 0.5,
    # 6 samples in steps of 2: the film stage ends in the middle of its ramp.
    "model.film_ramp_epochs": 2,
    "model.timesteps": 1,
}


def config_at(root: Path, **keys: Any) -> FilmFlowConfig:
    return make_config(root, **{**KEYS, **keys})


Means = dict[str, torch.Tensor]


def recording(seen: Means) -> Callable[..., Any]:
    """`predict_probability`, which notes the mean of every sample; of several predictions the newest."""

    def record(model: Any, image: Any, condition: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        found = predict_probability(model, image, condition, ids, *args, **kwargs)
        seen.update({name: mean.clone() for name, mean in zip(ids, found.mean, strict=True)})
        return found

    return record


@dataclass(frozen=True)
class Trained:
    """One finished run of both stages: what the film stage said of itself, and what it predicted at its end."""

    root: Path
    film: StageResult
    validated: Means


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root, validated = tmp_path_factory.mktemp("done"), Means()
    config = config_at(root)
    data = str(prepare_data(config).reference)
    train_stage(config, "backbone", data=data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation_module, "predict_probability", recording(validated))
        return Trained(root, train_stage(config, "film", data=data), validated)


@pytest.fixture(scope="module")
def done(trained: Trained) -> Path:
    """The root with the finished run."""
    return trained.root


def film_of(root: Path) -> Path:
    return root / "runs" / "tiny" / "film"


def step_of(stage_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies; a step that was saved before its validation too has another attempt."""
    return max((stage_dir / "checkpoints").glob(f"step-{step:08d}*"))


def copy_of(root: Path, target: Path) -> Path:
    """The same root somewhere else."""
    shutil.copytree(root, target)
    return target


def test_validation_in_training_and_evaluation_give_the_same_probabilities(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of FiLM's ramp, whose strength is part of the checkpoint. Acceptance check 12."""
    evaluated = Means()
    monkeypatch.setattr(evaluation_module, "predict_probability", recording(evaluated))
    config = config_at(trained.root, evaluate__compare_film=False)
    record = evaluate_checkpoint(config, str(trained.film.reference), str(prepare_data(config).reference))
    strength = record.plain["provenance"]["film_strength"]
    assert strength == pytest.approx(4 / 6, abs=1e-6)
    assert len(trained.validated) == len(evaluated) == 6
    for name, mean in trained.validated.items():
        assert float((mean - evaluated[name]).abs().max()) <= 1e-6
    for name in ("dice", "iou", "cldice"):
        assert trained.film.metrics[name] == pytest.approx(record.metrics[name], abs=1e-9)


def test_the_film_stage_says_what_it_took_from_its_parent(done: Path) -> None:
    ref = resolve(str(film_of(done)))
    parent = ref.metadata.parents["default"]
    outcome = {part["section"]: part["outcome"] for part in parent.sections}
    assert outcome == {
        "backbone": "load",
        "junction": "load",
        "cond": "fresh",
        "film.2": "fresh",
        "film.3": "fresh",
        "schedule": "fresh",
    }
    assert ref.metadata.facts["vlm_film_trained_stages"] == [2, 3]
    assert resolve(str(done / "runs" / "tiny" / "backbone")).metadata.facts["vlm_film_trained_stages"] == []


def test_a_loaded_checkpoint_has_the_plan_and_weights_of_its_file(done: Path) -> None:
    loaded = load(str(film_of(done)))
    assert isinstance(loaded, FilmFlowModel)
    assert loaded.plan.fingerprint == loaded.metadata.facts["plan_fingerprint"]
    average = load_file(Path(loaded.ref.uri) / "ema.safetensors")
    assert not [name for name in average if name.startswith("schedule.")], "schedules are not averaged"
    file = {**load_file(Path(loaded.ref.uri) / "model.safetensors"), **average}
    own = loaded.state_dict()
    assert set(own) == set(file)
    assert all(torch.equal(own[name].cpu(), file[name]) for name in file)


def test_a_resumed_stage_is_bitwise_the_uninterrupted_one(done: Path, tmp_path: Path) -> None:
    """Acceptance check 22."""
    root = copy_of(done, tmp_path / "copy")
    film = film_of(root)
    for name in ("best.ckpt", "last.ckpt"):
        (film / name).unlink()
    shutil.rmtree(step_of(film, 4))
    config = config_at(root)
    result = train_stage(config, "film", data=str(prepare_data(config).reference))
    assert (result.action, result.step) == ("continue", 4)
    for name in ("model.safetensors", "ema.safetensors", "training/optimizer.safetensors"):
        one = load_file(step_of(film, 4) / name)
        other = load_file(step_of(film_of(done), 4) / name)
        assert set(one) == set(other)
        for key in one:
            assert torch.equal(one[key], other[key]), key
    assert "schedule.film_strength" in load_file(step_of(film, 4) / "model.safetensors")


@pytest.mark.slow
def test_half_and_half_with_other_workers_is_the_whole(tmp_path: Path) -> None:
    """Acceptance check 22: 125 + 125 steps are bitwise 250, with dropout, a gate that still rises and an average."""
    keys: dict[str, Any] = {
        "stages": ["film"],
        "model__dropout": 0.1,
        "model__junction_gating_config.warmup_epochs": 20,
        "model__junction_gating_config.ramp_epochs": 90,
        "trainer__checkpoint_every_steps": 125,
        "trainer__accumulate_grad_batches": 2,
        "stage_overrides": {"film": {"trainer.max_steps": 250}},
    }
    config = config_at(tmp_path / "whole", **keys)
    data = str(prepare_data(config).reference)
    train_stage(config, "film", data=data)
    root = copy_of(tmp_path / "whole", tmp_path / "half")
    for name in ("best.ckpt", "last.ckpt"):
        (film_of(root) / name).unlink()
    shutil.rmtree(step_of(film_of(root), 250))
    again = config_at(root, **keys, trainer__num_workers=2)
    result = train_stage(again, "film", data=str(prepare_data(again).reference))
    assert (result.action, result.step) == ("continue", 250)
    for name in ("model.safetensors", "ema.safetensors", "training/optimizer.safetensors"):
        whole = load_file(step_of(film_of(tmp_path / "whole"), 250) / name)
        half = load_file(step_of(film_of(root), 250) / name)
        assert set(whole) == set(half)
        assert [key for key in whole if not torch.equal(whole[key], half[key])] == []
    # 6 samples in groups of 4 are 2 steps an epoch: the ramp runs from step 40 to step 220.
    middle = load_file(step_of(film_of(root), 125) / "model.safetensors")["schedule.gate_strength"]
    assert float(middle) == pytest.approx(85 / 180)
    plans = [resolve(str(film_of(tmp_path / place))).metadata.facts for place in ("whole", "half")]
    assert plans[0] == plans[1]


class Forger:
    """Changes a checkpoint and mends every hash, so that only what it says can betray it."""

    def __init__(self, step: Path) -> None:
        self.step = step
        self.file = step / "checkpoint_metadata.json"

    def metadata(self, change: Callable[[dict[str, Any]], None]) -> None:
        plain = json.loads(self.file.read_text())
        change(plain)
        plain["seal"] = ""
        self.file.write_bytes(CheckpointMetadata.model_validate_json(json.dumps(plain)).to_bytes())

    def tensors(self, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
        for name in ("model", "ema"):
            path = self.step / f"{name}.safetensors"
            tensors = load_file(path)
            size = int.from_bytes(path.read_bytes()[:8], "little")
            texts = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
            change(tensors, texts)
            save_file(tensors, path, metadata=texts)
            blob = path.read_bytes()

            def mend(plain: dict[str, Any], name: str = name, blob: bytes = blob, own: Any = tensors) -> None:
                digest = hashlib.sha256(blob).hexdigest()
                plain["files"][f"{name}.safetensors"] = {"bytes": len(blob), "sha256": digest}
                plain["tensors"][name] = {
                    key: {"dtype": "F32", "shape": list(value.shape)} for key, value in own.items()
                }

            self.metadata(mend)


def drop_head(tensors: dict[str, torch.Tensor], texts: dict[str, str]) -> None:
    for name in [name for name in tensors if name.startswith("film.3.")]:
        del tensors[name]


def rename_head(tensors: dict[str, torch.Tensor], texts: dict[str, str]) -> None:
    for name in [name for name in tensors if name.startswith("film.3.")]:
        tensors[name.replace("film.3.", "film.1.")] = tensors.pop(name)


def rewrite_header(tensors: dict[str, torch.Tensor], texts: dict[str, str]) -> None:
    texts["vlm_film_trained_stages"] = "[0,1]"


def rewrite_metadata(plain: dict[str, Any]) -> None:
    plain["facts"]["vlm_film_trained_stages"] = [0, 1]


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda f: f.tensors(drop_head), id="head-dropped"),
        pytest.param(lambda f: f.tensors(rename_head), id="head-renamed"),
        pytest.param(lambda f: f.tensors(rewrite_header), id="header-changed"),
        pytest.param(lambda f: f.metadata(rewrite_metadata), id="metadata-changed"),
    ],
)
def test_a_forged_checkpoint_with_mended_hashes_is_refused(
    done: Path, tmp_path: Path, forge: Callable[[Forger], None]
) -> None:
    """Acceptance check 9."""
    root = copy_of(done, tmp_path / "copy")
    step = step_of(film_of(root), 4)
    load(str(step))
    forge(Forger(step))
    with pytest.raises(CheckpointError, match="film"):
        load(str(step))


def test_a_changed_byte_is_refused(done: Path, tmp_path: Path) -> None:
    root = copy_of(done, tmp_path / "copy")
    path = step_of(film_of(root), 4) / "ema.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(bytes(blob))
    with pytest.raises(CheckpointError, match="SHA-256"):
        load(str(path.parent))


def other_stages(root: Path, **keys: Any) -> FilmFlowConfig:
    return config_at(root, model__vlm_film_decoder_stages=[0, 1], **keys)


def test_no_route_leads_to_heads_that_differ_from_the_plan(done: Path, tmp_path: Path) -> None:
    """Acceptance check 11."""
    film = str(film_of(done))
    data = str(prepare_data(config_at(done)).reference)
    foreign = other_stages(done)
    routes: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: evaluate_checkpoint(foreign, film, data),
        "load": lambda: load(film, ["model.vlm_film_decoder_stages=[0, 1]"]),
        "state dict": lambda: build_model(foreign).load_state_dict(
            load_file(Path(resolve(film).uri) / "model.safetensors")
        ),
        "seed": lambda: train_stage(
            other_stages(done, run="elsewhere", stages=["film"]), "film", data=data, parents={"default": film}
        ),
    }
    for name, route in routes.items():
        with pytest.raises(CheckpointError) as error:
            route()
        assert error.value.code == "E_CFG_VS_CKPT", name
        assert "[0, 1]" in str(error.value), name
        assert "[2, 3]" in str(error.value), name
    with pytest.raises(PlanError, match=r"vlm_film_decoder_stages.*\[2, 3\] -> \[0, 1\]"):
        train_stage(foreign, "film", data=data)


def test_an_ablation_runs_a_part_of_the_trained_heads_and_says_so(done: Path) -> None:
    """Acceptance check 8."""
    data = str(prepare_data(config_at(done)).reference)
    record = evaluate_checkpoint(config_at(done, evaluate__film_active=[3]), str(film_of(done)), data)
    assert record.plain["provenance"]["ablation"] is True
    assert record.plain["provenance"]["film_stages_active"] == [3]
    with pytest.raises(StagelineError, match=r"\[0\].*\[2, 3\]"):
        evaluate_checkpoint(config_at(done, evaluate__film_active=[0]), str(film_of(done)), data)


def test_fine_tuning_keeps_the_heads_both_have(done: Path, tmp_path: Path) -> None:
    """Acceptance check 8."""
    film = str(film_of(done))
    config = config_at(
        done,
        run="tuned",
        stages=["film"],
        model__vlm_film_decoder_stages=[1, 3],
        model__film_heads="keep_common",
        parents={"film": {"default": film}},
    )
    result = train_stage(config, "film", data=str(prepare_data(config).reference))
    sections = {p["section"]: p["outcome"] for p in resolve(str(result.reference)).metadata.parents["default"].sections}
    assert (sections["film.1"], sections["film.2"], sections["film.3"]) == ("fresh", "drop", "load")


def files_of(record: EvaluationRecord) -> dict[str, bytes]:
    """What an evaluation is: every file of its folder but its rows as they came and its lease."""
    folder = Path(record.reference.uri)
    own = {info.key for info in open_store(record.reference.uri).list()}
    paths = [folder / key for key in own if not key.startswith("rows/") and key != "lease.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def stop_after(rows: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, what: str) -> None:
        if done > rows:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_evaluation_is_continued_and_ends_bitwise_as_an_uninterrupted_one(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(prepare_data(config_at(done)).reference)
    keys: dict[str, Any] = {"evaluate__batch_size": 2, "evaluate__num_panels": 6}
    film = str(film_of(done))
    whole = evaluate_checkpoint(config_at(done, run="whole", **keys), film, data)
    with pytest.raises(KeyboardInterrupt):
        evaluate_checkpoint(config_at(done, run="half", **keys), film, data, stop_after(12))
    assert not list((done / "runs" / "half").rglob("metrics.json"))
    predicted: list[str] = []

    def noted(model: Any, image: Any, condition: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        predicted.extend(ids)
        return predict_probability(model, image, condition, ids, *args, **kwargs)

    monkeypatch.setattr(evaluation_module, "predict_probability", noted)
    half = evaluate_checkpoint(config_at(done, run="half", **keys), film, data)
    assert len(predicted) == 24 - 8, "the first of three batches was finished"
    assert files_of(half) == files_of(whole)
    assert len(files_of(half)) == 3 + 6 * 9, "metrics, rows, trivial methods; nine pictures of each sample"
    assert evaluate_checkpoint(config_at(done, run="half", **keys), film, data).reused


@pytest.mark.slow
def test_a_killed_evaluation_is_continued_by_another_process(done: Path, tmp_path: Path) -> None:
    """SIGKILL between two segments of rows; its lease is taken over, since its holder is dead."""
    keys: dict[str, Any] = {"data__num_val": 48, "evaluate__num_panels": 2}
    film, data = str(film_of(done)), str(prepare_data(config_at(done, **keys)).reference)
    whole = evaluate_checkpoint(config_at(done, run="whole-48", **keys), film, data)
    config, file = config_at(done, run="killed", **keys), tmp_path / "killed.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "stageline", "evaluate", "-c", str(file), f"--checkpoint={film}", f"--data={data}"]
    folder = done / "runs" / "killed" / "evaluations" / whole.name
    with subprocess.Popen(command) as process:
        while process.poll() is None and not (folder / "rows" / "00000001.jsonl").exists():
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it was killed before it was finished"
    assert not (folder / "metrics.json").exists()
    again = evaluate_checkpoint(config, film, data)
    assert not again.reused
    assert files_of(again) == files_of(whole)


def test_several_checkpoints_stand_in_one_evaluation(done: Path) -> None:
    """Both are stages of the run, named in the config; each has the metrics that it has alone."""
    keys: dict[str, Any] = {"evaluate__num_panels": 1, "evaluate__compare_film": False}
    config = config_at(done, evaluate__checkpoints={"before": "backbone", "after": "film"}, **keys)
    data = str(prepare_data(config).reference)
    both = evaluate_checkpoint(config, named_checkpoints(config), data)
    alone = evaluate_checkpoint(config_at(done, **keys), str(film_of(done)), data)
    assert both.name != alone.name
    assert {name: both.metrics[f"after.{name}"] for name in alone.metrics} == alone.metrics
    assert [c["stage"] for c in both.checkpoints.values()] == ["backbone", "film"]
    assert {"before/image-000.png", "after/outlines-000.png", "rows.csv"} <= both.hashes.keys()
    with pytest.raises(ConfigError, match="contradict"):
        named_checkpoints(config, str(film_of(done)))


def test_user_code_is_not_run_by_loading_unless_told(done: Path, tmp_path: Path) -> None:
    root = copy_of(done, tmp_path / "copy")
    step = step_of(film_of(root), 4)
    path = step / "config.yaml"
    mine, ran = tmp_path / "mine.py", tmp_path / "ran"
    mine.write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    path.write_text(path.read_text().replace("code: []", f"code: [{mine}]"))
    forger = Forger(step)
    blob = path.read_bytes()

    def mend(plain: dict[str, Any]) -> None:
        plain["files"]["config.yaml"] = {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}

    forger.metadata(mend)
    with pytest.raises(ConfigError, match=r"mine\.py"):
        load(str(step))
    assert not ran.exists()
    assert load(str(step), run_code=True).config.run == "tiny"
    assert ran.exists()
