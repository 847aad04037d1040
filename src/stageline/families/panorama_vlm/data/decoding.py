"""Opening one panorama file without trust, and its pixels upright and at full depth. No torch.

The size in the header is judged before a pixel is decoded. A file that could be read in two ways is refused in words.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from stageline.data.pictures import EXIF_ORIENTATION, Pixels
from stageline.errors import DataError

MAX_PIXELS = 300_000_000
"""Largest picture that is decoded."""
# By class and not by `Image.open`, whose limit is one for the process and below ours.
DECODERS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
}
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What decoders raise on files that break off or contradict themselves."""


@dataclass(frozen=True)
class PanoramaFault:
    """What is wrong with a file.

    kind: missing, empty, not_an_image, truncated (or damaged), too_small, too_large or not_equirectangular.
    message: what was found and what was expected.
    """

    kind: str
    message: str


class PanoramaError(DataError):
    """A panorama file that cannot be used; `fault` says why."""

    def __init__(self, path: Path, fault: PanoramaFault) -> None:
        super().__init__(f"{str(path)!r}: {fault.kind}: {fault.message}", remedy="mend or replace the file")
        self.fault = fault


@dataclass(frozen=True)
class Opened:
    """A file whose header is read.

    layout: how its numbers are stored, as the decoder names it.  orientation: EXIF, see `orientation_of`.
    """

    path: Path
    picture: ImageFile.ImageFile
    layout: str
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what is shown, upright."""
        width, height = self.picture.size
        return (width, height) if self.orientation > 4 else (height, width)


def refuse(path: Path, kind: str, message: str) -> NoReturn:
    """Raise the error about a file."""
    raise PanoramaError(path, PanoramaFault(kind, message))


@contextmanager
def open_panorama(path: Path, max_pixels: int) -> Iterator[Opened]:
    """The file with its header read, no larger than allowed; what fails inside is a PanoramaError."""
    if not path.is_file():
        refuse(path, "missing", "no such file")
    try:
        file = path.open("rb")
    except OSError as error:
        raise PanoramaError(path, PanoramaFault("missing", f"cannot be opened ({error.strerror})")) from error
    with file, warnings.catch_warnings():
        # Metadata that other programs skip are skipped here too; damaged pixels are errors, not warnings.
        warnings.simplefilter("ignore")
        start = file.read(12)
        if not start:
            refuse(path, "empty", "0 bytes")
        known = [decoder for mark, decoder in DECODERS.items() if start.startswith(mark)]
        if not known or (start[:4] == b"RIFF" and start[8:] != b"WEBP"):
            refuse(path, "not_an_image", f"begins with {start[:8]!r}, expected JPEG, PNG or WebP")
        file.seek(0)
        try:
            with known[0](file) as opened:
                width, height = opened.size
                if width * height > max_pixels:
                    refuse(path, "too_large", f"{width} x {height} pixels, expected at most {max_pixels}")
                if getattr(opened, "n_frames", 1) != 1:
                    refuse(path, "not_an_image", f"holds {getattr(opened, 'n_frames', 0)} pictures, expected one")
                layout = str(opened.tile[0].args) if opened.tile else ""
                yield Opened(path, opened, layout, orientation_of(opened))
        except DAMAGE as error:
            told = str(error) or type(error).__name__
            raise PanoramaError(path, PanoramaFault("truncated", f"ends too early or is damaged ({told})")) from error


def orientation_of(picture: ImageFile.ImageFile) -> int:
    """EXIF orientation: 1 upright, 2 to 8 turned or mirrored, above 4 lying on a side. Reads no pixel."""
    # The PNG class would decode the picture first, to look behind its pixels.
    found = Image.Image.getexif(picture).get(EXIF_ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def decode(opened: Opened) -> Pixels:
    """Upright (H, W, 3) pixels, uint8 or uint16; grey is repeated, palettes are resolved."""
    path, picture, layout = opened.path, opened.picture, opened.layout
    known = picture.info.get("exif")
    picture.load()
    if picture.info.get("exif") != known:
        late = Image.Exif()
        late.load(picture.info["exif"])
        if late.get(EXIF_ORIENTATION, 1) != opened.orientation:
            refuse(path, "not_an_image", "its EXIF orientation stands behind its pixels; save it upright")
    pixels: NDArray[np.generic]
    if "16B" in layout:
        if layout == "LA;16B" or "transparency" in picture.info:
            refuse(path, "not_an_image", "16 bits with transparent grey or a transparent colour; flatten it")
        if picture.mode == "I;16":
            pixels = np.repeat(np.asarray(picture).astype(np.uint16)[..., None], 3, 2)
        else:
            pixels = np.asarray(picture).astype(np.uint16) << 8 | _low_bytes(path, layout)
            pixels = _without_alpha(path, pixels, 65535)
    elif picture.mode in ("LA", "PA", "La", "RGBA", "RGBa", "RGBX") or "transparency" in picture.info:
        pixels = _without_alpha(path, np.asarray(picture.convert("RGBA")), 255)
    else:
        pixels = np.asarray(picture.convert("RGB"))
    return cast(Pixels, _upright(pixels, opened.orientation))


def _low_bytes(path: Path, layout: str) -> NDArray[np.uint8]:
    """The lower half of each number of a PNG with 16 bits; the library keeps the half that it takes for the upper."""
    with path.open("rb") as file, PngImageFile(file) as again:
        again.tile = [again.tile[0]._replace(args=layout.replace("16B", "16L"))]
        again.load()
        return np.array(again)


def _without_alpha(path: Path, pixels: NDArray[np.generic], opaque: int) -> NDArray[np.generic]:
    if pixels.shape[2] == 4 and (pixels[..., 3] != opaque).any():
        refuse(path, "not_an_image", "has transparent pixels, so their colour is open; flatten it")
    return pixels[..., :3]


def _upright(pixels: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """What EXIF orientations 1 to 8 show."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
