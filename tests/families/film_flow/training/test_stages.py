"""Stage tasks: losses as per-sample sums, what gets gradients, parameter groups, strengths, facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from stageline.families.film_flow import facts as family
from stageline.families.film_flow.data.sets import Batch
from stageline.families.film_flow.sampling import take
from stageline.families.film_flow.task import FilmFlowTask
from stageline.objectives.step import StageLoss, StepContext, seeded

from .small import kick

MakeTask = Callable[..., FilmFlowTask]
OBJECTIVES: list[dict[str, Any]] = [
    {},
    {"model__prediction": "velocity", "model__lambda_auxiliary": 0.3},
    {"model__prediction": "velocity", "model__sigma": 0.25},
    {"model__mode": "dfm_binary"},
    {"model__lambda_cldice": 0.1, "model__junction_weight": 2.0, "model__loss": "bce"},
    {"model__junction_gating_config.junction_loss": "bce_dice", "model__t_sampling": "uniform"},
]


def batch_of(task: FilmFlowTask, count: int, epoch: int = 0) -> Batch:
    return task.collate([task.train_set[(epoch, index)] for index in range(count)])


def part_of(batch: Batch, rows: list[int]) -> Batch:
    assert batch.condition is not None
    maps = {name: getattr(batch, name)[rows] for name in ("image", "mask", "target", "heat")}
    lists = {name: [getattr(batch, name)[row] for row in rows] for name in ("ids", "prompts", "nodes", "pictures")}
    return replace(batch, condition=take(batch.condition, rows), **maps, **lists)


class FixedDraws(FilmFlowTask):
    """The task with given draws, so that a batch and its parts see the same noise."""

    draws: tuple[Tensor, Tensor, Tensor, Tensor]
    rows: slice

    def _state(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x_t, t, x_0, x_1 = self.draws
        return x_t[self.rows], t[self.rows], x_0[self.rows], x_1[self.rows]

    def _drop(self, condition: Any, rng: torch.Generator) -> Any:
        return condition


@pytest.mark.parametrize("keys", OBJECTIVES)
def test_the_loss_of_a_batch_is_the_sum_over_its_parts(make_task: MakeTask, keys: dict[str, Any]) -> None:
    task = make_task(**keys)
    kick(task.network)
    batch = batch_of(task, 5)
    draws = task._state(batch, seeded("draws"))
    task.__class__ = FixedDraws
    assert isinstance(task, FixedDraws)
    task.draws = draws
    context = StepContext(90, 0.9, seeded("any"))

    def loss(rows: slice) -> tuple[StageLoss, list[Tensor]]:
        task.rows = rows
        task.model.zero_grad()
        found = task.loss(task.model, part_of(batch, list(range(5))[rows]), context)
        found.sum.backward()
        return found, [p.grad.clone() for p in task.model.parameters() if p.grad is not None]

    whole, gradients = loss(slice(0, 5))
    first, one = loss(slice(0, 2))
    second, other = loss(slice(2, 5))
    assert whole.weight == first.weight + second.weight == 5
    assert_close(whole.sum, first.sum + second.sum, rtol=1e-5, atol=1e-5)
    for name, (value, count) in whole.parts.items():
        assert count == 5
        assert_close(torch.as_tensor(value), first.parts[name][0] + second.parts[name][0], rtol=1e-4, atol=1e-5)
    for a, b, c in zip(gradients, one, other, strict=True):
        assert_close(a, b + c, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("keys", OBJECTIVES)
def test_the_loss_is_a_function_of_the_generator(make_task: MakeTask, keys: dict[str, Any]) -> None:
    task = make_task(**keys)
    batch = batch_of(task, 3)

    def loss(*seed: int) -> float:
        return float(task.loss(task.model, batch, StepContext(0, 0.0, seeded(*seed))).sum.detach())

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


def test_parts_are_named_by_objective(make_task: MakeTask) -> None:
    def parts(progress: float, **keys: Any) -> set[str]:
        task = make_task(**keys)
        return set(task.loss(task.model, batch_of(task, 2), StepContext(0, progress, seeded(0))).parts)

    assert parts(0.0) == {"bce", "dice", "junction"}
    assert parts(0.0, model__lambda_cldice=0.1) == {"bce", "dice", "junction"}
    assert parts(0.25, model__lambda_cldice=0.1) == {"bce", "dice", "junction", "cldice"}
    velocity = parts(0.0, model__prediction="velocity", model__lambda_auxiliary=0.5)
    assert velocity == {"mse", "auxiliary_bce", "auxiliary_dice", "junction"}
    assert parts(0.0, **{"model__junction_gating_config.enabled": False}) == {"bce", "dice"}


def test_a_batch_without_flow_loss_in_the_junction_head_by_default(make_task: MakeTask) -> None:
    """detach_gate: the flow loss gives the junction head no gradient; without it, it does."""

    def junction_gradient(detach: bool) -> float:
        task = make_task(
            **{
                "model__junction_gating_config.detach_gate": detach,
                "model__junction_gating_config.lambda_junction": 0.0,
                "model__junction_gating_config.gate_value_in_junction": 0.0,
            }
        )
        kick(task.network)
        task.loss(task.model, batch_of(task, 3), StepContext(0, 0.0, seeded(0))).sum.backward()
        assert task.network.junction is not None
        return sum(float(p.grad.abs().sum()) for p in task.network.junction.parameters() if p.grad is not None)

    assert junction_gradient(True) == 0.0
    assert junction_gradient(False) > 0.0


def test_condition_dropout_drops_about_its_share_and_nothing_else(make_task: MakeTask) -> None:
    task = make_task(model__cond_dropout=0.25)
    batch = batch_of(task, 2)
    assert batch.condition is not None
    many = take(batch.condition, [0, 1] * 2000)
    kept = task._drop(many, seeded("drop"))
    assert kept is not None
    assert torch.equal(kept.vec, many.vec)
    assert abs(float(kept.present.float().mean()) - 0.75) < 0.03
    never = make_task(model__cond_dropout=0.0)._drop(many, seeded("drop"))
    assert never is not None
    assert bool(never.present.all())


def test_every_parameter_gets_a_gradient_in_both_stages(make_task: MakeTask) -> None:
    """So that distributed training needs no search for unused parameters."""
    for stage in ("backbone", "film"):
        task = make_task(stage)
        task.loss(task.model, batch_of(task, 2), StepContext(0, 0.0, seeded(0))).sum.backward()
        assert [name for name, p in task.model.named_parameters() if p.grad is None] == []


def test_parameter_groups_cover_all_and_spare_norms_biases_and_head_outputs(make_task: MakeTask) -> None:
    task = make_task()
    groups = {group.name: group for group in task.parameter_groups()}
    names = [name for group in groups.values() for name in group.names]
    assert sorted(names) == sorted(name for name, _ in task.model.named_parameters())
    assert (groups["decayed"].decay, groups["plain"].decay) == (True, False)
    plain = set(groups["plain"].names)
    assert {"film.2.fc2.weight", "film.3.fc2.bias", "film.2.norm.weight", "backbone.stem.bias"} <= plain
    assert {"film.2.fc1.weight", "backbone.stem.weight"} <= set(groups["decayed"].names)
    assert all("norm" not in name and not name.endswith("bias") for name in groups["decayed"].names)


def test_strengths_wait_then_rise_and_are_saved_with_the_model(make_task: MakeTask) -> None:
    task = make_task(
        **{
            "model__film_warmup_epochs": 1,
            "model__film_ramp_epochs": 2,
            "model__junction_gating_config.warmup_epochs": 2,
        }
    )
    epoch = 3  # 6 samples in steps of 2
    film, gate = [], []
    for step in range(5 * epoch):
        task.advance(step, 5 * epoch)
        state = task.model.state_dict()
        film.append(float(state["schedule.film_strength"]))
        gate.append(float(state["schedule.gate_strength"]))
    ramp = [k / (2 * epoch) for k in range(2 * epoch)]
    assert film == pytest.approx([0.0] * epoch + ramp + [1.0] * 2 * epoch)
    assert gate == [0.0] * 2 * epoch + [1.0] * 3 * epoch


@pytest.mark.parametrize("spread", [{"trainer__nodes": 3}, {"trainer__processes": 3}], ids=["nodes", "processes"])
def test_warm_up_epochs_are_shorter_by_the_ranks_of_all_nodes(make_task: MakeTask, spread: dict[str, int]) -> None:
    task = make_task(model__film_warmup_epochs=2, **spread)
    strengths = []
    for step in range(4):
        task.advance(step, 4)
        strengths.append(float(task.model.state_dict()["schedule.film_strength"]))
    assert strengths == [0.0, 0.0, 1.0, 1.0]  # 6 samples are one step of 2 on each of 3 ranks


def test_during_the_warm_up_a_conditioned_model_predicts_as_without_film(make_task: MakeTask) -> None:
    task = make_task(model__film_warmup_epochs=1)
    kick(task.network).eval()
    batch = batch_of(task, 2)
    x, t = torch.randn(2, 1, 32, 32), torch.full((2,), 0.5)
    task.advance(0, 9)
    assert torch.equal(task.network(x, t, batch.image, batch.condition), task.network(x, t, batch.image, None))
    task.advance(3, 9)
    assert not torch.equal(task.network(x, t, batch.image, batch.condition), task.network(x, t, batch.image, None))


@pytest.mark.parametrize("stage", ["backbone", "film"])
def test_the_model_states_the_facts_its_config_promises(make_task: MakeTask, stage: str) -> None:
    task = make_task(stage)
    assert task.facts() == family.facts(task.config)
    assert task.facts()["vlm_film_trained_stages"] == ([2, 3] if stage == "film" else [])


def test_gate_sources_pred_and_gt_train_without_a_head(make_task: MakeTask) -> None:
    for source in ("pred", "gt"):
        task = make_task(
            **{
                "model__junction_gating_config.source": source,
                "model__junction_gating_config.gate_value_in_junction": 0.0,
                "evaluate__oracle": True,
            }
        )
        assert task.network.junction is None
        found = task.loss(task.model, batch_of(task, 2), StepContext(0, 0.0, seeded(0)))
        assert torch.isfinite(found.sum)
        assert "junction" not in found.parts


def test_shard_units_are_disjoint_modules_of_the_model(make_task: MakeTask) -> None:
    task = make_task()
    units = list(task.shard_units())
    names = {id(module): name for name, module in task.model.named_modules()}
    assert len({names[id(unit)] for unit in units}) == len(units) == 10
    parameters = [id(p) for unit in units for p in unit.parameters()]
    assert len(parameters) == len(set(parameters))


def test_the_dual_network_trains_through_the_same_task(make_task: MakeTask) -> None:
    task = make_task(
        model__arch_name="filmflow_dual", model__attn_resolutions=[4], **{"model__level_attention": "linear"}
    )
    found = task.loss(task.model, batch_of(task, 2), StepContext(0, 0.0, seeded(0)))
    found.sum.backward()
    assert torch.isfinite(found.sum)
    assert [name for name, p in task.model.named_parameters() if p.grad is None] == []
