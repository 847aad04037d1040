"""Scenes over two ranks: whole weights and shards train alike, whatever the coins choose, and as one rank does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny_run import built_by
from torch.optim.optimizer import register_optimizer_step_pre_hook

from stageline.checkpoint.layout import CheckpointRef, StageDir, resolve
from stageline.checkpoint.tensors import read_tensors
from stageline.families.sparse_structure.shortcut import ShortCutDraws
from stageline.telemetry import read_events
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

from .runs import below, equal, small, trained

STEPS = 50
"""Of the objective's branches, which ask the network once, three or five times, each comes many times."""


@dataclass(frozen=True)
class Before:
    """What was trained before. chain: stage -> its last checkpoint, of which the scene's branch is awake."""

    root: Path
    chain: dict[str, CheckpointRef]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Before:
    folder = tmp_path_factory.mktemp("ranks")
    config = small(folder / "root", "stage_overrides.global_flow.trainer.max_steps=4")

    def parents_of(_: int) -> dict[str, str]:
        return {name: ref.uri for name, ref in trained(config, "shape_vae", "sparse_flow", "global_flow").items()}

    # In a process of its own: threads of autograd do not survive a fork.
    (end,) = run_ranks(parents_of, 1, folder / "parents")
    assert end.code == 0, end
    return Before(folder / "root", {stage: resolve(uri) for stage, uri in end.value.items()})


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_with_two_scenes_are_one_with_all_four(before: Before, tmp_path: Path) -> None:
    """What two ranks drew is kept, and one process takes it up again, scene by scene: the same losses and gradients.

    Coins are equal per micro-batch and differ between the two of the step, noise is each rank's own.
    """
    parents = [
        f"parents.global_flow.{r}={before.chain[s].uri}" for r, s in (("vae", "shape_vae"), ("sparse", "global_flow"))
    ]

    def config(ranks: int) -> Any:
        own = ("trainer.max_steps=1", "trainer.batch_size=1", f"trainer.accumulate_grad_batches={4 // ranks}")
        own += (f"trainer.processes={ranks}", "trainer.gradient_clip_val=0", "trainer.log_every_steps=1")
        own += ("objective.self_consistency_prob=0.5", "objective.ratio_cfg_samples_in_self_consistency_target=1.0")
        return small(before.root, "stages=[global_flow]", *parents, *own, run=f"of-{ranks}")

    data = str(prepare_data(config(2)).reference)

    def train(ranks: int, rank: int) -> list[dict[str, Any]]:
        """As one of `ranks`: what each micro-batch came to. Draws and gradients go to files."""
        told: list[dict[str, Any]] = []

        def watching(build: Any) -> Any:
            def built(own: Any, stage: Any, prepared: Any) -> Any:
                task = build(own, stage, prepared)
                loss, sample = task.loss, task.shortcut.sample_draws

                def drawn(scene: str, *given: Any, **more: Any) -> ShortCutDraws:
                    file = tmp_path / f"{scene}.pt"
                    if ranks == 2:
                        torch.save(vars(sample(*given, **more)), file)
                    return ShortCutDraws(**torch.load(file, weights_only=True))

                def watched(model: Any, batch: Any, context: Any) -> Any:
                    (scene,) = batch["scene_id"]
                    task.shortcut.sample_draws = lambda *given, **more: drawn(scene, *given, **more)
                    found = loss(model, batch, context)
                    task.shortcut.sample_draws = sample  # validation draws by itself
                    told.append({"scene": scene, "micro": context.micro, "loss": found.sum.item(), "of": found.weight})
                    return found

                def kept(*_: Any) -> None:
                    gradients = {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}
                    torch.save(gradients, tmp_path / f"gradients-{ranks}-{rank}.pt")

                task.loss = watched
                register_optimizer_step_pre_hook(kept)
                return task

            return built

        with built_by("sparse_structure", watching):
            train_stage(config(ranks), "global_flow", data=data)
        return told

    both = run_ranks(lambda rank: train(2, rank), 2, tmp_path / "two")
    alone = run_ranks(lambda rank: train(1, rank), 1, tmp_path / "one")
    assert [end.code for end in (*both, *alone)] == [0, 0, 0], (both, alone)
    rows = {row["scene"]: row for end in both for row in end.value}
    assert len(rows) == 4
    assert {row["scene"]: row["loss"] for row in alone[0].value} == pytest.approx(
        {scene: row["loss"] for scene, row in rows.items()}, rel=1e-5
    )
    losses = [
        next(
            e["loss"]
            for e in read_events(StageDir(str(before.root), f"of-{n}", "global_flow").store)
            if e["event"] == "step"
        )
        for n in (1, 2)
    ]
    mean = sum(row["loss"] for row in rows.values()) / sum(row["of"] for row in rows.values())
    assert losses == pytest.approx([mean, mean], rel=1e-5)
    one, *two = (torch.load(tmp_path / f"gradients-{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    assert all(float(gradient.abs().max()) > 0 for gradient in one.values())
    assert all(name.startswith("global_sparse_flow.") for name in one)
    torch.testing.assert_close(two[0], two[1], rtol=0, atol=0)
    torch.testing.assert_close(two[0], one, rtol=1e-4, atol=1e-7)
    found: Any = {scene: torch.load(tmp_path / f"{scene}.pt", weights_only=True) for scene in rows}
    branches = []
    for micro in (0, 1):
        first, second = (found[row["scene"]] for row in rows.values() if row["micro"] == micro)
        coins = [(bool(d["h"][0] > 0), d["n_cfg"] > 0, d["use_fm_target"], d["unconditional"]) for d in (first, second)]
        assert coins[0] == coins[1]
        assert not torch.equal(first["x0"]["shape"][0], second["x0"]["shape"][0])
        assert first["t"][0] != second["t"][0]
        branches.append(coins[0][0])
    assert set(branches) == {False, True}


@pytest.mark.slow
@pytest.mark.ranks
def test_shards_and_whole_weights_train_alike_on_scenes(before: Before, tmp_path: Path) -> None:
    """Ranks that asked the network differently often would wait for each other for ever."""
    root, chain = before.root, before.chain
    parents = [f"parents.global_flow.{r}={chain[s].uri}" for r, s in (("vae", "shape_vae"), ("sparse", "sparse_flow"))]
    own = [f"trainer.max_steps={STEPS}", "trainer.processes=2", "trainer.batch_size=1", "data.num_train=4"]
    own += ["objective.self_consistency_prob=0.5", "objective.ratio_cfg_samples_in_self_consistency_target=0.5"]

    def config(strategy: str) -> Any:
        return small(
            root, "stages=[global_flow]", f"trainer.strategy={strategy}", *parents, *own, run=f"two-{strategy}"
        )

    data = str(prepare_data(config("ddp")).reference)
    found, frozen = {}, below(read_tensors(chain["sparse_flow"], "ema"), "sparse_flow.")
    for strategy in ("ddp", "fsdp2"):
        ends = run_ranks(
            lambda _, s=strategy: str(train_stage(config(s), "global_flow", data=data).reference),
            2,
            tmp_path / strategy,
        )
        assert [end.code for end in ends] == [0, 0], ends
        assert ends[0].value == ends[1].value
        found[strategy] = read_tensors(resolve(ends[0].value, prefer="last"), "raw")
        assert equal(below(found[strategy], "sparse_flow."), frozen)
    moved = read_tensors(resolve(ends[0].value, prefer="last"), "raw")
    assert float(moved["global_sparse_flow.latent_mapping.shape.out_layer.weight"].abs().max()) > 0
    for name, tensor in found["ddp"].items():
        torch.testing.assert_close(found["fsdp2"][name], tensor, rtol=1e-3, atol=1e-4, msg=name)
