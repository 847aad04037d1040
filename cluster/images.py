"""Images: built by buildah without an engine, pushed to the cluster's registry, pulled by both nodes by digest.

There is one copy per place: layers in buildah's storage, blobs in the registry, and what each node unpacked. What an
image was made of is recorded beside its digest, so that only what changed is built, pushed and pulled again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from cluster import node, registry
from cluster.errors import ClusterError
from cluster.network import HEAD, PLACES
from cluster.process import run, side_by_side, wait_until
from cluster.progress import timed
from cluster.state import State, write_json, write_text

REPOSITORY = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "images"
BASE = "localhost/stageline/base:1"
COMPRESSION = ("--compression-format", "zstd", "--compression-level", "1")
"""Where a disk is slow, fewer bytes are quicker, and zstd costs little: gzip takes minutes for torch, at both ends."""
PARTS = {"pause": "pause", "coredns": "coredns", "training-operator": "training-operator"}
"""Image of ours to the program in it: FROM scratch, `images/<name>/Dockerfile`."""


NOT_YET = "server is not initialized yet"
"""What containerd says while its part for the kubelet is not there yet."""


def storage(state: State) -> dict[str, str]:
    """The environment in which buildah keeps everything in the state directory."""
    root = state.images / "storage"
    text = f'[storage]\ndriver = "overlay"\ngraphroot = "{root}"\nrunroot = "{state.images / "storage-run"}"\n'
    tmp = state.images / "tmp"
    tmp.mkdir(parents=True, exist_ok=True)
    config = write_text(state.images / "storage.conf", text)
    return {"CONTAINERS_STORAGE_CONF": str(config), "TMPDIR": str(tmp), "BUILDAH_ISOLATION": "chroot"}


def buildah(
    state: State, *words: str, netns: str | None = None, log: Path | None = None, cwd: Path | None = None
) -> str:
    """Run buildah on our storage."""
    return run(state, ["buildah", *words], netns=netns, env=storage(state), log=log, cwd=cwd)


def local_id(state: State, image: str) -> str:
    """The id of an image in buildah's storage; empty if there is none."""
    argv = ["buildah", "images", "--quiet", "--no-trunc", "--filter", f"reference={image}"]
    return run(state, argv, env=storage(state), check=False).strip()


def digest_of(paths: Iterable[Path], *more: str) -> str:
    """A digest over files, or all files below folders, and words."""
    seen = hashlib.sha256(repr(more).encode())
    for top in paths:
        files = sorted(p for p in top.rglob("*") if "__pycache__" not in p.parts) if top.is_dir() else [top]
        for path in files:
            if path.is_file():
                seen.update(f"\n{path.relative_to(top.parent)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return seen.hexdigest()[:16]


def record(state: State, name: str) -> Path:
    """What an image was made of, and its digest in the registry."""
    return state.images / f"{name}.json"


def reference(state: State, name: str, made_of: str | None = None) -> str | None:
    """The image by digest, if it was made of this (or of anything) and the registry has it."""
    try:
        known = json.loads(record(state, name).read_text())
    except FileNotFoundError:
        return None
    if made_of not in (None, known["made_of"]) or not registry.has(state, f"stageline/{name}", known["digest"]):
        return None
    return f"{registry.ADDRESS}/stageline/{name}@{known['digest']}"


def push(state: State, name: str, local: str, made_of: str) -> str:
    """Push an image to the registry and give back its reference by digest."""
    note = state.images / f"{name}.digest"
    target = f"docker://{registry.ADDRESS}/stageline/{name}:1"
    # Inside the namespace there is no name server and no certificate to check.
    argv = ["push", "--quiet", "--tls-verify=false", *COMPRESSION, "--digestfile", str(note)]
    buildah(state, *argv, local, target, netns=HEAD.netns)
    write_json(record(state, name), {"made_of": made_of, "digest": note.read_text().strip()})
    note.unlink()
    found = reference(state, name, made_of)
    if not found:
        raise ClusterError(
            f"the registry at {registry.ADDRESS} lacks {name}, just pushed; expected it; see registry.log"
        )
    return found


def make_parts(state: State) -> dict[str, str]:
    """The images of pause, CoreDNS and the operator: one static program each. Gives name to reference."""
    found = {}
    for name, program in PARTS.items():
        binary = (state.bin / program).resolve()
        made_of = digest_of([FOLDER / name], str(binary.parent.name))
        found[name] = reference(state, name, made_of) or ""
        if not found[name]:
            with timed(f"making the image of {name}"):
                # The program's folder is the context: nothing is copied to get there.
                argv = ["build", "--quiet", "--isolation", "chroot", "--file", str(FOLDER / name / "Dockerfile")]
                buildah(state, *argv, "--tag", f"localhost/stageline/{name}:1", str(binary.parent))
                found[name] = push(state, name, f"localhost/stageline/{name}:1", made_of)
    return found


def pull(state: State, references: Iterable[str]) -> None:
    """Have both nodes pull images, side by side, so that no test waits for one."""

    def on_node(name: str) -> None:
        present = node.ctr(state, name, "images", "list", "-q").split()
        wanted = [image for image in references if image not in present]
        if wanted:
            with timed(f"{name} pulls {', '.join(short(image) for image in wanted)}", quiet_seconds=3):
                run(state, [state.bin / "pull", node.socket(state, name), *wanted], timeout_seconds=1500)

    references = list(references)
    side_by_side(*(partial(on_node, p.name) for p in PLACES), width=len(PLACES))


def pull_pause(state: State, name: str) -> None:
    """Have a node pull the pause image under the fixed name that its configuration gives.

    containerd answers before the part of it that the kubelet talks to is initialised: until then it is asked again.
    """
    last = ""

    def is_there() -> bool:
        nonlocal last
        try:
            run(state, [state.bin / "pull", node.socket(state, name), node.PAUSE], timeout_seconds=60)
        except ClusterError as error:
            last = str(error)
            if NOT_YET not in last:
                raise
            return False
        return True

    wait_until(is_there, f"the image service of {name}", seconds=60, advice=lambda: last)


def short(image: str) -> str:
    """An image's name without registry and digest."""
    return image.split("/")[-1].split("@")[0]


def forget_older(state: State, kept: Mapping[str, str]) -> None:
    """Remove from both nodes what earlier sources made of the same images: the layers would pile up otherwise."""
    for p in PLACES:
        for image in node.ctr(state, p.name, "images", "list", "-q").split():
            name, _, digest = image.rpartition("/")[2].partition("@")
            if image.startswith(registry.ADDRESS) and digest and image != kept.get(name, image):
                node.ctr(state, p.name, "images", "rm", image, check=False)
