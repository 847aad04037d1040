"""Builds the images with docker, podman or buildah: `make images`. Needs Python >= 3.11 and nothing else.

The command is a value: `build_command` makes it, `build_images` runs it; the tool that makes test clusters calls the
same with its own base image and flags. What the images hold and why stands in docs/images.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ("launcher", "trainer")
"""The quick one first: a fault that both have shows after a minute."""

BASE_IMAGE = "python:3.11-slim-bookworm"
PINNED = re.compile(r".+@sha256:[0-9a-f]{64}")
"""A reference by digest: the same bytes tomorrow."""

REGISTRY = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*/?")
"""What may stand before `stageline/…` in a tag: a host, maybe a port, and folders in small letters."""

BUILDERS = {
    "docker": ("docker", "version", "--format", "{{.Server.Version}}"),
    "podman": ("podman", "info", "--format", "{{.Version.Version}}"),
    "buildah": ("buildah", "--version"),
}
"""Builder -> what it answers only if it can build: a docker client without an engine is there, but of no use."""

BUILD_ENVIRONMENT = (
    "SSL_CERT_FILE",
    "PIP_CERT",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "PIP_DEFAULT_TIMEOUT",
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
)
"""Where packages come from: handed to the build if set here, as arguments that the image does not keep."""

UV_FROM_PIP = {"UV_DEFAULT_INDEX": "PIP_INDEX_URL", "UV_INDEX": "PIP_EXTRA_INDEX_URL"}
"""uv does not read pip's settings; what pip is told, uv is told too."""


class BuildError(Exception):
    """An image that cannot be built, in words for people."""


@dataclass(frozen=True)
class Recipe:
    """What one build is told. revision: `<commit>[-dirty]` or unknown. created, source: labels, if given."""

    image: str
    builder: str
    version: str
    revision: str
    base_image: str = BASE_IMAGE
    registry: str = ""
    flags: tuple[str, ...] = ()
    created: str = ""
    source: str = ""

    @property
    def tag(self) -> str:
        """`[<registry>/]stageline/<image>:<version>`."""
        return "/".join([*filter(None, [self.registry.rstrip("/")]), f"stageline/{self.image}:{self.version}"])

    def pinned(self, digest: str) -> str:
        """The image by digest. digest: `sha256:…`, as its registry knows it."""
        return f"{self.tag.rpartition(':')[0]}@{digest}"


def build_command(recipe: Recipe, passed: Sequence[str] = (), id_file: str = "") -> list[str]:
    """The builder's command for the root of the repository.

    passed: build arguments taken from the environment.  id_file: where the builder writes the id of the image.
    """
    command = [recipe.builder, "build", "--file", f"images/{recipe.image}/Dockerfile", "--tag", recipe.tag]
    command += ["--iidfile", id_file] if id_file else []
    if recipe.builder == "buildah":
        # Layers are kept for the next build, as the others do by themselves. chroot needs no privileges of its own.
        command += ["--layers", "--isolation", os.environ.get("BUILDAH_ISOLATION") or "chroot"]
    arguments = {
        "BASE_IMAGE": recipe.base_image,
        "VERSION": recipe.version,
        "REVISION": recipe.revision,
        "IMAGE": recipe.tag,
    }
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    for name in passed:
        command += ["--build-arg", name]
    for name, value in (("created", recipe.created), ("source", recipe.source)):
        if value:
            command += ["--label", f"org.opencontainers.image.{name}={value}"]
    return [*command, *recipe.flags, "."]


def build_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment says where packages come from, for pip and for uv."""
    found = {name: environment[name] for name in BUILD_ENVIRONMENT if environment.get(name)}
    for name, pip_name in UV_FROM_PIP.items():
        if name not in found and environment.get(pip_name):
            found[name] = environment[pip_name]
    return found


def find_builder(chosen: str = "") -> str:
    """The builder to use: the chosen one, or the first that answers."""
    if chosen and chosen not in BUILDERS:
        raise BuildError(f"BUILDER is {chosen!r}\n  -> one of {', '.join(BUILDERS)}, or leave it out")
    reasons = []
    for name in [chosen] if chosen else BUILDERS:
        if shutil.which(name) is None:
            reasons.append(f"{name} is not on PATH")
            continue
        probe = subprocess.run(BUILDERS[name], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if probe.returncode == 0:
            return name
        last = (probe.stderr.strip() or "no reason given").splitlines()[-1]
        reasons.append(f"{name} is there but does not answer: {last}")
    listed = "\n".join(f"  - {reason}" for reason in reasons)
    raise BuildError(f"nothing here can build an image:\n{listed}\n  -> install or start one of {', '.join(BUILDERS)}")


def check_base(base_image: str, allow_tag: bool) -> None:
    """BuildError for a base image that is not named by digest, unless that is allowed."""
    if allow_tag or PINNED.fullmatch(base_image):
        return
    name = base_image.partition("@")[0]
    raise BuildError(
        f"BASE_IMAGE {base_image} has no digest: another image may lie under that name tomorrow\n"
        f"  -> BASE_IMAGE={name}@sha256:…, as `skopeo inspect --format '{{{{.Digest}}}}' docker://{name}` prints it "
        "(or `docker buildx imagetools inspect`), or ALLOW_TAG=1 (--allow-tag)"
    )


def push_image(recipe: Recipe, folder: Path) -> str:
    """Push an image that is built; returns it by digest. folder: for a note of the builder's.  BuildError."""
    note = folder / f"{recipe.image}.digest"
    own = [] if recipe.builder == "docker" else ["--digestfile", str(note)]
    command = [recipe.builder, "push", *own, recipe.tag]
    print(f"images: {shlex.join(command)}", flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise BuildError(f"{recipe.tag} could not be pushed (exit code {done.returncode}); the lines above say why")
    if note.exists():
        return recipe.pinned(note.read_text().strip())
    # docker notes no digest, but knows it once the image is pushed.
    asked = [recipe.builder, "image", "inspect", "--format", "{{range .RepoDigests}}{{println .}}{{end}}", recipe.tag]
    told = subprocess.run(asked, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout.split()
    found = [name for name in told if PINNED.fullmatch(name) and name.startswith(recipe.pinned(""))]
    if not found:
        raise BuildError(f"{recipe.tag} was pushed, but {recipe.builder} does not tell its digest; found {told}")
    return found[0]


def split_flags(text: str) -> list[str]:
    """The words of BUILD_FLAGS, as a shell reads them. BuildError where a quotation has no end."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BuildError(f"BUILD_FLAGS {text!r} are no words: {error}\n  -> close the quotation") from error


def read_version() -> str:
    """The package's version, from pyproject.toml."""
    import tomllib

    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def read_revision() -> str:
    """`<commit>[-dirty]` of the checkout, or unknown where git does not say (an unpacked archive, no git)."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def build_images(
    images: Sequence[str] = IMAGES,
    *,
    builder: str = "",
    base_image: str = BASE_IMAGE,
    registry: str = "",
    flags: Sequence[str] = (),
    created: str = "",
    source: str = "",
    environment: Mapping[str, str] | None = None,
    dry_run: bool = False,
    allow_tag: bool = False,
    push: bool = False,
) -> dict[str, str]:
    """Build images; returns image -> tag, and prints their ids, and digests where they are pushed.

    flags: for the builder (`--volume …`).
    allow_tag: take a base image that is not named by digest.
    push: also push each; needs a registry.
    environment: instead of this process's, e.g. with the settings of pip added.  BuildError if one cannot be built.
    """
    unknown = sorted(set(images) - set(IMAGES))
    if unknown:
        raise BuildError(f"there is no image {', '.join(unknown)}\n  -> {' or '.join(IMAGES)}")
    if push and not registry:
        raise BuildError("there is no registry to push to\n  -> REGISTRY=registry.example/team")
    if registry and not REGISTRY.fullmatch(registry):
        raise BuildError(f"REGISTRY {registry!r} is no registry.example:5000/team\n  -> without https://, blanks, tags")
    name = find_builder(builder)
    check_base(base_image, allow_tag)
    version, revision = read_version(), read_revision()
    merged = dict(os.environ if environment is None else environment)
    passed = build_environment(merged)
    tags = {}
    with tempfile.TemporaryDirectory() as folder:
        for image in images:
            recipe = Recipe(image, name, version, revision, base_image, registry, tuple(flags), created, source)
            note = Path(folder, f"{image}.id")
            command = build_command(recipe, list(passed), str(note))
            print(f"images: {shlex.join(command)}", flush=True)
            tags[image] = recipe.tag
            if dry_run:
                continue
            begin = time.monotonic()
            done = subprocess.run(command, cwd=ROOT, env={**merged, **passed}, check=False, stdin=subprocess.DEVNULL)
            if done.returncode:
                raise BuildError(
                    f"{recipe.tag} could not be built (exit code {done.returncode}); the lines above say why"
                )
            print(f"images: {recipe.tag} is there after {time.monotonic() - begin:.0f} s", flush=True)
            told = note.read_text().strip() if note.exists() else f"unknown: {name} wrote no --iidfile"
            print(f"images: its id is {told}", flush=True)
            if push:
                print(f"images: by digest {push_image(recipe, Path(folder))}", flush=True)
    return tags


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line that `make images` calls."""
    parser = argparse.ArgumentParser(prog="images/build.py", description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"{' or '.join(IMAGES)}; both if none is named")
    parser.add_argument("--builder", default="", help=", ".join(BUILDERS))
    parser.add_argument(
        "--base-image", default="", help=f"a Debian with Python >= 3.11, by digest (default: {BASE_IMAGE})"
    )
    parser.add_argument("--allow-tag", action="store_true", help="take a base image that has no digest")
    parser.add_argument("--registry", default="", help="prefix of the tags")
    parser.add_argument("--push", action="store_true", help="push them too, and print them by digest")
    parser.add_argument("--build-flags", default="", help="further flags for the builder, as one text")
    parser.add_argument("--created", default="", help="label: when, RFC 3339")
    parser.add_argument("--source", default="", help="label: where the source is")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    chosen = parser.parse_args(arguments)
    try:
        build_images(
            chosen.images or IMAGES,
            builder=chosen.builder,
            base_image=chosen.base_image or BASE_IMAGE,
            registry=chosen.registry,
            flags=split_flags(chosen.build_flags),
            created=chosen.created,
            source=chosen.source,
            dry_run=chosen.dry_run,
            allow_tag=chosen.allow_tag,
            push=chosen.push,
        )
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036  # whatever `python3` is where images are built
        sys.exit(f"error: Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    sys.exit(main())
