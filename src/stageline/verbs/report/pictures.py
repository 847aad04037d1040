"""Sample pictures and clips as data URIs, each with what it shows."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from stageline.verbs.report.html import Child, Markup, size, tag

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_BYTES = 6_000_000
"""A larger picture or clip is named instead of embedded: chosen here because the report is to be mailed."""

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


@dataclass(frozen=True)
class Clip:
    """An MP4 of an evaluation, played with its sound.

    name: its file's.  num_bytes: its size.  data: nothing where it is too large.  path: below the run directory.
    """

    name: str
    num_bytes: int
    data: bytes
    path: str
    caption: str
    alt: str


def gallery(pictures: Sequence[Picture], clips: Sequence[Clip] = ()) -> Markup:
    """All pictures of one evaluation, in order, then all clips."""
    shown = [figure(picture) for picture in pictures] + [clip_figure(clip) for clip in clips]
    return tag("div", shown, class_="pictures")


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


def clip_figure(clip: Clip) -> Markup:
    """One clip; a file that is no MP4 or too large says so in its place."""
    caption: list[Child] = [clip.caption, tag("span", f" · {clip.name}", class_="quiet")]
    if clip.num_bytes > MAX_BYTES:
        text: list[Child] = [f"Not embedded: {size(clip.num_bytes)} is too large for a report. It lies at "]
        shown = tag("p", text, tag("code", clip.path), class_="quiet")
    elif not is_mp4(clip.data):
        shown = tag("p", "This file is not a whole MP4 clip.", class_="bad")
    else:
        source = "data:video/mp4;base64," + base64.b64encode(clip.data).decode("ascii")
        shown = tag("video", src=source, controls=True, preload="metadata", aria_label=clip.alt)
    return tag("figure", shown, tag("figcaption", caption))


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
    """(width, height) of a PNG, or None for anything else."""
    if len(data) < 33 or not data.startswith(PNG_SIGNATURE) or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return width, height
