"""Label-aware order of an epoch: rare labels more often, and every label of a global batch carried at least twice.

As pure as the plan, and in its place: a function of rows, labels, seed, epoch, fingerprint, global batch, two numbers.

factor r_i = max over the sample's labels l of max(1, sqrt(threshold / f_l)), at most ``maximum``; 1 without labels;
             f_l = share of the samples that carry l. Repeat-factor sampling of LVIS (Gupta, Dollar, Girshick 2019);
             the cap is ours: theirs has none.
epoch      = round(sum r_i) entries, always; factors count to 2^-20 and are rescaled to add up to that whole number.
visits     = systematic sampling over ``epoch_order`` with a keyed offset: a sample gets the floor or the ceiling of its
             rescaled factor, on average over epochs the factor itself. LVIS rounds every sample alone.
queue      = all visits, by a keyed hash of (sample, copy number).
batch      = the next ``global_batch`` entries, built greedily. Ours, from here on. A label is lonely when exactly one
             distinct sample of the batch carries it; labels with one carrier in the whole split are exempt, for several
             views of a sample are each other's partners. Until the batch is full:
             1. more free slots than lonely labels: the head of the queue, passing over samples that are in the batch
                unless the queue holds nothing else; what is passed over stays and is the head of the next batch;
             2. otherwise, of the waiting samples that cover a lonely label, the one with the best score = lonely labels
                covered - new lonely labels made; the earliest in the queue on ties;
             3. when none is waiting, the same of the whole split, the lowest id on ties. Such a repeat takes the place
                of a visit at the tail of the queue, so the length stays.
             Full, and a label still lonely: the member taken last of those that may go (all its labels keep two other
             carriers, or it is there twice) returns to the queue, and 2 or 3 fills its slot.
last batch = the rest, smaller, like the plan's.

A batch of at least 2 L slots always succeeds. Let the deficit be the sum over labels present or not, exempt ones apart,
of max(0, 2 - carriers): 2 and 3 lower it every time and nothing raises it, so filling ends; and members that may not go
each hold a label with at most two carriers, so while one is lonely there are fewer than 2 L of them. In a smaller batch
labels may stay lonely. It then goes out as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from marc_dist.data.plan import Ids, epoch_order, keyed

Bools = NDArray[np.bool_]
ONE = 1 << 20  # of a factor, in fixed point: sums are exact, so no order of summation can change a run
COPY = 1 << 40  # ids are smaller


def repeat_factors(labels: Bools, *, threshold: float, maximum: float) -> NDArray[np.float64]:
    """How often an epoch should visit each sample.

    Args:
        labels: (n, L) bool.
        threshold: share of samples below which a label's carriers are repeated, in (0, 1].
        maximum: cap of a factor, >= 1.

    Returns:
        (n,) factors in [1, maximum].
    """
    share = np.maximum(labels.sum(axis=0), 1) / max(len(labels), 1)
    label_factors = np.clip(np.sqrt(threshold / share), 1.0, maximum)
    factors: NDArray[np.float64] = np.where(labels, label_factors, 1.0).max(axis=1, initial=1.0)
    return factors


def epoch_length(factors: NDArray[np.float64]) -> int:
    """Entries of an epoch: the sum of the factors, rounded (half to even)."""
    return round(int(_fixed(factors).sum()) / ONE)


def label_aware_order(
    rows: Ids,
    labels: Bools,
    *,
    seed: int,
    epoch: int,
    fingerprint: str,
    global_batch: int,
    threshold: float,
    maximum: float,
) -> Ids:
    """The order of one epoch; its slices of ``global_batch`` are the global batches.

    Args:
        rows: (n,) distinct sample ids, >= 0 and < 2^40, in any order.
        labels: (n, L) bool, of ``rows``.
        seed: of the run.
        epoch: from 0.
        fingerprint: of the dataset.
        global_batch: samples of a global step.
        threshold: as in ``repeat_factors``.
        maximum: as in ``repeat_factors``.

    Returns:
        (``epoch_length``,) ids, some of them several times.
    """
    rows = np.asarray(rows, dtype=np.int64)
    by_id = np.argsort(rows)
    ids, labels = rows[by_id], labels[by_id]
    factors = repeat_factors(labels, threshold=threshold, maximum=maximum)
    walk = np.searchsorted(ids, epoch_order(ids, seed=seed, epoch=epoch, fingerprint=fingerprint))
    offset = int(keyed(np.zeros(1, dtype=np.int64), seed, epoch, fingerprint, "offset")[0]) % ONE
    visits = _visits(factors, walk, offset)

    sample = np.repeat(np.arange(len(ids)), visits)
    copy = np.arange(len(sample)) - np.repeat(np.cumsum(visits) - visits, visits)
    keys = keyed(ids[sample] + copy * COPY, seed, epoch, fingerprint, "queue")
    queue = _Queue.of(sample[np.lexsort((copy, sample, keys))], len(ids))
    batches = _Batches(labels, queue)
    built = [batches.build(min(global_batch, len(sample) - at)) for at in range(0, len(sample), global_batch)]
    return ids[np.array([member for batch in built for member in batch], dtype=np.int64)]


def visit_numbers(order: Ids) -> Ids:
    """How many earlier entries of an epoch hold the same sample, so that each visit can be augmented in its own way."""
    by_sample = np.argsort(order, kind="stable")
    firsts = np.searchsorted(order[by_sample], order[by_sample])
    numbers = np.empty_like(order)
    numbers[by_sample] = np.arange(len(order)) - firsts
    return numbers


def _fixed(factors: NDArray[np.float64]) -> Ids:
    return np.rint(factors * ONE).astype(np.int64)


def _visits(factors: NDArray[np.float64], walk: Ids, offset: int) -> Ids:
    """(n,) visits of each sample, ``epoch_length`` in all: whole numbers passed by each on the way along ``walk``."""
    ends = np.cumsum(_fixed(factors[walk]))
    if len(ends):
        ends += np.rint(ends / ends[-1] * (epoch_length(factors) * ONE - int(ends[-1]))).astype(np.int64)
    visits = np.empty_like(walk)
    visits[walk] = np.diff((ends + offset) // ONE, prepend=0)
    return visits


@dataclass
class _Queue:
    """Visits that wait; a sample's own are taken in their order and given back in the reverse.

    Attributes:
        sample: (T,) of each place.
        turn: (T,) how many earlier places hold the same sample.
        places: (T,) places, sample by sample, in order.
        first: (n + 1,) where each sample's begin in ``places``.
        taken: (n,) visits of each sample that no longer wait.
        start: no place before it waits.
    """

    sample: Ids
    turn: Ids
    places: Ids
    first: Ids
    taken: Ids
    start: int = 0

    @classmethod
    def of(cls, sample: Ids, num_samples: int) -> _Queue:
        """A queue of all places."""
        places = np.argsort(sample, kind="stable")
        first = np.searchsorted(sample[places], np.arange(num_samples + 1))
        turn = np.empty_like(places)
        turn[places] = np.arange(len(places)) - first[sample[places]]
        return cls(sample, turn, places, first, np.zeros(num_samples, dtype=np.int64))

    def next_place(self, samples: Ids) -> Ids:
        """The first waiting place of each sample; T when none waits."""
        at = self.first[samples] + self.taken[samples]
        waits = at < self.first[samples + 1]
        return np.where(waits, self.places[np.where(waits, at, 0)], len(self.sample))

    def waiting(self, width: int | None = None) -> Ids:
        """Samples of the waiting places among the next ``width``, in order, with repetitions."""
        stop = None if width is None else self.start + width
        sample = self.sample[self.start : stop]
        return sample[self.turn[self.start : stop] >= self.taken[sample]]

    def skip(self) -> None:
        """Move ``start`` to the first waiting place."""
        while self.start < len(self.sample) and self.turn[self.start] < self.taken[self.sample[self.start]]:
            self.start += 1

    def heads(self, num: int, passed: Bools) -> Ids:
        """The first ``num`` distinct waiting samples that are not ``passed`` (n,); fewer when the queue has fewer."""
        width = 2 * num
        while True:
            found = self.waiting(width)
            found = found[~passed[found]]
            firsts = np.sort(np.unique(found, return_index=True)[1])[:num]
            if len(firsts) == num or self.start + width >= len(self.sample):
                return found[firsts]
            width *= 4


@dataclass
class _Batches:
    """The batch that is being built; samples are numbered 0 .. n - 1 in the order of their ids.

    Attributes:
        labels: (n, L) bool.
        queue: of visits.
        carriers: carriers of each label in the split, ascending.
        partnered: (L,) labels that are not exempt.
        members: samples of the batch, in the order taken.
        repeats: of each member: it did not come from the queue.
        inside: (n,) is in the batch.
        counts: (L,) distinct carriers in the batch.
    """

    labels: Bools
    queue: _Queue
    carriers: list[Ids] = field(init=False)
    partnered: Bools = field(init=False)
    members: list[int] = field(init=False)
    repeats: list[bool] = field(init=False)
    inside: Bools = field(init=False)
    counts: Ids = field(init=False)

    def __post_init__(self) -> None:
        self.carriers = [np.flatnonzero(column) for column in self.labels.T]
        self.partnered = self.labels.sum(axis=0) > 1
        self.inside = np.zeros(len(self.labels), dtype=np.bool_)

    def build(self, size: int) -> list[int]:
        """The next batch of ``size`` entries."""
        self.members, self.repeats = [], []
        self.inside[:] = False
        self.counts = np.zeros(self.labels.shape[1], dtype=np.int64)
        self.queue.skip()
        while free := size - len(self.members):
            if free > self.lonely().sum():
                self.take_heads(free)
            else:
                self.cover()
        while self.lonely().any() and self.evict():
            self.cover()
        return self.members

    def lonely(self) -> Bools:
        """(L,) labels that one distinct member carries."""
        lonely: Bools = (self.counts == 1) & self.partnered
        return lonely

    def add(self, sample: int, *, repeat: bool = False) -> None:
        """One more member."""
        self.members.append(sample)
        self.repeats.append(repeat)
        if not self.inside[sample]:
            self.counts += self.labels[sample]
        self.inside[sample] = True
        self.queue.taken[sample] += not repeat

    def take_heads(self, free: int) -> None:
        """Rule 1, as often as it applies."""
        heads = self.queue.heads(free, self.inside)
        if not len(heads):  # only samples of the batch are waiting
            for sample in self.queue.waiting()[: free - int(self.lonely().sum())].tolist():
                self.add(sample)
            return
        counts = self.counts + np.cumsum(self.labels[heads], axis=0)
        lonely = ((counts == 1) & self.partnered).sum(axis=1)
        stops = np.flatnonzero(free - np.arange(1, len(heads) + 1) <= lonely)
        for sample in heads[: stops[0] + 1 if len(stops) else None].tolist():
            self.add(sample)

    def cover(self) -> None:
        """Rule 2, else 3. There is a candidate: a lonely label has another carrier in the split."""
        lonely = self.lonely()
        candidates = np.concatenate([self.carriers[label] for label in np.flatnonzero(lonely)])
        candidates = candidates[~self.inside[candidates]]
        places = self.queue.next_place(candidates)
        waits = places < len(self.queue.sample)
        repeat = not waits.any()
        if not repeat:
            candidates, places = candidates[waits], places[waits]
        worth = lonely.astype(np.int64) - ((self.counts == 0) & self.partnered)
        scores = self.labels[candidates] @ worth
        best = scores == scores.max()
        ties = candidates if repeat else places
        self.add(int(candidates[best][np.argmin(ties[best])]), repeat=repeat)

    def evict(self) -> bool:
        """Send the last member back that may go; False when all must stay."""
        samples = np.array(self.members)
        needed = (self.labels[samples] & (self.counts <= 2)).any(axis=1)
        copies = np.bincount(samples, minlength=len(self.labels))[samples]
        may_go = np.flatnonzero(~needed | (copies > 1))
        if not len(may_go):
            return False
        last = int(may_go[-1])
        sample, repeat = self.members.pop(last), self.repeats.pop(last)
        self.queue.taken[sample] -= not repeat
        if copies[last] == 1:
            self.inside[sample] = False
            self.counts -= self.labels[sample]
        return True
