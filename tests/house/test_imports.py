"""What plans and launches loads no torch. The import linter misses part: importing `a.b` runs `a/__init__` too."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

from stageline.families import FAMILIES

HEAVY = ["torch", "lightning_fabric", "transformers", "torchdiffeq", "scipy", "skimage", "tensorboard", "trimesh"]
ALONE = [
    "errors",
    "config",
    "stage",
    "store",
    "telemetry",
    "checkpoint",
    "checkpoint.metadata",
    "checkpoint.layout",
    "checkpoint.lease",
    "checkpoint.identity",
    "families",
    "contract",
    "work",
    "jobs",
    "kube",
    "plan",
    "pipeline",
    "pod",
    "verbs.compare",
    "verbs.report",
    "cli",
]
PROBE = """
import contextlib, importlib, io, json, sys
heavy, names = json.loads(sys.argv[1])
found = {}
def look(name):
    loaded = [module for module in heavy if module in sys.modules]
    if loaded:
        found[name] = loaded
for name in names:
    importlib.import_module(name)
    look(name)
from stageline.cli import main
sys.argv = ["stageline", "--help"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
    main()
look("stageline --help")
importlib.import_module("stageline.verbs.prepare")
importlib.import_module("stageline.families.film_flow.family")
print(json.dumps({"found": found, "help": shown.getvalue(), "prepare": "torch" in sys.modules}))
"""


def torch_free_modules() -> list[str]:
    """Every torch-free module with its submodules, every family's folder and config."""
    names = [f"stageline.{name}" for name in ALONE]
    for package in (
        "stageline.config",
        "stageline.store",
        "stageline.jobs",
        "stageline.jobs.cluster.render",
        "stageline.jobs.cluster.follow",
        "stageline.jobs.cluster.explain",
        "stageline.jobs.cluster.inspect",
        "stageline.kube",
        "stageline.pod",
        "stageline.verbs.compare",
        "stageline.verbs.report",
        "stageline.work",
    ):
        spec = find_spec(package)
        assert spec is not None, f"{package} does not exist"
        for module in pkgutil.iter_modules(spec.submodule_search_locations or ()):
            names.append(f"{package}.{module.name}")
    for room in FAMILIES.values():
        names += [room, f"{room}.config"]
    return names


@pytest.fixture(scope="module")
def probed() -> dict[str, object]:
    names = torch_free_modules()
    result = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([HEAVY, names])], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    answer: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return answer


def test_nothing_on_the_launching_side_loads_torch(probed: dict[str, object]) -> None:
    assert probed["found"] == {}


def test_preparing_film_flow_loads_no_torch(probed: dict[str, object]) -> None:
    assert probed["prepare"] is False


def test_help_shows_the_verbs(probed: dict[str, object]) -> None:
    for verb in ("init", "plan", "prepare", "train", "evaluate", "predict", "report", "run", "checkpoint"):
        assert verb in str(probed["help"])
