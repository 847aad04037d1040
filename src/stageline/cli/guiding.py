"""The command that lays out a family's guide: `stageline guide FAMILY DIR`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from stageline.errors import ConfigError, Faults


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(guide)


def guide(
    family: Annotated[str, typer.Argument(help="Model family.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where it is laid out; made if absent.")],
    demo_data: Annotated[
        bool, typer.Option("--demo-data", help="Also tiny data and tiny base weights, so that its commands run here.")
    ] = False,
) -> None:
    """Lay out a family's guide: the folder of scripts and configs in which the guide's own commands run unchanged."""
    written = lay_out(family, folder)
    if demo_data:
        from stageline.families import load_family

        make = load_family(family).demo_data
        if make is None:
            raise ConfigError(f"family {family!r} has no data to try its guide with", remedy="leave --demo-data out")
        written += make(folder)
    for name in written:
        print(f"written: {folder / name}")
    print(f"{len(written)} {'file' if len(written) == 1 else 'files'}; go on in {folder}")


def lay_out(family: str, folder: Path) -> list[str]:
    """Copy the files of a family's guide; names of those that were not there yet.

    ConfigError, before anything is written, that names every file which is there with other content.
    """
    source = guide_folder(family)
    files = sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    faults = Faults(ConfigError, f"{str(folder)!r} is not free for the guide of {family}", "choose an empty folder")
    missing = []
    for path in files:
        target = folder / path.relative_to(source)
        if not target.exists():
            missing.append(path)
        elif not target.is_file() or target.read_bytes() != path.read_bytes():
            faults.add(f"{target} is there and is another file")
    faults.raise_if_any()
    for path in missing:
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.unfinished")
        unfinished.write_bytes(path.read_bytes())
        unfinished.chmod(0o755 if path.suffix == ".sh" else 0o644)
        unfinished.replace(target)
    return [path.relative_to(source).as_posix() for path in missing]


def guide_folder(family: str) -> Path:
    """The folder of a family's guide in this copy of stageline. ConfigError where it has none."""
    from stageline.families import family_config

    family_config(family)  # refuses a family that does not exist
    try:
        spec = importlib.util.find_spec(f"stageline_guides.{family}")
    except ModuleNotFoundError:
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise ConfigError(f"family {family!r} has no guide in this copy of stageline", remedy="reinstall stageline")
    return Path(places[0])
