"""Initial weights that are a function of a seed and leave the caller's random state alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fixed_random(seed: int) -> Iterator[None]:
    """torch's numbers on the CPU as after `manual_seed(seed)`; those outside go on as if none had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
