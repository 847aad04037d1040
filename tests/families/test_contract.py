"""What every family owes to the core, asked of each in the table and of the tests' toy family.

A family brings data for it (`case.py`: settings that make `tiny` small, its steps, inputs to predict), no tests.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from fnmatch import fnmatchcase
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks

from stageline.checkpoint.layout import resolve
from stageline.checkpoint.ownership import GIVEN
from stageline.checkpoint.tensors import read_tensors
from stageline.cli.starter import starter_yaml
from stageline.config import flatten, json_schema, parse_yaml
from stageline.contract import Family, FamilyConfig, Parent, Split, Words
from stageline.data.prepared import open_prepared
from stageline.data.tables import csv_rows
from stageline.errors import DataError, InterruptedRunError
from stageline.families import FAMILIES, family_config, load_family, parse_config, raw_preset
from stageline.layers.shapes_only import shapes_only
from stageline.plan import make_plan
from stageline.stage import Stage, stage_config
from stageline.store import open_store
from stageline.trainer.parameters import check_groups, freeze_untrained
from stageline.verbs.prepare import prepare_data
from stageline.verbs.repeat import repeat_rows
from stageline.verbs.train import train_stage
from stageline.work.evaluations import find_baselines

from .jobs import GOLDENS, job_texts
from .tiny_run import ROOMS, Build, TinyRun, built_by, case_of, configs_at_stages, small_config


@pytest.fixture(scope="module", params=sorted(ROOMS))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyRun]:
    """The small run of a family, which all tests of this file look at."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "toy", "toy_family")
        yield TinyRun(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def name(run: TinyRun) -> str:
    return run.name


@pytest.fixture
def family(run: TinyRun) -> FamilyConfig:
    return run.family


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
    known: set[str] = set()
    for preset in family.presets:
        config = parse_config(raw_preset(name, preset))
        for own, stage in configs_at_stages(family, config):
            family.check(own, stage)
            facts = family.facts(own, stage)
            assert json.loads(json.dumps(facts)) == facts
            known |= set(facts)
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
        assert set(family.asked({**raw_preset(name, preset), "family": name})) <= known
        splits: list[Split] = []
        # The data of a preset for larger things need not lie here.
        with nullcontext() if preset == "tiny" else suppress(DataError):
            splits += family.evaluation_splits(config)
            splits += [split for own, stage in configs_at_stages(family, config) for split in family.splits(own, stage)]
        assert all(json.dumps(dict(split.key)) for split in splits)
    assert set(family.fact_rules) <= known
    assert family.words != Words()
    assert len(family.words.main_metrics) <= 10
    record = load_family(name)
    assert isinstance(record, Family)
    assert record.config is family


def test_what_trains_is_what_config_and_model_say(run: TinyRun, name: str, family: FamilyConfig) -> None:
    """Patterns match the model's parameters, names belong to sections, the same seed gives the same weights."""
    for own, stage in configs_at_stages(family, run.config):
        model = run.build_model(own, stage)
        trained = freeze_untrained(model, family.trains(own, stage), stage.name)
        assert trained
        assert all(load_family(name).section_of(tensor) for tensor in model.state_dict())
        with shapes_only():
            counted = run.build_model(own, stage)
        assert {n: (t.shape, t.dtype) for n, t in counted.state_dict().items()} == {
            n: (t.shape, t.dtype) for n, t in model.state_dict().items()
        }
        assert all(parameter.is_meta for parameter in counted.parameters())
        again = run.build_model(own, stage)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)), "not seeded"


def test_groups_hold_what_trains(run: TinyRun, name: str, family: FamilyConfig) -> None:
    """And the facts of the task are those of the config."""
    for own, stage in configs_at_stages(family, run.config):
        names = [split.name for split in family.splits(own, stage)]
        task = load_family(name).build_task(own, stage, open_prepared(run.data, names))
        trained = freeze_untrained(task.model, family.trains(own, stage), stage.name)
        check_groups(task.parameter_groups(), trained)
        assert flatten(task.facts()) == flatten(family.facts(own, stage))


def test_every_split_is_prepared_with_rows(run: TinyRun, family: FamilyConfig) -> None:
    read = {split.name for own, stage in configs_at_stages(family, run.config) for split in family.splits(own, stage)}
    read |= {split.name for split in family.evaluation_splits(run.config)}
    prepared = open_prepared(run.data)
    assert set(prepared.names) == read
    assert all(len(prepared.split(split)) > 0 for split in read)


def test_the_plan_foresees_every_stage(run: TinyRun, family: FamilyConfig) -> None:
    """Before it was trained and after; what it is trained from and what its checkpoint says are as declared."""
    selected = family.selected(run.config)
    assert all(run.foreseen[stage.name] == "run" for stage in selected)
    assert set(run.refs) == {stage.name for stage in selected}
    made = {item.name: item for item in make_plan(run.config).items}
    for own, stage in configs_at_stages(family, run.config):
        assert made[stage.name].action == "reuse", made[stage.name].reasons
        meta = run.refs[stage.name].metadata
        assert meta.facts == family.facts(own, stage)
        assert meta.variant == family.variant(own)
        assert meta.final
        assert {role: record.stage for role, record in meta.parents.items()} == {
            role: source for role, source in stage.parents.items() if source in run.refs
        }


def test_what_is_frozen_keeps_the_bits_of_its_parent(run: TinyRun, family: FamilyConfig) -> None:
    """Every parameter that a role gives and the stage does not train."""
    for own, stage in configs_at_stages(family, run.config):
        trains = family.trains(own, stage)
        weights = read_tensors(run.refs[stage.name], "raw")
        parameters = {name for name, _ in run.build_model(own, stage).named_parameters()}
        for role, record in run.refs[stage.name].metadata.parents.items():
            parent = read_tensors(run.refs[stage.parents[role]], record.weights)
            patterns = [p for section in record.sections if section["outcome"] in GIVEN for p in section["patterns"]]
            given = {name for name in parent if any(fnmatchcase(name, pattern) for pattern in patterns)}
            assert given & set(weights), f"{role} gives {stage.name} nothing"
            for tensor in sorted(given & set(weights) & parameters):
                if not trains.matches(tensor):
                    assert torch.equal(weights[tensor], parent[tensor]), f"{tensor} of {stage.name} is frozen"


def test_all_that_trains_has_a_gradient_and_nothing_else(run: TinyRun, family: FamilyConfig) -> None:
    """Finite, and not zero in every step, but for what the family declares; what is frozen has none."""
    assert run.refs
    for own, stage in configs_at_stages(family, run.config):
        seen = run.gradients[stage.name]
        model = run.build_model(own, stage)
        assert set(seen.largest) == set(freeze_untrained(model, family.trains(own, stage), stage.name))
        assert not seen.broken, f"{stage.name}: gradients that are not finite"
        assert not seen.frozen, f"{stage.name}: gradients of what is frozen"
        declared = family.may_lack_gradient(own, stage)
        silent = [
            name
            for name, largest in seen.largest.items()
            if largest == 0.0 and not any(fnmatchcase(name, pattern) for pattern in declared)
        ]
        assert not silent, f"{stage.name} trains what no gradient reaches"


def test_its_last_stage_is_evaluated(run: TinyRun, family: FamilyConfig) -> None:
    record = run.evaluation
    assert record.metrics
    assert set(family.words.main_metrics) & set(record.metrics)


def test_its_trivial_methods_are_scored_on_the_samples_of_the_evaluation(run: TinyRun, family: FamilyConfig) -> None:
    """By metrics of the same names, and every method has a caption."""
    record, store = run.evaluation, open_store(run.evaluation.reference.uri)
    found = find_baselines(store).get("baselines", {})
    assert set(found) == set(family.words.baselines)
    ids = {row["id"] for row in csv_rows(store.get("rows.csv").decode())}
    for scores in found.values():
        assert set(scores["rows"]) == ids
        assert set(scores["metrics"]) <= set(record.metrics)
        assert next(name for name in family.words.main_metrics if name in record.metrics) in scores["metrics"]


def test_its_last_stage_predicts_files(run: TinyRun) -> None:
    """Of any kind; the paths of what was written stand in the results."""
    named = {Path(value) for result in run.predicted for value in map(str, result.values()) if value}
    written = {path for path in (run.folder / "out").rglob("*") if path.is_file()}
    written.remove(run.folder / "out" / "predictions.jsonl")
    assert written
    assert written <= named


def test_python_gets_what_its_files_hold(run: TinyRun, name: str) -> None:
    """Arrays, texts and bytes without a folder: the same that stands in the files with one."""
    from PIL import Image

    made = run.loaded.predict(case_of(name).inputs(run.folder))
    read: dict[str, Any] = {".png": lambda path: np.asarray(Image.open(path)), ".npy": np.load}
    out, files = str(run.folder / "out"), 0
    for wrote, got in zip(run.predicted, made, strict=True):
        assert wrote.keys() == got.keys()
        for key, value in got.items():
            if str(wrote[key]).startswith(out):
                path, files = Path(wrote[key]), files + 1
                if isinstance(value, np.ndarray):
                    np.testing.assert_array_equal(value, read[path.suffix](path))
                else:
                    assert path.read_bytes() == (value.encode() if isinstance(value, str) else value)
            else:
                assert wrote[key] == value
    assert files


def test_what_is_loaded_is_the_familys_own_module(run: TinyRun) -> None:
    """Under the checkpoint's names, in eval mode, and a copy of it is one too."""
    model, ref = run.loaded, run.last
    own = read_tensors(ref, "ema" if ref.metadata.has_weights("ema") else "raw")
    assert isinstance(model, torch.nn.Module)
    assert not model.training
    assert set(own) <= set(model.state_dict())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in own.items())
    assert {name for name, _ in model.named_parameters()} <= set(own) | set(ref.metadata.external_names)
    twin = copy.deepcopy(model).to(torch.float64)
    assert next(twin.parameters()).dtype == torch.float64
    assert next(model.parameters()).dtype == torch.float32
    assert twin.metadata == ref.metadata


def values_of(result: dict[str, Any]) -> dict[str, Any]:
    """What was made of an input, without what it is called."""
    return {key: value for key, value in result.items() if key not in ("image", "input", "converted")}


def test_an_array_gives_what_a_file_of_its_pixels_gives(run: TinyRun, name: str) -> None:
    """Grey at 8 and 16 bits and colour, of numpy and torch, whatever the file is called; so do its bits as floats."""
    from PIL import Image

    case, draw = case_of(name), np.random.default_rng(3)
    if load_family(name).arrays == "none":
        with pytest.raises(DataError, match="reads no arrays"):
            run.loaded.predict(np.zeros((2, 2), np.uint8))
        return
    grey = draw.integers(0, 256, case.SIZE, dtype=np.uint8)
    deep = draw.integers(0, 65536, case.SIZE, dtype=np.uint16)
    colour = draw.integers(0, 256, (*case.SIZE, 3), dtype=np.uint8)
    files, arrays = [], []
    for number, (given, pixels) in enumerate(
        [(grey, grey), (torch.from_numpy(grey)[..., None], grey), (deep, deep), (deep / 65535, deep), (colour, colour)]
    ):
        path = run.folder / f"array-{number}.png"
        Image.fromarray(pixels).save(path)
        files.append(f"{path}?{case.TEXT}" if case.TEXT else path)
        arrays.append((given, case.TEXT) if case.TEXT else given)
    made = run.loaded.predict([*files, *arrays])
    for of_file, of_array in zip(made[: len(files)], made[len(files) :], strict=True):
        np.testing.assert_equal(values_of(of_array), values_of(of_file))


def test_a_row_of_the_evaluation_is_repeated_bit_for_bit(run: TinyRun) -> None:
    """By its id alone: the same values, and the same bytes where the evaluation kept a picture or file of it."""
    store = open_store(run.evaluation.reference.uri)
    rows = csv_rows(store.get("rows.csv").decode())
    chosen = [row for row in rows if row["id"] == rows[0]["id"]]
    again = repeat_rows(run.last.uri, [rows[0]["id"]], target=run.folder / "row")
    assert [row["differs"] for row in again] == [[]] * len(chosen)
    times = {key for key in rows[0] if key.endswith(("_ms", "_seconds"))}
    for row, before in zip(again, chosen, strict=True):
        assert {key: str(row[key]) for key in before if row.get(key) is not None and key not in times} == {
            key: value for key, value in before.items() if value and key not in times
        }
    files = run.evaluation.plain["files"]
    kept = [name for name in files if name.rpartition(".")[0] in again[0] or name in again[0]]
    assert kept or not any(entry["type"].startswith(("image/", "video/")) for entry in files.values())
    for file in kept:
        made = again[0].get(file) or again[0][file.rpartition(".")[0]]
        assert Path(made).read_bytes() == store.get(file)


def test_a_row_that_no_evaluation_has_is_refused_with_those_near(run: TinyRun) -> None:
    known = csv_rows(open_store(run.evaluation.reference.uri).get("rows.csv").decode())[0]["id"]
    with pytest.raises(DataError, match=re.escape(repr(known))):
        repeat_rows(run.last.uri, [f"{known}x"], target=run.folder / "none")
    assert not (run.folder / "none").exists()


GENERAL = {"even", "labels", "precision", "recall", "split", "weights"}
"""Words of the field, and of the core's own settings, that are nobody's own."""


def words_of(name: str) -> set[str]:
    """What a family alone says to people: its own name, its stages, the words of its record."""
    family = family_config(name)
    words, config = family.words, parse_config(raw_preset(name, "tiny"))
    captions = [*words.modes.values(), *words.metrics, *words.metrics.values(), *words.main_metrics]
    captions += [*words.pictures.values(), *words.told.values(), *words.cautions.values()]
    captions += [part.strip(" ,.;:") for part in re.split(r"\{[^}]*\}", words.headline)]
    said = {name, *(stage.name for stage in family.selected(config)), *captions}
    return {word for word in said if word} - GENERAL


def visible(page: str) -> str:
    """What a reader of a page sees."""
    text = re.sub(r"<(style|script).*?</\1>", " ", page, flags=re.DOTALL)
    return unescape(re.sub(r"<[^>]*>", " ", text))


def test_a_report_says_no_word_of_another_family(run: TinyRun, name: str, family: FamilyConfig) -> None:
    page = visible(run.report).replace(shlex.join(sys.argv), "")  # the command of this very test names files of it
    assert all(stage.name in page for stage in family.selected(run.config))
    own = words_of(name)
    for other in sorted(set(ROOMS) - {name}):
        foreign = sorted(word for word in words_of(other) - own if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", page))
        assert not foreign, f"words of {other}"


def test_a_report_shows_every_picture_and_clip_of_the_evaluation(run: TinyRun) -> None:
    files = run.evaluation.plain["files"]
    for kind, element in (("image/png", "<img "), ("video/mp4", "<video ")):
        made = [name for name, entry in files.items() if entry["type"] == kind]
        assert run.report.count(element) == len(made)
        assert all(f'<figcaption title="{Path(name).name}">' in run.report for name in made)


def test_its_jobs_are_rendered_as_their_golden_says(name: str) -> None:
    assert job_texts(name) == (GOLDENS / f"{name}.yaml").read_text(), "`make render` writes the goldens anew"


def test_every_golden_is_of_a_family() -> None:
    assert sorted(path.stem for path in GOLDENS.glob("*.yaml")) == sorted(ROOMS)


def test_a_stopped_stage_goes_on_bit_for_bit(run: TinyRun, name: str, family: FamilyConfig) -> None:
    """Interrupted in its second step and continued: the same content as in the run that was not."""
    first = family.selected(run.config)[0]
    wanted = resolve(str(run.refs[first.name].reference), prefer="last")
    parts = small_config(name, run.config.root, run="parts")

    def stopping(build: Build) -> Build:
        def stopped(config: Any, stage: Stage, data: Any) -> Any:
            task = build(config, stage, data)
            loss = task.loss

            def at_step(model: Any, batch: Any, context: Any) -> Any:
                if context.step == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                return loss(model, batch, context)

            task.loss = at_step
            return task

        return stopped

    with built_by(name, stopping), pytest.raises(InterruptedRunError):
        train_stage(parts, first.name, data=run.data)
    result = train_stage(parts, first.name, data=run.data)
    assert result.action == "continue"
    found = resolve(str(result.reference), prefer="last")
    assert found.content == wanted.content


@pytest.mark.slow
def test_every_stage_trains_in_half_precision(run: TinyRun, name: str, family: FamilyConfig) -> None:
    """Whatever a family hands its network, autocast takes it; validation and the parents' weights, too."""
    half = small_config(name, run.config.root, "trainer.precision=bf16-mixed", run="half")
    for stage in family.selected(half):
        result = train_stage(half, stage.name, data=run.data)
        assert result.action == "run", stage.name
        assert all(value is None or math.isfinite(value) for value in result.metrics.values()), result.metrics


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_train_and_agree(run: TinyRun, name: str, family: FamilyConfig, tmp_path: Path) -> None:
    config = small_config(name, tmp_path, "trainer.processes=2", *case_of(name).TWO_RANKS, run="two")
    data = str(prepare_data(config).reference)
    first = family.selected(config)[0].name
    ends = run_ranks(lambda _: dict(train_stage(config, first, data=data).metrics), 2, tmp_path / "ranks")
    assert [end.code for end in ends] == [0, 0], ends
    assert ends[0].value == ends[1].value
