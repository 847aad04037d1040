"""The scripts only say what the program itself can do: every command they make parses, every override is accepted."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from guards import HANG_SECONDS

from stageline.families import family_config, parse_config
from stageline.stage import stage_config

from .test_docs import find_command

SCRIPTS = Path(__file__).parents[2] / "scripts"
OVERRIDE = ("data.", "model.", "trainer.", "evaluate.", "import.", "run=", "root=", "stage_overrides")


def load_script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, SCRIPTS / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_words(words: list[str]) -> None:
    """The command exists, takes these options, and the tiny config takes these overrides."""
    command, rest = find_command(words)
    assert not getattr(command, "commands", {})
    context = type(command).context_class(command, info_name=command.name)
    values, left, _ = command.make_parser(context).parse_args(list(rest))
    assert not left
    assert not [param.name for param in command.params if param.required and not values.get(param.name)]
    config = parse_config(
        family_config("film_flow").presets["tiny"], [word for word in words if word.startswith(OVERRIDE)]
    )
    for stage in family_config("film_flow").stages:
        stage_config(config, stage)


def test_commands_of_the_demo_exist() -> None:
    demo = load_script("demo.py")
    for words in (demo.INIT, ("plan", *demo.TREES), *(words for words, _ in demo.RUNS.values())):
        check_words(list(words))


def test_demo_says_pseudo_wherever_it_speaks_of_the_retina() -> None:
    words, text = load_script("demo.py").RUNS["retina"]
    assert "PSEUDO-LABELS" in text
    assert any("pseudo-label" in word for word in words)


def test_demo_prints_modes_side_by_side_and_marks_pseudo_labels(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"dice": 0.25, "dice_off": 0.125, "dice_shuffle": 0.0625, "num_cases": 3.0}
    load_script("demo.py").print_table(metrics, {"dice": 3}, " (pseudo)")
    head, row = capsys.readouterr().out.splitlines()[:2]
    assert head.split("  ")[-1].strip() == "samples"
    assert row.split() == ["dice", "(pseudo)", "0.2500", "0.1250", "0.0625", "3"]


def test_demo_trains_the_decoder_stages_it_speaks_of() -> None:
    assert family_config("film_flow").presets["tiny"]["model"]["vlm_film_decoder_stages"] == [2, 3]


@pytest.mark.parametrize(
    ("published", "meant"),
    [
        ("train --config c.yaml", "run -c c.yaml"),
        (
            "train --profile tiny --lr 1e-3 --tag wide",
            "run --family film_flow --preset tiny trainer.learning_rate=1e-3 run=wide",
        ),
        (
            "train --config c.yaml --data prompted_trees --epochs 5 --batch-size 4 --timesteps 2 --ensemble 3 --no-ema",
            "run -c c.yaml data.name=prompted_trees trainer.max_epochs=5 trainer.batch_size=4 model.timesteps=2 "
            "model.num_ensemble=3 trainer.max_steps=null stage_overrides.backbone.trainer.max_steps=null "
            "stage_overrides.film.trainer.max_steps=null trainer.use_ema=false",
        ),
        ("train --config c.yaml --crop-size 32 --resume", "run -c c.yaml model.image_size=32 data.image_size=32"),
        (
            "train --config c.yaml --debug",
            "run -c c.yaml 'stage_overrides={backbone: {trainer.max_steps: 4}, film: {trainer.max_steps: 4}}'",
        ),
        ("plan --config c.yaml --ema-decay 0.9", "plan -c c.yaml trainer.ema_decay=0.9"),
        (
            "eval --config c.yaml --checkpoint runs/a/film --film-mode shuffle --film-active 2 --k 8 --solver heun",
            "evaluate -c c.yaml --checkpoint runs/a/film evaluate.k=8 evaluate.solver=heun evaluate.film_mode=shuffle "
            "'evaluate.film_active=[2]'",
        ),
        (
            "eval --config c.yaml --checkpoint a --weights raw --ensemble 2 --oracle",
            "evaluate -c c.yaml --checkpoint a evaluate.ensemble=2 evaluate.weights=raw evaluate.oracle=true",
        ),
        ("inspect runs/a/film", "checkpoint show runs/a/film"),
        (
            "import-legacy old.ckpt imported --config c.yaml --film-stages 0,1",
            "checkpoint import old.ckpt --to imported -c c.yaml 'import.film_stages=[0,1]'",
        ),
    ],
)
def test_published_command_is_translated(published: str, meant: str) -> None:
    words = load_script("film_flow/filmflow.py").translate(shlex.split(published))
    assert words == shlex.split(meant)
    check_words(words)


@pytest.mark.slow
def test_the_first_hour_with_ones_own_pictures_goes_as_it_should(tmp_path: Path) -> None:
    """Five formats and odd sizes -> init --data -> run -> another run -> compare -> predict, by the commands alone."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "first_hour.py"), str(tmp_path / "hour")],
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * HANG_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert "thirty pictures in five formats; the first run took" in done.stdout
