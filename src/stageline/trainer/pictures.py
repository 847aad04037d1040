"""Pictures of validation in TensorBoard, beside its scalars, rank 0 only.

They never end and never delay a step: pictures go through a bounded queue to a thread of its own; what does not fit is
dropped and told, and a fault of TensorBoard's costs the pictures alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stageline.printing import one_line
from stageline.telemetry import LONGEST_LABEL, redact
from stageline.trainer.handover import Handover

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NUM_SAMPLES = 4
"""Validation samples that are shown, the first ones of rank 0: the same at every validation."""
MAX_SIDE = 1024
"""Pixels: of a larger picture every second, third, … row and column is taken."""
QUEUE_LENGTH = 8
CLOSE_SECONDS = 10.0
"""How long the end of a stage waits for what is still queued."""

Pictures = Mapping[str, NDArray[np.uint8]]


class PictureWriter:
    """Writes pictures with a TensorBoard writer.

    warn: told in a sentence what went wrong, by the thread that puts and closes.
    """

    def __init__(self, writer: SummaryWriter, warn: Callable[[str], None]) -> None:
        self._writer, self._warn = writer, warn
        self._fault = ""
        self._queue = Handover[tuple[Pictures, int]]("stageline-pictures", self._run, length=QUEUE_LENGTH)

    def put(self, pictures: Pictures, step: int) -> None:
        """Hand pictures on; returns at once. pictures: name -> (H, W) or (H, W, 3) uint8."""
        self._queue.put((pictures, step))

    def close(self) -> None:
        """Wait a little for what is queued; what is not through then is lost, and told."""
        lost = self._queue.close(CLOSE_SECONDS)
        if self._fault:
            self._warn(f"pictures in TensorBoard ended: {self._fault}")
        elif lost:
            self._warn(f"TensorBoard was too slow: pictures of {lost} validations are missing there")

    def _run(self, items: Iterator[tuple[Pictures, int]]) -> None:
        for item in items:
            try:
                if not self._fault:
                    self._write(*item)
            except Exception as error:  # noqa: BLE001  # told, and the stage goes on
                self._fault = redact(f"{type(error).__name__}: {error}")

    def _write(self, pictures: Pictures, step: int) -> None:
        for name, pixels in pictures.items():
            stride = -(-max(pixels.shape[:2]) // MAX_SIDE)
            small = np.asarray(pixels[::stride, ::stride])
            if small.dtype != np.uint8:
                raise ValueError(f"picture {name!r} is of {small.dtype}, expected uint8")
            tag = one_line(f"validation/{name}", LONGEST_LABEL)
            self._writer.add_image(tag, small, step, dataformats="HWC" if small.ndim == 3 else "HW")


class Album:
    """Collects what a family shows of one validation: at most NUM_SAMPLES samples. See `ValidationContext.show`."""

    def __init__(self) -> None:
        self.pictures: dict[str, Any] = {}

    def of_batch(self, samples: tuple[int, ...]) -> Callable[[int, str, NDArray[np.uint8]], None]:
        """Where the pictures of one batch go. samples: its indices into the validation set."""

        def show(row: int, name: str, pixels: NDArray[np.uint8]) -> None:
            self.pictures[f"{name}/{samples[row]}"] = pixels

        return show
