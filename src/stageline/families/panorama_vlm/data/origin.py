"""The splits of panorama_vlm: the part of the config that each depends on, and the files that are read; no torch.

`train-pictures`, `val-pictures` and `test-pictures` hold each distinct panorama once, reduced; `train`, `val` and
`test` the rows of query and response. So other captions, or another overlap, leave pictures alone, and stage `vision`
reads pictures only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stageline.data.splits import Split
from stageline.errors import DataError
from stageline.families.panorama_vlm.data.rows import read_rows

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig
    from stageline.stage import Stage

PICTURES = "-pictures"
NUMBERS = {"train": "num_train", "val": "num_val", "test": "num_test"}


def splits(config: PanoramaVlmConfig, stage: Stage) -> tuple[Split, ...]:
    """What a stage reads. config: the stage's own."""
    return tuple(split for name in ("train", "val") for split in _of(config, name, rows=stage.name != "vision"))


def evaluation_splits(config: PanoramaVlmConfig) -> tuple[Split, ...]:
    """What an evaluation reads."""
    return _of(config, config.evaluation_split, rows=True)


def _of(config: PanoramaVlmConfig, name: str, *, rows: bool) -> tuple[Split, ...]:
    files = source_files(config, name)
    pictures = Split(f"{name}{PICTURES}", pictures_key(config, name), files)
    return (pictures, Split(name, rows_key(config, name), files)) if rows else (pictures,)


def _origin_key(config: PanoramaVlmConfig, name: str) -> dict[str, Any]:
    data = config.data
    if data.name != "csv":
        return {"name": data.name, "number": getattr(data, NUMBERS[name]), "seed": config.seed}
    looked = {
        key: getattr(data, key) for key in ("on_bad", "max_bad_fraction", "verify", "erp_hfov_deg", "erp_vfov_deg")
    }
    return {"name": data.name, **looked}


def pictures_key(config: PanoramaVlmConfig, name: str) -> dict[str, Any]:
    """What the pictures of a split depend on: where they are from, and the size to which they are reduced."""
    image = config.image_processing
    reduction = {"tile_size": config.tile_size, "fov_deg": image.fov_deg, "antialias": image.antialias}
    return {"origin": _origin_key(config, name), "reduction": reduction}


def rows_key(config: PanoramaVlmConfig, name: str) -> dict[str, Any]:
    """What the rows of a split depend on beside their files."""
    return {"origin": _origin_key(config, name), "query_template": config.data.query_template}


def csv_files(config: PanoramaVlmConfig, name: str) -> tuple[Path, ...]:
    """The CSV files of a split."""
    files: tuple[str, ...] = getattr(config.data, f"csv_{name}")
    return tuple(Path(file) for file in files)


def source_files(config: PanoramaVlmConfig, name: str) -> tuple[Path, ...]:
    """The CSV files of a split and the pictures they name, sorted; preparing names what is not there."""
    data = config.data
    found = [file for file in csv_files(config, name) if file.is_file()] if data.name == "csv" else []
    stamps = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in found)
    pictures = _pictures_of(stamps, data.image_root, data.url_cache)
    return tuple(sorted({*found, *(path for path in pictures if path.is_file())}))


@lru_cache(maxsize=64)
def _pictures_of(stamps: tuple[tuple[str, int, int], ...], root: str | None, cache: str | None) -> tuple[Path, ...]:
    """The pictures that CSV files name. stamps: (path, time, size) of each file."""
    if not stamps:
        return ()
    try:
        table = read_rows(
            [Path(path) for path, _, _ in stamps],
            lambda _path, _hfov, _vfov: None,
            image_root=Path(root) if root else None,
            url_cache=Path(cache) if cache else None,
            with_text=False,
        )
    except DataError:
        return ()  # preparing lists its faults
    return tuple({row.path for row in (*table.rows, *(aside.row for aside in table.set_aside))})


def num_samples(config: PanoramaVlmConfig, stage: Stage, prepared: Mapping[str, Any]) -> int | None:
    """Training samples of one epoch: distinct panoramas in `vision`, rows in the other stages."""
    del config
    found = prepared.get("splits", {})
    key, fact = ("train-pictures", "pictures") if stage.name == "vision" else ("train", "rows")
    number = found.get(key, {}).get(fact)
    return number if isinstance(number, int) else None
