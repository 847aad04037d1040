"""Weights of others through the verbs: unknown until prepared, then in fingerprint, metadata and content.

Another digest behind the same name is refused by name at resume, evaluate and predict.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stageline.checkpoint.layout import resolve
from stageline.checkpoint.lineage import own_config
from stageline.checkpoint.tensors import read_tensors
from stageline.cli.imports import import_files
from stageline.config import to_yaml
from stageline.encoders.copies import external_digest
from stageline.encoders.lock import EXTERNALS
from stageline.errors import CheckpointError, InterruptedRunError, PlanError
from stageline.families import family_config, parse_config
from stageline.store import open_store
from stageline.verbs.evaluate.evaluation import evaluate_checkpoint
from stageline.verbs.predict import load
from stageline.verbs.prepare import prepare_data
from stageline.work.decision import decide, decide_data
from stageline.work.externals import describe_externals


@pytest.fixture
def family() -> Any:
    from toy_family import family

    family.BEGUN.clear()
    return family


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder of other people's weights."""
    return write_table(tmp_path / "other people" / "table", 0.5)


def write_table(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.safetensors").unlink(missing_ok=True)
    save_file({"row": torch.full((4,), value)}, folder / "table.safetensors")
    return folder


def config_of(ref: Any, *overrides: str) -> Any:
    return parse_config(own_config(ref), overrides)


def test_its_digest_is_in_fingerprint_metadata_and_content(train: Any, family: Any, table: Path) -> None:
    """The same words in the config, other bytes behind them: another stage, with other content."""
    settings = {"model.table": str(table), "trainer.max_steps": 2}
    one = resolve(str(train(run="one", **settings).reference))
    root = open_store(one.uri.split("/runs/")[0])
    (external,) = family_config("toy").externals(config_of(one), family_config("toy").stages["base"])
    digest = external_digest(root, external)
    assert one.metadata.externals["table"].digest == digest
    assert family.BEGUN[-1][1].contents == {"table": digest}
    write_table(table, 0.75)
    two = resolve(str(train(run="two", **settings).reference))
    assert two.metadata.externals["table"].digest != digest
    assert two.metadata.settings == one.metadata.settings
    assert two.metadata.stage_fingerprint != one.metadata.stage_fingerprint
    assert two.content != one.content


def test_a_generated_one_needs_no_files(train: Any, family: Any, tmp_path: Path) -> None:
    settings = {"trainer.max_steps": 2, "model.table": "made from seed 1"}
    ref = resolve(str(train(lock=False, **settings).reference))
    made = load(ref.uri).table.weight
    assert torch.equal(made, family.TASKS[-1].model.table.weight)
    assert bool(made.ne(0).all())
    other = resolve(str(train(run="other", **{**settings, "model.table": "made from seed 2"}).reference))
    assert other.metadata.externals["table"].digest != ref.metadata.externals["table"].digest
    assert not (tmp_path / EXTERNALS).exists()


def test_the_plan_knows_nothing_until_it_is_prepared(train: Any, table: Path, tmp_path: Path) -> None:
    words = [f"model.table='{table}'", f"root='{tmp_path}'", "run=r", "stages=[base]", "trainer.max_steps=2"]
    config = parse_config({"family": "toy"}, words)
    before = decide(config, "base")
    assert (before.action, before.fingerprint) == ("run", "")
    assert f"external 'table' ({table}) is not locked yet" in before.reasons[1]
    with pytest.raises(PlanError, match="cannot start yet: external 'table'"):
        train(lock=False, **{"model.table": str(table)})
    preparing = decide_data(config)
    assert (preparing.action, preparing.prepared) == ("run", None)
    said: list[str] = []
    prepare_data(config, lambda _done, _total, what: said.append(what))
    assert decide_data(config).action == "reuse"
    digest = decide(config, "base").digests["table"]
    (locked,) = [line for line in said if line.startswith("locked ")]
    assert locked.startswith(f"locked external 'table' ({table}): {digest[:12]}, 1 files")
    assert describe_externals(config) == (locked.removeprefix("locked "),)
    assert decide(config, "base").fingerprint
    done = train(**{"model.table": str(table), "trainer.max_steps": 2})
    shutil.rmtree(tmp_path / EXTERNALS)
    config = config_of(resolve(str(done.reference)))
    again = decide(config, "base")
    assert (again.action, again.fingerprint) == ("depends", "")
    prepare_data(config)
    assert decide(config, "base").action == "reuse"


def test_the_plan_says_that_a_parent_was_trained_with_others(train: Any, table: Path) -> None:
    settings = {"model.table": str(table), "trainer.max_steps": 2}
    base = resolve(str(train(**settings).reference))
    write_table(table, 0.75)
    prepare_data(config_of(base))
    config = config_of(base, "run=other", f"parents.tune.default='{base.uri}'", "stages=[tune]")
    old, now = base.metadata.externals["table"].digest[:12], decide(config, "tune").digests["table"][:12]
    assert f"parent default: external table: checkpoint {old}, now {now} (reported)" in decide(config, "tune").notes


def test_an_import_records_the_digest(train: Any, table: Path, tmp_path: Path) -> None:
    """The table may be left out of the file; what the checkpoint was made with is known nevertheless."""
    ref = resolve(str(train(**{"model.table": str(table), "trainer.max_steps": 2}).reference))
    save_file(read_tensors(ref, "raw"), tmp_path / "others.safetensors")
    (tmp_path / "import.yaml").write_text(to_yaml(config_of(ref)))
    words = [str(tmp_path / "others.safetensors")]
    made = import_files(words, "imported", stage="base", config=tmp_path / "import.yaml")
    found = resolve(made["reference"])
    assert found.metadata.externals == ref.metadata.externals


def stop_at(step: int) -> Any:
    def change(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            if context.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return summed

        task.on_loss = on_loss

    return change


def test_another_digest_is_refused_at_resume(train: Any, family: Any, table: Path) -> None:
    settings = {"model.table": str(table)}
    family.CHANGE[:] = [stop_at(2)]
    with pytest.raises(InterruptedRunError):
        train(**settings)
    family.CHANGE.clear()
    write_table(table, 0.75)
    with pytest.raises(CheckpointError) as refused:
        train(**settings)
    told = r"stopped at step 3 of 10, .* external 'table' \(.*\) had digest [0-9a-f]{12} and has [0-9a-f]{12} now"
    assert refused.match(told)
    assert "restore those files and run `stageline prepare`" in refused.value.remedy
    assert "run=<new name>" in refused.value.remedy
    assert train(run="new", **settings).action == "run", "the one way out"
    write_table(table, 0.5)
    assert train(**settings).action == "continue", "the other"


def test_another_digest_is_refused_at_evaluate_and_predict(train: Any, data: str, table: Path) -> None:
    settings = {"model.table": str(table), "trainer.max_steps": 2}
    done = train(**settings)
    ref = resolve(str(done.reference))
    config = config_of(ref)
    old = ref.metadata.externals["table"].digest
    assert load(ref.uri).table.weight.tolist() == [0.5] * 4
    write_table(table, 0.75)
    assert load(ref.uri), "who reads the root has what it locked"
    prepare_data(config)
    told = rf"external table \(.*\): digest {old[:12]} -> (?!{old[:12]})[0-9a-f]{{12}}"
    for use in (lambda: load(ref.uri), lambda: evaluate_checkpoint(config, ref.uri, data)):
        with pytest.raises(CheckpointError) as refused:
            use()
        assert refused.match(told)
        assert "restore the files" in refused.value.remedy
        assert "train its stage anew" in refused.value.remedy
    work = decide(config, "base")
    assert work.action == "run"
    assert work.reasons[0].startswith(f"external table: {old[:12]} -> ")
    write_table(table, 0.5)
    again = train(**settings)
    assert (again.action, again.reference) == ("reuse", done.reference), "going back is reuse"
    assert evaluate_checkpoint(config, ref.uri, data).metrics["error"] is not None


def test_a_copied_root_needs_no_source(train: Any, table: Path, tmp_path: Path) -> None:
    ref = resolve(str(train(**{"model.table": str(table), "trainer.max_steps": 2}).reference))
    key = ref.uri.removeprefix(f"{tmp_path}/")
    for part in ("runs", "cache"):
        shutil.copytree(tmp_path / part, tmp_path / "copy" / part)
        shutil.rmtree(tmp_path / part)
    shutil.rmtree(table)
    assert load(str(tmp_path / "copy" / key)).table.weight.tolist() == [0.5] * 4
