"""The chain family in the table of families, and roots in which its runs look as if they had been trained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from stageline.families import FAMILIES
from tests.plan.conftest import Lab


@pytest.fixture(autouse=True)
def _chain_family(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setitem(FAMILIES, "chain", "chain_family")


@pytest.fixture
def chain(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "root", "chain")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "root")
