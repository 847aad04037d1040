"""Batches whose samples fit together: what validation inside training and every evaluation read. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def equal_batches(indices: Iterable[int], key: Callable[[int], Any], batch_size: int) -> list[list[int]]:
    """Cut a sequence of samples into batches in its order; neighbours are in one batch only where their keys are equal.

    indices: samples in the order in which they are read.  key: what must be equal in a batch, e.g. a picture's size.
    batch_size: the most samples of a batch, at least 1.
    """
    batches: list[list[int]] = []
    before: Any = None
    for index in indices:
        here = key(index)
        if not batches or here != before or len(batches[-1]) == batch_size:
            batches.append([])
        batches[-1].append(index)
        before = here
    return batches
