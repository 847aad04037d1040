"""What every family owes to the core, asked of each in the table and of the tests' toy family.

A family brings data for it (`case.py`: settings that make `tiny` small, its steps, inputs to predict), no tests.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from ranks import run_ranks

from stageline.checkpoint.layout import CheckpointRef, resolve
from stageline.checkpoint.tensors import read_tensors
from stageline.cli.starter import starter_yaml
from stageline.config import RunConfig, flatten, json_schema, parse_yaml
from stageline.contract import Family, FamilyConfig, Parent, Words
from stageline.errors import InterruptedRunError
from stageline.families import FAMILIES, family_config, load_family, parse_config, raw_preset
from stageline.plan import make_plan
from stageline.stage import Stage, stage_config
from stageline.trainer.parameters import check_groups, freeze_untrained
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.predict import load
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

HERE = Path(__file__).parent
ROOMS = {**{name: name for name in FAMILIES}, "toy": "toy_family"}
"""Family -> its folder beside this file."""


@pytest.fixture(autouse=True)
def _toy_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", "toy_family")


@pytest.fixture(params=sorted(ROOMS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def family(name: str) -> FamilyConfig:
    return family_config(name)


def case_of(name: str) -> ModuleType:
    """The family's data for this suite."""
    spec = importlib.util.spec_from_file_location(f"case_of_{name}", HERE / ROOMS[name] / "case.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_config(name: str, root: Path | str, *overrides: str, run: str = "small") -> RunConfig:
    """The preset `tiny` of a family, shrunk."""
    case = case_of(name)
    steps = [f"trainer.max_steps={case.STEPS}", "trainer.accelerator=cpu", "trainer.tensorboard=false"]
    raw = raw_preset(name, "tiny")
    raw.pop("stage_overrides", None)
    return parse_config(raw, [*case.SHRUNK, *steps, f"root={root}", f"run={run}", *overrides])


def configs_at_stages(family: FamilyConfig, config: RunConfig) -> Iterator[tuple[Any, Stage]]:
    """(config, stage) of every stage that this config selects."""
    for stage in family.selected(config):
        yield stage_config(config, stage), stage


def test_presets_and_schema(name: str, family: FamilyConfig) -> None:
    """Every preset parses and round-trips through its starter config; `tiny` is among them; the schema is JSON."""
    assert "tiny" in family.presets
    for preset in family.presets:
        config = parse_config(raw_preset(name, preset))
        again = parse_config(parse_yaml(starter_yaml(config, preset), preset))
        assert again == config
    schema = json.loads(json.dumps(json_schema(family.config)))
    assert {"trainer", "data", "model"} <= set(schema["properties"])
    assert config.family == family.name == name


def test_the_door_is_complete(name: str, family: FamilyConfig) -> None:
    """Whatever is asked of a family is asked with (config, stage), and what it answers is JSON where files hold it."""
    for preset in family.presets:
        config = parse_config(raw_preset(name, preset))
        for own, stage in configs_at_stages(family, config):
            family.check(own, stage)
            facts = family.facts(own, stage)
            assert json.loads(json.dumps(facts)) == facts
            assert set(family.fact_rules) <= set(facts)
            assert all(json.dumps(dict(split.key)) for split in family.splits(own, stage))
            for role, source in stage.parents.items():
                parents_own = stage_config(config, family.stages[source])
                parent = Parent(role, source, family.facts(parents_own, family.stages[source]))
                sections = family.inherit(parent, own, stage)
                assert len({section.section for section in sections}) == len(sections)
            assert family.trains(own, stage).include
            assert all(external.name for external in family.externals(own, stage))
            assert isinstance(family.variant(own), str)
            assert all(isinstance(line, str) for line in family.summary(own, stage))
            family.casts(own, stage)
            family.may_lack_gradient(own, stage)
            family.num_samples(own, stage, {})
        family.evaluation_splits(config)
        assert set(family.asked({**raw_preset(name, preset), "family": name})) <= set(facts)
    assert family.words != Words()
    assert len(family.words.main_metrics) <= 10
    record = load_family(name)
    assert isinstance(record, Family)
    assert record.config is family


def test_what_trains_is_what_config_and_model_say(name: str, family: FamilyConfig, tmp_path: Path) -> None:
    """Patterns match the model's parameters, names belong to sections, what a parent gives is told for every tensor."""
    config = small_config(name, tmp_path)
    record = load_family(name)
    for own, stage in configs_at_stages(family, config):
        model = record.build_model(own, stage)
        trained = freeze_untrained(model, family.trains(own, stage), stage.name)
        assert trained
        assert all(record.section_of(tensor) for tensor in model.state_dict())
        with torch.device("meta"):
            counted = record.build_model(own, stage)
        assert {n: p.shape for n, p in counted.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
        again = record.build_model(own, stage)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)), "not seeded"


def trained_stages(config: RunConfig, data: str) -> dict[str, CheckpointRef]:
    """Every selected stage, trained in order: stage -> what it hands on."""
    return {
        stage.name: resolve(str(train_stage(config, stage.name, data=data).reference))
        for stage in family_config(config.family).selected(config)
    }


def test_a_run_from_data_to_prediction(name: str, family: FamilyConfig, tmp_path: Path) -> None:
    """Prepare, stages, evaluation, prediction; the plan foresees each, frozen tensors keep their bits."""
    config = small_config(name, tmp_path / "root with a space")
    before = {item.name: item.action for item in make_plan(config).items}
    assert all(before[stage.name] == "run" for stage in family.selected(config))
    data = str(prepare_data(config).reference)
    refs = trained_stages(config, data)
    for own, stage in configs_at_stages(family, config):
        meta = refs[stage.name].metadata
        assert meta.facts == family.facts(own, stage), "the facts of the model are those of the config"
        assert set(meta.parents) == set(stage.parents)
        weights = read_tensors(refs[stage.name], "raw")
        for role, source in stage.parents.items():
            parent = read_tensors(refs[source], meta.parents[role].weights)
            trains = family.trains(own, stage)
            kept = [s for s in meta.parents[role].sections if s["outcome"] == "load"]
            for tensor in [] if not kept else weights:
                frozen = not trains.matches(tensor) and tensor in parent and len(stage.parents) == 1
                if frozen and tensor in dict(load_family(name).build_model(own, stage).named_parameters()):
                    assert torch.equal(weights[tensor], parent[tensor]), f"{tensor} of {stage.name} is frozen"
    made = {item.name: item for item in make_plan(config).items}
    for stage in family.selected(config):
        assert made[stage.name].action == "reuse", made[stage.name].reasons
    last = family.selected(config)[-1].name
    record = evaluate_checkpoint(config, str(refs[last].reference), data)
    assert record.metrics
    assert set(family.words.main_metrics) & set(record.metrics)
    case = case_of(name)
    results = load(str(refs[last].reference), case.PREDICT).predict(case.inputs(tmp_path), tmp_path / "out")
    files = [
        Path(value) for result in results for value in map(str, result.values()) if value.startswith(str(tmp_path))
    ]
    assert any(file.is_file() and file.parent == tmp_path / "out" for file in files)


def test_a_stopped_stage_goes_on_bit_for_bit(
    name: str, family: FamilyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in its second step and continued: the same content as without."""
    whole = small_config(name, tmp_path, run="whole")
    data = str(prepare_data(whole).reference)
    first = family.selected(whole)[0]
    wanted = resolve(str(train_stage(whole, first.name, data=data).reference), prefer="last")
    module = importlib.import_module(f"{FAMILIES[name]}.family")
    record: Family = module.FAMILY

    def build(config: Any, stage: Stage, prepared: Any) -> Any:
        task = record.build_task(config, stage, prepared)
        loss = task.loss

        def stopping(model: Any, batch: Any, context: Any) -> Any:
            if context.step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(model, batch, context)

        task.loss = stopping  # type: ignore[method-assign]
        return task

    parts = small_config(name, tmp_path, run="parts")
    monkeypatch.setattr(module, "FAMILY", replace(record, build_task=build))
    with pytest.raises(InterruptedRunError):
        train_stage(parts, first.name, data=data)
    monkeypatch.setattr(module, "FAMILY", record)
    result = train_stage(parts, first.name, data=data)
    assert result.action == "continue"
    found = resolve(str(result.reference), prefer="last")
    assert found.content == wanted.content


def test_groups_hold_what_trains(name: str, family: FamilyConfig, tmp_path: Path) -> None:
    from stageline.data.prepared import PreparedData

    config = small_config(name, tmp_path)
    prepared = PreparedData(prepare_data(config))
    for own, stage in configs_at_stages(family, config):
        task = load_family(name).build_task(own, stage, prepared)
        trained = freeze_untrained(task.model, family.trains(own, stage), stage.name)
        check_groups(task.parameter_groups(), trained)
        assert flatten(task.facts()) == flatten(family.facts(own, stage))


@pytest.mark.slow
def test_two_ranks_train_and_agree(name: str, family: FamilyConfig, tmp_path: Path) -> None:
    config = small_config(name, tmp_path, "trainer.processes=2", "trainer.batch_size=1", run="two")
    data = str(prepare_data(config).reference)
    first = family.selected(config)[0].name
    ends = run_ranks(lambda _: dict(train_stage(config, first, data=data).metrics), 2, tmp_path / "ranks")
    assert [end.code for end in ends] == [0, 0], ends
    assert ends[0].value == ends[1].value
