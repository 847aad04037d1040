"""What was read from the files of a split, counted: formats, sizes, depth, channels, foreground, what was converted.

The counts stand in the split's manifest and are told by `stageline prepare` and in the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from stageline.data.pictures import conversions
from stageline.families.film_flow.data.folder import Pair, ReadPair

MANY = 6
"""Different sizes that are told one by one; of more the smallest and the largest are."""
INVERTED = 0.5
"""Share of foreground above which a label may well be inverted: thin structures cover far less."""

EMPTY = "none of {} labels has any foreground: nothing can be learned; the structure has to be the value that is not 0"


class FilesRead:
    """Counts over the pairs of one split."""

    def __init__(self, channels: int, crop_size: int) -> None:
        """channels: of the model.  crop_size: side of a training crop."""
        self.channels, self.crop_size = channels, crop_size
        self.formats: Counter[str] = Counter()
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.bits: Counter[int] = Counter()
        self.colours: Counter[int] = Counter()
        self.converted: Counter[str] = Counter()
        self.padded = 0
        self.foreground: dict[str, tuple[int, int]] = {}

    def add(self, pair: Pair, found: ReadPair) -> None:
        """Count a pair; the same pair again changes nothing."""
        if pair.name in self.foreground:
            return
        image = found.image
        self.formats[pair.image.suffix.lower().removeprefix(".")] += 1
        self.sizes[found.mask.shape] += 1
        self.bits[image.bits] += 1
        self.colours[image.channels] += 1
        self.converted.update(conversions(image, self.channels))
        self.padded += min(found.mask.shape) < self.crop_size
        self.foreground[pair.name] = (int(found.mask.sum()), found.mask.size)

    def facts(self) -> dict[str, Any]:
        """For the manifest: `read` for programs, `told` (words, text) and `warnings` for people."""
        read = {
            "formats": dict(sorted(self.formats.items())),
            "sizes": {f"{height}x{width}": count for (height, width), count in sorted(self.sizes.items())},
            "bits": {str(bits): count for bits, count in sorted(self.bits.items())},
            "channels": {str(channels): count for channels, count in sorted(self.colours.items())},
            "converted": dict(sorted(self.converted.items())),
            "padded": self.padded,
        }
        return {"read": read, "told": self._told(), "warnings": self._warnings()}

    def _told(self) -> list[list[str]]:
        sizes = sorted(self.sizes.items())
        by_area = sorted(self.sizes, key=lambda size: (size[0] * size[1], size))
        shown = f"{_size(by_area[0])} to {_size(by_area[-1])} ({len(sizes)} sizes)"
        if len(sizes) <= MANY:
            shown = _counts({_size(size): count for size, count in sizes})
        shares = [share for share, _ in self._shares()]
        told = [
            ["pictures", f"{sum(self.formats.values())}: {_counts(dict(sorted(self.formats.items())))}"],
            ["height x width", shown],
            ["depth", _counts({f"{bits} bit": count for bits, count in sorted(self.bits.items())})],
            ["channels", _counts({"grey": self.colours[1], "colour": self.colours[3]})],
            ["foreground", f"{self._share():.1%} of all pixels, {shares[0]:.1%} to {shares[-1]:.1%} per label"],
        ]
        if self.converted:
            told.append(["converted", _counts(dict(sorted(self.converted.items())))])
        if self.padded:
            told.append(
                ["padded", f"{self.padded} smaller than a crop of {self.crop_size}: edge values, not in the loss"]
            )
        return told

    def _share(self) -> float:
        counts = self.foreground.values()
        return sum(marked for marked, _ in counts) / sum(pixels for _, pixels in counts)

    def _shares(self) -> list[tuple[float, str]]:
        return sorted((marked / pixels, name) for name, (marked, pixels) in self.foreground.items())

    def _warnings(self) -> list[str]:
        found = []
        high = [(share, name) for share, name in reversed(self._shares()) if share > INVERTED]
        if high:
            shown = ", ".join(f"{name} {share:.0%}" for share, name in high[:3]) + (", ..." if len(high) > 3 else "")
            found.append(
                f"{len(high)} of {len(self.foreground)} labels are foreground for more than half ({shown}); if they "
                "are inverted: the structure has to be the value that is not 0"
            )
        if not any(marked for marked, _ in self.foreground.values()):
            found.append(EMPTY.format(len(self.foreground)))
        if self.channels == 1 and self.colours[3]:
            number, of = self.colours[3], sum(self.colours.values())
            found.append(
                f"{number} of {of} pictures have colour and are read as grey (0.299 red + 0.587 green + 0.114 blue); "
                "model.image_channels=3 keeps their colour"
            )
        return found


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _counts(counts: Mapping[str, int]) -> str:
    """`png (3), jpg (1)`, without those of which there are none."""
    return ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
