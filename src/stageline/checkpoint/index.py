"""Which runs below a root finished a stage, found by its fingerprint: `index/<stage fingerprint>/<run>.json`.

An entry is written when a stage's final checkpoint is committed, and says only where to look: whoever takes what it
names looks at the checkpoints themselves. Loads no torch.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stageline.config.bounds import read_json
from stageline.config.settings import NAME_PATTERN
from stageline.store import NotFoundError, Store

if TYPE_CHECKING:
    from stageline.checkpoint.metadata import CheckpointMetadata
    from stageline.checkpoint.stage_dir import StageDir

INDEX = "index"
INDEX_SCHEMA = "stageline-index/1"
LARGEST_ENTRY = 16_384
"""Bytes; what is larger was written by nobody of ours."""
FINGERPRINT_PATTERN = r"[0-9a-f]{64}"


@dataclass(frozen=True)
class FinishedElsewhere:
    """One entry. run: who finished the stage.  place: its stage directory, relative to the root.  version: of
    stageline.  created: when, ISO 8601."""

    run: str
    place: str
    version: str
    created: str


def record_finished(directory: StageDir, metadata: CheckpointMetadata) -> None:
    """Write the entry of a finished stage; nothing where the directory lies below no root."""
    root, wanted = directory.root, metadata.stage_fingerprint
    if root is None or not re.fullmatch(FINGERPRINT_PATTERN, wanted) or not re.fullmatch(NAME_PATTERN, metadata.run):
        return
    entry = {
        "schema": INDEX_SCHEMA,
        "run": metadata.run,
        "place": directory.uri.removeprefix(f"{root.uri.rstrip('/')}/"),
        "version": metadata.stageline_version,
        "created": metadata.created,
    }
    root.put(f"{INDEX}/{wanted}/{metadata.run}.json", (json.dumps(entry, ensure_ascii=False) + "\n").encode())


def finished_elsewhere(root: Store, fingerprint: str, stage: str, run: str) -> list[FinishedElsewhere]:
    """The entries that other runs than `run` have of a stage fingerprint, by their names; one listing.

    What is no entry of this stage (another schema, a place outside `runs/<run>/<stage>`) is nobody's and left out.
    """
    if not re.fullmatch(FINGERPRINT_PATTERN, fingerprint):
        return []
    folder = root.child(INDEX, fingerprint)
    found = []
    for info in folder.list():
        name = info.key.removesuffix(".json")
        if name == run or name == info.key or not re.fullmatch(NAME_PATTERN, name):
            continue
        if not 0 <= info.size <= LARGEST_ENTRY:  # below: a link, a pipe
            continue
        entry = _read(folder, info.key, name, stage)
        if entry is not None:
            found.append(entry)
    return found


def _read(folder: Store, key: str, run: str, stage: str) -> FinishedElsewhere | None:
    try:
        plain = read_json(folder.get(key))
    except (NotFoundError, ValueError):
        return None
    if not isinstance(plain, dict) or plain.get("schema") != INDEX_SCHEMA or plain.get("run") != run:
        return None
    texts = [plain.get(name) for name in ("place", "version", "created")]
    place, version, created = (text if isinstance(text, str) and text.isprintable() else "" for text in texts)
    head = f"runs/{run}/{stage}"
    inside = place == head or re.fullmatch(re.escape(head) + r"/[A-Za-z0-9_-][A-Za-z0-9._-]*", place)
    return FinishedElsewhere(run, place, version, created) if inside else None
