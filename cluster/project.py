"""The project's images on the cluster: base, launcher and trainer; built outside, published inside.

Building needs the package index and no cluster, so it goes on beside the Go builds; publishing pushes to the cluster's
registry and has both nodes pull. Only what changed is done again: a changed source is a thin layer.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

from cluster import base
from cluster.errors import ClusterError
from cluster.images import (
    BASE,
    REPOSITORY,
    digest_of,
    forget_older,
    local_id,
    pull,
    push,
    reference,
    storage,
)
from cluster.process import run
from cluster.progress import timed
from cluster.state import State, write_json

SOURCE = (
    *("src", "components", "pipelines", "scripts"),
    *("pyproject.toml", "setup.py", "README.md", "LICENSE", "images/build.py"),
)
LOCKS = ("requirements/build.txt", "requirements/uv.txt")
IMAGES = {
    "launcher": (*SOURCE, *LOCKS, "requirements/launcher.txt", "images/launcher"),
    "trainer": (*SOURCE, *LOCKS, "requirements/trainer.txt", "images/trainer"),
}
"""Image to what of the repository is in it: only if that changes is it built again."""
USUAL = {"launcher": "1 min", "trainer": "3 min"}


def record(state: State, name: str) -> Path:
    """What the image in buildah's storage was made of, and its name there."""
    return state.images / f"{name}.built.json"


def made_of(state: State, name: str) -> str:
    """What an image would be made of now."""
    return digest_of([REPOSITORY / path for path in IMAGES[name]], local_id(state, BASE))


def built(state: State, name: str) -> str | None:
    """The name of an image in buildah's storage, if it was made of what is here now."""
    try:
        known = json.loads(record(state, name).read_text())
    except FileNotFoundError:
        return None
    return str(known["tag"]) if known["made_of"] == made_of(state, name) and local_id(state, known["tag"]) else None


def build(state: State) -> None:
    """Build what is missing, quickest first, by the project's own command on our base."""
    base.make(state)
    for name in IMAGES:
        if built(state, name):
            continue
        origin = made_of(state, name)
        with timed(f"building the {name} image", usual=f"{USUAL[name]}; less if only the source changed"):
            argv = [sys.executable, REPOSITORY / "images" / "build.py", name, "--builder=buildah", "--allow-tag"]
            argv += [f"--base-image={BASE}", f"--build-flags={shlex.join(build_flags())}"]
            text = run(state, argv, env=storage(state), log=state.logs / f"image-{name}.log", cwd=REPOSITORY)
        tag = next((line.split()[1] for line in text.splitlines() if " is there after " in line), "")
        if not tag:
            raise ClusterError(f"images/build.py did not name what it built; expected a line about {name}; see its log")
        write_json(record(state, name), {"made_of": origin, "tag": tag})
    # Layers of older sources, which no name points at any more.
    run(state, ["buildah", "rmi", "--prune"], env=storage(state), check=False)


def build_flags() -> list[str]:
    """How the build reaches packages as this machine does: certificates and pip's settings, mounted."""
    flags = []
    for path in ("/etc/ssl/certs", "/etc/pip.conf", "/etc/uv/uv.toml", os.environ.get("PIP_CONFIG_FILE", "")):
        if path and Path(path).exists():
            flags += ["--volume", f"{path}:{path}:ro"]
    return flags


def publish(state: State) -> dict[str, str]:
    """Push what the registry lacks and have both nodes pull it. Gives name to reference by digest."""
    done = {}
    for name in ("base", *IMAGES):
        local = BASE if name == "base" else built(state, name)
        if local is None:  # somebody edited a source since `build`: take what was built
            local = str(json.loads(record(state, name).read_text())["tag"])
        origin = local_id(state, local)
        done[name] = reference(state, name, origin) or ""
        if not done[name]:
            with timed(f"pushing the {name} image", quiet_seconds=3):
                done[name] = push(state, name, local, origin)
    forget_older(state, done)
    pull(state, done.values())
    return done


def bare(state: State) -> dict[str, str]:
    """The images that an earlier `up` published, if the registry still has them; nothing is built."""
    done = {}
    for name in ("base", *IMAGES):
        found = reference(state, name)
        if found:
            done[name] = found
    pull(state, done.values())
    return done
