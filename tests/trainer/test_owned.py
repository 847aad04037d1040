"""A save holds what its stage trains; frozen tensors stay with the parent that has them, and all readers see one."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from torch import nn

from stageline.checkpoint.export import export
from stageline.checkpoint.layout import CheckpointRef, StageDir, resolve
from stageline.checkpoint.lineage import describe, own_config
from stageline.checkpoint.retention import prune, prune_superseded
from stageline.checkpoint.tensors import read_tensors
from stageline.checkpoint.verify import verify
from stageline.cli.exports import write_export
from stageline.config import RetentionConfig
from stageline.contract import External
from stageline.errors import CheckpointError, ConfigError, InterruptedRunError
from stageline.families import parse_config
from stageline.stage import Inheritance, Trains
from stageline.verbs.admitted import admit_model

LARGE, HEAD = 200_000, 20_000
"""Parameters added to the toy's frozen stem and to its trained head."""
SHORT = {"trainer.max_steps": 2}
"""For what does not depend on how long a stage was trained."""


def test_a_family_s_own_format_gets_what_parents_hold_too(train: Any, tmp_path: Path) -> None:
    """And asks for an empty folder and a format that there is."""
    train("base", **SHORT)
    tune = str(train("tune", **SHORT).reference)
    write_export(tune, tmp_path / "out", "text", None)
    names = (tmp_path / "out" / "tune.txt").read_text().split()
    assert {"stem.weight", "head.weight"} <= set(names)
    assert "stem.weight" not in resolve(tune).metadata.tensors["model"]
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_export(tune, tmp_path / "out", "text", None)
    with pytest.raises(ConfigError, match="no format 'ckpt'"):
        write_export(tune, tmp_path / "new", "ckpt", None)
    write_export(tune, tmp_path / "new", "safetensors", None)


@pytest.fixture
def family() -> Any:
    from toy_family import family

    return family


def widen(task: Any) -> None:
    """A large stem with a buffer of its own, and a head large enough that headers and metadata hardly count."""
    task.model.stem.large = nn.Parameter(torch.linspace(0, 1, LARGE))
    task.model.stem.register_buffer("mean", torch.ones(3))
    task.model.head.large = nn.Parameter(torch.linspace(1, 2, HEAD))

    def on_loss(summed: Any, context: Any) -> Any:
        return summed + 1e-6 * (task.model.stem.large.sum() + task.model.head.large.sum())

    task.on_loss = on_loss


def stop_at(step: int) -> Any:
    def change(task: Any) -> None:
        before = task.on_loss

        def on_loss(summed: Any, context: Any) -> Any:
            if context.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return before(summed, context)

        task.on_loss = on_loss

    return change


@pytest.fixture
def tuned(train: Any, family: Any) -> tuple[CheckpointRef, CheckpointRef]:
    """A large base and the head tuned on it."""
    family.CHANGE[:] = [widen]
    base, tune = train("base", **SHORT), train("tune", **SHORT)
    return resolve(str(base.reference)), resolve(str(tune.reference))


def test_a_head_on_a_large_frozen_parent_costs_the_head(tuned: tuple[CheckpointRef, CheckpointRef]) -> None:
    base, tune = tuned
    own = {"body.0.weight", "body.0.bias", "head.weight", "head.bias", "head.large", "strength"}
    assert set(tune.metadata.tensors["model"]) == own
    assert set(tune.metadata.tensors["ema"]) == own - {"strength"}
    owner = tune.metadata.referenced["default"]
    assert set(owner.tensors) == {"stem.weight", "stem.bias", "stem.large", "stem.mean"}
    assert (owner.digest, owner.content) == (base.digest, base.content)
    assert owner.uri == f"runs/r/base/checkpoints/{base.name}"
    sizes = {info.key: info.size for info in tune.store.list()}
    head = 4 * (HEAD + 8 * 8 + 8 + 8 + 1 + 1)
    assert sizes["model.safetensors"] <= 1.1 * head
    assert sum(sizes.values()) <= 1.1 * (head + head + 2 * head)
    assert base.metadata.files["model.safetensors"].bytes > 4 * LARGE


def written_bytes() -> int:
    """What this process has given to write calls so far, whatever the file."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


@pytest.mark.parametrize("changes", [False, True], ids=["measures", "changes-a-buffer"])
def test_the_last_step_is_written_once(train: Any, tmp_path: Path, family: Any, changes: bool) -> None:
    """Before its validation; what is known after it costs no tensor, unless validation left other ones behind."""
    counts: list[int] = []

    def look(task: Any) -> None:
        widen(task)
        real = task.validate

        def validate(model: Any, batch: Any, context: Any) -> Any:
            if float(task.model.strength) == 1.0:
                counts.append(written_bytes())
                task.model.stem.mean.add_(1.0 if changes else 0.0)
            return real(model, batch, context)

        task.validate = validate

    family.CHANGE[:] = [look]
    before = written_bytes()
    result = train(**{"trainer.validate_every_steps": 5, "trainer.checkpoint_every_steps": 5, "trainer.keep.last": 9})
    ref = resolve(str(result.reference), prefer="last")
    whole = sum(record.bytes for record in ref.metadata.files.values())
    assert whole > 4 * 4 * LARGE
    assert (ref.metadata.step, ref.metadata.final, ref.name) == (10, True, "step-00000010-2")
    assert verify(ref) == []
    after = written_bytes()
    if changes:
        assert after - counts[0] > whole
        assert float(read_tensors(ref)["stem.mean"][0]) > 1.0
    else:
        assert after - counts[0] < 0.1 * whole
        assert after - before < 2.1 * whole, "steps 5 and 10"
        assert [found.metadata.step for found in StageDir(str(tmp_path), "r", "base").committed()] == [5, 10]


def test_everybody_reads_the_whole(tuned: tuple[CheckpointRef, CheckpointRef], tmp_path: Path) -> None:
    base, tune = tuned
    parent, whole, raw = read_tensors(base, "ema"), read_tensors(tune, "ema"), read_tensors(tune)
    assert set(whole) == set(raw) == set(parent) == set(tune.metadata.whole)
    kept = [name for name in whole if name.startswith("stem") or name == "strength"]
    assert [name for name in whole if torch.equal(whole[name], parent[name])] == kept
    assert [name for name in whole if torch.equal(whole[name], raw[name])] == kept
    assert verify(tune) == []
    groups = describe(tune)["groups"]
    assert groups["referenced default"]["parameters"] == LARGE + 4 * 8 + 8 + 3
    one = load_file(export(tune, tmp_path / "out") / "model.safetensors")
    assert set(one) == set(whole)
    assert all(torch.equal(one[name], whole[name]) for name in one)


def test_a_missing_or_changed_owner_is_refused_by_name(tuned: tuple[CheckpointRef, CheckpointRef]) -> None:
    base, tune = tuned
    path = Path(base.uri) / "ema.safetensors"
    blob = path.read_bytes()
    path.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    assert any("parent 'default'" in line and "its bytes changed" in line for line in verify(tune))
    with pytest.raises(CheckpointError, match="its bytes changed"):
        read_tensors(tune)
    shutil.rmtree(base.uri)
    for look in (lambda: read_tensors(tune), lambda: export(tune, Path(tune.uri).parents[3] / "out")):
        with pytest.raises(CheckpointError, match="needs 4 tensors of its parent 'default'") as caught:
            look()
        assert base.uri in caught.value.message


def test_what_is_referenced_is_never_pruned(train: Any, tuned: tuple[CheckpointRef, CheckpointRef]) -> None:
    base, tune = tuned
    train("base", **SHORT, **{"trainer.learning_rate": 0.01})
    directory = StageDir.at(base.store)
    directory = StageDir(str(Path(base.uri).parents[4]), "r", "base")
    prune(directory, RetentionConfig(last=1, best=0, unfinished=0), dry_run=False)
    prune_superseded(directory, dry_run=False)
    assert read_tensors(tune)
    assert verify(tune) == []


def test_a_resumed_head_is_bitwise_the_uninterrupted_one(train: Any, family: Any, tmp_path: Path) -> None:
    family.CHANGE[:] = [widen]
    base = train("base", **SHORT)
    settings = {
        "trainer.checkpoint_every_steps": 2,
        "trainer.max_steps": 6,
        "parents.tune.default": str(base.reference),
    }
    whole = resolve(str(train("tune", run="whole", **settings).reference))
    family.CHANGE[:] = [widen, stop_at(3)]
    with pytest.raises(InterruptedRunError):
        train("tune", run="halves", **settings)
    family.CHANGE[:] = [widen]
    again = train("tune", run="halves", **settings)
    assert again.action == "continue"
    ref = resolve(str(again.reference))
    assert ref.content == whole.content
    assert ref.metadata.referenced == whole.metadata.referenced
    assert ref.metadata.files["training/optimizer.safetensors"].sha256 == (
        whole.metadata.files["training/optimizer.safetensors"].sha256
    )
    third = train("tune", run="third", **{**settings, "parents.tune.default": str(base.reference)})
    assert resolve(str(third.reference)).content == whole.content


def test_a_frozen_parent_below_another_root_is_own(train: Any, family: Any, tmp_path: Path) -> None:
    family.CHANGE[:] = [widen]
    base = train("base", root=str(tmp_path / "other"), **SHORT)
    tune = resolve(str(train("tune", **SHORT, **{"parents.tune.default": str(base.reference)}).reference))
    assert tune.metadata.referenced == {}
    assert set(tune.metadata.tensors["model"]) == set(tune.metadata.whole)
    assert tune.metadata.parents["default"].uri == base.reference.uri
    shutil.rmtree(tmp_path / "other")
    assert "stem.large" in read_tensors(tune, "ema")


def test_a_changed_buffer_of_a_parent_refuses_the_save(train: Any, family: Any) -> None:
    def drift(task: Any) -> None:
        before = task.on_loss

        def on_loss(summed: Any, context: Any) -> Any:
            task.model.stem.mean += 1
            return before(summed, context)

        task.on_loss = on_loss

    family.CHANGE[:] = [widen]
    train("base", **SHORT)
    family.CHANGE[:] = [widen, drift]
    with pytest.raises(CheckpointError, match=r"stem\.mean: a buffer that the parent 'default' holds has changed"):
        train("tune", **SHORT)


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch, family: Any) -> dict[str, str]:
    """The toy's stem comes from an external: its weights are all 0.5, and no stage trains them."""
    from toy_family import config as toy_config

    named = {"source": "all 0.5"}

    def inherit(parent: Any, config: Any, stage: Any) -> tuple[Inheritance, ...]:
        return (
            Inheritance("stem", "external", "from clip", ("stem.*",)),
            Inheritance("rest", "load", "same", ("body.*", "head.*", "strength")),
        )

    def load_externals(config: Any, stage: Any, model: nn.Module) -> None:
        with torch.no_grad():
            for parameter in model.stem.parameters():
                parameter.fill_(0.5)

    record = replace(
        toy_config.FAMILY_CONFIG,
        inherit=inherit,
        trains=lambda _config, _stage: Trains(("body.*", "head.*")),
        externals=lambda _config, _stage: (External("clip", named["source"], patterns=("stem.*",), generated=True),),
    )
    monkeypatch.setattr(toy_config, "FAMILY_CONFIG", record)
    monkeypatch.setattr(family, "FAMILY", replace(family.FAMILY, load_externals=load_externals))
    return named


def test_an_external_is_in_no_file_and_every_reader_has_it(train: Any, clip: dict[str, str], tmp_path: Path) -> None:
    settings = {"trainer.checkpoint_every_steps": 2, "trainer.max_steps": 4}
    base, tune = (resolve(str(train(stage, **settings).reference)) for stage in ("base", "tune"))
    for ref in (base, tune):
        assert set(ref.metadata.externals["clip"].tensors) == {"stem.weight", "stem.bias"}
        assert ref.metadata.referenced == {}
        for name in ref.metadata.files:
            if name.endswith(".safetensors"):
                assert not [key for key in load_file(Path(ref.uri) / name) if "stem" in key]
        assert verify(ref) == []
        own = parse_config(own_config(ref))
        _, model, _ = admit_model(own, ref)
        assert torch.equal(model.stem.weight, torch.full_like(model.stem.weight, 0.5))
        assert torch.equal(model.head.weight, read_tensors(ref, "ema")["head.weight"])
    assert not [key for key in load_file(export(tune, tmp_path / "out") / "model.safetensors") if "stem" in key]
    clip["source"] = "all one half"
    with pytest.raises(CheckpointError, match=r"external clip \(all one half\): digest [0-9a-f]{12} -> [0-9a-f]{12}"):
        admit_model(parse_config(own_config(tune)), tune)
    assert train("base", **settings).action == "run", "another external is another stage"


def test_a_grandchild_reads_through_its_parents(train: Any, family: Any, tmp_path: Path) -> None:
    """What a parent leaves to its own parent is read there; a copied root keeps working."""
    family.CHANGE[:] = [widen]
    train("base", **SHORT)
    tune = train("tune", **SHORT)
    family.CHANGE[:] = [widen]
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "runs", copy / "runs")
    moved = resolve(f"{copy}/runs/r/tune")
    one, other = read_tensors(moved, "ema"), read_tensors(resolve(str(tune.reference)), "ema")
    assert all(torch.equal(one[name], other[name]) for name in one)
    shutil.rmtree(tmp_path / "runs" / "r" / "base")
    assert set(read_tensors(moved)) == set(one)


@pytest.mark.slow
@pytest.mark.ranks
def test_a_sharded_head_holds_its_own_and_goes_on_exactly(train: Any, family: Any, tmp_path: Path) -> None:
    """Two ranks, FSDP2: shards of own tensors only, derived files of whole ones, and one rank reads the same."""
    two = {
        "trainer.strategy": "fsdp2",
        "trainer.processes": 2,
        "trainer.batch_size": 1,
        "trainer.checkpoint_every_steps": 2,
        "model.exported": True,
    }
    base = train("base", run="base")
    settings = {**two, "parents.tune.default": str(base.reference)}

    def run_two(run: str) -> list[int]:
        return [end.code for end in run_ranks(lambda _: train("tune", run=run, **settings).step, 2, tmp_path / run)]

    assert run_two("whole") == [0, 0]
    family.CHANGE[:] = [watch_nothing, stop_at(3)]
    assert run_two("halves") != [0, 0]
    family.CHANGE.clear()
    assert run_two("halves") == [0, 0]
    whole, halves = (resolve(f"{tmp_path}/runs/{run}/tune", prefer="last") for run in ("whole", "halves"))
    for ref in (whole, halves):
        assert ref.metadata.is_sharded
        assert ref.metadata.final
        assert set(ref.metadata.referenced["default"].tensors) == {"stem.weight", "stem.bias"}
        assert not [name for name in ref.metadata.tensors["model"] if name.startswith("stem")]
        assert verify(ref) == []
    average = read_tensors(whole, "ema")
    assert torch.equal(average["stem.weight"], read_tensors(resolve(str(base.reference)), "ema")["stem.weight"])
    assert all(torch.equal(tensor, average[name]) for name, tensor in read_tensors(halves, "ema").items())
    derived = load_file(Path(whole.uri) / "head_for_others" / "weights.safetensors")
    assert torch.equal(derived["layers.head.weight"], average["head.weight"])


def watch_nothing(task: Any) -> None:
    """A loss as it is."""
    task.on_loss = lambda summed, _context: summed
