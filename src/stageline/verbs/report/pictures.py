"""Sample pictures as data URIs, each with what its columns show."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from stageline.verbs.report.html import Child, Markup, size, tag

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_BYTES = 6_000_000
"""A larger picture is named instead of embedded: chosen here because the report is to be mailed."""

MAX_ENLARGED = 4
"""How much larger than its own size a picture is shown at most."""

SMALL = 400
"""Pixels: up to this width a picture's own pixels stay visible when it is enlarged."""


@dataclass(frozen=True)
class Picture:
    """A PNG of an evaluation. name: its file's.  alt: what it shows, in words."""

    name: str
    data: bytes
    caption: str
    alt: str


def gallery(pictures: Sequence[Picture]) -> Markup:
    """All pictures of one evaluation, in order."""
    return tag("div", [figure(picture) for picture in pictures], class_="pictures")


def figure(picture: Picture) -> Markup:
    """One picture; a file that is no PNG or too large says so in its place."""
    shape = png_shape(picture.data)
    caption: list[Child] = [picture.caption, tag("span", f" · {picture.name}", class_="quiet")]
    if shape is None:
        shown = tag("p", "This file is not a PNG picture.", class_="bad")
    elif len(picture.data) > MAX_BYTES:
        shown = tag("p", f"Not embedded: {size(len(picture.data))} is too large for a report.", class_="quiet")
    else:
        source = "data:image/png;base64," + base64.b64encode(picture.data).decode("ascii")
        look = "small" if shape[0] <= SMALL else None
        wide = f"max-width:{MAX_ENLARGED * shape[0]}px"
        shown = tag("img", src=source, alt=picture.alt, width=shape[0], height=shape[1], style=wide, class_=look)
    return tag("figure", shown, tag("figcaption", caption))


def png_shape(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a PNG, or None for anything else."""
    if len(data) < 33 or not data.startswith(PNG_SIGNATURE) or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return width, height
