"""The order of the data as a function of seed and step, so that a run resumes exactly where it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Slot:
    """A place in a step: the photo that is shown there, and the seed of its random draws."""

    step: int
    place: int
    index: int

    def seed(self, seed: int) -> int:
        """The seed of this place, the same in every process."""
        return int(np.random.SeedSequence((seed, self.step, self.place)).generate_state(1, np.uint64)[0]) >> 1


class Order:
    """A random order in which every photo occurs once per epoch and batches contain photos of one group.

    ``groups`` is a number per photo. The last batch of a group is filled up with other photos of the group.
    """

    def __init__(self, groups: Sequence[int], batch: int, seed: int) -> None:
        self.batch, self.seed = batch, seed
        numbers = np.asarray(groups)
        self._members = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
        self._epoch_length = sum(-(-len(own) // batch) for own in self._members)
        self._shuffled: tuple[int, list[np.ndarray]] = (-1, [])

    def step(self, step: int) -> list[Slot]:
        """Indices of the photos of a step."""
        epoch, batch = divmod(step, self._epoch_length)
        if self._shuffled[0] != epoch:
            self._shuffled = epoch, self._epoch(epoch)
        return [Slot(step, place, int(index)) for place, index in enumerate(self._shuffled[1][batch])]

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([self.seed, epoch])
        batches: list[np.ndarray] = []
        for members in self._members:
            own = random.permutation(members)
            whole = np.concatenate([own, np.resize(own, -len(own) % self.batch)])
            batches += np.split(whole, len(whole) // self.batch)
        return [batches[i] for i in random.permutation(len(batches))]


@dataclass(frozen=True)
class Steps:
    """A batch sampler for the steps from ``first`` to ``last`` (excluded): the slots of one process."""

    order: Order
    first: int
    last: int
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Slot]]:
        for step in range(self.first, self.last):
            yield self.order.step(step)[self.rank :: self.processes]


def aspect_groups(sizes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """1 for photos (h, w) that are wider than tall, otherwise 0."""
    return tuple(int(width > height) for height, width in sizes)
