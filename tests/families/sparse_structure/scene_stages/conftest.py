"""A small run of all stages on made-up rooms, made once for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stageline.checkpoint.layout import CheckpointRef
from stageline.data.prepared import PreparedData, open_prepared
from stageline.verbs.prepare import prepare_data

from .runs import small, trained


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="session")
def chain(root: Path) -> dict[str, CheckpointRef]:
    """Stage -> its last checkpoint."""
    return trained(small(root, "stages=[shape_vae,sparse_flow,global_flow,joint]"))


@pytest.fixture(scope="session")
def prepared(root: Path) -> PreparedData:
    return open_prepared(str(prepare_data(small(root)).reference), ["train", "val"])
