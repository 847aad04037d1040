"""Names of picture files: how an image and its label go together, and what a name says of a patient. No arrays."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stageline.errors import ConfigError

TOKEN = re.compile(r"\d+|[^\W\d_]+|[\W_]+")
"""Runs of digits, of letters, and of what stands between them."""

LEFT_BY_SYSTEMS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx"})
"""Names, in lower case, that operating systems leave in folders of pictures, beside hidden ones."""


def is_left_by_system(path: Path) -> bool:
    """Whether a file or folder is hidden, or of those that operating systems leave behind: no data of anybody."""
    return path.name.startswith(".") or path.name.lower() in LEFT_BY_SYSTEMS


def same_name(name: str) -> str:
    """A name as it is compared: composed (NFC), since file systems spell one letter in two ways."""
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True)
class NamePattern:
    """How names of images and labels go together: what stands for `*` is equal.

    rules: (image, label) with one `*` each, compared with names without suffix; the first that fits counts.
    """

    rules: tuple[tuple[str, str], ...] = (("*", "*"),)

    @classmethod
    def parse(cls, text: str | None) -> NamePattern:
        """`*_training -> *_manual1`, or `*_mask` where images have the bare name; several with ` | ` between them.

        ConfigError for anything else.
        """
        if not text:
            return cls()
        rules = []
        for rule in text.split("|"):
            parts = [same_name(part.strip()) for part in rule.split("->")]
            if len(parts) > 2 or any(part.count("*") != 1 for part in parts):
                raise ConfigError(
                    f"data.label_pattern {text!r}: expected one `*` on each side",
                    remedy="say '*_training -> *_manual1', or '*_mask' where images have the bare name",
                )
            rules.append((parts[0], parts[1]) if len(parts) == 2 else ("*", parts[0]))
        return cls(tuple(rules))

    @property
    def text(self) -> str:
        """As it is written in a config."""
        return " | ".join(f"{image} -> {label}" if image != "*" else label for image, label in self.rules)

    def key(self, part: str, name: str) -> str | None:
        """What stands for `*` in a name; None where it fits no rule. part: `image` or `label`."""
        name = same_name(name)
        for image, label in self.rules:
            before, after = (image if part == "image" else label).split("*")
            if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after):
                return name[len(before) : len(name) - len(after)]
        return None

    def images_of(self, label: str) -> list[str]:
        """The names that the image of a label may have."""
        name = same_name(label)
        found = []
        for rule in self.rules:
            key = NamePattern((rule,)).key("label", name)
            found += [] if key is None else [rule[0].replace("*", key)]
        return found


def joined(patterns: Iterable[NamePattern]) -> NamePattern:
    """One pattern with the rules of several."""
    return NamePattern(tuple(dict.fromkeys(rule for pattern in patterns for rule in pattern.rules)))


def find_pattern(images: Collection[str], labels: Collection[str]) -> NamePattern | None:
    """The pattern by which at least two, and half, of these names would go together; None where there is none.

    images, labels: names without suffix that have no partner. Where images have several labels each, of several
    observers say, half of the images have to find one, and the first pattern by name counts.
    """
    if min(len(images), len(labels)) < 2:
        return None
    (first, keys), (second, others) = (_around([same_name(n) for n in names]) for names in (images, labels))
    together = len(keys & others)
    if together >= 2 and 2 * together >= max(len(keys), len(others)):
        return NamePattern(((first, second),))
    return _of_several([same_name(name) for name in images], [same_name(name) for name in labels])


def _of_several(images: Sequence[str], labels: Sequence[str]) -> NamePattern | None:
    """The pattern of labels that hold the image's whole name, where each image has several."""
    around: Counter[tuple[str, str]] = Counter()
    for image in images:
        around.update(tuple(label.split(image, 1)) for label in labels if image in label)  # type: ignore[misc]
    if not around:
        return None
    (before, after), together = min(around.items(), key=lambda found: (-found[1], found[0]))
    return NamePattern((("*", f"{before}*{after}"),)) if together >= 2 and 2 * together >= len(images) else None


def _around(names: Sequence[str]) -> tuple[str, set[str]]:
    """(pattern, what stands for its `*`) of names, by the words that all of them begin and end with."""
    split = [TOKEN.findall(name) for name in names]
    least = min(map(len, split))
    start = next((n for n in range(least) if len({tokens[n] for tokens in split}) > 1), least)
    end = next((n for n in range(least - start) if len({tokens[-1 - n] for tokens in split}) > 1), least - start)
    before, after = "".join(split[0][:start]), "".join(split[0][len(split[0]) - end :])
    return f"{before}*{after}", {"".join(tokens[start : len(tokens) - end]) for tokens in split}


def group_names(names: Collection[str]) -> dict[str, str]:
    """Name -> group: pictures of one patient or scene share the first words of their names, as far as names tell.

    Names are cut behind the first run of digits (`p03_left` and `p03_right` are of group `p03`) where that gives
    groups of more than one; where it gives a single group, or every name its own, each name is its own group.
    """
    found = {name: re.match(r"\D*\d+|.*", same_name(name), re.DOTALL).group() for name in names}  # type: ignore[union-attr]
    counts = Counter(found.values())
    if len(counts) < 2 or len(counts) == len(found):
        return {name: name for name in names}
    return found
