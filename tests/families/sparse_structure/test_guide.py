"""The guide's folder: its text runs as it stands, its command's flags and its file of the published structure."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from shell import Shell
from torch import nn

from stageline.checkpoint.layout import resolve
from stageline.cli.guiding import guide_folder, lay_out
from stageline.errors import ConfigError, DataError
from stageline.families import load_config, parse_config
from stageline.families.sparse_structure import guide
from stageline.families.sparse_structure.aliases import build_file
from stageline.families.sparse_structure.assembly import build_model
from stageline.families.sparse_structure.config import STAGES
from stageline.families.sparse_structure.guide_data import SCENES
from stageline.families.sparse_structure.names import guide_modules
from stageline.families.sparse_structure.objective import COPIED, make_guidance, make_shortcut
from stageline.families.sparse_structure.published import read_published
from stageline.stage import stage_config
from stageline.verbs.prepare import prepare_data

DUAL = "checkpoints/hf/dual_backbone_generator.yaml"
TEXT = "TRAINING_SHORTCUT_SCENE.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A laid-out guide with tiny data."""
    place = tmp_path_factory.mktemp("guide")
    lay_out("sparse_structure", place, demo_data=True)
    return place


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same as the working folder, from which is imported."""
    before = set(sys.modules)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith(("sam3d_objects", "train_shortcut_scene")):
            del sys.modules[name]


def blocks(kind: str) -> list[str]:
    """The fenced blocks of the guide's text."""
    text = (guide_folder("sparse_structure") / TEXT).read_text(encoding="utf-8")
    found: list[str] = re.findall(rf"^```{kind}\n(.*?)^```", text, re.M | re.S)
    assert text.count("```") == 2 * (len(re.findall(r"^```(?:python|bash)$", text, re.M)))
    return found


@pytest.mark.usefixtures("inside")
def test_every_python_block_of_the_text_runs_unchanged() -> None:
    """Networks from two dicts, files loaded and saved, freezing, samples, scenes and networks of one's own."""
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks("python")):
        trained = isinstance(names.get("model"), nn.Module) and "for _ in range(3)" in block
        before = [p.clone() for p in names["model"].parameters()] if trained else []
        exec(compile(block, f"block {number} of {TEXT}", "exec"), names)  # noqa: S102  # our own text
        if trained:
            model = names["model"]
            kept = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
            frozen = len(list(model.sparse_flow.parameters()))
            assert all(kept[:frozen])
            assert not all(kept[frozen:])
    assert names["output"].keys() == names["latents"].keys()
    assert {path.name for path in Path("checkpoints/dual_backbone").iterdir()} == {
        "sparse_flow.ckpt",
        "global_sparse_flow.ckpt",
        "combined_model.ckpt",
    }
    assert names["samples"]["shape"].shape == (9, 8, 8)


@pytest.mark.usefixtures("inside")
def test_the_folder_has_every_module_path_of_the_guides() -> None:
    for module, names in guide_modules().items():
        own = importlib.import_module(module)
        assert Path(str(own.__file__)).is_relative_to(Path.cwd())
        for name, place in names.items():
            source, _, attribute = place.partition(":")
            assert getattr(own, name) is getattr(importlib.import_module(source), attribute)
    script = importlib.import_module("train_shortcut_scene")
    assert len(script.SceneDataset("data/scenes")) == SCENES["train"]
    assert script.scene_collate_fn([{}]) == {}


@pytest.mark.usefixtures("inside")
def test_the_example_trains_a_step_and_samples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_shortcut_scene_example.py"])
    importlib.import_module("train_shortcut_scene_example").main()
    told = capsys.readouterr().out
    assert "loss for 9 objects" in told
    assert "sampled in 4 steps: shape (9, 64, 8)" in told


def flags(*given: str, path: str | Path = DUAL) -> dict[str, Any]:
    """Of the command, as its parser reads them."""
    parser = importlib.import_module("train_shortcut_scene").make_parser()
    words = ["--data_root", "data/scenes", "--output_dir", "out", "--config", str(path)]
    return vars(parser.parse_args([*words, *given]))


def config_of(*given: str, environment: dict[str, str] | None = None, path: str | Path = DUAL) -> Any:
    """The config of flags, at the stage that trains the scene's branch."""
    told = flags(*given, path=path)
    published = read_published(told["config"])
    raw = guide.scene_config(told, published, guide.weights_of(published), environment or {})
    return stage_config(parse_config(raw), STAGES["global_flow"])


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("place", [lambda: Path(DUAL), lambda: guide_folder("sparse_structure") / DUAL])
def test_the_config_of_a_file_is_what_the_file_builds(place: Callable[[], Path]) -> None:
    """Networks with equal tensors, an objective with equal arguments: at tiny and at the published sizes."""
    config = config_of(path=place())
    with torch.device("meta"):
        built, own = build_file(place()) if place() != Path(DUAL) else None, build_model(config, STAGES["global_flow"])
    built = built or build_file(place())
    theirs = built.reverse_fn.backbone
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in own.state_dict().items()}
    settings = ("num_heads", "is_shortcut_model", "force_zeros_cond", "scene_attention", "global_block_ids")
    for branch in ("sparse_flow", "global_sparse_flow"):
        pair = [vars(getattr(network, branch)) for network in (theirs, own)]
        assert pair[0].keys() == pair[1].keys()
        assert [(name, pair[0].get(name)) for name in settings] == [(name, pair[1].get(name)) for name in settings]
    shortcut, guidance = make_shortcut(config), make_guidance(config)
    for name in (*COPIED, "loss_weights"):
        mine, found = getattr(shortcut, name), getattr(built, name)
        assert (list(mine) if name == "cfg_modalities" else mine) == found, name
    samplers: list[Any] = [model.training_time_sampler_fn for model in (shortcut, built)]
    assert samplers[0].keywords == samplers[1].keywords
    assert guidance.p_unconditional == built.reverse_fn.p_unconditional
    assert guidance.unconditional_handling == built.reverse_fn.unconditional_handling


@pytest.mark.usefixtures("inside")
def test_flags_become_settings() -> None:
    given = ["--num_epochs", "3", "--learning_rate", "1e-3", "--weight_decay", "0.1", "--grad_clip", "2"]
    given += ["--self_consistency_prob", "0.5", "--shortcut_loss_weight", "3", "--cfg_strength", "1.5"]
    given += ["--ratio_cfg_samples", "1", "--fm_in_shortcut_target_prob", "0.25", "--fm_eps_max", "0.25"]
    given += ["--max_objects_per_scene", "2", "--accumulate_scenes", "2", "--num_workers", "1", "--log_interval", "5"]
    given += ["--save_interval", "4", "--seed", "7", "--run", "mine", "--loss_weights", "shape=2,scale=0"]
    given += ["--use_checkpoint", "--use_fp16"]
    config = config_of(*given, environment={"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"})
    trainer, objective = config.trainer, config.objective
    assert (config.run, config.seed, config.data.max_objects_per_scene) == ("mine", 7, 2)
    assert (trainer.max_epochs, trainer.learning_rate, trainer.weight_decay) == (3, 1e-3, 0.1)
    assert (trainer.gradient_clip_val, trainer.accumulate_grad_batches, trainer.batch_size) == (2, 2, 1)
    assert (trainer.processes, trainer.nodes, trainer.precision) == (2, 2, "16-mixed")
    assert (trainer.num_workers, trainer.log_every_steps, trainer.checkpoint_every_steps) == (
        1,
        5,
        4,
    )  # 4 scenes, 8 a step
    assert (objective.self_consistency_prob, objective.shortcut_loss_weight) == (0.5, 3)
    assert objective.self_consistency_cfg_strength == 1.5
    assert objective.ratio_cfg_samples_in_self_consistency_target == 1
    assert (objective.fm_in_shortcut_target_prob, objective.fm_eps_max) == (0.25, 0.25)
    assert objective.loss_weights["shape"] == 2
    assert objective.loss_weights["scale"] == 0
    assert objective.loss_weights["translation"] == 1  # the file's
    assert config.parents["sparse_flow"] == config.parents["global_flow"]
    assert config.model.sparse_flow.use_checkpoint
    assert config.model.global_sparse_flow.use_checkpoint


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(("text", "fault"), [("shape", "--loss_weights 'shape'"), ("form=1", r"names \['form'\]")])
def test_weights_of_other_modalities_are_refused(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        config_of("--loss_weights", text)


def test_everything_without_a_counterpart_is_told_at_once(inside: Path, tmp_path: Path) -> None:
    plain = yaml.safe_load((inside / DUAL).read_text())
    shortcut = plain["module"]["generator"]["backbone"]
    shortcut["colour"] = "red"
    dual = shortcut["reverse_fn"]["backbone"]
    dual["sparse_flow_config"] |= {"pe_mode": "rope", "windows": 3}
    dual["global_sparse_flow_config"]["cond_channels"] = 8
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(ConfigError, match="4 faults") as caught:
        read_published(tmp_path / "a.yaml")
    for fault in ("colour 'red' is no setting", "pe_mode is 'rope'", "windows 3 is no setting", "branches differ"):
        assert fault in str(caught.value)
    with pytest.raises(ConfigError, match=r"no dual backbone.*\n?.*train_scenes"):
        read_published(inside / "checkpoints/hf/ss_generator.yaml")


def test_weights_are_named_by_their_content(inside: Path, tmp_path: Path) -> None:
    sparse = inside / "checkpoints/hf/ss_generator.ckpt"
    moved = tmp_path / "global_other.ckpt"
    moved.write_bytes(sparse.read_bytes())
    published = read_published(DUAL)
    alone = guide.weights_of(published)
    assert alone is not None
    assert alone.stage == "sparse_flow"
    both = guide.weights_of(guide.Published(published.model, {}, (sparse, moved)))
    assert both is not None
    assert (both.stage, both.run != alone.run) == ("global_flow", True)
    assert guide.weights_of(guide.Published(published.model, {}, (None, None))) is None
    with pytest.raises(ConfigError, match=r"no file .*gone\.ckpt'\n.*without sparse_flow_checkpoint"):
        guide.weights_of(guide.Published(published.model, {}, (None, tmp_path / "global_gone.ckpt")))


@pytest.mark.usefixtures("inside")
@pytest.mark.skipif(torch.cuda.is_available(), reason="half precision is refused without a GPU")
def test_half_precision_is_refused_on_a_cpu_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module("train_shortcut_scene")
    words = ["--data_root", "data/scenes", "--output_dir", str(tmp_path / "out"), "--use_fp16"]
    assert script.main(words) == ConfigError.exit_code
    assert "'16-mixed' needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        script.main([*words, "--epochs=3"])


def test_scenes_without_a_condition_are_refused_by_name(inside: Path, tmp_path: Path) -> None:
    """The guide calls conditionals.pt optional; the published networks need one."""
    shutil.copytree(inside / "data/scenes", tmp_path / "scenes", ignore=shutil.ignore_patterns("conditionals.pt"))
    words = [f"root={tmp_path}", f"data.data_root={tmp_path / 'scenes'}", "trainer.tensorboard=false"]
    config = load_config(inside / "configs/default.yaml", words)
    with pytest.raises(DataError, match=r"(?s)scene '.*': conditionals\.pt: condition 'cond' is not there"):
        prepare_data(config)


@pytest.mark.slow
@pytest.mark.ranks
def test_every_shell_block_of_the_text_runs_unchanged(tmp_path: Path) -> None:
    """One process and two ranks; the same command again goes on; files for other programs; weights of another run."""
    lay_out("sparse_structure", tmp_path / "guide", demo_data=True)
    shell = Shell(tmp_path / "guide", tmp_path / "programs")
    first, again, ranks, export, example = blocks("bash")
    told = shell.run(first)
    runs = shell.folder / "outputs/shortcut_scene/runs"
    found = resolve(str(runs / "shortcut_scene/global_flow"))
    assert found.metadata.final
    (base,) = runs.glob("base-*")
    assert found.metadata.parents["sparse"].digest == resolve(str(base / "sparse_flow")).digest
    assert "checkpoint import" in told
    assert "reused, step 8 of 8" in shell.run(again)
    assert "trained, step 4 of 4" in shell.run(ranks)
    shell.run(export)
    assert len(list((shell.folder / "outputs/files").glob("*.ckpt"))) == 3
    shell.run(example)
    place = str(runs / "shortcut_scene/global_flow")
    guide.check_resume(place, runs.parent, "shortcut_scene", "global_flow")
    with pytest.raises(ConfigError, match="say --run shortcut_scene to go on with it"):
        guide.check_resume(place, runs.parent, "other", "global_flow")
