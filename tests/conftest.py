"""Shared by all tests: one torch thread, offline, no settings that happen to lie in the shell."""

from __future__ import annotations

import os
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in [name for name in os.environ if name.startswith(("AWS_", "STAGELINE_"))]:
    del os.environ[name]


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Two torch threads on a busy machine can be 80 times slower than one."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
