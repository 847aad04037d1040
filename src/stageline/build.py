"""What this copy of stageline was built from: version, revision, image. Loads nothing but the standard library.

An image carries it as a file, written at its build by `python -m stageline.build --write` and named by STAGELINE_BUILD.
A checkout asks git, once. What is not known is called unknown, together with the reason. A pod's renderer may name the
image by digest in STAGELINE_IMAGE; that is preferred, since a tag can move.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from stageline import __version__
from stageline.printing import json_text, say_block

BUILD_VARIABLE = "STAGELINE_BUILD"
IMAGE_VARIABLE = "STAGELINE_IMAGE"
SCHEMA = "stageline-build/1"
FIELDS = ("schema", "version", "revision", "image", "base_image")
UNKNOWN = "unknown"
DIRTY = "-dirty"
GIT_SECONDS = 5.0
"""How long git may take to answer; a checkout on a slow network disk is not worth a longer wait."""


@dataclass(frozen=True)
class Build:
    """revision: a commit's full name or `unknown`.  dirty: whether files differed from it; None where nobody knows.

    image: the reference this process runs in, empty outside an image.  base_image: what that was made from.
    origin: image, checkout or unknown.  note: why something is unknown.
    """

    version: str
    revision: str = UNKNOWN
    dirty: bool | None = None
    image: str = ""
    base_image: str = ""
    origin: str = UNKNOWN
    note: str = ""

    def to_json(self) -> dict[str, str | bool]:
        """The fields that say something."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}

    def to_text(self) -> str:
        """For people: one line each of version, revision and image."""
        changed = ", with changes that are not committed" if self.dirty else ""
        where = f" ({self.note})" if self.note else f" ({self.origin})"
        return "\n".join(
            [
                f"stageline {self.version}",
                f"revision {self.revision}{changed}{where}",
                f"image {self.image or 'none'}" + (f" (from {self.base_image})" if self.base_image else ""),
            ]
        )


def find_build() -> Build:
    """The identity of the running process; never an error, since no training should end for want of it."""
    return _find(os.environ.get(BUILD_VARIABLE, ""), os.environ.get(IMAGE_VARIABLE, ""))


def image_reference() -> str:
    """The image this process runs in, by digest where the pod says so; empty outside an image."""
    return find_build().image


@cache
def _find(file: str, image: str) -> Build:
    if file:
        return read_build(Path(file), image)
    return _of_checkout(Path(__file__).resolve().parents[2], image)


def read_build(file: Path, image: str = "") -> Build:
    """The identity that an image carries. image: the reference to prefer over the tag it was built as."""
    where = f"{BUILD_VARIABLE} names {str(file)!r}"
    try:
        plain = json.loads(file.read_bytes())
        found = {key: str(plain[key]) for key in FIELDS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Build(__version__, image=image, note=f"{where}, which cannot be read: {type(error).__name__}: {error}")
    if found["schema"] != SCHEMA:
        note = f"{where} with schema {found['schema']!r}, this version reads {SCHEMA}"
        return Build(__version__, image=image, note=note)
    revision, dirty = _split(found["revision"])
    note = "" if revision != UNKNOWN else "the image was built without a revision"
    return Build(__version__, revision, dirty, image or found["image"], found["base_image"], "image", note)


def _of_checkout(root: Path, image: str) -> Build:
    """What git says of the folder this module lies in, if that is a checkout of ours."""
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return Build(__version__, image=image, note="installed outside an image, not run from a checkout")
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Build(__version__, image=image, note=f"a checkout, but git gave no answer: {type(error).__name__}")
    revision, dirty = _split(done.stdout.strip())
    return Build(__version__, revision, dirty, image, origin="checkout")


def _split(described: str) -> tuple[str, bool | None]:
    """`<revision>[-dirty]` as (revision, dirty)."""
    revision = described.removesuffix(DIRTY)
    if revision in ("", UNKNOWN):
        return UNKNOWN, None
    return revision, described.endswith(DIRTY)


def write_build(file: Path, *, revision: str, image: str, base_image: str) -> Mapping[str, str]:
    """Write the identity of an image; `_split` has the form of a revision."""
    plain = {
        "schema": SCHEMA,
        "version": __version__,
        "revision": revision or UNKNOWN,
        "image": image,
        "base_image": base_image,
    }
    file.write_text(json.dumps(plain, indent=1) + "\n")
    return plain


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the identity, or write it: what the last step of an image's build calls."""
    parser = argparse.ArgumentParser(prog="python -m stageline.build", description=main.__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="where an image keeps its identity")
    parser.add_argument("--version", default=__version__, help="what the image is labelled with")
    parser.add_argument("--revision", default=UNKNOWN, help="<commit>[-dirty]")
    parser.add_argument("--image", default="", help="what the image is tagged as")
    parser.add_argument("--base-image", default="", help="what the image is made from")
    chosen = parser.parse_args(arguments)
    if chosen.write is None:
        say_block(json_text(find_build().to_json()))
        return
    if chosen.version != __version__:
        sys.exit(
            f"error: the image is to be labelled {chosen.version!r}, but the source in it is {__version__}\n"
            f"  -> build with --build-arg VERSION={__version__}, as `make images` does"
        )
    write_build(chosen.write, revision=chosen.revision, image=chosen.image, base_image=chosen.base_image)


if __name__ == "__main__":
    main()
