"""One stage through the verb `train`: run, reuse, seed from a parent, freeze, and what a checkpoint then says."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from typing import Any

import pytest
import torch
from ranks import free_port

from stageline.checkpoint.layout import StageDir, resolve
from stageline.checkpoint.tensors import read_tensors
from stageline.config import parse_yaml
from stageline.errors import ConfigError, InterruptedRunError, PlanError
from stageline.telemetry import METRICS, read_events
from stageline.trainer.pictures import NUM_SAMPLES

SHORT = {"trainer.max_steps": 2}
"""For what does not depend on how long a stage was trained."""


def test_a_stage_runs_once_and_is_then_reused(train, tmp_path):
    first = train()
    assert (first.action, first.step, first.steps) == ("run", 10, 10)
    again = train()
    assert again.action == "reuse"
    assert again.reference == first.reference
    other = train(**{"trainer.learning_rate": 0.01})
    assert other.action == "run"
    assert other.reference != first.reference


def test_a_checkpoint_tells_what_made_it(train, tmp_path):
    result = train(**{"trainer.validate_every_steps": 4})
    ref = resolve(str(result.reference))
    meta = ref.metadata
    assert (meta.family, meta.stage, meta.run, meta.step, meta.final) == ("toy", "base", "r", 10, True)
    assert meta.best is not None
    assert (
        meta.best.value
        == result.best
        == min(
            e["metrics"]["error"]
            for e in read_events(StageDir(str(tmp_path), "r", "base").store)
            if e["event"] == "validation"
        )
    )
    assert {name: group.parameters for name, group in meta.trained.items()} == {"weights": 104, "biases": 17}
    assert meta.frozen == {}
    assert meta.timing["step_seconds"] > 0
    assert meta.settings["trainer.batch_size"] == 2
    written = parse_yaml((tmp_path / "runs/r/base/config.yaml").read_text(), "config.yaml")
    assert written["trainer"]["betas"] == [0.9, 0.999], "resolved, defaults written out"
    assert ref.store.exists("config.yaml")


def test_frozen_parameters_stay_bitwise_and_have_no_gradient(train, tmp_path):
    from toy_family import family

    base = train("base", **SHORT)
    tune = train("tune", **SHORT)
    task = family.TASKS[-1]
    assert all(p.grad is None and not p.requires_grad for p in task.model.stem.parameters())
    start, end = read_tensors(resolve(str(base.reference)), "ema"), read_tensors(resolve(str(tune.reference)), "raw")
    for name, _ in task.model.named_parameters():
        assert torch.equal(start[name], end[name]) == name.startswith("stem"), name
    meta = resolve(str(tune.reference)).metadata
    assert meta.parents["default"].digest == base.reference.digest
    assert meta.parents["default"].weights == "ema"
    assert [s["outcome"] for s in meta.parents["default"].sections] == ["load", "load", "load"]
    assert meta.frozen["frozen"].parameters == 40
    seeded = [e for e in read_events(StageDir(str(tmp_path), "r", "tune").store) if e["event"] == "seeded"]
    assert seeded[0]["tensors"] == {"loaded": 7, "fresh": 0, "dropped": 0, "external": 0}


def test_a_stage_is_tuned_from_a_checkpoint_of_its_own_kind(train, tmp_path):
    base = train("base", **SHORT)
    further = {**SHORT, "parents.base.before": "runs/r/base", "trainer.learning_rate": 1e-12}
    tuned = train("base", run="further", **further)
    start, end = (read_tensors(resolve(str(result.reference)), "ema") for result in (base, tuned))
    for name, tensor in start.items():
        torch.testing.assert_close(end[name], tensor, atol=1e-6, rtol=0)
    meta = resolve(str(tuned.reference)).metadata
    assert (meta.parents["before"].digest, meta.referenced) == (base.reference.digest, {})
    assert train("base", run="further", **further).action == "reuse"
    scratch = train("base", run="further", **SHORT, **{"trainer.learning_rate": 1e-12})
    assert not torch.equal(read_tensors(resolve(str(scratch.reference)), "ema")["stem.weight"], end["stem.weight"])


def test_a_frozen_part_may_be_held_in_bf16_and_is_saved_as_it_was(train):
    from toy_family import family

    casts = {**SHORT, "model.cast": "stem.*"}
    base = train("base", **casts)
    tune = train("tune", **casts)
    task, workspace = family.BEGUN[-1]
    assert task is family.TASKS[-1]
    assert workspace.contents == {"default": resolve(str(base.reference)).content}
    assert {p.dtype for p in task.model.stem.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in [*task.model.body.parameters(), *task.model.head.parameters()]} == {torch.float32}
    start, end = read_tensors(resolve(str(base.reference)), "ema"), read_tensors(resolve(str(tune.reference)), "raw")
    assert torch.equal(start["stem.weight"], end["stem.weight"])
    assert torch.equal(start["stem.weight"].bfloat16(), task.model.stem.weight)
    assert not torch.equal(start["stem.weight"], task.model.stem.weight.float())
    for pattern, words in (("neck.*", "matches none"), ("body.*", "'body.0.weight' trains and matches 'body.")):
        train("base", run=pattern[:4], **SHORT, **{"model.cast": pattern})
        with pytest.raises(ConfigError, match=words):
            train("tune", run=pattern[:4], **SHORT, **{"model.cast": pattern})


def test_what_starts_fresh_is_derived_once_from_loaded_parents(train, monkeypatch):
    from toy_family import family

    base = train("base", **SHORT)
    monkeypatch.setattr(family, "DERIVED", [])
    monkeypatch.setattr(family, "CHANGE", [lambda task: setattr(task, "on_loss", interrupt)])
    with pytest.raises(InterruptedRunError):
        train("tune", **SHORT)
    ((_, parents, weight),) = family.DERIVED
    assert weight == float(read_tensors(resolve(str(base.reference)), "ema")["stem.weight"][0, 0])
    assert {role: parent.stage for role, parent in parents.items()} == {"default": "base"}
    family.CHANGE.clear()
    assert train("tune", **SHORT).action == "continue"
    assert len(family.DERIVED) == 1  # not when it goes on


def interrupt(summed: Any, context: Any) -> Any:
    os.kill(os.getpid(), signal.SIGTERM)
    return summed


def test_modules_in_which_nothing_trains_are_in_eval_mode(train):
    from toy_family import family

    modes: list[dict[str, bool]] = []

    def look(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            modes.append({name: module.training for name, module in task.model.named_children()})
            return summed

        task.on_loss = on_loss

    often = {"trainer.validate_every_steps": 2, "trainer.max_steps": 5}
    train("base", **often)
    family.CHANGE[:] = [look]
    train("tune", **often)
    assert len(modes) > 6
    assert all(mode == {"stem": False, "body": True, "head": True} for mode in modes)


def test_a_fresh_section_starts_at_its_own_initialisation(train):
    from toy_family import family
    from toy_family.model import ToyModel

    train("base", run="a", **SHORT, **{"model.fresh_head": True})
    seen: list[dict[str, Any]] = []

    def look(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            seen.append({name: tensor.clone() for name, tensor in task.model.state_dict().items()})
            return summed

        task.on_loss = on_loss

    family.CHANGE[:] = [look]
    train("tune", run="a", **SHORT, **{"model.fresh_head": True})
    assert torch.equal(seen[0]["head.weight"], ToyModel(3).head.weight)
    assert not torch.equal(seen[0]["body.0.weight"], ToyModel(3).body[0].weight)


def test_parents_by_name(train, tmp_path):
    base = train("base", run="a", **SHORT)
    by_reference = train("tune", run="b", parents={"default": str(base.reference)}, **SHORT)
    by_config = train("tune", run="c", **SHORT, **{"parents.tune.default": "runs/a/base"})
    contents = {resolve(str(r.reference)).content for r in (by_reference, by_config)}
    assert len(contents) == 1
    with pytest.raises(PlanError, match="no parent 'motion'"):
        train("tune", run="d", parents={"motion": str(base.reference)})


def test_a_parent_without_an_average_seeds_raw(train):
    train("base", **SHORT, **{"trainer.use_ema": False})
    tune = train("tune", **SHORT, **{"trainer.use_ema": False})
    assert resolve(str(tune.reference)).metadata.parents["default"].weights == "raw"


def test_events_in_a_store_without_append(train):
    train(root="memory://trainer-events", run="m")
    stage = StageDir("memory://trainer-events", "m", "base")
    told = read_events(stage.store)
    assert [e["step"] for e in told if e["event"] == "step"] == list(range(1, 11))
    assert told[-1]["event"] == "finished"
    assert not stage.store.exists("events.jsonl")


def test_metrics_are_served_while_training(train):
    from toy_family import family

    port = free_port()
    pages: list[str] = []

    def scrape(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            if context.step == 9:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
                    pages.append(page.read().decode())
            return summed

        task.on_loss = on_loss

    family.CHANGE[:] = [scrape]
    train(**{"trainer.metrics_port": port, "trainer.validate_every_steps": 4})
    assert 'stageline_finished_steps{family="toy",stage="base"} 9.0' in pages[0]
    assert 'stageline_validation_value{family="toy",part="error",stage="base"}' in pages[0]
    names = {line.split()[2] for line in pages[0].splitlines() if line.startswith("# TYPE") and "_created" not in line}
    assert names == set(METRICS)


def test_tensorboard_files(train, tmp_path):
    train(**{"trainer.tensorboard": True, "trainer.validate_every_steps": 5, "trainer.validation_batch_size": 5})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "runs/r/base/tensorboard"))
    read.Reload()
    assert {"loss/total", "loss/mse", "learning_rate", "gradient_norm", "validation/error"} <= set(
        read.Tags()["scalars"]
    )
    assert [event.step for event in read.Scalars("loss/total")] == list(range(1, 11))
    validated = [event.step for event in read.Scalars("validation/error")]
    assert sorted(read.Tags()["images"]) == [f"validation/error/{sample}" for sample in range(NUM_SAMPLES)]
    for tag in read.Tags()["images"]:
        pictures = read.Images(tag)
        assert [(p.step, p.height, p.width) for p in pictures] == [(step, 3, 5) for step in validated]


def test_max_epochs_and_the_incomplete_group(train, tmp_path):
    result = train(**{"trainer.max_epochs": 2, "data.num_train": 9})
    assert result.steps == 6
    steps = [e for e in read_events(StageDir(str(tmp_path), "r", "base").store) if e["event"] == "step"]
    assert [e["num_samples"] for e in steps] == [4, 4, 1] * 2


@pytest.mark.parametrize(
    ("interval", "validated"),
    [
        ({"trainer.validate_every_epochs": 2}, [6, 12, 13]),
        ({"trainer.validate_every_epochs": 1}, [3, 6, 9, 12, 13]),
        ({"trainer.validate_every_steps": 5}, [5, 10, 13]),
        ({}, [13]),
    ],
    ids=["every-other-epoch", "every-epoch", "steps", "end"],
)
def test_validation_by_epochs_follows_the_data_and_by_steps_the_counter(train, tmp_path, interval, validated):
    """Nine samples, four per step: an epoch has three steps."""
    train(**{"trainer.max_steps": 13, "data.num_train": 9, **interval})
    events = read_events(StageDir(str(tmp_path), "r", "base").store)
    assert [event["step"] for event in events if event["event"] == "validation"] == validated


def test_bf16_trains(train):
    assert train(**{"trainer.precision": "bf16-mixed"}).step == 10


def test_the_state_file_is_plain_json(train):
    ref = resolve(str(train().reference), prefer="last")
    state = json.loads(ref.store.get("training/state.json"))
    assert (state["step"], state["epoch"], state["index"], state["num_samples"]) == (10, 1, 16, 38)


def test_validation_draws_by_sample_whatever_the_batches_are(train, tmp_path):
    """The toy family's validation adds noise to each sample; two ranks are compared with one in test_parallel."""
    found = [
        train(run=f"r{size}", **{"trainer.validation_batch_size": size, "trainer.max_steps": 2}).metrics["error"]
        for size in (1, 3, 7)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)
    assert found[0] != train(run="other", seed=4, **{"trainer.max_steps": 2}).metrics["error"]
