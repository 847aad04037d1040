"""The splits of panorama_vlm: the part of the config that each depends on, and the files that are read; no torch.

`train-pictures`, `val-pictures` and `test-pictures` hold each distinct panorama once, reduced; `train`, `val` and
`test` the rows of query and response, each with the number of its picture. So other captions, or another overlap,
leave pictures alone, and stage `vision` reads pictures only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stageline.data.splits import Split
from stageline.families.panorama_vlm.data.rows import (
    CheckImage,
    Row,
    Table,
    named_images,
    read_rows,
)

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig
    from stageline.stage import Stage

PICTURES = "-pictures"
NUMBERS = {"train": "num_train", "val": "num_val", "test": "num_test"}
"""Keys of `data` that say how many panoramas are made."""


def splits(config: PanoramaVlmConfig, stage: Stage) -> tuple[Split, ...]:
    """What a stage reads. config: the stage's own."""
    return tuple(split for name in ("train", "val") for split in _of(config, name, rows=stage.name != "vision"))


def evaluation_splits(config: PanoramaVlmConfig) -> tuple[Split, ...]:
    """What an evaluation reads."""
    return _of(config, config.evaluation_split, rows=True)


def _of(config: PanoramaVlmConfig, name: str, *, rows: bool) -> tuple[Split, ...]:
    pictures, unseen = picture_files(config, name), unseen_places(config, name)
    found = [Split(f"{name}{PICTURES}", pictures_key(config, name), pictures, unseen=unseen)]
    if rows:
        files = (file for file in csv_files(config, name) if file.is_file())
        found.append(Split(name, rows_key(config, name), tuple(sorted({*files, *pictures})), unseen=unseen))
    return tuple(found)


def unseen_places(config: PanoramaVlmConfig, name: str) -> tuple[Path, ...]:
    """CSV files and folders that a split is read from and that are not there, as seen from here."""
    files = csv_files(config, name)
    root = _folder(config.data.image_root) if files else None
    absent = [file for file in files if not file.is_file()]
    return tuple([*absent, root] if root is not None and not root.is_dir() else absent)


def _origin_key(config: PanoramaVlmConfig, name: str) -> dict[str, Any]:
    data = config.data
    if data.name != "csv":
        return {"name": data.name, "number": num_rooms(config, name), "seed": config.seed}
    looked = {key: getattr(data, key) for key in ("on_bad", "max_bad_fraction", "erp_hfov_deg", "erp_vfov_deg")}
    return {"name": data.name, **looked}


def num_rooms(config: PanoramaVlmConfig, name: str) -> int:
    """How many made panoramas a split has."""
    number: int = getattr(config.data, NUMBERS[name])
    return number


def pictures_key(config: PanoramaVlmConfig, name: str) -> dict[str, Any]:
    """What the pictures of a split depend on: where they are from, and the size to which they are reduced."""
    image = config.image_processing
    reduction = {"tile_size": config.tile_size, "fov_deg": image.fov_deg, "antialias": image.antialias}
    return {"origin": _origin_key(config, name), "reduction": reduction}


def rows_key(config: PanoramaVlmConfig, name: str) -> dict[str, Any]:
    """What the rows of a split depend on beside their files."""
    return {"origin": _origin_key(config, name), "query_template": config.data.query_template}


def csv_files(config: PanoramaVlmConfig, name: str) -> tuple[Path, ...]:
    """The CSV files of a split, in their order; none for made data."""
    files: tuple[str, ...] = getattr(config.data, f"csv_{name}") if config.data.name == "csv" else ()
    return tuple(Path(file).expanduser() for file in files)


def picture_files(config: PanoramaVlmConfig, name: str) -> tuple[Path, ...]:
    """The pictures that a split's rows name, sorted; what is not there is left out: preparing names it."""
    found = [file for file in csv_files(config, name) if file.is_file()]
    stamps = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in found)
    pictures = _pictures_named(stamps, config.data.image_root, config.data.url_cache)
    return tuple(sorted(path for path in pictures if path.is_file()))


@lru_cache(maxsize=64)
def _pictures_named(stamps: tuple[tuple[str, int, int], ...], root: str | None, cache: str | None) -> tuple[Path, ...]:
    """The pictures that CSV files name; none where a file has faults, which preparing lists.

    stamps: (path, time, size) of each file.
    """
    return named_images([Path(path) for path, _, _ in stamps], _folder(root), _folder(cache))


def read_table(config: PanoramaVlmConfig, name: str, check_image: CheckImage, *, text: bool) -> Table:
    """The rows of a split. check_image: looks at a picture file.  text: whether query and response are needed."""
    data = config.data
    return read_rows(
        csv_files(config, name),
        check_image,
        image_root=_folder(data.image_root),
        url_cache=_folder(data.url_cache),
        query_template=data.query_template,
        with_text=text,
    )


def _folder(given: str | None) -> Path | None:
    return None if given is None else Path(given).expanduser()


def field_of_view(config: PanoramaVlmConfig, row: Row) -> tuple[float | None, float | None]:
    """Degrees that a row's panorama shows, across and up: its own, or else those of the data set; None for all."""
    return (
        config.data.erp_hfov_deg if row.erp_hfov_deg is None else row.erp_hfov_deg,
        config.data.erp_vfov_deg if row.erp_vfov_deg is None else row.erp_vfov_deg,
    )


def distinct_images(rows: Sequence[Row]) -> list[Row]:
    """The first row of each picture file."""
    first: dict[Path, Row] = {}
    for row in rows:
        first.setdefault(row.path, row)
    return list(first.values())


def pictures_of(config: PanoramaVlmConfig, table: Table) -> list[tuple[Path, float | None, float | None]]:
    """The distinct pictures of a table in the order in which they are prepared: file and field of view."""
    return [(row.path, *field_of_view(config, row)) for row in distinct_images(table.rows)]


def num_samples(config: PanoramaVlmConfig, stage: Stage, prepared: Mapping[str, Any]) -> int | None:
    """Training samples of one epoch: distinct panoramas in `vision`, rows in the other stages."""
    del config
    found = prepared.get("splits", {})
    key, fact = ("train-pictures", "pictures") if stage.name == "vision" else ("train", "rows")
    number = found.get(key, {}).get(fact)
    return number if isinstance(number, int) else None
