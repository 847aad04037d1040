"""The entry point `stageline` of torch's group `torchrun.handlers`: what `torchrun --rdzv-backend=stageline` gets.

No torch here: torch asks for it while it is itself being imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters


def find_handler() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """What torch registers under the entry point's name."""
    return _make_handler


def _make_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    from stageline.trainer.rendezvous import make_handler

    return make_handler(parameters)
