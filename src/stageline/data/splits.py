"""Splits of prepared data: what one is made from, its manifest, and finding it. No torch, no arrays.

    cache/prepared/<split fingerprint>/
      manifest.json                 sealed, written last and by one preparer only
      data/<sha256>.shard           arrays of rows, at most 256 MiB each
      data/<sha256>.rows            one record per row: where its arrays and its line lie, its numbers
      data/<sha256>.lines           one JSON line per row: its fields, dtype and shape of its arrays

The fingerprint of a split covers the part of the config that it depends on and the SHA-256 of every source file, so it
is known before anything is made. The digest of a split is the SHA-256 of its manifest. `shards` writes such files,
`reading` reads them, `prepared` holds several splits together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stageline.config import fingerprint, is_sealed, seal
from stageline.config.bounds import open_regular, read_json
from stageline.data.quarantine import SetAside
from stageline.encoders.external import External
from stageline.errors import DataError, Faults
from stageline.store import NotFoundError, Store

Progress = Callable[[int, int, str], None]
"""(done, total, what)"""

SCHEMA = "stageline-split/1"
MANIFEST = "manifest.json"
PREPARED = "cache/prepared"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Names of splits, arrays and numbers."""
FILE_NAME = re.compile(r"[0-9a-f]{64}\.(shard|rows|lines)")
FOLDER_NAME = re.compile(r"data(-[0-9]{1,6})?")
DIGEST = re.compile(r"[0-9a-f]{64}")
NUMBER_TYPES = ("<i8", "<f8")
REMEDY = "delete that folder of the cache; `stageline prepare` makes it anew"
CHUNK_BYTES = 1 << 20


def _no_rule(path: Path) -> str:  # noqa: ARG001
    return ""


@dataclass(frozen=True)
class Split:
    """A part of the prepared data that is made and read by itself.

    name: `train`, `val`, `test` or the family's own.  key: the part of the config that it depends on, JSON values.
    source_files: the files it is read from, sorted; () for synthetic data.
    externals: weights of others that its rows are made with.
    unseen: folders it is read from that are not there, as seen from here: a job may have them mounted.
    rule(path): by which rule a source file is read that an earlier version read otherwise, "" for all others; it is
        added to the hash of that file alone.
    own_code: whether the user's files of `data.code` have a part in its rows; then it depends on them.
    """

    name: str
    key: Mapping[str, Any]
    source_files: tuple[Path, ...] = ()
    externals: tuple[External, ...] = ()
    unseen: tuple[Path, ...] = ()
    rule: Callable[[Path], str] = field(default=_no_rule, compare=False)
    own_code: bool = True


@dataclass(frozen=True)
class SplitManifest:
    """What is known of a prepared split without reading a row.

    fingerprint: of what it was made from.  digest: SHA-256 of the manifest.  facts: what the family says of it.
    folder: of its files, below its own.  num_rows: rows.  numbers: name of a number that every row has -> its type.
    rows, lines: names of the table's two files.  shards: names in the order in which rows refer to them.
    sizes: file name -> bytes.  set_aside: rows of the sources that could not be used, in their order.
    """

    name: str
    family: str
    fingerprint: str
    digest: str
    facts: Mapping[str, Any]
    folder: str
    num_rows: int
    numbers: Mapping[str, str]
    rows: str
    lines: str
    shards: tuple[str, ...]
    sizes: Mapping[str, int]
    set_aside: tuple[SetAside, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(self.sizes.values())


def silent(done: int, total: int, what: str) -> None:
    """A progress callback that shows nothing."""


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a local file."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def split_fingerprint(
    family: str,
    split: Split,
    sources: Mapping[str, str],
    code: Mapping[str, str],
    externals: Mapping[str, str] | None = None,
) -> str:
    """Name of the prepared split that these inputs lead to.

    family: its name.  sources: source file -> SHA-256.  code: file of `data.code` -> SHA-256; counts where they have a
    part in the split.
    externals: weights of others that it is made with -> digest.
    """
    made_from = {"schema": SCHEMA, "family": family, "split": split.name, "key": dict(split.key)}
    extra: dict[str, Any] = {"code": sorted(code.values())} if code and split.own_code else {}
    extra |= {"externals": dict(externals)} if externals else {}
    return fingerprint({**made_from, "sources": dict(sources), **extra})


def make_manifest(about: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest, sealed. about: every field but schema and seal."""
    return (json.dumps(seal({"schema": SCHEMA, **about}), indent=1, sort_keys=True) + "\n").encode()


def find_split(store: Store, key: str) -> SplitManifest | None:
    """The committed split of a fingerprint, or None. store: the root.

    DataError for a manifest that is damaged, of another schema or changed since.
    """
    where = store.child(PREPARED, key)
    try:
        data = where.get(MANIFEST)
    except NotFoundError:
        return None
    return parse_manifest(data, where.uri)


def parse_manifest(data: bytes, where: str) -> SplitManifest:
    """A manifest, checked field by field. where: URI of its folder, whose last part is the split's fingerprint."""
    plain = sealed_json(data, f"{where}/{MANIFEST}", SCHEMA)
    faults = Faults(DataError, f"{where}/{MANIFEST}", REMEDY)
    sizes = plain.get("files")
    if not isinstance(sizes, dict) or not all(_is_count(size) and FILE_NAME.fullmatch(n) for n, size in sizes.items()):
        faults.add("`files` is no mapping of file names to sizes")
        sizes = {}
    shards, rows, lines = plain.get("shards"), plain.get("rows_file"), plain.get("lines_file")
    if not isinstance(shards, list) or {str(n) for n in [*(shards or ()), rows, lines]} != set(sizes):
        faults.add("`shards`, `rows_file` and `lines_file` are not the names in `files`")
    numbers = plain.get("numbers")
    if not isinstance(numbers, dict) or not all(
        NAME.fullmatch(n) and kind in NUMBER_TYPES for n, kind in numbers.items()
    ):
        faults.add("`numbers` is no mapping of names to types")
    if not FOLDER_NAME.fullmatch(str(plain.get("folder"))):
        faults.add(f"folder {plain.get('folder')!r} is none of ours")
    if not NAME.fullmatch(str(plain.get("split"))):
        faults.add(f"split {plain.get('split')!r} is no name")
    if not _is_count(plain.get("num_rows")):
        faults.add(f"num_rows {plain.get('num_rows')!r} is no count")
    if not isinstance(plain.get("facts"), dict):
        faults.add("`facts` is no mapping")
    aside: tuple[SetAside, ...] = ()
    try:
        aside = tuple(SetAside.from_json(row) for row in plain.get("set_aside", ()))
    except (ValueError, TypeError) as error:
        faults.add(f"`set_aside`: {error}")
    faults.raise_if_any()
    assert isinstance(shards, list)
    return SplitManifest(
        name=plain["split"],
        family=str(plain.get("family")),
        fingerprint=where.rsplit("/", 1)[-1],
        digest=hashlib.sha256(data).hexdigest(),
        facts=plain["facts"],
        folder=plain["folder"],
        num_rows=plain["num_rows"],
        numbers=plain["numbers"],
        rows=str(rows),
        lines=str(lines),
        shards=tuple(str(name) for name in shards),
        sizes=sizes,
        set_aside=aside,
    )


def sealed_json(data: bytes, where: str, schema: str) -> dict[str, Any]:
    """JSON of ours, read back: DataError for one that is damaged, of another schema or changed since."""
    try:
        plain = read_json(data)
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}", remedy=REMEDY) from error
    if not isinstance(plain, dict) or plain.get("schema") != schema:
        raise DataError(f"{where} is no {schema}", remedy=REMEDY)
    if not is_sealed(plain):
        raise DataError(f"{where} was changed after it was written (seal broken)", remedy=REMEDY)
    return plain


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
