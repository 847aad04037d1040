"""Committed splits without a row, for tests that need prepared data and never read them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from stageline.config import RunConfig
from stageline.data.prepared import PREPARED, Prepared, write_set
from stageline.data.shards import SplitWriter
from stageline.data.splits import MANIFEST, make_manifest
from stageline.families import family_config
from stageline.store import open_store
from stageline.work.data import hash_sources, run_splits, split_fingerprints


def commit_empty_splits(config: RunConfig) -> Prepared:
    """What preparing the data of a config would commit, but for the rows."""
    root, splits = open_store(config.root), run_splits(config, family_config(config.family))
    keys = split_fingerprints(config, splits, hash_sources(splits))
    for split in splits:
        with TemporaryDirectory() as folder, SplitWriter(Path(folder)) as writer:
            written = writer.finish()
        about = {"family": config.family, "split": split.name, "facts": {}, "folder": "data", **written}
        root.child(PREPARED, keys[split.name]).create(MANIFEST, make_manifest(about))
    return write_set(root, keys)
