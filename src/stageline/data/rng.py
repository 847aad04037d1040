"""Random generators of numpy as functions of what they are for: f(seed, split, index), f(seed, epoch, index).

The same rule as `objectives.step.seeded`, for the parts that work without torch.
"""

from __future__ import annotations

import hashlib

import numpy as np


def numpy_rng(*parts: int | str) -> np.random.Generator:
    """A generator that depends on its arguments alone: equal in any process, on any machine."""
    text = "\x1f".join(str(part) for part in parts)
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")))
