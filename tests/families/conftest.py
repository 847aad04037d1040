"""Paths of the modules that tests of families share, and one small run of each family for the contract suite."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "trainer")]
