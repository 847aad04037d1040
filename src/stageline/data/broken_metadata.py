"""Picture files whose metadata are broken beside good pixels: opened without those. No torch.

Other programs pass over such metadata; Pillow gives up the file, or a directory of a TIFF, where it meets them.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

from PIL import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from stageline.data.tiff_directories import TYPE_BYTES, directories, is_big_tiff

DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    ArithmeticError,
    AttributeError,
    struct.error,
    zlib.error,
)
"""What decoders raise on files that break off or contradict themselves."""
OF_PIXELS = frozenset(
    {*range(254, 260), 262, 266, 273, 277, 278, 279, 284, 317, *range(320, 326), 338, 339, 347, 530, 532}
)
"""TIFF tags that pixels are decoded by."""
START_OF_SCAN, COMMENT = 0xDA, 0xFE
"""Markers of a JPEG's segments."""


def open_file(decoder: type[ImageFile.ImageFile], file: BinaryIO) -> ImageFile.ImageFile:
    """The decoder of a file; where it fails at metadata, of a copy without those."""
    if decoder is TiffImageFile:
        return decoder(_mended(file))
    try:
        return decoder(file)
    except DAMAGE:
        file.seek(0)
        plain = WITHOUT_METADATA.get(decoder, bytes)(file.read())
        file.seek(0)
        return decoder(io.BytesIO(plain))


def _plain_png(data: bytes) -> bytes:
    """A PNG with the chunks that its pixels, their transparency and their orientation depend on."""
    kept, place = data[:8], 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind[:1].isupper() or kind in (b"tRNS", b"eXIf"):
            kept += data[place : place + 12 + length]
        place += 12 + length
    return kept


def _plain_jpeg(data: bytes) -> bytes:
    """A JPEG without comments and segments of applications, but for those of EXIF and of colour (APP0, 1 and 14)."""
    kept, place = data[:2], 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], struct.unpack_from(">H", data, place + 2)[0]
        if marker == START_OF_SCAN:
            break
        if not (0xE2 <= marker <= 0xED or marker == COMMENT):
            kept += data[place : place + 2 + length]
        place += 2 + length
    return kept + data[place:]


WITHOUT_METADATA = {PngImageFile: _plain_png, JpegImageFile: _plain_jpeg}


def _mended(file: BinaryIO) -> BinaryIO:
    """A TIFF as it is, or a copy without the tags of its first directory whose values lie outside of the file.

    Pillow gives up a directory at such a tag. Tags that the pixels depend on stay, and are refused.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(4)
    order = "<" if head[:2] == b"II" else ">"
    broken = []
    if not is_big_tiff(head):
        for entry in next(directories(file, 1), []):
            length = entry.values * TYPE_BYTES.get(entry.kind, 0)
            if length > 4 and entry.offset + length > size and entry.tag not in OF_PIXELS:
                broken.append(entry.place)
    file.seek(0)
    if not broken:
        return file
    data = bytearray(file.read())
    for place in broken:
        struct.pack_into(f"{order}HII", data, place + 2, 1, 1, 0)  # one byte, of value 0
    return io.BytesIO(data)
