"""Classifier-free guidance: one formula for everything that has an answer with and one without its condition.

Ho & Salimans, arXiv:2207.12598, equation 6, in the two ways of counting that are in circulation: a strength s of
(1 + s) on - s off, where 0 is the conditional answer, and a scale w = 1 + s of off + w (on - off), where 1 is.
"""

from __future__ import annotations

from torch import Tensor


def guided_by_strength(on: Tensor, off: Tensor, strength: float | Tensor) -> Tensor:
    """(1 + s) on - s off.

    on, off: (N, ...) answers with and without the condition.  strength: s, 0 is `on`; a tensor broadcasts over `on`.
    """
    return (1 + strength) * on - strength * off


def guided_by_scale(on: Tensor, off: Tensor, scale: float) -> Tensor:
    """off + w (on - off).

    on, off: (N, ...) answers with and without the condition.  scale: w, 1 is `on` and 0 is `off`.
    """
    return off + scale * (on - off)
