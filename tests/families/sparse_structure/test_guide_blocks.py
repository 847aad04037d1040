"""Blocks as the two guides have them, run in the guide's folder.

The guides' own text is not among the files of this repository. `guide_blocks/` holds blocks of ours that use every
module, name, argument, flag and file which is known of the guides, in the forms that are known of them, among these
one call that is no Python and a spelling that torch has given up. What is changed before a block runs is `CHANGED`,
what is no code is `NOT_CODE`, what blocks leave undefined is `PRELUDE`.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from shell import Shell

from stageline.checkpoint.layout import resolve
from stageline.cli.guiding import lay_out
from stageline.families.sparse_structure import checkpoint_utils
from stageline.families.sparse_structure.aliases import ALIASES, build_file
from stageline.families.sparse_structure.names import UTILITIES, guide_modules

FOLDER = Path(__file__).with_name("guide_blocks")
GUIDES = ("dual_backbone.md", "shortcut_scene.md")
NOT_CODE = {"": "a tree of files", "bibtex": "a citation"}
"""Kind of a fence -> what stands in it."""
CHANGED = (
    ('"/path/to/ss_generator.ckpt"', '"checkpoints/hf/ss_generator.ckpt"'),
    ("/path/to/data", "data/scenes"),
    ("/path/to/", "outputs/"),
    ("sparse_flow_config={...}", "sparse_flow_config=sparse_flow_config()"),
    ("global_sparse_flow_config=sparse_flow_config()", "global_sparse_flow_config=global_sparse_flow_config()"),
    ('"sparse_flow_config": {...}', '"sparse_flow_config": sparse_flow_config()'),
    ('"global_sparse_flow_config": {...}', '"global_sparse_flow_config": global_sparse_flow_config()'),
    ("loss_weights={...}", "loss_weights=1.0"),
    # A positional argument after keywords is no Python.
    (
        "    latents_dict=latents_dict,\n    t=t,\n    condition_args,\n",
        "    latents_dict,\n    t,\n    condition_args,\n",
    ),
    ("torch.cuda.amp.GradScaler()", 'torch.amp.GradScaler("cpu", enabled=False)'),
    ("torch.cuda.amp.autocast()", 'torch.autocast("cpu", dtype=torch.bfloat16)'),
    ('"cuda"', '"cpu"'),
    ("range(100)", "range(1)"),
    ("model_channels=1024", "model_channels=32"),
    ("cond_channels=1024", "cond_channels=16"),
    ("num_cond_tokens, 1024", "num_cond_tokens, 16"),
    ("num_blocks=24", "num_blocks=2"),
    ("num_heads=16", "num_heads=2"),
    ("resolution=16", "resolution=2"),
    ("--num_epochs 100", "--num_epochs 1"),
    ("--nproc_per_node=8", "--nproc_per_node=2"),
    ("--num_workers 4", "--num_workers 0"),
    ("--accumulate_scenes 4", "--accumulate_scenes 2"),
)
"""Text of the blocks -> what runs in its place, in this order: paths, omissions, sizes, epochs, processes."""
PRELUDE = """
import torch, yaml
from pathlib import Path
from stageline.families.sparse_structure.aliases import build, build_file

_node = yaml.safe_load(Path("checkpoints/hf/dual_backbone_generator.yaml").read_text())
_dual = _node["module"]["generator"]["backbone"]["reverse_fn"]["backbone"]
sparse_flow_config = lambda: build(_dual["sparse_flow_config"])
global_sparse_flow_config = lambda: build(_dual["global_sparse_flow_config"])
num_objects, latent_dim, num_tokens, num_cond_tokens, epoch, step = 2, 8, 8, 2, 10, 1000
latents_dict = torch.load("data/scenes/train/scene_000/latents.pt", weights_only=True)
condition_args = torch.load("data/scenes/train/scene_000/conditionals.pt", weights_only=True)["cond"]
condition_kwargs, t, d = {}, torch.tensor([500.0]), torch.tensor([250.0])
reverse_fn = build_file("checkpoints/hf/dual_backbone_generator.yaml").reverse_fn
"""


def blocks(guide: str) -> list[tuple[str, str]]:
    """(kind, text) of every fenced block."""
    text = (FOLDER / guide).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    assert text.count("```") == 2 * len(found)
    return found


def changed(block: str) -> str:
    for old, new in CHANGED:
        block = block.replace(old, new)
    return block


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("guide")
    lay_out("sparse_structure", place, demo_data=True)
    return place


@pytest.fixture
def inside(laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A laid-out guide with tiny data, as the working folder from which is imported."""
    before = set(sys.modules)
    shutil.copytree(laid_out, tmp_path / "guide")
    monkeypatch.chdir(tmp_path / "guide")
    monkeypatch.syspath_prepend(tmp_path / "guide")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "guide"
    for name in set(sys.modules) - before:
        if name.startswith(("sam3d_objects", "train_shortcut_scene")):
            del sys.modules[name]


def run_python(guide: str) -> dict[str, Any]:
    """Every Python block of a guide, one after the other; the names that are left."""
    names: dict[str, Any] = {}
    exec(compile(PRELUDE, "prelude", "exec"), names)  # noqa: S102  # our own text
    for number, (kind, block) in enumerate(blocks(guide)):
        if kind == "python":
            exec(compile(changed(block), f"block {number} of {guide}", "exec"), names)  # noqa: S102
    return names


def test_every_block_is_run_or_said_to_be_no_code_and_every_change_is_needed() -> None:
    found = [block for guide in GUIDES for block in blocks(guide)]
    assert {kind for kind, _ in found} == {*NOT_CODE, "python", "bash", "yaml"}
    texts = [text for kind, text in found if kind not in NOT_CODE]
    for number, (old, _) in enumerate(CHANGED):
        for before, new in CHANGED[:number]:
            texts = [text.replace(before, new) for text in texts]
        assert any(old in text for text in texts), f"nothing to change: {old}"
    with pytest.raises(SyntaxError, match="positional argument follows keyword"):
        compile(next(text for kind, text in found if "latents_dict=latents_dict" in text), "call", "exec")


def test_the_blocks_use_every_name_argument_and_flag(inside: Path) -> None:
    """Of the modules that code of the guides imports, of the four utilities, and of the command."""
    del inside
    text = "\n".join(text for guide in GUIDES for _, text in blocks(guide))
    published = {path.rpartition(".")[2] for path in ALIASES}
    yamls = "\n".join(file.read_text() for file in Path("checkpoints/hf").glob("*.yaml"))
    missing = {name for name in published if name not in text and name not in yamls}
    assert missing <= {"ClassifierFreeGuidance", "FlowMatching", "DotDict"}, missing
    assert any("dual_backbone_checkpoint_utils" in module for module in guide_modules())
    for utility in UTILITIES:
        for argument in inspect.signature(getattr(checkpoint_utils, utility)).parameters:
            assert re.search(rf"\b{argument}\b", text), f"{utility}({argument})"
    import train_shortcut_scene

    own = {"--help", "-h", "--run", "--stage", "--use_fp16"}
    flags = {word for action in train_shortcut_scene.make_parser()._actions for word in action.option_strings}
    assert {flag for flag in flags - own if f"{flag} " not in text and f"{flag}\n" not in text} == set()


def test_the_blocks_on_the_dual_backbone_run(inside: Path) -> None:
    """Both branches, files of all four utilities, freezing, and the published structure as YAML."""
    names = run_python("dual_backbone.md")
    model, output = names["model"], names["output"]
    assert {name: value.shape for name, value in output.items()} == {
        name: value.shape for name, value in names["latents_dict"].items()
    }
    assert model.combine_mode == "weighted"
    assert model.global_flow_weight.item() == 0.5
    files = sorted(str(path.relative_to(inside / "outputs")) for path in (inside / "outputs").rglob("*.ckpt"))
    assert files == [
        *(f"checkpoints/{name}.ckpt" for name in ("combined_model", "global_sparse_flow", "sparse_flow")),
        *(f"{branch}_epoch_10.ckpt" for branch in ("global", "sparse")),
    ]
    assert torch.load(inside / "outputs/global_epoch_10.ckpt", weights_only=True).keys() == {"state_dict"}
    whole = torch.load(inside / "outputs/checkpoints/combined_model.ckpt", weights_only=True)
    assert (whole["epoch"], whole["step"]) == (10, 1000)
    assert names["flow"].state_dict()["latent_mapping.shape.pos_emb"].shape == (8, 32)
    (text,) = (text for kind, text in blocks("dual_backbone.md") if kind == "yaml")
    node = yaml.safe_load(text)
    place = node["module"]["generator"]["backbone"]["reverse_fn"]["backbone"]
    for branch in ("sparse_flow_config", "global_sparse_flow_config"):
        assert place[branch] == "..."
        place[branch] = names["_dual"][branch]
    (inside / "block.yaml").write_text(yaml.safe_dump(node))
    built = build_file(inside / "block.yaml")
    assert built.batch_mode is True
    assert built.reverse_fn.backbone.state_dict().keys() == {
        name for name in model.state_dict() if name != "global_flow_weight"
    }


def test_the_blocks_on_scenes_run(inside: Path) -> None:
    """A data set and a network of one's own, the loop with and without autocast, samples."""
    del inside
    names = run_python("shortcut_scene.md")
    assert len(names["dataset"]) == 4
    assert {len(value) for value in names["samples"].values()} == {names["scene"]["num_objects"]}
    assert all(torch.isfinite(value).all() for value in names["samples"].values())
    assert names["custom"].batch_mode == True  # noqa: E712  # as the guide asks
    assert names["detail_losses"].keys() >= {"flow_matching_loss", "self_consistency_loss"}
    assert names["x_t"]["shape"].shape == names["samples"]["shape"].shape


@pytest.mark.slow
@pytest.mark.ranks
def test_the_shell_blocks_run(laid_out: Path, tmp_path: Path) -> None:
    """One process, two under torchrun with every flag, the same again by `--resume`, and the example."""
    shutil.copytree(laid_out, tmp_path / "guide")
    shell = Shell(tmp_path / "guide", tmp_path / "programs")
    first, ranks, again, example = (changed(text) for kind, text in blocks("shortcut_scene.md") if kind == "bash")
    assert "trained, step 4 of 4" in shell.run(first)
    assert "trained, step 1 of 1" in shell.run(ranks)
    assert "reused, step 4 of 4" in shell.run(again)
    assert "loss for 9 objects" in shell.run(example)
    for run in ("shortcut_scene", "on_all"):
        assert resolve(str(shell.folder / f"outputs/{run}/runs/shortcut_scene/global_flow")).metadata.final
