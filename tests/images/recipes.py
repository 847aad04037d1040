"""The Dockerfiles as lists of instructions, and the scripts beside them as modules."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("launcher", "trainer")


def instructions(image: str) -> list[tuple[str, str]]:
    """(instruction, arguments) in their order; comments gone, continued lines joined."""
    lines = (ROOT / "images" / image / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    found = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip():
            name, _, arguments = line.strip().partition(" ")
            found.append((name, arguments.strip()))
    return found


def arguments_of(image: str, name: str) -> list[str]:
    return [arguments for found, arguments in instructions(image) if found == name]


def environment_of(image: str) -> dict[str, str]:
    """What the image sets for its processes."""
    return dict(pair.split("=", 1) for line in arguments_of(image, "ENV") for pair in line.split())


def load_build() -> ModuleType:
    """`images/build.py`."""
    return load_script("build")


def load_script(script: str) -> ModuleType:
    """A script beside the Dockerfiles, which is in no package."""
    name = f"stageline_images_{script}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / f"images/{script}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
