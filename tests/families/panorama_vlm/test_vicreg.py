"""Check 7: VICReg against stored values and its own laws, and what validation says of features."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import small
from torch import Tensor

from stageline.errors import ConfigError, TrainingError
from stageline.families import load_family
from stageline.families.panorama_vlm import vicreg
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, STAGES
from stageline.families.panorama_vlm.data.made import draw_room, make_room
from stageline.families.panorama_vlm.data.sets import Batch, picture_of
from stageline.families.panorama_vlm.geometry.matching import pairs
from stageline.families.panorama_vlm.model.assembly import PanoramaModel
from stageline.families.panorama_vlm.vision_loss import Matched, VisionLoss
from stageline.objectives.step import StepContext, ValidationContext
from stageline.stage import stage_config
from stageline.trainer.parameters import freeze_untrained

GOLDEN = Path(__file__).parents[2] / "golden" / "panorama" / "vicreg.npz"
NAMES = ("randn", "close", "collapsed", "correlated")
BOUNDS = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def numbers(terms: vicreg.VicregTerms) -> list[float]:
    """In the order of the stored values."""
    return [float(term.detach().double()) for term in (terms.inv, terms.var, terms.cov, terms.total)]


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
@pytest.mark.parametrize("form", ["paper", "biased_half"])
@pytest.mark.parametrize("name", NAMES)
def test_both_forms_give_the_stored_values(
    stored: dict[str, Tensor], name: str, form: vicreg.Form, dtype: torch.dtype, bound: float
) -> None:
    """Check 7."""
    found = vicreg.loss(stored[f"{name}_a"].to(dtype), stored[f"{name}_b"].to(dtype), form)
    assert found.total.dtype == dtype
    assert numbers(found) == pytest.approx(stored[f"{name}_{form}"].tolist(), abs=bound, rel=bound)


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_masked_pairs_give_the_stored_values(stored: dict[str, Tensor], dtype: torch.dtype, bound: float) -> None:
    """Check 7: statistics inside each pair of tiles, then averaged; and over all pairs together."""
    x, y, mask = stored["pair_a"].to(dtype), stored["pair_b"].to(dtype), stored["pair_mask"]
    found = vicreg.loss(x, y, "paper", mask)
    terms = stored["pair_terms"].mean(0).tolist()
    assert numbers(found) == pytest.approx([*terms, float(stored["pair_total"])], abs=bound, rel=bound)
    assert numbers(vicreg.loss(x, y, "paper", mask, statistics="per_pair")) == numbers(found)
    pooled = vicreg.loss(x, y, "paper", mask, statistics="pooled")
    assert numbers(pooled) == pytest.approx(stored["pool_terms"].tolist(), abs=bound, rel=bound)
    assert numbers(vicreg.loss(x[mask], y[mask])) == pytest.approx(numbers(pooled), rel=1e-6)


def test_terms_are_a_record_and_a_dict() -> None:
    terms = vicreg.loss(torch.randn(5, 3), torch.randn(5, 3))
    assert list(terms._asdict()) == ["total", "inv", "var", "cov"]
    assert float(terms.total) == pytest.approx(float(25 * terms.inv + 25 * terms.var + terms.cov), rel=1e-6)


def test_collapsed_vectors_cost_24_75() -> None:
    """Check 7."""
    same = torch.full((32, 8), 3.0, dtype=torch.float64)
    for form in ("paper", "biased_half"):
        assert float(vicreg.loss(same, same, form).total) == pytest.approx(24.75, abs=1e-12)  # type: ignore[arg-type]
    assert pytest.approx(24.75) == vicreg.COLLAPSED


def test_order_of_pairs_and_content_of_masked_ones_do_not_matter() -> None:
    """Check 7."""
    torch.manual_seed(0)
    x, y, order = torch.randn(40, 6).double(), torch.randn(40, 6).double(), torch.randperm(40)
    expected = numbers(vicreg.loss(x, y))
    assert numbers(vicreg.loss(x[order], y[order])) == pytest.approx(expected, rel=1e-12)
    assert numbers(vicreg.loss(x[order], y)) != pytest.approx(expected, rel=1e-3)
    mask = torch.arange(60) < 40
    waste = torch.full((20, 6), float("nan")).double()
    padded = numbers(vicreg.loss(torch.cat([x, waste]), torch.cat([y, waste]), "paper", mask))
    assert padded == pytest.approx(expected, rel=1e-12)


def test_autocast_is_off_inside() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(64, 16), torch.randn(64, 16)
    expected = numbers(vicreg.loss(x, y))
    with torch.autocast("cpu", torch.bfloat16):
        assert numbers(vicreg.loss(x, y)) == expected
        assert vicreg.loss(x.bfloat16(), y.bfloat16()).total.dtype == torch.float32


def test_what_cannot_be_computed_is_refused() -> None:
    one = torch.zeros(3, 5, 4)
    single = torch.zeros(3, 5, dtype=torch.bool)
    single[:, 0] = True
    with pytest.raises(TrainingError, match="1 pairs"):
        vicreg.loss(one, one, "paper", single, statistics="per_pair")
    with pytest.raises(TrainingError, match="0 pairs"):
        vicreg.loss(one, one, "paper", ~single & single, statistics="pooled")
    with pytest.raises(ConfigError, match="form 'unbiased'"):
        vicreg.loss(one, one, "unbiased")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"mask \(3, 4\)"):
        vicreg.loss(one, one, "paper", single[:, :4])


def test_large_sets_are_thinned_alike_on_both_sides() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 4)
    for rng in (torch.Generator().manual_seed(1), None):
        found = vicreg.loss(x, x, max_tokens=50, rng=rng)
        assert float(found.inv) == 0.0
        assert float(found.cov) != float(vicreg.loss(x, x).cov)


def test_statistics_of_raw_tokens() -> None:
    torch.manual_seed(0)
    x, y, a, b = torch.randn(4, 30, 5)
    found, paired, other = vicreg.loss(x, y, raw=(a, b)), vicreg.loss(x, y), vicreg.loss(a, b)
    assert float(found.inv) == float(paired.inv)
    assert (float(found.var), float(found.cov)) == (float(other.var), float(other.cov))
    with pytest.raises(ConfigError, match="no pairs of tiles"):
        vicreg.loss(x[None], y[None], raw=(a, b))


@pytest.mark.parametrize("form", ["paper", "biased_half"])
@pytest.mark.parametrize("statistics", ["pooled", "per_pair"])
def test_gathered_shares_sum_to_the_whole_loss(tmp_path: Path, form: str, statistics: str) -> None:
    """Ranks with other numbers of pairs have the terms of the whole batch, its projector's batch norm included, and the
    gradients of their rows add up to those of the whole."""
    torch.manual_seed(0)
    loss = VisionLoss(small(tmp_path, f"vicreg.form={form}", f"vicreg.statistics={statistics}"))
    projector, valid = vicreg.VicregProjector(6, 4), torch.rand(5, 9) > 0.3
    x, y = torch.randn(2, 5, 9, 6)
    parts = [(x[own], y[own], valid[own]) for own in (slice(0, 2), slice(2, 5))]

    def terms(mine: Tensor, rank: int | None) -> vicreg.VicregTerms:
        def gather(rows: Tensor) -> Tensor:
            """Rows of this rank between those of the other, whose own they are not."""
            if rank is None:
                return rows
            said = [(a[keep], b[keep], keep) for a, b, keep in parts]
            which = next(k for k in range(3) if torch.equal(said[rank][k].to(rows), rows.detach()))
            other = said[1 - rank][which].to(rows)
            return torch.cat([rows, other] if rank == 0 else [other, rows])

        own = (x, y, valid) if rank is None else parts[rank]
        return loss._spread(projector, Matched(mine, *own[1:]), mine, gather, torch.Generator())

    whole = x.clone().requires_grad_()
    expected = terms(whole, None)
    expected.total.backward()
    for rank, (mine, _, _) in enumerate(parts):
        own = mine.clone().requires_grad_()
        found = terms(own, rank)
        assert numbers(found) == pytest.approx(numbers(expected), rel=1e-5)
        (gradient,) = torch.autograd.grad(found.total, own)
        assert whole.grad is not None
        torch.testing.assert_close(gradient, whole.grad[(0, 2)[rank] : (2, 5)[rank]], atol=1e-6, rtol=1e-4)


def test_statistics_of_all_tokens_know_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="statistics_on raw"):
        small(tmp_path, "vicreg.statistics=per_pair", "vicreg.statistics_on=raw")


def test_thirty_steps_of_vision_lower_the_loss_without_collapse(tmp_path: Path) -> None:
    """Check 7: at 1e-3 with 384 pairs of tokens per step, from the tiny tower; 15 % at least, and the effective rank of
    its tokens stays above half of its start."""
    config = stage_config(small(tmp_path, "vicreg.anchor_weight=0"), STAGES["vision"])
    network = load_family("panorama_vlm").build_model(config, STAGES["vision"])
    assert isinstance(network, PanoramaModel)
    vision, losses = VisionLoss(config), []
    names = freeze_untrained(network, FAMILY_CONFIG.trains(config, STAGES["vision"]), "vision")
    optimizer = torch.optim.AdamW([dict(network.named_parameters())[name] for name in names], lr=1e-3)
    rooms = [picture_of(draw_room(make_room("train", number, 0)), None) for number in range(16)]

    def batch(numbers: list[int]) -> Batch:
        return Batch([rooms[number] for number in numbers], torch.arange(len(numbers)), None)

    def rank() -> float:
        with torch.no_grad():
            found = vision.measures(network, batch(list(range(4))), ValidationContext(0, (0, 1, 2, 3)))
        return float(found["effective_rank"])

    order, before = torch.Generator().manual_seed(0), rank()
    network.train()
    for step in range(30):
        chosen = torch.randperm(16, generator=order)[:4].tolist()
        total, _ = vision.terms(network, batch(chosen), StepContext(step, step / 30, order))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert int(pairs(config.image_processing.plan, config.grid).valid.sum()) * 4 == 384
    assert losses[-1] <= 0.85 * losses[0]
    assert rank() >= before / 2


def test_projector_layers() -> None:
    """Three layers, the last without bias; with each norm."""
    with torch.device("meta"):
        made = vicreg.VicregProjector(1152, 1024)
    assert sum(p.numel() for p in made.parameters()) == 1152 * 1024 + 1024 + 2 * 1024**2 + 1024 + 4 * 1024
    for norm in ("batch", "layer", "none"):
        assert vicreg.VicregProjector(6, 4, norm)(torch.randn(5, 6)).shape == (5, 4)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'group'"):
        vicreg.VicregProjector(6, 4, "group")  # type: ignore[arg-type]


def test_retrieval_finds_matches_and_chance_does_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 50, 16)
    mask = torch.rand(3, 50) > 0.3
    assert float(vicreg.pair_retrieval(x, x + 0.01 * torch.randn_like(x), mask)) == 1.0
    assert float(vicreg.pair_retrieval(x, torch.randn_like(x), mask)) < 0.15
    # A better neighbour among tokens that do not count is not looked at.
    y = x.clone()
    y[:, 0], mask[:, 0] = x[:, 1], False
    y[:, 1] = x[:, 1] + 0.1
    assert float(vicreg.pair_retrieval(x, y, mask)) == 1.0
    assert float(vicreg.pair_cosine(x[0], 3 * x[0])) == pytest.approx(1.0)


def test_effective_rank_of_known_spectra() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 8)).Q
    flat = basis - basis.mean(0)
    assert float(vicreg.effective_rank(torch.linalg.qr(flat).Q)) == pytest.approx(8, rel=0.02)
    line = torch.randn(50, 1) @ torch.randn(1, 20)
    assert float(vicreg.effective_rank(line)) == pytest.approx(1, abs=1e-3)
    assert float(vicreg.effective_rank(torch.zeros(10, 4))) == 1.0
    assert float(vicreg.feature_std(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))) == pytest.approx(math.sqrt(2) / 2)
