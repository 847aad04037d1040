"""The stages of one tiny run: what trains and what keeps its bits, and how steps may be split."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from runs import CHAIN, small, trained
from safetensors.torch import load_file

from stageline.checkpoint.layout import CheckpointRef
from stageline.checkpoint.tensors import read_tensors
from stageline.errors import StagelineError
from stageline.families import load_family
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, STAGES
from stageline.families.panorama_vlm.model.assembly import PanoramaModel
from stageline.families.panorama_vlm.task import VisionTask
from stageline.families.panorama_vlm.vision_loss import _recoloured
from stageline.stage import stage_config
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("panoramas")


@pytest.fixture(scope="module")
def chain(root: Path) -> dict[str, CheckpointRef]:
    """The three stages of a run, five steps each."""
    return trained(small(root))


def start_of(root: Path, stage: str) -> dict[str, torch.Tensor]:
    own = stage_config(small(root), STAGES[stage])
    return dict(load_family("panorama_vlm").build_model(own, STAGES[stage]).state_dict())


@pytest.mark.parametrize("stage", CHAIN)
def test_what_changed_is_what_the_stage_declares(root: Path, chain: dict[str, CheckpointRef], stage: str) -> None:
    """Check 13: five steps change every declared parameter and no other; adapters have left zero."""
    config = small(root)
    start = start_of(root, stage)
    if stage != "vision":
        before = read_tensors(chain[CHAIN[CHAIN.index(stage) - 1]], "raw")
        start |= {name: value for name, value in before.items() if name in start}
    after = read_tensors(chain[stage], "raw")
    own = stage_config(config, STAGES[stage])
    model = load_family("panorama_vlm").build_model(own, STAGES[stage])
    parameters = [name for name, _ in model.named_parameters()]
    trains = FAMILY_CONFIG.trains(own, STAGES[stage])
    changed = {name for name in parameters if name in after and not torch.equal(start[name], after[name])}
    assert changed == {name for name in parameters if trains.matches(name)}
    if stage == "finetune":
        sides = [value for name, value in after.items() if ".lora_B." in name]
        assert len(sides) == 2 * len(config.lora.target_modules)
        assert all(float(side.norm()) > 0 for side in sides)


def test_a_step_may_be_split(root: Path, tmp_path: Path, chain: dict[str, CheckpointRef]) -> None:
    """Check 12: a batch of 8, and 8 batches of 1, are the same update."""
    del chain
    found = []
    for run, size in (("whole", 8), ("split", 1)):
        keys = (f"trainer.batch_size={size}", f"trainer.accumulate_grad_batches={8 // size}", "trainer.max_steps=1")
        config = small(root, *keys, "stages=[resampler]", "parents.resampler.default=none", run=run)
        found.append(read_tensors(trained(config)["resampler"], "raw"))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=0, msg=name)


def test_cached_features_change_nothing(
    root: Path, chain: dict[str, CheckpointRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features of the frozen tower are the same in each step, kept or not, and computed once for all runs."""
    data, encoded = str(prepare_data(small(root)).reference), []
    encode = PanoramaModel.encode
    monkeypatch.setattr(PanoramaModel, "encode", lambda *given: encoded.append(len(given[1])) or encode(*given))
    found, counts = [], []
    for run, cached in (("computed", "false"), ("cached", "true"), ("again", "true")):
        keys = ("trainer.max_steps=10", "stages=[resampler]", f"runtime.cache_vision_features={cached}")
        own = small(root, *keys, f"parents.resampler.default={chain['vision'].uri}", "seed=1", run=run)
        found.append(train_stage(own, "resampler", data=data).metrics["val_loss"])
        counts.append(sum(encoded))
        encoded.clear()
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[1] == found[2]
    assert counts[0] > 6 >= counts[1], "four pictures to train on and two to validate with"
    assert counts[2] == 0


def test_without_overlap_vision_trains_on_turned_tiles(tmp_path: Path) -> None:
    """Check 6: adjacent pairs are refused by the plan's name; global and jitter train; by default vision is reused."""
    overlap0 = "image_processing.overlap_ratio=0"
    assert [stage.name for stage in FAMILY_CONFIG.selected(small(tmp_path, overlap0))] == ["resampler", "finetune"]
    with pytest.raises(StagelineError, match="4x90"):
        trained(small(tmp_path, overlap0, "stages=[vision]", "vicreg.pairs=[adjacent]"))
    keys = (overlap0, "stages=[vision]", "vicreg.pairs=[global,jitter]", "trainer.max_steps=2")
    found = trained(small(tmp_path, *keys, run="turned"))
    assert found["vision"].metadata.facts["vicreg"]["pairs"] == ["global", "jitter"]


def test_a_loss_that_is_no_number_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check 12: losses that are no numbers fail the stage, and nothing is best."""
    loss = VisionTask.loss

    def broken(self: VisionTask, model: Any, batch: Any, context: Any) -> Any:
        found = loss(self, model, batch, context)
        return type(found)(found.sum * math.nan, found.weight, found.parts)

    monkeypatch.setattr(VisionTask, "loss", broken)
    with pytest.raises(StagelineError) as error:
        trained(small(tmp_path, "trainer.max_steps=8"), "vision")
    assert error.value.exit_code != 0
    assert not list((tmp_path / "runs").rglob("best.ckpt"))


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("form", ["paper", "biased_half"])
@pytest.mark.parametrize("statistics", ["pooled", "per_pair"])
def test_two_ranks_of_vision_are_one_with_twice_the_batch(tmp_path: Path, statistics: str, form: str) -> None:
    """The loss gathers tokens before the projector, so statistics and update are those of the whole batch."""
    shared = ("trainer.max_steps=1", "stages=[vision]", f"vicreg.statistics={statistics}", f"vicreg.form={form}")
    one = small(tmp_path, "trainer.batch_size=4", *shared, run="one")
    two = small(tmp_path, "trainer.batch_size=2", "trainer.processes=2", *shared, run="two")
    data = str(prepare_data(one).reference)
    train_stage(one, "vision", data=data)

    def body(rank: int) -> float:
        del rank
        return float(train_stage(two, "vision", data=data).metrics["val_loss"])

    ends = run_ranks(body, 2, tmp_path / "ranks")
    assert [end.code for end in ends] == [0, 0], ends
    whole, halves = (first_gradient(tmp_path / "runs" / run) for run in ("one", "two"))
    assert whole.keys() == halves.keys()
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_with_shards_need_the_frozen_tower_at_different_times(tmp_path: Path) -> None:
    """FSDP2: each rank computes the features of its own pictures, and the loss is that of one rank."""
    keys = ("stages=[resampler]", "trainer.max_steps=6")
    one = small(tmp_path, *keys, "trainer.batch_size=4", run="one")
    two = small(tmp_path, *keys, "trainer.batch_size=2", "trainer.processes=2", "trainer.strategy=fsdp2", run="two")
    data = str(prepare_data(one).reference)

    def body(rank: int) -> float:
        del rank
        return float(train_stage(two, "resampler", data=data).metrics["val_loss"])

    ends = run_ranks(body, 2, tmp_path / "ranks")
    assert [end.code for end in ends] == [0, 0], ends
    (alone,) = run_ranks(lambda _: float(train_stage(one, "resampler", data=data).metrics["val_loss"]), 1, tmp_path)
    assert ends[0].value == pytest.approx(alone.value, abs=1e-5)


def first_gradient(run: Path) -> dict[str, torch.Tensor]:
    """What a step's gradient left in the optimizer, and the running statistics of the projector."""
    (moments,) = run.rglob("training/optimizer.safetensors")
    found = {name: value for name, value in load_file(moments).items() if name.startswith("exp_avg/")}
    tensors = load_file(moments.parents[1] / "model.safetensors")
    return found | {name: value for name, value in tensors.items() if ".running_" in name}


def test_colours_change_as_far_as_the_setting_says() -> None:
    """Brightness and contrast together move a pixel by at most the strength times what either can."""
    views = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4

    def changed(strength: float) -> torch.Tensor:
        return _recoloured(views, [torch.Generator().manual_seed(n) for n in (1, 2)], strength) - views

    assert float(changed(1e-9).abs().max()) < 1e-6
    weak, strong = changed(0.05), changed(0.2)
    torch.testing.assert_close(strong, 4 * weak)
    assert not torch.equal(strong[0], strong[1])
