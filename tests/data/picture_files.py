"""Picture files as people have them, each with the pixels that it holds: written by real encoders, or by hand."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
RNG = np.random.default_rng(10)
GREY = RNG.integers(0, 256, (21, 34), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (21, 34, 3), dtype=np.uint16)


def png(pixels: Array, *, colour: int, rows: bytes = b"\0", extra: bytes = b"") -> bytes:
    """A PNG with 16 bits per channel. colour: 2 RGB, 4 grey and 6 RGB with alpha. rows: filter of each, in turn."""
    deep = pixels.astype(">u2").reshape(len(pixels), -1).view(np.uint8).reshape(len(pixels), -1)
    width = deep.shape[1] // pixels.shape[1]
    body = bytearray()
    for number, row in enumerate(deep):
        kind = rows[number % len(rows)]
        above = deep[number - 1] if number else np.zeros_like(row)
        left = np.concatenate([np.zeros(width, np.uint8), row[:-width]])
        body += bytes([kind]) + (row - {0: 0, 1: left, 2: above}[kind]).astype(np.uint8).tobytes()
    height, columns = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", columns, height, 16, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"eXIf", extra), (b"IDAT", zlib.compress(bytes(body))), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
        if data or kind == b"IEND"
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file that Pillow writes."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: Array, **options: Any) -> bytes:
    """The bytes of a file that tifffile writes."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def decoded(data: bytes) -> Array:
    """What the same bytes show to a reader without a limit or metadata."""
    with warnings.catch_warnings(action="ignore"):
        return np.asarray(Image.open(io.BytesIO(data)))


def decoded_without_segments(_: bytes) -> Array:
    """What the same JPEG shows that nothing was put into."""
    return decoded(saved(Image.fromarray(GREY), "JPEG", quality=95))


def with_text(data: bytes) -> bytes:
    """A PNG with a text behind its header whose checksum is wrong."""
    return data[:33] + struct.pack(">I", 3) + b"tEXt" + b"a\0b" + bytes(4) + data[33:]


def jpeg_with(segment: bytes, marker: int = 0xE1) -> bytes:
    """A JPEG with an application's segment behind its start; APP1 is EXIF's."""
    plain = saved(Image.fromarray(GREY), "JPEG", quality=95)
    return plain[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(segment) + 2) + segment + plain[2:]


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def with_broken_tags() -> bytes:
    """A TIFF whose description lies behind the end of the file, and whose resolution says 0 / 0."""
    data = bytearray(tiff(GREY, description="x" * 40, resolution=(72, 72), metadata=None))
    at = struct.unpack_from("<I", data, 4)[0]
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        tag = struct.unpack_from("<H", data, entry)[0]
        if tag == 270:
            struct.pack_into("<I", data, entry + 8, 10**8)
        if tag == 282:
            struct.pack_into("<II", data, struct.unpack_from("<I", data, entry + 8)[0], 0, 0)
    return bytes(data)


def pointing_away() -> bytes:
    """A TIFF that promises a second directory where there is none."""
    data = bytearray(tiff(GREY, metadata=None))
    at = struct.unpack_from("<I", data, 4)[0]
    struct.pack_into("<I", data, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 10**8)
    return bytes(data)


def mpo() -> bytes:
    """Two pictures in a camera's JPEG: the photograph and a smaller one."""
    first, second = Image.fromarray(GREY), Image.fromarray(GREY[::2, ::2])
    return saved(first, "MPO", save_all=True, append_images=[second], quality=95)


def whole(value: int = 65535) -> Array:
    return np.full((*DEEP.shape[:2], 1), value, np.uint16)


HALF = (DEEP[..., 0] > 30000).astype(np.uint8)


def palette_label(colours: list[int], mask: Array = HALF) -> bytes:
    picture = Image.fromarray(mask)
    picture.putpalette(colours)
    return saved(picture, "PNG")


RGBA, GREY_ALPHA = np.concatenate([DEEP, whole()], 2), np.concatenate([DEEP[..., :1], whole()], 2)
OPAQUE = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (34, 21), 255)])
EIGHT = (DEEP >> 8).astype(np.uint8)
ZIP: dict[str, Any] = {"compression": "zlib", "rowsperstrip": 4}
ALPHA: dict[str, Any] = {"extrasamples": ["unassalpha"]}
PICTURES: dict[str, tuple[str, Callable[[], bytes], Callable[[bytes], Array]]] = {
    "rgb16-png": ("png", lambda: png(DEEP, colour=2), lambda _: DEEP),
    "rgb16-png-filtered": ("png", lambda: png(DEEP, colour=2, rows=b"\1\2\0"), lambda _: DEEP),
    "rgba16-png": ("png", lambda: png(RGBA, colour=6), lambda _: DEEP),
    "grey-alpha16-png": ("png", lambda: png(GREY_ALPHA, colour=4), lambda _: DEEP[..., 0]),
    "grey-alpha8-png": ("png", lambda: saved(OPAQUE, "PNG"), lambda _: GREY),
    "rgb16-tiff": ("tif", lambda: tiff(DEEP, photometric="rgb"), lambda _: DEEP),
    "rgb16-tiff-big-endian": ("tif", lambda: tiff(DEEP, photometric="rgb", byteorder=">"), lambda _: DEEP),
    "rgb16-tiff-deflate": ("tif", lambda: tiff(DEEP, photometric="rgb", **ZIP), lambda _: DEEP),
    "rgba16-tiff": ("tif", lambda: tiff(RGBA, photometric="rgb", **ALPHA), lambda _: DEEP),
    "orientation-0": ("jpg", lambda: saved(Image.fromarray(GREY), "JPEG", exif=exif(0)), decoded),
    "orientation-0-tiff": ("tif", lambda: saved(Image.fromarray(GREY), "TIFF", tiffinfo={274: 0}), lambda _: GREY),
    "orientation-9": ("png", lambda: saved(Image.fromarray(GREY), "PNG", exif=exif(9)), lambda _: GREY),
    "mpo": ("jpg", mpo, decoded),
    "broken-exif": ("jpg", lambda: jpeg_with(b"Exif\0\0rubbish that is no directory"), decoded),
    "cut-exif": ("jpg", lambda: jpeg_with(b"Exif\0\0" + exif(1).tobytes()[6:18]), decoded),
    "exif-that-points-away": ("jpg", lambda: jpeg_with(b"Exif\0\0II*\0" + struct.pack("<I", 10**6)), decoded),
    "broken-exif-png": ("png", lambda: png(DEEP, colour=2, extra=b"MM\0*\xff\xff\xff\xff"), lambda _: DEEP),
    "broken-tiff-tags": ("tif", with_broken_tags, lambda _: GREY),
    "broken-profile": ("jpg", lambda: jpeg_with(b"ICC_PROFILE\0", marker=0xE2), decoded_without_segments),
    "broken-text": ("png", lambda: with_text(png(DEEP, colour=2)), lambda _: DEEP),
    "directory-that-points-away": ("tif", lambda: pointing_away(), lambda _: GREY),
    "webp": ("webp", lambda: saved(Image.fromarray(GREY).convert("RGB"), "WEBP", lossless=True), lambda _: GREY),
    "ppm": ("ppm", lambda: b"P6\n# of a program\n34 21\n255\n" + EIGHT.tobytes(), lambda _: EIGHT),
    "pgm": ("pgm", lambda: b"P5 34 21 255\n" + GREY.tobytes(), lambda _: GREY),
    "pgm16": ("pgm", lambda: b"P5 34 21 65535\n" + DEEP[..., 0].astype(">u2").tobytes(), lambda _: DEEP[..., 0]),
    "two-colour-gif": ("gif", lambda: saved(Image.fromarray(HALF * 255), "GIF"), lambda _: HALF * 255),
}  # fmt: skip
"""Kind -> suffix, its bytes, and the pixels that they hold."""

LABELS: dict[str, tuple[str, Callable[[], bytes], Array]] = {
    "black-and-red": ("png", lambda: palette_label([0, 0, 0, 255, 0, 0]), HALF),
    "red-and-black": ("png", lambda: palette_label([128, 0, 0, 0, 0, 0]), 1 - HALF),
    "two-colours": ("png", lambda: palette_label([0, 0, 255, 255, 255, 0]), HALF),
    "white-and-black": ("png", lambda: palette_label([255, 255, 255, 0, 0, 0]), 1 - HALF),
    "black-and-grey": ("png", lambda: palette_label([0, 0, 0, 128, 128, 128]), HALF),
    "colour-alone": ("png", lambda: palette_label([0, 0, 255, 255, 255, 0], np.ones_like(HALF)), np.ones_like(HALF)),
    "ground-alone": ("png", lambda: palette_label([0, 0, 255, 255, 255, 0], np.zeros_like(HALF)), np.zeros_like(HALF)),
    "gif": ("gif", lambda: saved(Image.fromarray(HALF * 255), "GIF"), HALF),
    "pgm": ("pgm", lambda: b"P5 34 21 255\n" + (HALF * 255).tobytes(), HALF),
    "pbm": ("pbm", lambda: b"P4 34 21\n" + np.packbits(1 - HALF, axis=1).tobytes(), HALF),
    "one-bit-tiff": ("tif", lambda: tiff(HALF.astype(bool), photometric="miniswhite"), 1 - HALF),
}
"""Kind of label -> suffix, its bytes, and the mask."""


def write(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name
