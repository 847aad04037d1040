"""Two ranks without a trainer: they decide alike, and their gradients are the mean of their scenes'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from stageline.families.sparse_structure.shortcut import ShortCut, ShortCutDraws

from .toy import Network, condition, data

STEPS = 8


def train_as(rank: int, folder: str) -> None:
    """One of two ranks: the gradients after each step, and what was drawn for it."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)
    network = Network()
    wrapped = DistributedDataParallel(network)
    model = ShortCut(network, batch_mode=True, self_consistency_prob=0.5)
    kept = []
    for step in range(STEPS):
        x1, cond = data(3, seed=2 * step + rank), condition(3, seed=2 * step + rank)
        draws = model.sample_draws(x1)
        network.zero_grad()
        total, _ = model.loss_from_draws(x1, draws, cond, reverse_fn=wrapped)
        total.backward()
        gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        kept.append((vars(draws), gradients))
    torch.save(kept, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_draw_one_branch_and_average_their_scenes(tmp_path: Path) -> None:
    """Check 16: coins equal on both, noise not; gradients equal those of one process over the same two scenes."""
    torch.multiprocessing.spawn(train_as, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    branches = set()
    for step in range(STEPS):
        network = Network()
        for rank in range(2):
            draws = ShortCutDraws(**ranks[rank][step][0])
            x1, cond = data(3, seed=2 * step + rank), condition(3, seed=2 * step + rank)
            total, _ = ShortCut(network, batch_mode=True).loss_from_draws(x1, draws, cond)
            (total / 2).backward()
        expected = {name: p.grad for name, p in network.named_parameters()}
        first, second = (rank[step] for rank in ranks)
        assert_close(first[1], expected, rtol=1e-6, atol=1e-9)
        assert_close(second[1], first[1], rtol=0, atol=0)
        assert first[0]["n_cfg"] == second[0]["n_cfg"]
        assert bool(first[0]["h"][0] > 0) == bool(second[0]["h"][0] > 0)
        assert not torch.equal(first[0]["t"], second[0]["t"])
        branches.add(bool(first[0]["h"][0] > 0))
    assert branches == {False, True}
