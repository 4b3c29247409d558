"""Which sample a streamed epoch gives when: pure arithmetic on the index, the same on every rank, worker and machine.

shards of an epoch = in an order that is a function of (seed, epoch, fingerprint), each to the lane with fewest samples
lane l             = its shards one after another, shuffled through a buffer that draws from (seed, epoch, l)
global step s      = of S, of every lane l of n_l samples those from given(s) to given(s + 1) - 1, lane after lane;
                     given(s) = floor(n_l s / S + l / L)

So every sample comes once an epoch. Of n samples a step has n / S, give or take less than L; give or take less than one
when the lanes are equally long, because their remainders fall into different steps.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import chain, islice
from typing import TypeVar

import numpy as np

from marc_dist.data.plan import Ids, epoch_order, num_steps

T = TypeVar("T")
NEIGHBOURS = 64


class Lanes:
    """The order of streamed epochs.

    Args:
        samples: shard -> its sample ids in the order of the tar.
        lanes: at most so many; every lane has a shard, and on average at least a sample in every step.
        buffer: samples that a lane's buffer holds.
        global_batch: the most samples of a step, on average.
        seed: of the run.
        fingerprint: of the data set.

    Attributes:
        num: L, number of lanes.
        num_samples: n.
        steps: S, global steps of an epoch.
    """

    def __init__(
        self, samples: Mapping[int, Ids], lanes: int, buffer: int, global_batch: int, *, seed: int, fingerprint: str
    ) -> None:
        self.samples = dict(sorted(samples.items()))
        self.num = min(lanes, len(self.samples), global_batch)
        self.buffer = buffer
        self.num_samples = sum(map(len, self.samples.values()))
        self.steps = num_steps(self.num_samples, global_batch)
        self.seed, self.fingerprint = seed, fingerprint
        self._dealt = lru_cache(maxsize=2)(self._deal)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_dealt"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._dealt = lru_cache(maxsize=2)(self._deal)

    def _deal(self, epoch: int) -> tuple[list[list[int]], list[int]]:
        order = epoch_order(
            np.array(list(self.samples)), seed=self.seed, epoch=epoch, fingerprint=f"shards of {self.fingerprint}"
        )
        shards: list[list[int]] = [[] for _ in range(self.num)]
        sizes = [0] * self.num
        for shard in order.tolist():
            lane = sizes.index(min(sizes))
            shards[lane].append(shard)
            sizes[lane] += len(self.samples[shard])
        return shards, sizes

    def deal(self, epoch: int) -> list[list[int]]:
        """The shards of each lane, in order."""
        return self._dealt(epoch)[0]

    def given(self, epoch: int, lane: int, step: int) -> int:
        """How many samples a lane has given before a global step.

        Args:
            epoch: from 0.
            lane: 0 to ``num`` - 1.
            step: 0 to ``steps``; at ``steps`` the lane has given all it has.
        """
        size = self._dealt(epoch)[1][lane]
        return (size * step * self.num + lane * self.steps) // (self.steps * self.num)

    def step_size(self, epoch: int, step: int) -> int:
        """Samples of a global step over all lanes."""
        return sum(self.given(epoch, lane, step + 1) - self.given(epoch, lane, step) for lane in range(self.num))

    def shuffled(self, items: Iterator[T], epoch: int, lane: int) -> Iterator[T]:
        """A lane's items through its buffer, which never sees what they are.

        Args:
            items: of the lane, shard after shard; samples or whatever stands for them.
            epoch: from 0.
            lane: 0 to ``num`` - 1.
        """
        digest = hashlib.sha256(f"lane/{self.seed}/{epoch}/{lane}".encode()).digest()
        generator = random.Random(int.from_bytes(digest[:8], "little"))

        def drawn() -> int:  # of all that Python's generator offers, only random() is the same in every version
            return int(generator.random() * len(held))

        held: list[T] = []
        for item in items:
            if len(held) < self.buffer:
                held.append(item)
                continue
            place = drawn()
            yield held[place]
            held[place] = item
        while held:
            place = drawn()
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()

    def order(self, epoch: int, steps: int | None = None) -> tuple[Ids, Ids]:
        """The ids of an epoch's first ``steps`` steps (all by default), lane by lane, and the step of each."""
        steps = self.steps if steps is None else steps
        ids, numbers = [], []
        for lane in range(self.num):
            given = [self.given(epoch, lane, step) for step in range(steps + 1)]
            arriving = chain.from_iterable(self.samples[shard].tolist() for shard in self.deal(epoch)[lane])
            ids.append(np.fromiter(islice(self.shuffled(arriving, epoch, lane), given[-1]), dtype=np.int64))
            numbers.append(np.repeat(np.arange(steps), np.diff(given)))
        return np.concatenate(ids), np.concatenate(numbers)


def alike(scene: list[str], samples: Mapping[int, Ids]) -> tuple[Ids, str]:
    """Groups of pictures that an exact shuffle would tear apart.

    The scenes of the index where it has some. Else neighbours: archives are sorted by place or date, so 64 samples
    that follow one another in a shard tend to be of a kind.

    Args:
        scene: of every sample of the index; empty = unknown.
        samples: shard -> its sample ids in the order of the tar.

    Returns:
        A group for every sample of the index, -1 where ``samples`` does not have it; and what a pair of a group is.
    """
    ids = np.concatenate(list(samples.values()))
    groups = np.full(len(scene), -1, dtype=np.int64)
    names = [scene[sample] for sample in ids.tolist()]
    if all(names) and 1 < len(set(names)) < len(names):
        number = {name: place for place, name in enumerate(dict.fromkeys(names))}
        groups[ids] = [number[name] for name in names]
        return groups, "same-scene pairs"
    start = 0
    for one in samples.values():
        groups[one] = start + np.arange(len(one)) // NEIGHBOURS
        start += -(-len(one) // NEIGHBOURS)
    return groups, f"pairs from the same {NEIGHBOURS} consecutive samples of a shard"


def pair_rate(groups: Ids, steps: Ids, every: Ids) -> float:
    """How often two samples of a global step are of one group, over how often they would be after an exact shuffle.

    Args:
        groups: (m,) group of each sample given.
        steps: (m,) its global step.
        every: (n,) group of each sample of the split.

    Returns:
        pairs of a group within steps / (pairs within steps * pairs of a group in the split / pairs in the split); 1
        when no pair could be of a group.
    """

    def pairs(counts: Ids) -> int:
        return int((counts * (counts - 1)).sum()) // 2

    num_groups = int(every.max()) + 1
    found = pairs(np.unique(steps * num_groups + groups, return_counts=True)[1])
    possible = pairs(np.bincount(steps))
    share = pairs(np.bincount(every)) / max(pairs(np.array([len(every)])), 1)
    return found / (possible * share) if possible * share else 1.0
