"""One small run of a family, made once and looked at by many tests; each part is made when it is first asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from stageline.checkpoint.layout import CheckpointRef, resolve
from stageline.config import RunConfig
from stageline.contract import Family, FamilyConfig
from stageline.families import FAMILIES, family_config, load_family, parse_config, raw_preset
from stageline.plan import make_plan
from stageline.stage import Stage, stage_config
from stageline.store import open_store
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.predict import LoadedModel, load
from stageline.verbs.prepare import prepare_data
from stageline.verbs.report import build_report
from stageline.verbs.train import train_stage
from stageline.work.evaluations import EvaluationRecord

HERE = Path(__file__).parent
ROOMS = {**{name: name for name in FAMILIES}, "toy": "toy_family"}
"""Family -> its folder beside this file, in which `case.py` is all that it brings to the suite."""

Build = Callable[[Any, Stage, Any], Any]


def case_of(name: str) -> ModuleType:
    """The family's data for the suite.

    SHRUNK: overrides that make the preset `tiny` small.  STEPS: optimizer steps of every stage there.
    TWO_RANKS: overrides for its first stage on two ranks.  PREDICT: overrides with which a checkpoint is loaded to
    predict.  inputs(folder): what `predict` is given.  SIZE, TEXT: height and width of a picture that it reads, and the
    text that it wants beside it; not needed of a family that reads no arrays.
    """
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


@contextmanager
def built_by(name: str, change: Callable[[Build], Build]) -> Iterator[None]:
    """A family whose tasks are built by what `change` makes of its own builder."""
    module = importlib.import_module(f"{FAMILIES[name]}.family")
    record: Family = module.FAMILY
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FAMILY", replace(record, build_task=change(record.build_task)))
        yield


@dataclass
class Gradients:
    """What arrived at the parameters of a stage while it trained.

    largest: trained parameter -> largest magnitude over all steps, 0.0 where nothing came.  broken: those to which
    something came that is not finite.  frozen: those that do not train and have a gradient nevertheless.
    """

    largest: dict[str, float] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    frozen: set[str] = field(default_factory=set)

    def watch(self, model: torch.nn.Module) -> None:
        """Look at every gradient that arrives from now on."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name not in self.largest:
                self.largest[name] = 0.0
                parameter.register_hook(partial(self._note, name))

    def _note(self, name: str, gradient: torch.Tensor) -> None:
        self.largest[name] = max(self.largest[name], float(gradient.detach().abs().max()))
        if not bool(torch.isfinite(gradient).all()):
            self.broken.add(name)


@dataclass
class TinyRun:
    """The parts of the run of one family below one folder."""

    name: str
    folder: Path
    gradients: dict[str, Gradients] = field(default_factory=dict)

    @property
    def family(self) -> FamilyConfig:
        return family_config(self.name)

    @cached_property
    def config(self) -> RunConfig:
        return small_config(self.name, self.folder / "root with a space")

    @cached_property
    def foreseen(self) -> dict[str, str]:
        """Item -> action of the plan before anything was made."""
        return {item.name: item.action for item in make_plan(self.config).items}

    @cached_property
    def data(self) -> str:
        """Reference of the prepared data."""
        assert self.foreseen
        return str(prepare_data(self.config).reference)

    @cached_property
    def refs(self) -> dict[str, CheckpointRef]:
        """Stage -> what it hands on, of every selected stage, trained in order while its gradients are watched."""
        data, refs = self.data, {}
        for stage in self.family.selected(self.config):
            with built_by(self.name, partial(self._watched, stage.name)):
                refs[stage.name] = resolve(str(train_stage(self.config, stage.name, data=data).reference))
        return refs

    def _watched(self, stage: str, build: Build) -> Build:
        seen = self.gradients.setdefault(stage, Gradients())

        def watched(config: Any, declared: Stage, data: Any) -> Any:
            task = build(config, declared, data)
            loss = task.loss

            def looked_at(model: Any, batch: Any, context: Any) -> Any:
                seen.watch(task.model)
                result = loss(model, batch, context)
                still = {n for n, p in task.model.named_parameters() if not p.requires_grad and p.grad is not None}
                seen.frozen |= still
                return result

            task.loss = looked_at
            return task

        return watched

    @property
    def last(self) -> CheckpointRef:
        """What the last stage hands on."""
        return self.refs[self.family.selected(self.config)[-1].name]

    @cached_property
    def evaluation(self) -> EvaluationRecord:
        return evaluate_checkpoint(self.config, str(self.last.reference), self.data)

    @cached_property
    def predicted(self) -> list[dict[str, Any]]:
        """What prediction says it wrote, below `folder / "out"`."""
        return self.loaded.predict(case_of(self.name).inputs(self.folder), self.folder / "out")

    @cached_property
    def loaded(self) -> LoadedModel:
        """The last stage's model, to predict with."""
        return load(str(self.last.reference), case_of(self.name).PREDICT)

    @cached_property
    def report(self) -> str:
        """The page of the evaluated run, as HTML."""
        assert self.evaluation
        store = open_store(self.config.root).child("runs", self.config.run)
        build_report(store.uri)
        return store.get("report.html").decode()

    def build_model(self, config: Any, stage: Stage) -> torch.nn.Module:
        """A fresh model of a stage."""
        return load_family(self.name).build_model(config, stage)
