"""This machine or pod: Python, packages, torch, room for scratch files. Loads none of what it looks for."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import tempfile

from stageline.build import find_build
from stageline.doctor.line import Check, Line, ok, unknown, wrong

OLDEST_PYTHON = (3, 11)
SCRATCH_BYTES = 2**30
"""Less room than that for temporary files is too little: a checkpoint is staged there. Chosen here."""
PACKAGES = {
    "torch": ("train", "needed where stages run, not where they are started"),
    "kfp": ("pipelines", "needed for `stageline run` and `pipeline submit`"),
    "kubernetes": ("cluster", "needed to talk to a cluster"),
}
"""Package -> the extra that brings it, and what for."""


def local_checks() -> list[Check]:
    """The checks that need no network."""
    packages = [Check(name, lambda name=name: _package(name)) for name in PACKAGES]  # type: ignore[misc]
    return [Check("stageline", _stageline), Check("python", _python), *packages, Check("scratch", _scratch)]


def _stageline() -> Line:
    build = find_build()
    where = f"image {build.image}" if build.image else build.origin
    return ok("stageline", f"{build.version}, revision {build.revision[:12]}, {where}")


def _python() -> Line:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        return wrong("python", f"{found} is too old, 3.11 is needed", "install Python 3.11 or newer")
    return ok("python", found)


def _package(name: str) -> Line:
    extra, why = PACKAGES[name]
    try:
        return ok(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return unknown(name, f"not installed here; {why}", f"pip install 'stageline[{extra}]'")


def _scratch() -> Line:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free in {folder}"
    if free < SCRATCH_BYTES:
        return wrong("scratch", text, f"free space in {folder}, or point TMPDIR to another folder")
    return ok("scratch", text)
