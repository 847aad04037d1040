"""Two ranks give what one gives: DDP and FSDP2, unequal weights, ranks without a sample, sharded checkpoints."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import free_port, run_ranks

from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.tensors import join_shards, load_state, read_named, read_tensors
from stageline.checkpoint.verify import verify
from stageline.telemetry import MetricsEndpoint, read_events

# 21 samples in groups of 8: the last step of an epoch has 5, whose second micro-batch has 1 sample for 2 ranks.
SETTINGS = {
    "data.num_train": 21,
    "trainer.max_steps": 7,
    "trainer.weight_decay": 0.0,
    "trainer.gradient_clip_val": 0.5,
    "trainer.validate_every_steps": 3,
    "trainer.checkpoint_every_steps": 4,
}
ONE = {**SETTINGS, "trainer.batch_size": 4}
TWO = {**SETTINGS, "trainer.batch_size": 2, "trainer.processes": 2}


def final(root: Path, run: str, stage: str = "base") -> CheckpointRef:
    ref = StageDir(str(root), run, stage).newest()
    assert ref is not None
    assert ref.metadata.final
    assert verify(ref) == []
    return ref


def curves(root: Path, run: str, stage: str = "base") -> list[dict[str, Any]]:
    """What each step and validation said about the mathematics."""
    events = read_events(StageDir(str(root), run, stage).store)
    return [
        {"loss": e["loss"], "norm": e["gradient_norm"], **e["parts"]} if e["event"] == "step" else e["metrics"]
        for e in events
        if e["event"] in ("step", "validation")
    ]


def assert_same_training(
    root: Path, run: str, other: str, stage: str = "base", *, rel: float = 2e-5, atol: float = 1e-4
) -> None:
    for a, b in zip(curves(root, run, stage), curves(root, other, stage), strict=True):
        assert a == pytest.approx(b, rel=rel)
    for weights in ("raw", "ema"):
        one, two = (read_tensors(final(root, name, stage), weights) for name in (run, other))
        assert one.keys() == two.keys()
        for name in one:
            # Adam divides by small numbers in its first steps: rounding in the gradient shows.
            torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=atol)


def test_micro_batches_do_not_change_the_result(train, tmp_path):
    train(run="whole", **{**ONE, "trainer.batch_size": 8, "trainer.accumulate_grad_batches": 1})
    for batch_size, accumulate in ((4, 2), (1, 8)):
        settings = {**ONE, "trainer.batch_size": batch_size, "trainer.accumulate_grad_batches": accumulate}
        train(run=f"parts-{accumulate}", **settings)
        assert_same_training(tmp_path, "whole", f"parts-{accumulate}")


def test_two_ranks_equal_one(train, tmp_path):
    train(run="one", **ONE)
    ends = run_ranks(lambda _: train(run="ddp", **TWO).metrics, 2, tmp_path / "ddp")
    assert [end.code for end in ends] == [0, 0], ends
    assert ends[0].value == ends[1].value
    assert_same_training(tmp_path, "one", "ddp")


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_on_two_nodes_are_those_of_one_machine_bit_for_bit(train, tmp_path):
    spread = {**TWO, "trainer.processes": 1, "trainer.nodes": 2}
    for run, settings in (("together", TWO), ("spread", spread)):
        ends = run_ranks(lambda _, run=run, settings=settings: train(run=run, **settings).step, 2, tmp_path / run)
        assert [end.code for end in ends] == [0, 0], ends
    together, apart = final(tmp_path, "together"), final(tmp_path, "spread")
    assert together.content == apart.content
    assert together.metadata.stage_fingerprint == apart.metadata.stage_fingerprint


@pytest.mark.slow
@pytest.mark.ranks
def test_every_node_serves_metrics_and_the_first_alone_those_of_the_stage(train, tmp_path):
    from toy_family import family

    port = free_port()

    def body(rank):
        pages, address = [], f"127.0.0.{rank + 1}"  # two nodes have an address each
        assert MetricsEndpoint.__init__.__kwdefaults__["address"] == "0.0.0.0"  # noqa: S104  # of a pod
        MetricsEndpoint.__init__.__kwdefaults__["address"] = address
        os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", GROUP_RANK=str(rank))

        def scrape(task):
            def on_loss(summed, context):
                if context.step == 3:
                    with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=10) as page:
                        pages.append(page.read().decode())
                return summed

            task.on_loss = on_loss

        family.CHANGE[:] = [scrape]
        own = {"trainer.processes": 1, "trainer.nodes": 2, "trainer.metrics_port": port}
        train(run="served", **{**TWO, **own})
        return pages[0]

    ends = run_ranks(body, 2, tmp_path / "served")
    assert [end.code for end in ends] == [0, 0], ends
    first, other = (end.value for end in ends)
    for page in (first, other):
        assert 'stageline_step_duration_seconds_count{family="toy",stage="base"} 3.0' in page
    assert "stageline_planned_steps" in first
    assert "stageline_planned_steps" not in other


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_sharded_model_equals_one_rank_and_loads_plain(train, tmp_path, optimizer):
    from toy_family import family
    from toy_family.model import ToyModel

    # Muon computes in bfloat16, which makes more of rounding in gradients.
    bounds = {"rel": 2e-3, "atol": 2e-3} if optimizer == "muon" else {}
    plainly = {**TWO, "trainer.optimizer": optimizer}
    sharded = {**plainly, "trainer.strategy": "fsdp2"}
    train(run="one", **{**ONE, "trainer.optimizer": optimizer})
    ends = run_ranks(lambda _: train(run="fsdp", **sharded).step, 2, tmp_path / "fsdp")
    assert [end.code for end in ends] == [0, 0], ends
    assert_same_training(tmp_path, "one", "fsdp", **bounds)
    ref = final(tmp_path, "fsdp")
    assert ref.metadata.is_sharded
    assert not [info.key for info in ref.store.list() if not info.key.endswith((".safetensors", ".json", ".yaml"))]
    plain = ToyModel()
    names = load_state(plain, read_tensors(ref, "ema"), where=ref.uri)
    assert len(names) == len(plain.state_dict())

    def stop(task: Any) -> None:
        """In step 6, whose validation is put off: it is the first thing that runs when the stage goes on."""

        def on_loss(summed: Any, context: Any) -> Any:
            if context.step == 5 and os.environ["RANK"] == "0":
                os.kill(os.getpid(), signal.SIGTERM)
            return summed

        task.on_loss = on_loss

    family.CHANGE[:] = [stop]
    ends = run_ranks(lambda _: train(run="stopped", **sharded).step, 2, tmp_path / "stopped")
    assert [end.code for end in ends] == [143, 143], ends
    family.CHANGE.clear()
    ends = run_ranks(lambda _: train(run="stopped", **sharded).action, 2, tmp_path / "stopped")
    assert [end.value for end in ends] == ["continue"] * 2, ends
    again = final(tmp_path, "stopped")
    for group in ("model", "ema", "training/optimizer"):
        one, two = join_shards(ref, group), join_shards(again, group)
        assert all(torch.equal(one[name], two[name]) for name in one), group

    # Strategy is operational: a checkpoint of DDP goes on under FSDP2 and back.
    family.CHANGE[:] = [stop]
    ends = run_ranks(lambda _: train(run="mixed", **plainly).step, 2, tmp_path / "mixed")
    assert [end.code for end in ends] == [143, 143], ends
    family.CHANGE.clear()
    ends = run_ranks(lambda _: train(run="mixed", **sharded).action, 2, tmp_path / "mixed")
    assert [end.value for end in ends] == ["continue"] * 2, ends
    assert_same_training(tmp_path, "one", "mixed", **bounds)
    whole = StageDir(str(tmp_path), "mixed", "base").committed()[0]
    if not whole.metadata.is_sharded:
        assert read_named(whole, "training/optimizer.safetensors", "training/optimizer", "training")


def test_ranks_with_different_configs_are_refused(train, tmp_path):
    def body(rank: int) -> Any:
        return train(run="differ", **{**TWO, "trainer.log_every_steps": 1 + rank}).step

    ends = run_ranks(body, 2, tmp_path / "differ")
    assert [end.code for end in ends] == [2, 2], ends
    assert "differs among ranks, rank 0 -> rank 1: trainer.log_every_steps: 1 -> 2" in ends[0].output


@pytest.mark.slow
@pytest.mark.ranks
def test_a_rank_started_alone_after_the_end_finds_it(train, tmp_path, monkeypatch):
    ends = run_ranks(lambda _: train(run="done", **TWO).step, 2, tmp_path / "done")
    assert [end.code for end in ends] == [0, 0], ends
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert train(run="done", **TWO).action == "reuse"


@pytest.mark.slow
@pytest.mark.ranks
def test_shards_in_bf16(train, tmp_path):
    settings = {**TWO, "trainer.strategy": "fsdp2", "trainer.precision": "bf16-mixed"}
    ends = run_ranks(lambda _: train(run="bf16", **settings).step, 2, tmp_path / "bf16")
    assert [end.code for end in ends] == [0, 0], ends
    assert {tensor.dtype for tensor in read_tensors(final(tmp_path, "bf16")).values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_of_a_gathered_loss_equal_one_with_the_double_batch(train, tmp_path):
    """A variance over the batch is no sum over samples: it is right only where every rank sees all of it."""
    settings = {**SETTINGS, "trainer.accumulate_grad_batches": 1, "trainer.max_steps": 6}
    train("even", run="one", **{**settings, "trainer.batch_size": 8})
    two = {**settings, "trainer.batch_size": 4, "trainer.processes": 2}
    ends = run_ranks(lambda _: train("even", run="two", **two).metrics, 2, tmp_path / "two")
    assert [end.code for end in ends] == [0, 0], ends
    assert_same_training(tmp_path, "one", "two", stage="even")
    # 21 samples in groups of 8: the third is incomplete and left out, so that every second step ends an epoch.
    events = read_events(StageDir(str(tmp_path), "two", "even").store)
    assert [(e["epoch"], e["num_samples"]) for e in events if e["event"] == "step"] == [
        (n, 8) for n in (0, 1, 1, 2, 2, 3)
    ]
    alone = {**settings, "trainer.batch_size": 4}
    train("even", run="half", **alone)
    losses = [curves(tmp_path, run, "even")[0]["loss"] for run in ("one", "half")]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_gathered_rows_have_the_gradient_of_one_process(tmp_path):
    """Also where ranks have different numbers of rows."""
    from stageline.config import TrainerConfig
    from stageline.trainer.ranks import Ranks

    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    whole = rows.clone().requires_grad_()
    whole.var(dim=0).log().sum().backward()
    assert whole.grad is not None
    settings = TrainerConfig(processes=2, accelerator="cpu")

    def body(rank: int) -> Any:
        ranks = Ranks(settings)
        own = (rows[:2] if rank == 0 else rows[2:]).clone().requires_grad_()
        gathered = ranks.gather_rows(own)
        assert torch.equal(gathered.detach(), rows)
        (gathered.var(dim=0).log().sum() / 2).backward()
        assert own.grad is not None
        ranks.close()
        return own.grad.tolist()

    ends = run_ranks(body, 2, tmp_path / "rows")
    assert [end.code for end in ends] == [0, 0], ends
    torch.testing.assert_close(torch.tensor(ends[0].value + ends[1].value), whole.grad)


@pytest.mark.slow
@pytest.mark.ranks
def test_the_shared_generator_is_equal_on_all_ranks_and_the_own_one_is_not(train, tmp_path):
    from toy_family import family

    def body(rank: int) -> Any:
        seen: list[list[float]] = []

        def watch(task: Any) -> None:
            def on_loss(summed: Any, context: Any) -> Any:
                draws = [float(torch.rand((), generator=g)) for g in (context.shared, context.rng)]
                seen.append([context.step, context.micro, *draws])
                return summed

            task.on_loss = on_loss

        family.CHANGE[:] = [watch]
        train(run="draws", **{**TWO, "trainer.max_steps": 2})
        return seen

    one, two = (end.value for end in run_ranks(body, 2, tmp_path / "draws"))
    assert [row[:3] for row in one] == [row[:3] for row in two]
    draws = [row[2] for row in one] + [row[3] for row in one + two]
    assert len(set(draws)) == 3 * len(one)
    assert [row[:2] for row in one] == [[0, 0], [0, 1], [1, 0], [1, 1]]


LEFT_BEHIND = {
    "slurm": {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "4", "SLURM_PROCID": "2",
              "SLURM_LOCALID": "2", "SLURM_NODEID": "1", "SLURM_NODELIST": "n[1-2]"},
    "lsf": {"LSB_JOBID": "7", "LSB_HOSTS": "n0 n1 n2", "LSB_DJOB_RANKFILE": "/nowhere", "JSM_NAMESPACE_LOCAL_RANK": "1",
            "JSM_NAMESPACE_SIZE": "4", "JSM_NAMESPACE_RANK": "1"},
    "mpi": {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "PMI_SIZE": "4", "PMI_RANK": "2"},
}  # fmt: skip
"""What the shells of schedulers leave in the environment of everything that is started from them."""


@pytest.mark.parametrize("scheduler", LEFT_BEHIND)
def test_what_a_scheduler_left_in_the_environment_changes_nothing(monkeypatch, scheduler):
    from stageline.config import TrainerConfig
    from stageline.trainer.ranks import Ranks

    for name, value in LEFT_BEHIND[scheduler].items():
        monkeypatch.setenv(name, value)
    ranks = Ranks(TrainerConfig(accelerator="cpu"))
    assert (ranks.rank, ranks.size, ranks.fabric.local_rank, ranks.fabric.node_rank) == (0, 1, 0, 0)
