"""What weights of others are called, and the digest of what they are. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from stageline.config import canonical_json

LONGEST_TOLD = 40


@dataclass(frozen=True)
class External:
    """Weights that are not ours: a language model, an autoencoder.

    name: the word for it in config, metadata and messages.
    source: a hub id, or the path of a folder or file; of a generated one any text that its content follows from.
    revision: of the hub: branch, tag or commit; "" is its main branch.
    patterns: `fnmatch` patterns of the model's tensors that it supplies; () where it is no part of the state dict.
    files: `fnmatch` patterns of the files that are wanted of a folder, relative, `*` matches `/` too
        (`unet/*.json`); () takes weights, configs, tokenizer and processor files that lie directly in it.
    generated: the family makes these weights itself (from a fixed seed, say): there are no files, and `source` stands
        for the content.
    """

    name: str
    source: str
    revision: str = ""
    patterns: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    generated: bool = False

    @property
    def key(self) -> str:
        """What the lock knows it by: two externals with one key are the same files."""
        return canonical_json([self.source, self.revision, sorted(self.files)])

    def __str__(self) -> str:
        """As messages name it; of a made one its sizes are cut off."""
        source = self.source
        if self.generated and len(source) > LONGEST_TOLD:
            source = f"{source[:LONGEST_TOLD].rstrip()}…"
        return f"external {self.name!r} ({source}{f'@{self.revision}' if self.revision else ''})"


@dataclass(frozen=True)
class ExternalFile:
    """name: relative, `/` between parts.  sha256: hex.  bytes: its size."""

    name: str
    sha256: str
    bytes: int


def files_digest(files: Iterable[ExternalFile]) -> str:
    """SHA-256 (hex) over name, hash and size of files, sorted by name."""
    rows = sorted([file.name, file.sha256, file.bytes] for file in files)
    return hashlib.sha256(canonical_json(rows).encode()).hexdigest()


def generated_digest(external: External) -> str:
    """Digest of weights that a family makes itself: SHA-256 (hex) of the text that they follow from."""
    return hashlib.sha256(external.source.encode()).hexdigest()
