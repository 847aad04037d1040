"""Puts `components/`, `pipelines/` and the folders of the families' guides into the wheel, as packages of their own."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
FOLDERS = {
    f"stageline_guides.{folder.name}": folder for folder in sorted((ROOT / "scripts").glob("[a-z]*")) if folder.is_dir()
}
"""Package -> folder of a family's guide: scripts and configs, with subfolders, as they are laid out for a user."""


def files_below(folder: Path) -> list[str]:
    """Every file of a guide, relative, without what Python leaves there."""
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.as_posix() for path in found if "__pycache__" not in path.parts]


setup(
    packages=[*find_packages("src"), "stageline_components", "stageline_pipelines", *FOLDERS],
    package_dir={
        "": "src",
        "stageline_components": "components",
        "stageline_pipelines": "pipelines",
        **{package: folder.relative_to(ROOT).as_posix() for package, folder in FOLDERS.items()},
    },
    # Here and not in pyproject.toml, whose list would take the place of this one.
    package_data={
        "stageline": ["py.typed"],
        "stageline_pipelines": ["*.yaml"],
        **{package: files_below(folder) for package, folder in FOLDERS.items()},
    },
)
