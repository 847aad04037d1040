"""Scenes over two ranks: whole weights and shards train alike, whatever branch the coins choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

from stageline.checkpoint.layout import resolve
from stageline.checkpoint.tensors import read_tensors
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage

from .runs import below, equal, small, trained

STEPS = 50
"""Of the objective's branches, which ask the network once, three or five times, each comes many times."""


@pytest.mark.slow
@pytest.mark.ranks
def test_shards_and_whole_weights_train_alike_on_scenes(
    tmp_path: Path,
) -> None:
    """Ranks that asked the network differently often would wait for each other for ever."""
    root = tmp_path / "root"

    def parents_of(_: int) -> dict[str, str]:
        return {stage: ref.uri for stage, ref in trained(small(root), "shape_vae", "sparse_flow").items()}

    # In a process of its own: threads of autograd do not survive a fork.
    (before,) = run_ranks(parents_of, 1, tmp_path / "parents")
    assert before.code == 0, before
    chain = {stage: resolve(uri) for stage, uri in before.value.items()}
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
