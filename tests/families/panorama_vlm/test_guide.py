"""The guide's own words: what `--resume` means, names of its runs, its files beside ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from stageline.checkpoint.layout import resolve
from stageline.cli import main
from stageline.cli.guiding import lay_out
from stageline.errors import CheckpointError, ConfigError
from stageline.families import load_config
from stageline.families.panorama_vlm import guide
from stageline.families.panorama_vlm.guide_results import checkpoint_of

BASE = "siglip2-so400m_Qwen3_bimamba_anyres-e2p_PE"
SMALL = ("stage_overrides.vision.trainer.max_steps=1", "stage_overrides.resampler.trainer.max_steps=1")
VISION = f"runs/{BASE}/vision/anyres-e2p_bimamba/best.ckpt"
RESAMPLER = f"runs/{BASE}/resampler/anyres-e2p_bimamba/best.ckpt"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A laid-out guide in which stages vision and resampler of its first config were trained for a step, and the
    resampler without overlap from that vision."""
    folder = tmp_path_factory.mktemp("guide")
    lay_out("panorama_vlm", folder, demo_data=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("vision", "resampler"):
            assert main(["train", stage, "-c", "configs/default.yaml", *SMALL]) == 0
        given = f"parents.resampler.default={VISION}"
        assert main(["train", "resampler", "-c", "configs/bimamba_overlap0.yaml", given, *SMALL]) == 0
    return folder


@pytest.fixture
def inside(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


@pytest.mark.parametrize("kind", ["mlp", "qformer", "perceiver", "bimamba"])
def test_the_configs_give_the_names_of_the_guide(kind: str, tmp_path: Path) -> None:
    """Check 15: the guide's names, and the suffix that keeps overlap 0 apart."""
    lay_out("panorama_vlm", tmp_path)
    for name, suffix in (("default", ""), ("bimamba_overlap0", "__ov000")):
        config = load_config(tmp_path / "configs" / f"{name}.yaml", [f"model.resampler_type={kind}"])
        assert config.run == f"siglip2-so400m_Qwen3_{kind}_anyres-e2p_PE{suffix}"


def test_demo_data_makes_the_configs_tiny_and_nothing_else(tmp_path: Path) -> None:
    lay_out("panorama_vlm", tmp_path / "plain")
    lay_out("panorama_vlm", tmp_path / "demo", demo_data=True)
    for name in ("default", "bimamba_overlap0"):
        plain, demo = (yaml.safe_load((tmp_path / k / f"configs/{name}.yaml").read_text()) for k in ("plain", "demo"))
        assert demo.pop("profile") == "tiny"
        plain["training"]["num_workers"] = 0
        assert demo == plain
    assert {path.name for path in (tmp_path / "demo/data/quic360").glob("*.csv")} == {
        "train.csv",
        "val.csv",
        "test.csv",
    }


def test_a_guide_that_was_laid_out_plainly_takes_demo_data_later(tmp_path: Path) -> None:
    lay_out("panorama_vlm", tmp_path)
    assert "configs/default.yaml" in lay_out("panorama_vlm", tmp_path, demo_data=True)
    assert lay_out("panorama_vlm", tmp_path, demo_data=True) == []


@pytest.mark.parametrize(
    "text", ["resampler,finetune", "2,3", "resampler_training, instruction_tuning"], ids=["names", "numbers", "aliases"]
)
def test_stages_by_name_number_and_the_words_of_the_guide(text: str) -> None:
    assert guide.stages_of(text) == ["resampler", "finetune"]


def test_a_number_without_a_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no stage 4"):
        guide.stages_of("4")


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    "shorten", [lambda p: p, lambda p: p.parent, lambda p: p.parent.parent.parent], ids=["file", "stage", "run"]
)
def test_an_earlier_stage_is_the_parent(shorten: Callable[[Path], Path], tmp_path: Path) -> None:
    path = str(shorten(Path(VISION)))
    found = guide.resume_overrides("configs/bimamba_overlap0.yaml", [], path, weights_only=False)
    assert found == [f"parents.resampler.default={path}{'/vision' if path.endswith('_PE') else ''}"]


@pytest.mark.usefixtures("inside")
def test_the_same_stage_goes_on_and_a_later_one_is_refused() -> None:
    config, own = "configs/default.yaml", ["stages=[resampler]"]
    assert guide.resume_overrides(config, own, RESAMPLER, weights_only=False) == []
    assert guide.resume_overrides(config, [], VISION, weights_only=False) == []
    with pytest.raises(ConfigError, match="comes after 'vision'") as refused:
        guide.resume_overrides(config, [], RESAMPLER, weights_only=False)
    assert "--stage resampler,finetune" in str(refused.value)  # vision takes no weights either


@pytest.mark.usefixtures("inside")
def test_weights_alone_may_be_of_any_stage_but_vision_takes_none() -> None:
    config = "configs/default.yaml"
    found = guide.resume_overrides(config, ["stages=[resampler]"], RESAMPLER, weights_only=True)
    assert found == [f"parents.resampler.default={RESAMPLER}"]
    with pytest.raises(ConfigError, match="starts from no checkpoint"):
        guide.resume_overrides(config, [], RESAMPLER, weights_only=True)


@pytest.mark.usefixtures("inside")
def test_the_same_stage_of_another_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"__ov000'"):
        guide.resume_overrides("configs/bimamba_overlap0.yaml", [], RESAMPLER, weights_only=False)


def test_a_path_that_exists_without_overlap_only_is_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out("panorama_vlm", tmp_path)
    monkeypatch.chdir(tmp_path)
    other = Path(f"runs/{BASE}__ov000/finetune/anyres-e2p_bimamba")
    other.mkdir(parents=True)
    (other / "best.ckpt").write_text("{}")
    (other / "config.yaml").write_text("family: panorama_vlm\n")
    asked = f"runs/{BASE}/finetune/anyres-e2p_bimamba"
    with pytest.raises(CheckpointError, match="another run") as checkpoint:
        guide.resume_overrides("configs/default.yaml", [], f"{asked}/best.ckpt", weights_only=False)
    assert f"--resume {other}/best.ckpt" in str(checkpoint.value)
    with pytest.raises(CheckpointError, match="another run") as evaluated:
        checkpoint_of("configs/default.yaml", [], f"{asked}/best.ckpt")
    assert f"--checkpoint {other}/best.ckpt" in str(evaluated.value)
    with pytest.raises(ConfigError, match="another run") as config:
        guide.check_config(f"{asked}/config.yaml")
    assert f"--config {other}/config.yaml" in str(config.value)


@pytest.mark.usefixtures("inside")
def test_the_stage_state_says_what_lies_there_and_nothing_reads_it() -> None:
    path = guide.write_stage_state("configs/default.yaml", [])
    stages = json.loads(path.read_text())["stages"]
    assert [stages[name]["status"] for name in ("vision", "resampler", "finetune")] == [
        "completed",
        "completed",
        "pending",
    ]
    assert stages["vision"]["best_ckpt"] == VISION
    path.write_text("not JSON")
    guide.write_stage_state("configs/default.yaml", [])
    assert json.loads(path.read_text())["stages"] == stages


@pytest.mark.usefixtures("inside")
def test_a_parent_that_was_given_is_not_dropped_unsaid() -> None:
    """Without --resume the resampler would be trained anew from scratch, under the same name."""
    config = "configs/bimamba_overlap0.yaml"
    guide.refuse_dropped_parent("configs/default.yaml", [])
    guide.refuse_dropped_parent("configs/default.yaml", ["stages=[resampler]"])
    guide.refuse_dropped_parent(config, [f"parents.resampler.default={VISION}"])
    guide.refuse_dropped_parent(config, ["parents.resampler.default=none"])
    guide.refuse_dropped_parent(config, ["run=another"])
    with pytest.raises(ConfigError, match="started from") as refused:
        guide.refuse_dropped_parent(config, [])
    (given,) = re.findall(r"--resume (\S+),", str(refused.value))
    assert f"runs/{BASE}/vision/" in given
    assert resolve(given).digest == resolve(VISION).digest


@pytest.mark.usefixtures("inside")
def test_to_go_on_a_parent_of_another_run_is_named_again() -> None:
    own = f"runs/{BASE}__ov000/resampler/anyres-e2p_bimamba/best.ckpt"
    (found,) = guide.resume_overrides("configs/bimamba_overlap0.yaml", [], own, weights_only=False)
    assert found.startswith(f"parents.resampler.default=runs/{BASE}/vision/")


@pytest.mark.usefixtures("inside")
def test_which_checkpoint_is_evaluated() -> None:
    """best and last beside the config, else of the run's last stage; a path as it is."""
    beside = Path(VISION).parent
    for asked, name in ((None, "best"), ("best", "best"), ("last", "last")):
        found = checkpoint_of(str(beside / "config.yaml"), [], asked)
        assert found == str((beside / f"{name}.ckpt").resolve())
    config = "configs/default.yaml"
    assert checkpoint_of(config, [], None) is None
    assert checkpoint_of(config, ["stages=[resampler]"], "best") == f"./{RESAMPLER}"
    assert checkpoint_of(config, [], RESAMPLER) == RESAMPLER


def test_options_of_others_are_refused_with_what_does_their_work() -> None:
    for option in guide.REFUSED_OPTIONS:
        guide.refuse_option(option, None)
        with pytest.raises(ConfigError, match=f"{option} is known and refused"):
            guide.refuse_option(option, "")
