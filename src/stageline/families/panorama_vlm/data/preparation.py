"""Preparing data: CSV files and panoramas -> rows of text, and every distinct picture once, reduced.

A row that can't be used is set aside with its class and reason, within the limit of `data.max_bad_fraction`; it is
never replaced. What is written depends on the config and the source files alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stageline.data.quarantine import QuarantineError, SetAside
from stageline.data.shards import SplitWriter
from stageline.data.splits import Split, file_sha256
from stageline.errors import DataError, Faults
from stageline.families.panorama_vlm.data.decoding import PanoramaFault
from stageline.families.panorama_vlm.data.made import DIRECTIONS, draw_room, make_room, questions_of
from stageline.families.panorama_vlm.data.origin import (
    PICTURES,
    csv_files,
    field_of_view,
    num_rooms,
    pictures_of,
    read_table,
)
from stageline.families.panorama_vlm.data.panorama import check_panorama, read_reduced
from stageline.families.panorama_vlm.data.rows import CheckImage, Table, check_quarantine

if TYPE_CHECKING:
    from stageline.families.panorama_vlm.config import PanoramaVlmConfig

Progress = Callable[[int, int, str], None]
LOOKED_AT: dict[tuple[Any, ...], PanoramaFault | None] = {}
"""What is known of picture files in this process: each is decoded once, however many splits ask."""


def check_sources(config: PanoramaVlmConfig, splits: Sequence[Split], progress: Progress) -> None:
    """Every fault of the CSV files and pictures of these splits, at once; pictures are decoded."""
    if config.data.name != "csv":
        return
    faults = Faults(DataError, "data", "mend them, or say in `data` what may be set aside")
    names = sorted({split.name.removesuffix(PICTURES) for split in splits})
    with_text = {split.name for split in splits}
    too_many: dict[str, Sequence[SetAside]] = {}
    for number, name in enumerate(names):
        progress(number, len(names), f"checking {name}")
        if not csv_files(config, name):
            faults.add(f"data.csv_{name} names no file")
            continue
        absent = [file for file in csv_files(config, name) if not file.is_file()]
        if absent:
            faults.extend(f"data.csv_{name}: there is no file {str(file)!r}" for file in absent)
            continue
        try:
            _table(config, name, text=name in with_text)
        except QuarantineError as error:
            faults.add(error.message)
            too_many |= error.set_aside
        except DataError as error:
            faults.add(error.message)
    progress(len(names), len(names), "checked")
    try:
        faults.raise_if_any()
    except DataError as error:
        raise QuarantineError(error.message, remedy=error.remedy, set_aside=too_many) if too_many else error from None


def _check(config: PanoramaVlmConfig) -> CheckImage:
    """A function that decodes a picture and says what is wrong with it."""

    def look(path: Path, hfov: float | None, vfov: float | None) -> PanoramaFault | None:
        hfov = config.data.erp_hfov_deg if hfov is None else hfov
        vfov = config.data.erp_vfov_deg if vfov is None else vfov
        try:
            status = path.stat()
        except OSError:
            status = None
        most = config.data.max_pixels
        key = (path, None if status is None else (status.st_size, status.st_mtime_ns), hfov, vfov, most)
        if key not in LOOKED_AT:
            LOOKED_AT[key] = check_panorama(path, erp_hfov_deg=hfov, erp_vfov_deg=vfov, max_pixels=most)
        return LOOKED_AT[key]

    return look


def _table(config: PanoramaVlmConfig, name: str, *, text: bool) -> Table:
    table = read_table(config, name, _check(config), text=text)
    check_quarantine(table, config.data.on_bad, config.data.max_bad_fraction, name if text else f"{name}{PICTURES}")
    return table


def prepare(config: PanoramaVlmConfig, split: Split, writer: SplitWriter, progress: Progress) -> dict[str, Any]:
    """Write the rows of a split, pictures or text; returns facts for its manifest. config: of the run."""
    name = split.name.removesuffix(PICTURES)
    if config.data.name != "csv":
        return _write_rooms(config, split, writer, progress)
    if split.name.endswith(PICTURES):
        return _write_pictures(config, name, writer, progress)
    return _write_rows(config, name, writer, progress)


def _write_pictures(config: PanoramaVlmConfig, name: str, writer: SplitWriter, progress: Progress) -> dict[str, Any]:
    table = _table(config, name, text=False)
    pictures = pictures_of(config, table)
    enlarged, partial = 0, 0
    for number, (path, hfov, vfov) in enumerate(pictures):
        progress(number, len(pictures), f"preparing {name}{PICTURES}")
        found = read_reduced(
            path,
            plan=config.image_processing.plan,
            size=config.tile_size,
            antialias=config.image_processing.antialias,
            erp_hfov_deg=hfov,
            erp_vfov_deg=vfov,
            max_pixels=config.data.max_pixels,
        )
        enlarged += found.is_enlarged
        partial += found.seen is not None
        arrays = {"erp": found.pixels} | ({} if found.seen is None else {"seen": found.seen})
        writer.add(arrays, {"image": path.name, "sha256": picture_id(path, hfov, vfov)})
    progress(len(pictures), len(pictures), f"prepared {name}{PICTURES}")
    told = _set_aside(table, writer)
    return {"pictures": len(pictures), "smaller_than_views": enlarged, "partial": partial, **told}


def picture_id(path: Path, hfov: float | None, vfov: float | None) -> str:
    """SHA-256 (hex) that a picture's features are kept by: of its file, and of its field of view where one is declared.

    hfov, vfov: degrees.
    """
    own = file_sha256(path)
    return own if hfov is None and vfov is None else hashlib.sha256(f"{own} {hfov} {vfov}".encode()).hexdigest()


def _write_rows(config: PanoramaVlmConfig, name: str, writer: SplitWriter, progress: Progress) -> dict[str, Any]:
    pictures = pictures_of(config, _table(config, name, text=False))
    places = {picture: number for number, picture in enumerate(pictures)}
    table = _table(config, name, text=True)
    progress(0, len(table.rows), f"preparing {name}")
    for row in table.rows:
        fields = {
            "id": row.id,
            "row": row.number,
            "csv": row.csv.name,
            "image": row.image,
            "query": row.query,
            "response": row.response,
            "references": list(row.references),
        }
        writer.add({}, fields, {"picture": places[row.path, *field_of_view(config, row)]})
    progress(len(table.rows), len(table.rows), f"prepared {name}")
    return {"rows": len(table.rows), **_set_aside(table, writer)}


def _write_rooms(config: PanoramaVlmConfig, split: Split, writer: SplitWriter, progress: Progress) -> dict[str, Any]:
    """Made panoramas, or the questions about them."""
    name, is_pictures = split.name.removesuffix(PICTURES), split.name.endswith(PICTURES)
    total = num_rooms(config, name)
    for number in range(total):
        progress(number, total, f"making {split.name}")
        room = make_room(name, number, config.seed)
        if is_pictures:
            pixels = draw_room(room, seed=config.seed)
            writer.add({"erp": pixels}, {"image": room.name, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()})
            continue
        for place, question in enumerate(questions_of(room)):
            fields = {
                "id": question.id,
                "row": number * len(DIRECTIONS) + place + 1,
                "csv": "",
                "image": room.name,
                "query": question.query,
                "response": question.response,
                "references": [question.response],
            }
            writer.add({}, fields, {"picture": number})
    progress(total, total, f"made {split.name}")
    told = {"rows_read": writer.num_rows, "quarantined": 0, "quarantined_by_class": {}}
    return {"pictures" if is_pictures else "rows": writer.num_rows, **told}


def _set_aside(table: Table, writer: SplitWriter) -> dict[str, Any]:
    """Give the writer the rows that cannot be used; returns their counts."""
    for aside in table.set_aside:
        writer.set_aside(aside.listed())
    return {"rows_read": table.num_read, "quarantined": len(table.set_aside), "quarantined_by_class": table.counts}
