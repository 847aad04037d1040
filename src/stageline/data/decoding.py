"""Opening one picture file without trust: its header first, then its pixels at full depth. No torch.

The reader is Pillow, by the class of each format: `Image.open` takes a camera's several pictures in one JPEG for pages.
Metadata that cannot be read are left out, as other programs do; damaged pixels are errors. Pillow keeps 8 bits of
colour with 16 bits per channel: such a file is decoded twice, the second time for the lower bytes.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import PREFIXES, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from stageline.data.broken_metadata import DAMAGE, open_file
from stageline.data.tiff_directories import directories
from stageline.errors import DataError

EXIF_ORIENTATION = 0x0112
BITS_PER_SAMPLE, PLANAR_CONFIGURATION, TILE_SIZE = 258, 284, (322, 323)
"""TIFF tags: bits of each channel; whether channels lie in planes of their own (2); width and height of tiles."""
Decoders = Mapping[bytes, type[ImageFile.ImageFile]]
PHOTOGRAPHS: Decoders = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
}
"""First bytes -> decoder of the formats of photographs."""
NETPBM = tuple(b"P%d" % number for number in range(1, 7))
ALL: Decoders = {
    **PHOTOGRAPHS,
    **dict.fromkeys(PREFIXES, TiffImageFile),
    b"BM": BmpImageFile,
    b"GIF8": GifImageFile,
    **dict.fromkeys(NETPBM, PpmImageFile),
}
"""The same of every format that is read."""
NAMES = {
    JpegImageFile: "JPEG",
    PngImageFile: "PNG",
    WebPImageFile: "WebP",
    TiffImageFile: "TIFF",
    BmpImageFile: "BMP",
    GifImageFile: "GIF",
    PpmImageFile: "PPM",
}
PIECES = (273, 279, 324, 325)
"""TIFF tags that count strips and tiles: where they lie, how long they are."""
MAX_PIECES = 2**18
"""Chosen here: half a kilobyte each in Pillow, before it decodes; strips of a row, tiles of 32 x 32 are fewer."""
MAX_SCANS = 200
"""Of a progressive JPEG, chosen here: each is decoded over the whole picture; programs write ten or so."""
LIMIT = threading.RLock()
"""Held while Pillow's own limit is lifted."""
DEEP = ("RGB;16", "RGBA;16", "RGBX;16", "RGBa;16", "LA;16")
"""How layouts of colour, or of grey with transparency, with 16 bits per channel begin."""
DEEP_RULE = "deep-colour"
"""Added to the source hash of such a file: the first release read 8 of its bits."""


class PictureError(DataError):
    """A picture file that cannot be used.

    trouble: missing, empty, not_an_image, truncated (or damaged), too_large or ambiguous (can be read in two ways).
    told: what was found and what was expected.
    """

    def __init__(self, path: Path, trouble: str, told: str) -> None:
        super().__init__(f"{str(path)!r}: {trouble}: {told}", remedy="mend or replace the file")
        self.trouble, self.told = trouble, told


@dataclass(frozen=True)
class OpenedPicture:
    """A file whose header is read.

    layout: how its numbers are stored, as the decoder names it.  orientation: EXIF, see `orientation_of`.
    odd: what about its metadata was passed over, in words; "" where nothing was.
    """

    path: Path
    picture: ImageFile.ImageFile
    layout: str
    orientation: int
    odd: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what is shown, upright."""
        width, height = self.picture.size
        return (width, height) if self.orientation > 4 else (height, width)

    @property
    def is_deep(self) -> bool:
        """Whether it is colour, or grey with transparency, with 16 bits per channel."""
        return self.layout.startswith(DEEP) or (self.has_planes and 16 in self.picture.tag_v2.get(BITS_PER_SAMPLE, ()))  # type: ignore[attr-defined]

    @property
    def has_planes(self) -> bool:
        """Whether it is a TIFF whose channels lie in planes of their own."""
        picture = self.picture
        return isinstance(picture, TiffImageFile) and picture.tag_v2.get(PLANAR_CONFIGURATION, 1) != 1


@contextmanager
def open_picture(
    path: Path, max_pixels: int | None, decoders: Decoders = ALL, *, key: str = "", count: bool = True
) -> Iterator[OpenedPicture]:
    """The file with its header read; what fails inside is a PictureError.

    max_pixels: the largest picture that is let in; None is any.  key: the setting that says so, for the message.
    count: refuse a file that holds several pictures. A camera's JPEG (MPO) counts as its first, the photograph.
    """
    if not path.is_file():
        raise PictureError(path, "missing", "no such file")
    try:
        file = path.open("rb")
    except OSError as error:
        raise PictureError(path, "missing", f"cannot be opened ({error.strerror})") from error
    with file, _without_limit(), warnings.catch_warnings():
        # Metadata that other programs skip are skipped here too; damaged pixels are errors, not warnings.
        warnings.simplefilter("ignore")
        start = file.read(12)
        if not start:
            raise PictureError(path, "empty", "0 bytes")
        known = [decoder for mark, decoder in decoders.items() if start.startswith(mark)]
        if not known or (start[:4] == b"RIFF" and start[8:] != b"WEBP"):
            formats = [NAMES[decoder] for decoder in dict.fromkeys(decoders.values())]
            expected = f"{', '.join(formats[:-1])} or {formats[-1]}"
            raise PictureError(path, "not_an_image", f"begins with {start[:8]!r}, expected {expected}")
        try:
            if known[0] is WebPImageFile:  # its decoder takes memory for the whole picture as soon as it is opened
                _refuse_large(path, _webp_size(start + file.read(18)), max_pixels, key)
            if known[0] is TiffImageFile:
                _refuse_pieces(path, file)
            file.seek(0)
            with open_file(known[0], file) as opened:
                _refuse_large(path, opened.size, max_pixels, key)
                if isinstance(opened, TiffImageFile):  # a tile is decoded whole, however small the picture is
                    tile = [opened.tag_v2.get(tag, 0) for tag in TILE_SIZE]
                    _refuse_large(path, (tile[0], tile[1]), max_pixels, key, "tiles of ")
                if opened.info.get("progressive"):
                    _refuse_scans(path)
                if count and _has_more(path, opened):
                    refuse(path, "holds 2 pictures or more, expected one")
                turned, odd = orientation_of(opened)
                yield OpenedPicture(path, opened, _layout(opened), turned, odd)
        except DAMAGE as error:
            told = str(error) or type(error).__name__
            raise PictureError(path, "truncated", f"ends too early or is damaged ({told})") from error


def _refuse_large(path: Path, size: tuple[int, int], max_pixels: int | None, key: str, what: str = "") -> None:
    """size: (width, height) by the header.  what: has it, if not the picture."""
    width, height = size
    if max_pixels is not None and width * height > max_pixels:
        limit = f"at most {max_pixels}{f' ({key})' if key else ''}"
        raise PictureError(path, "too_large", f"{what}{width} x {height} pixels, expected {limit}")


def _refuse_scans(path: Path) -> None:
    """PictureError for a JPEG with too many scans. Inside of one their mark is escaped (ITU-T T.81, B.1.1.5)."""
    scans = path.read_bytes().count(b"\xff\xda")
    if scans > MAX_SCANS:
        raise PictureError(path, "too_large", f"{scans} scans, expected at most {MAX_SCANS} (MAX_SCANS)")


def _refuse_pieces(path: Path, file: BinaryIO) -> None:
    """PictureError for a TIFF with too many strips or tiles. The first directory is decoded, the second looked for."""
    for entries in directories(file, 2):
        pieces = max((entry.values for entry in entries if entry.tag in PIECES), default=0)
        if pieces > MAX_PIECES:
            told = f"{pieces} strips or tiles, expected at most {MAX_PIECES} (MAX_PIECES)"
            raise PictureError(path, "too_large", told)


def _webp_size(start: bytes) -> tuple[int, int]:
    """(width, height) of a WebP file by its first 30 bytes; (0, 0) where they do not say it.

    Source: RFC 9649, sections 2.5 to 2.7.
    """
    kind, data = start[12:16], start[20:30]
    if len(data) < 10:
        return 0, 0
    if kind == b"VP8X":
        return int.from_bytes(data[4:7], "little") + 1, int.from_bytes(data[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF


@contextmanager
def _without_limit() -> Iterator[None]:
    """Pillow without its own limit of pixels, which is one for the process; ours was or will be applied."""
    with LIMIT:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _layout(picture: ImageFile.ImageFile) -> str:
    args = picture.tile[0].args if picture.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args or "")


@contextmanager
def _again(path: Path, decoder: type[ImageFile.ImageFile]) -> Iterator[ImageFile.ImageFile]:
    """The same file opened once more."""
    with path.open("rb") as file, open_file(decoder, file) as opened:
        yield opened


def _has_more(path: Path, opened: ImageFile.ImageFile) -> bool:
    """Whether a file holds more than one picture; those behind a directory that cannot be read are none.

    No pixel is decoded for it.
    """
    if not isinstance(opened, (TiffImageFile, GifImageFile)):
        return int(getattr(opened, "n_frames", 1)) > 1
    # Looking for further ones moves the file: it is done in another.
    with _again(path, type(opened)) as probe:
        try:
            if isinstance(probe, GifImageFile):
                return probe.is_animated
            probe.seek(1)
        except DAMAGE:
            return False
        return True


def orientation_of(picture: ImageFile.ImageFile) -> tuple[int, str]:
    """EXIF orientation: 1 upright, 2 to 8 turned or mirrored, above 4 lying on a side; reads no pixel.

    Second, what was passed over, "" where nothing was: EXIF that cannot be read, or a number that has no meaning, are
    taken as upright, as other programs do.
    """
    try:
        # The PNG class would decode the picture first, to look behind its pixels.
        found = Image.Image.getexif(picture).get(EXIF_ORIENTATION, 1)
    except DAMAGE:
        return 1, "EXIF that cannot be read"
    return (found, "") if found in range(1, 9) else (1, f"EXIF orientation {found!r}, which has no meaning")


def load_pixels(opened: OpenedPicture) -> None:
    """Decode; a PictureError where EXIF behind the pixels turns what those before them left upright.

    So is colour of a PPM with more than 8 bits per channel, of which Pillow would keep 8.
    """
    tile = opened.picture.tile[0] if opened.picture.tile else None
    if isinstance(opened.picture, PpmImageFile) and opened.picture.mode == "RGB" and tile is not None:
        most = tile.args[-1] if isinstance(tile.args, tuple) else 255
        if tile.codec_name.startswith("ppm") and isinstance(most, int) and most > 255:
            refuse(opened.path, f"colour of 0 to {most} in a PPM; save it as PNG or TIFF with 16 bits per channel")
    known = opened.picture.info.get("exif")
    opened.picture.load()
    late = opened.picture.info.get("exif")
    if late is None or late == known:
        return
    exif = Image.Exif()
    try:
        exif.load(late)
        turned = exif.get(EXIF_ORIENTATION, 1)
    except DAMAGE:
        return
    if turned in range(1, 9) and turned != opened.orientation:
        refuse(opened.path, "its EXIF orientation stands behind its pixels; save it upright")


def deep_pixels(opened: OpenedPicture) -> NDArray[np.uint16]:
    """(H, W, 3) of colour or (H, W) of grey, uint16, of a file that `is_deep` and was loaded.

    PictureError where pixels are transparent, or where channels lie in planes of their own.
    """
    path, picture = opened.path, opened.picture
    if opened.has_planes:
        refuse(path, "16 bits per channel in separate planes; save the channels interleaved")
    if "transparency" in picture.info:
        refuse(path, "16 bits with a transparent colour; flatten it")
    if opened.layout.startswith("LA"):  # four bytes per pixel: both of grey, both of alpha
        parts = _decode_as(opened, "RGBA").astype(np.uint16)
        pixels, alpha = parts[..., 0] << 8 | parts[..., 1], parts[..., 2] << 8 | parts[..., 3]
    else:
        upper = np.asarray(picture).astype(np.uint16) << 8
        both = upper | _decode_as(opened, _other_half(opened.layout))
        pixels, alpha = both[..., :3], both[..., 3:]
    if (alpha != 65535).any():
        refuse(path, "has transparent pixels, so their colour is open; flatten it")
    return np.ascontiguousarray(pixels)


def _other_half(layout: str) -> str:
    """The layout that reads the lower byte of each number where this one reads the upper."""
    order = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    return layout[:-1] + order[layout[-1]]


def _decode_as(opened: OpenedPicture, layout: str) -> NDArray[np.uint8]:
    """The same pixels, their bytes read in another layout."""

    def changed(args: Any) -> Any:
        return (layout, *args[1:]) if isinstance(args, tuple) else layout

    with _again(opened.path, type(opened.picture)) as again:
        again.tile = [tile._replace(args=changed(tile.args)) for tile in again.tile]
        again.load()
        return np.array(again)


def refuse(path: Path, told: str) -> NoReturn:
    """Raise that a file can be read in more than one way."""
    raise PictureError(path, "ambiguous", told)


def reading_rule(path: Path) -> str:
    """Which rule a source file is read by since the first release; "" for nearly all. Reads its header alone."""
    try:
        with open_picture(path, None, count=False) as opened:
            return DEEP_RULE if opened.is_deep else ""
    except PictureError:  # no picture, or one that is refused with its reason when it is read
        return ""
