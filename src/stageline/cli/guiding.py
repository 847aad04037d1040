"""The command that lays out a family's guide: `stageline guide FAMILY DIR`."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

import stageline
from stageline.errors import ConfigError, Faults
from stageline.printing import say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(guide)


def guide(
    family: Annotated[str, typer.Argument(help="Model family.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where it is laid out; made if absent.")],
    demo_data: Annotated[
        bool, typer.Option("--demo-data", help="Also tiny data, and configs made tiny, so that its commands run here.")
    ] = False,
) -> None:
    """Lay out a family's guide: the folder of scripts and configs in which the guide's own commands run unchanged."""
    written = lay_out(family, folder, demo_data=demo_data)
    for name in written:
        say(f"written: {folder / name}")
    say(f"{len(written)} {'file' if len(written) == 1 else 'files'}; go on in {folder}")


def lay_out(family: str, folder: Path, *, demo_data: bool = False) -> list[str]:
    """Write the files of a family's guide; names of those that were not there as they are now.

    folder: made if absent.  demo_data: also what `Family.demo_data` makes, and the configs as it changes them.
    ConfigError, before anything is written, that names every file which is there with other content.
    """
    source = guide_folder(family)
    with tempfile.TemporaryDirectory() as made:
        whole = Path(made) / "guide"
        shutil.copytree(source, whole, ignore=shutil.ignore_patterns("__pycache__"))
        (whole / "__init__.py").unlink(missing_ok=True)  # of the package that a wheel carries the folder as
        if demo_data:
            _add_demo_data(family, whole)
        names = sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file())
        faults = Faults(ConfigError, f"{str(folder)!r} is not free for the guide of {family}", "choose an empty folder")
        missing = []
        for name in names:
            here = _content(folder / name)
            if here is None or (here != (whole / name).read_bytes() and here == _content(source / name)):
                missing.append(name)
            elif here != (whole / name).read_bytes():
                faults.add(f"{folder / name} is there and is another file")
        faults.raise_if_any()
        for name in missing:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_name(f".{target.name}.unfinished")
            shutil.copyfile(whole / name, unfinished)
            unfinished.chmod(0o755 if target.suffix == ".sh" else 0o644)
            unfinished.replace(target)
    return missing


def _content(path: Path) -> bytes | None:
    """The bytes of a file, none of what is there and is no file; None where nothing is."""
    if not path.exists():
        return None
    return path.read_bytes() if path.is_file() else b""


def _add_demo_data(family: str, folder: Path) -> None:
    from stageline.families import load_family

    make = load_family(family).demo_data
    if make is None:
        raise ConfigError(f"family {family!r} has no data to try its guide with", remedy="leave --demo-data out")
    make(folder)


def guide_folder(family: str) -> Path:
    """The folder of a family's guide in this copy of stageline: of a clone `scripts/<family>`, else of the package.

    ConfigError for a family that does not exist or has no guide.
    """
    from stageline.families import family_config

    family_config(family)  # refuses a family that does not exist
    clone = Path(stageline.__file__).resolve().parents[2]
    folder = clone / "scripts" / family
    if (clone / "pyproject.toml").is_file() and folder.is_dir():
        return folder
    try:
        spec = importlib.util.find_spec(f"stageline_guides.{family}")
    except ModuleNotFoundError:
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise ConfigError(f"family {family!r} has no guide in this copy of stageline", remedy="reinstall stageline")
    return Path(places[0])
