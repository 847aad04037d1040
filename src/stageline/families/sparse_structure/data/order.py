"""Which scenes come when: steps of scenes with about equally many objects, f(seed, epoch), disjoint among ranks.

A scene's step costs more than linearly in its objects, so ranks that take scenes of one size wait less for each other.
Source: the scene-level ShortCut guide, distributed training. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from stageline.data.rng import numpy_rng


def scene_order(num_objects: Sequence[int], seed: int, epoch: int, group: int) -> list[int]:
    """The scenes of one epoch, each once: groups of neighbours in size, groups and the scenes in them in random order.

    num_objects: of each scene.  group: scenes of one step over all ranks; what is left over comes last, so that each
    group is a whole step.
    """
    rng = numpy_rng("scene order", seed, epoch)
    counts, order = np.asarray(num_objects, dtype=np.int64), rng.permutation(len(num_objects))
    left, rest = order[: len(order) % group], order[len(order) % group :]
    groups = rest[np.argsort(counts[rest], kind="stable")].reshape(-1, group)
    groups = rng.permuted(groups[rng.permutation(len(groups))], axis=1)
    return [int(scene) for scene in (*groups.reshape(-1), *left)]


class SceneSampler:
    """One rank's scenes of each epoch, for a loop of one's own: one scene per rank and step.

    num_objects: of each scene.  rank, world_size: this process among the others.  shuffle: training; without it the
    order is that of the scenes and each is counted once, so ranks may differ by one.  Training repeats the first
    scenes of an epoch at its end until all ranks have equally many.
    """

    def __init__(
        self, num_objects: Sequence[int], *, rank: int = 0, world_size: int = 1, seed: int = 0, shuffle: bool = True
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}; expected 0 to {world_size - 1}")
        self.num_objects = tuple(num_objects)
        self.rank, self.world_size, self.seed, self.shuffle = rank, world_size, seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def _all(self) -> list[int]:
        if not self.shuffle:
            return list(range(len(self.num_objects)))
        order = scene_order(self.num_objects, self.seed, self.epoch, self.world_size)
        missing = -len(order) % self.world_size
        while order and missing > 0:
            order += order[:missing]
            missing = -len(order) % self.world_size
        return order

    def __iter__(self) -> Iterator[int]:
        return iter(self._all()[self.rank :: self.world_size])

    def __len__(self) -> int:
        total = len(self.num_objects)
        return -(-total // self.world_size) if self.shuffle else len(range(self.rank, total, self.world_size))
