"""The stages of one tiny run: what trains and what keeps its bits, and how steps may be split."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from guards import HANG_SECONDS
from ranks import run_ranks
from runs import CHAIN, SMALL, small, trained
from safetensors.torch import load_file, save_file
from tiny_run import Build, built_by
from torch import nn

from stageline.checkpoint.layout import CheckpointRef, StageDir
from stageline.checkpoint.tensors import read_tensors
from stageline.cli import main
from stageline.errors import StagelineError, TrainingError
from stageline.families import raw_preset
from stageline.families.panorama_vlm.config import FAMILY_CONFIG, STAGES
from stageline.families.panorama_vlm.model.assembly import PanoramaModel, build_language
from stageline.families.panorama_vlm.model.language import base_name
from stageline.families.panorama_vlm.task import VisionTask
from stageline.families.panorama_vlm.vision_loss import _recoloured
from stageline.stage import Stage, stage_config
from stageline.telemetry import read_events, read_failure
from stageline.verbs.prepare import prepare_data
from stageline.verbs.train import train_stage


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("panoramas")


@dataclass
class Trained:
    """A stage that was trained.

    ref: its last checkpoint.  network: its model.  before: every tensor of the model before the first step.
    """

    ref: CheckpointRef
    network: nn.Module
    before: dict[str, torch.Tensor]

    @property
    def after(self) -> dict[str, torch.Tensor]:
        """Every tensor of the model after the last step."""
        return self.network.state_dict()


@pytest.fixture(scope="module")
def chain(root: Path) -> dict[str, Trained]:
    """The three stages of a run, five steps each."""
    config, found = small(root), {}
    seen: list[tuple[nn.Module, dict[str, torch.Tensor]]] = []

    def watching(build: Build) -> Build:
        def watched(own: Any, stage: Stage, data: Any) -> Any:
            task = build(own, stage, data)
            loss = task.loss

            def at_start(model: Any, batch: Any, context: Any) -> Any:
                if context.step == 0:
                    seen.append((task.network, {n: v.clone() for n, v in task.network.state_dict().items()}))
                return loss(model, batch, context)

            task.loss = at_start
            return task

        return watched

    for stage in CHAIN:
        with built_by("panorama_vlm", watching):
            ref = trained(config, stage)[stage]
        found[stage] = Trained(ref, *seen.pop())
        assert not seen
    return found


@pytest.mark.parametrize("stage", CHAIN)
def test_what_changed_is_what_the_stage_declares(root: Path, chain: dict[str, Trained], stage: str) -> None:
    """Check 13: five steps change every declared parameter and no other; adapters have left zero. Beside parameters
    only the statistics of the projector's norms move."""
    config, made = small(root), chain[stage]
    trains = FAMILY_CONFIG.trains(stage_config(config, STAGES[stage]), STAGES[stage])
    after, parameters = made.after, {name for name, _ in made.network.named_parameters()}
    assert after.keys() == made.before.keys()
    changed = {name for name, value in after.items() if not torch.equal(made.before[name], value)}
    assert changed & parameters == {name for name in parameters if trains.matches(name)}
    assert all(name.startswith("projector.") for name in changed - parameters)
    if stage == "finetune":
        sides = [value for name, value in after.items() if ".lora_B." in name]
        assert len(sides) == 2 * len(config.lora.target_modules)
        assert all(float(side.norm()) > 0 for side in sides)
    stored = read_tensors(made.ref, "raw")
    assert {name for name in parameters if trains.matches(name)} <= stored.keys()
    assert all(torch.equal(after[name], value) for name, value in stored.items())


def test_frozen_parts_keep_their_bits_through_all_stages(root: Path, chain: dict[str, Trained]) -> None:
    """Check 13: the language model is its source's after every stage, the tower stage `vision`'s after the others."""
    source = build_language(stage_config(small(root), STAGES["finetune"])).state_dict()
    assert "language" not in {name.partition(".")[0] for name in chain["vision"].after}
    tower = {name: value for name, value in chain["vision"].after.items() if name.startswith("vision.")}
    for stage in CHAIN[1:]:
        after = chain[stage].after
        base = {base_name(n.removeprefix("language.")): v for n, v in after.items() if n.startswith("language.")}
        base = {name: value for name, value in base.items() if ".lora_" not in name}
        assert base.keys() == source.keys()
        assert all(torch.equal(base[name], value) for name, value in source.items())
        assert {name for name in after if name.startswith("vision.")} == tower.keys()
        assert all(torch.equal(after[name], value) for name, value in tower.items())


PLAIN_PEFT = """
import sys
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

base, adapters, given, answer = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapters).eval()
with torch.no_grad():
    tuned = model(input_ids=load_file(given)["ids"]).logits
    with model.disable_adapter():
        plain = model(input_ids=load_file(given)["ids"]).logits
# torch itself loads the entry point of our rendezvous; nothing else of ours has a part in this.
entry = {"stageline", "stageline.public_names", "stageline.trainer", "stageline.trainer.torchrun"}
assert {name for name in sys.modules if name.partition(".")[0] == "stageline"} <= entry
save_file({"tuned": tuned, "plain": plain}, answer)
"""


@pytest.mark.slow
def test_adapters_are_read_by_plain_peft_in_a_new_process(
    root: Path, chain: dict[str, Trained], tmp_path: Path
) -> None:
    """Check 13: `lora_weights/` of the checkpoint beside the language model alone: the same logits to 1e-6."""
    own = stage_config(small(root), STAGES["finetune"])
    build_language(own).save_pretrained(str(tmp_path / "base"))  # type: ignore[operator]
    ids = torch.randint(own.model.language.vocab_size, (2, 30), generator=torch.Generator().manual_seed(0))
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    folder = Path(chain["finetune"].ref.uri.removeprefix("file://")) / "lora_weights"
    paths = [str(path) for path in (tmp_path / "base", folder, tmp_path / "ids.safetensors", tmp_path / "answer")]
    subprocess.run([sys.executable, "-c", PLAIN_PEFT, *paths], check=True, cwd=tmp_path, timeout=HANG_SECONDS)
    found, language = load_file(paths[-1]), chain["finetune"].network.language
    assert isinstance(language, nn.Module)
    with torch.no_grad():
        ours = language.eval()(input_ids=ids).logits
    assert float((found["tuned"] - ours).abs().max()) <= 1e-6
    assert float((found["tuned"] - found["plain"]).abs().max()) > 1e-3


def test_a_step_may_be_split(root: Path, tmp_path: Path, chain: dict[str, Trained]) -> None:
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


def test_cached_features_change_nothing(root: Path, chain: dict[str, Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of the frozen tower are the same in each step, kept or not, and computed once for all runs."""
    data, encoded = str(prepare_data(small(root)).reference), []
    encode = PanoramaModel.encode
    monkeypatch.setattr(PanoramaModel, "encode", lambda *given: encoded.append(len(given[1])) or encode(*given))
    found, counts = [], []
    for run, cached in (("computed", "false"), ("cached", "true"), ("again", "true")):
        keys = ("trainer.max_steps=10", "stages=[resampler]", f"runtime.cache_vision_features={cached}")
        own = small(root, *keys, f"parents.resampler.default={chain['vision'].ref.uri}", "seed=1", run=run)
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


def test_a_loss_that_is_no_number_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check 12: losses that are no numbers fail the stage with an exit code, a record that says so, and no best."""
    loss = VisionTask.loss

    def broken(self: VisionTask, model: Any, batch: Any, context: Any) -> Any:
        found = loss(self, model, batch, context)
        return type(found)(found.sum * math.nan, found.weight, found.parts)

    monkeypatch.setattr(VisionTask, "loss", broken)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(raw_preset("panorama_vlm", "tiny")))
    code = main(["train", "-c", str(path), "vision", *SMALL, "trainer.max_steps=8", f"root={tmp_path}", "run=nan"])
    assert code == TrainingError.exit_code != 0
    assert "max_bad_steps" in capsys.readouterr().err
    left = StageDir(str(tmp_path), "nan", "vision", "anyres-e2p_mlp")
    record = read_failure(left.store)
    assert record is not None
    assert (record.kind, record.exit_code) == (TrainingError.kind, code)
    assert [event["event"] for event in read_events(left.store)][-1] == "failed"
    assert left.newest() is None
    assert not list(tmp_path.rglob("best.ckpt"))


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
