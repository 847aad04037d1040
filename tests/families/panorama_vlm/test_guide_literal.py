"""The guide, line by line, in a real shell."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from shell import Shell

from stageline.checkpoint.layout import resolve
from stageline.cli.guiding import lay_out

BIMAMBA = "siglip2-so400m_Qwen3_bimamba_anyres-e2p_PE"
MLP = "siglip2-so400m_Qwen3_mlp_anyres-e2p_PE"
OVERLAP0 = f"{BIMAMBA}__ov000"
BIMAMBA_VISION = f"runs/{BIMAMBA}/vision/anyres-e2p_bimamba/best.ckpt"
MLP_VISION = f"runs/{MLP}/vision/anyres-e2p_mlp/best.ckpt"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A laid-out guide in which `configs/default.yaml` was trained; stages of two steps, answers of eight tokens."""
    place = tmp_path_factory.mktemp("literal")
    lay_out("panorama_vlm", place / "guide", demo_data=True)
    for config in (place / "guide/configs").glob("*.yaml"):
        text = config.read_text(encoding="utf-8").replace("max_new_tokens: 128", "max_new_tokens: 8")
        config.write_text(f"{text}\ntrainer:\n  max_steps: 2\n", encoding="utf-8")
    shell = Shell(place / "guide", place / "programs")
    missing = shell.run("bash scripts/train_bimamba_overlap0.sh", code=2)
    assert "none found" in missing
    shell.run("python scripts/train.py --config configs/default.yaml --preview")
    assert not (shell.folder / "runs").exists()
    shell.run("python scripts/train.py --config configs/default.yaml")
    return shell


def test_every_command_block_of_the_guide_runs_unchanged(shell: Shell) -> None:
    """Check 25: the guide literally. Check 20: the evaluation's folder, its rows whose checkpoint it is of."""
    folder = shell.folder
    shell.run("python scripts/train.py --config configs/default.yaml --stage vision models.resampler_type=mlp")
    assert shell.run("ls runs/*/vision/*/best.ckpt").split() == [BIMAMBA_VISION, MLP_VISION]

    shell.run("bash scripts/train_bimamba_overlap0.sh")
    resume = "python scripts/train.py --config configs/bimamba_overlap0.yaml --resume"
    assert "0 made, 5 reused" in shell.run(f"{resume} {BIMAMBA_VISION}")
    assert parent_of(folder) == resolve(str(folder / BIMAMBA_VISION)).digest

    result = shell.run(
        f"python scripts/eval.py --config runs/{OVERLAP0}/finetune/anyres-e2p_bimamba/config.yaml "
        "--csv-input data/quic360/test.csv"
    )
    copied = result.split("copied to ")[1].split()[0]
    check_copy(folder, folder / copied)
    assert "says the same" in shell.run(f"python scripts/eval.py --metrics-only {copied}")

    shell.run("rm runs/*_stage_state.json")
    assert "0 made, 6 reused" in shell.run("python scripts/train.py --config configs/default.yaml")
    state = json.loads((folder / f"runs/{BIMAMBA}_stage_state.json").read_text())
    assert {stage["status"] for stage in state["stages"].values()} == {"completed"}

    digests = {resolve(str(folder / f"runs/{run}/finetune")).digest for run in (BIMAMBA, OVERLAP0)}
    assert len(digests) == 2

    shell.run(f"{resume} {MLP_VISION}")
    assert parent_of(folder) == resolve(str(folder / MLP_VISION)).digest
    # The guide's edit of the script, by which the same checkpoint is named.
    shell.run(f"sed -i 's|^VISION_CHECKPOINT=.*|VISION_CHECKPOINT=\"{MLP_VISION}\"|' scripts/train_bimamba_overlap0.sh")
    assert "0 made, 5 reused" in shell.run("bash scripts/train_bimamba_overlap0.sh")
    shell.run(f"sed -i 's|{MLP_VISION}|{BIMAMBA_VISION}|' scripts/train_bimamba_overlap0.sh")


@pytest.mark.parametrize(
    ("kind", "words", "last"),
    [("mlp", "", "finetune"), ("qformer", " --stage resampler", "resampler"), ("perceiver", " --stage 2", "resampler")],
)
def test_other_resamplers_by_an_edit_of_the_config(shell: Shell, kind: str, words: str, last: str) -> None:
    """From the one vision checkpoint; a path of the guide that exists without overlap only is refused and named."""
    config, run = shell.folder / "configs/bimamba_overlap0.yaml", f"siglip2-so400m_Qwen3_{kind}_anyres-e2p_PE"
    text = config.read_text()
    config.write_text(text.replace("resampler_type: bimamba", f"resampler_type: {kind}"))
    try:
        shell.run(f"bash scripts/train_bimamba_overlap0.sh{words}")
    finally:
        config.write_text(text)
    trained = resolve(str(shell.folder / f"runs/{run}__ov000/resampler/anyres-e2p_{kind}/best.ckpt")).metadata
    assert trained.facts["resampler_type"] == kind
    assert trained.parents["default"].digest == resolve(str(shell.folder / BIMAMBA_VISION)).digest
    asked = f"{last}/anyres-e2p_{kind}/config.yaml"
    refused = shell.run(f"python scripts/eval.py --config runs/{run}/{asked}", code=2)
    assert f"say --config runs/{run}__ov000/{asked}" in refused


def parent_of(folder: Path) -> str:
    """Digest of the checkpoint that the resampler without overlap started from."""
    return resolve(str(folder / f"runs/{OVERLAP0}/resampler")).metadata.parents["default"].digest


def check_copy(folder: Path, copy: Path) -> None:
    """A copied evaluation holds a row per row of the CSV file, and names the checkpoint by its digest."""
    assert copy.parent == folder / "results/eval_results" / OVERLAP0
    with (copy / "predictions.csv").open(newline="") as file, (folder / "data/quic360/test.csv").open() as source:
        assert len(list(csv.DictReader(file))) == len(list(csv.DictReader(source)))
    said = json.loads((copy / "metrics.json").read_text())["checkpoint"]["digest"]
    assert said == resolve(str(folder / f"runs/{OVERLAP0}/finetune")).digest
