"""Pictures and clips of an evaluation as data URIs: one figure each, with what it shows.

A picture is embedded once; its full size is that same element, laid over the page while its address is the target.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from dataclasses import dataclass

from stageline.verbs.report.html import Markup, size, tag

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_BYTES = 6_000_000
"""A larger picture or clip is named instead of embedded: chosen here because the report is to be mailed."""
MAX_PIXELS = 40_000_000
"""A picture of more is named instead of embedded: a browser would take four bytes for each."""
SMALL = 400
"""Pixels: up to this width a picture's own pixels stay visible when it is enlarged."""
LARGE = 1400
"""Pixels: beyond this width or height the full size is larger than most screens, and scrolls."""
WIDE = 2.5
"""Width over height from which on a picture takes a row for itself, as pictures composed of several do."""
MAX_ENLARGED = 4
"""How much larger than its own size a wide picture is shown at most."""


@dataclass(frozen=True)
class Media:
    """A picture or a clip as it lies in an evaluation.

    name: below the evaluation.  num_bytes: its size.  read: gives its bytes, nothing where they cannot be read.
    """

    name: str
    num_bytes: int
    read: Callable[[], bytes]

    @property
    def is_too_large(self) -> bool:
        return self.num_bytes > MAX_BYTES

    @property
    def is_clip(self) -> bool:
        return not self.name.endswith(".png")


@dataclass(frozen=True)
class Told:
    """What is said about a picture or clip. number: on the page, from 1.  path: of its file below the run directory."""

    number: int
    caption: str
    alt: str
    path: str


def figure(media: Media, told: Told) -> Markup:
    """One picture or clip; one that is damaged or too large says so in its place."""
    name = media.name.rsplit("/", 1)[-1]
    shown_name = tag("span", f" · {name}", class_="quiet") if media.is_clip else None
    caption = tag("figcaption", told.caption, shown_name, title=name)
    if media.is_too_large:
        return tag("figure", not_embedded(f"{size(media.num_bytes)} is", told), caption)
    shown, look = clip(media, told) if media.is_clip else picture(media, told)
    return tag("figure", shown, caption, id=f"picture-{told.number}", class_=look)


def not_embedded(what: str, told: Told) -> Markup:
    """Why something is not in the page, and where it is."""
    return tag("p", f"Not embedded: {what} too large for a report. It lies at ", tag("code", told.path), class_="quiet")


def picture(media: Media, told: Told) -> tuple[Markup, str | None]:
    """(the picture in its frame, the figure's class)."""
    data = media.read()
    shape = png_shape(data)
    if shape is None:
        return tag("p", "This file is not a PNG picture.", class_="bad"), None
    width, height = shape
    if width * height > MAX_PIXELS:
        return not_embedded(f"{width} x {height} pixels are", told), None
    source = data_uri("image/png", data)
    image = tag("img", src=source, alt=told.alt, width=width, height=height, class_="small" if width <= SMALL else None)
    full, figure_id = f"full-{told.number}", f"picture-{told.number}"
    opening = tag("a", image, class_="open", href=f"#{full}", title="full size")
    closing = tag("a", tag("span", "✕ close"), class_="close", href=f"#{figure_id}")
    look = "full large" if max(shape) > LARGE else "full"
    is_wide = width >= WIDE * height
    room = f"aspect-ratio:{width}/{height}" + (f";max-width:{MAX_ENLARGED * width}px" if is_wide else "")
    frame = tag("div", tag("div", opening, closing, class_=look, id=full), class_="frame", style=room)
    return frame, "wide" if is_wide else None


def clip(media: Media, told: Told) -> tuple[Markup, str | None]:
    """(the clip with its controls, the figure's class)."""
    data = media.read()
    if not is_mp4(data):
        return tag("p", "This file is not a whole MP4 clip.", class_="bad"), None
    source = data_uri("video/mp4", data)
    return tag("video", src=source, controls=True, preload="metadata", aria_label=told.alt), None


def data_uri(kind: str, data: bytes) -> Markup:
    """An address that holds the bytes themselves; nothing in it needs to be escaped."""
    return Markup(f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}")


def is_mp4(data: bytes) -> bool:
    """Whether boxes (ISO/IEC 14496-12, 4.2) fill the bytes: first a `ftyp`, among the others a `moov`."""
    kinds, place = [], 0
    while place + 8 <= len(data):
        length, kind, head = *struct.unpack(">I4s", data[place : place + 8]), 8
        if length == 1 and place + 16 <= len(data):
            (length,), head = struct.unpack(">Q", data[place + 8 : place + 16]), 16
        length = length or len(data) - place
        if length < head:
            return False
        kinds.append(kind)
        place += length
    return place == len(data) and kinds[:1] == [b"ftyp"] and b"moov" in kinds


def png_shape(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a PNG, each at least 1; None for anything else."""
    if len(data) < 33 or not data.startswith(PNG_SIGNATURE) or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return (width, height) if width and height else None
