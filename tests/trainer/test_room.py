"""What the toy family has and film_flow has not: an external, two parent roles, a variant, stages by name only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stageline.checkpoint.layout import resolve
from stageline.checkpoint.tensors import read_tensors
from stageline.errors import PlanError
from stageline.families import family_config, parse_config
from stageline.verbs.predict import load

SHORT = {"trainer.max_steps": 2}
"""For what does not depend on how long a stage was trained."""


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A file of other people's weights."""
    path = tmp_path / "table.safetensors"
    save_file({"row": torch.tensor([0.5, -0.5, 0.25, 0.0])}, path)
    return str(path)


def test_an_external_is_in_no_file(train: Any, table: str) -> None:
    """A partly external module: its scale is trained and saved, its weight is neither."""
    from toy_family import family

    ref = resolve(str(train(**{"model.table": table}).reference))
    assert "table.scale" in ref.metadata.tensors["model"]
    for group in ("model", "ema", "training/optimizer"):
        assert not [name for name in ref.metadata.tensors[group] if name.endswith("table.weight")]
    assert not torch.equal(read_tensors(ref, "raw")["table.scale"], torch.ones(1)), "it trains"
    weight = family.TASKS[-1].model.table.weight
    assert weight.tolist() == [0.5, -0.5, 0.25, 0.0]
    assert not weight.requires_grad
    loaded = load(ref.uri)
    assert torch.equal(loaded.table.weight, weight)


def test_two_roles_load_every_tensor_exactly_once(train: Any) -> None:
    from toy_family import family

    base, tune = train("base", **SHORT), train("tune", **SHORT)
    starts: list[dict[str, torch.Tensor]] = []

    def look(task: Any) -> None:
        def on_loss(summed: Any, context: Any) -> Any:
            starts.append({name: tensor.clone() for name, tensor in task.model.state_dict().items()})
            return summed

        task.on_loss = on_loss

    family.CHANGE[:] = [look]
    joined = resolve(str(train("join", **SHORT).reference))
    parents = {role: read_tensors(resolve(str(r.reference)), "ema") for role, r in (("trunk", base), ("head", tune))}
    for name, tensor in starts[0].items():
        if name != "strength":  # set by the schedule before the first step
            assert torch.equal(tensor, parents["head" if name.startswith("head.") else "trunk"][name]), name
    assert {role: record.stage for role, record in joined.metadata.parents.items()} == {"trunk": "base", "head": "tune"}


def test_exchanged_roles_are_refused_before_a_model_is_built(train: Any) -> None:
    from toy_family import family

    base, tune = train("base", **SHORT), train("tune", **SHORT)
    family.TASKS.clear()
    with pytest.raises(PlanError, match="the parents 'head' and 'trunk' of stage 'join' look exchanged") as caught:
        train("join", **SHORT, parents={"trunk": str(tune.reference), "head": str(base.reference)})
    assert f"--parent=trunk={base.reference} " in f"{caught.value.remedy} "
    assert family.TASKS == []


def test_variants_of_a_stage_lie_side_by_side(train: Any) -> None:
    one = train(run="v", **{"model.variant": "one"})
    two = train(run="w", **{"model.variant": "two"})
    assert "/base/one/" in one.reference.uri
    assert "/base/two/" in two.reference.uri


def test_stages_by_name_only_are_not_in_a_run() -> None:
    config = parse_config({"family": "toy"})
    assert [stage.name for stage in family_config("toy").selected(config)] == ["base", "tune", "join"]
    named = parse_config({"family": "toy", "stages": ["even"]})
    assert [stage.name for stage in family_config("toy").selected(named)] == ["even"]
