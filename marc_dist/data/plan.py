"""Which sample is used when: pure arithmetic, the same on every rank, worker, machine and day.

order(epoch)  = permutation of the split, a function of (seed, epoch, dataset fingerprint)
global step s = rows s * G to (s + 1) * G of that order; the last step of an epoch may be smaller
rank r of W   = a contiguous part of the step, sizes differing by at most one, possibly none
validation    = samples of the split that no epoch visits, a function of (validation seed, keys)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection of 64-bit words that scatters neighbours."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keyed(ids: Ids, *parts: object) -> NDArray[np.uint64]:
    """A hash of every id, the same on every machine; other ``parts`` give an independent one.

    Args:
        ids: of any shape, >= 0.
        parts: what the hash depends on besides the id, told apart by their text.

    Returns:
        64-bit words of the shape of ``ids``, distinct wherever the ids are.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    one, two = (np.uint64(int.from_bytes(digest[i : i + 8], "little")) for i in (0, 8))
    return _mix(_mix(ids.astype(np.uint64) ^ one) + two)


def epoch_order(rows: Ids, *, seed: int, epoch: int, fingerprint: str) -> Ids:
    """The order in which one epoch visits ``rows``.

    Sorting by a keyed hash of the id, not a library's shuffle, so that no version of numpy can change a run.

    Args:
        rows: distinct sample ids, >= 0.
        seed: of the run.
        epoch: from 0.
        fingerprint: of the dataset.

    Returns:
        A permutation of ``rows``.
    """
    ids = np.asarray(rows, dtype=np.int64)
    return ids[np.lexsort((ids, keyed(ids, seed, epoch, fingerprint)))]


def held_out(keys: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Which samples are kept from training, to choose settings by: those whose keys hash lowest.

    Depends on the keys and the seed alone: not on their order, on ids, on numpy, ranks or ``train.seed``.

    Args:
        keys: (n,) distinct names of the samples.
        share: of the samples, 0 to 1; ``round(share * n)`` are chosen.
        seed: other seeds choose others.

    Returns:
        (n,) True for a chosen sample.
    """
    digests = np.empty((len(keys), 32), dtype=np.uint8)
    for at, key in enumerate(keys):
        digests[at] = np.frombuffer(hashlib.sha256(f"{seed}:{key}".encode()).digest(), dtype=np.uint8)
    words = digests.view(">u8")  # compared as the bytes are, and so without a string for each
    chosen = np.zeros(len(keys), dtype=bool)
    chosen[np.lexsort((words[:, 3], words[:, 2], words[:, 1], words[:, 0]))[: round(share * len(keys))]] = True
    return chosen


def num_steps(num_rows: int, global_batch: int) -> int:
    """Global steps of an epoch; the last, smaller batch is kept."""
    return -(-num_rows // global_batch)


def global_batch_ids(order: Ids, step: int, global_batch: int) -> Ids:
    """The ids of one global step of an epoch.

    Args:
        order: all ids of the epoch, see ``epoch_order``.
        step: from 0; beyond the last one there are no ids.
        global_batch: samples of a full step, over all ranks.
    """
    return order[step * global_batch : (step + 1) * global_batch]


def rank_part(ids: Ids, rank: int, world: int) -> Ids:
    """A rank's contiguous part of a global step; the first ranks hold one more when it does not divide.

    Args:
        ids: of the whole step, in order.
        rank: from 0.
        world: number of ranks; may exceed the number of ids, and the last ranks then hold none.
    """
    share, rest = divmod(len(ids), world)
    start = rank * share + min(rank, rest)
    return ids[start : start + share + (rank < rest)]
