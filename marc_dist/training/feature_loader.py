"""Batches for a head on a frozen backbone: kept features in place of pictures, in the order of the same plan.

View v of a sample is one of its kept parts (the picture as it is, and ``data.feature_views`` augmented ones), no part
twice in a step while there are enough, with ``augment.feature_dropout`` of its numbers set to zero. Both choices are
hashes of (seed, epoch, visit, view, sample): no rank, step or library enters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from marc_dist import comm
from marc_dist.augment.views import PixelScale
from marc_dist.config import Config
from marc_dist.data.batches import Batch
from marc_dist.data.dataset import Dataset
from marc_dist.data.epoch_order import EpochOrder
from marc_dist.data.plan import Ids, global_batch_ids, keyed, num_steps, rank_part
from marc_dist.encoder.model import Encoder
from marc_dist.retrieval.exact import Float32, Rows
from marc_dist.retrieval.vectors.features import BackboneFeatures, features_root

STEP = 4096
"""Rows whose mean and deviation are taken at a time."""
LEAST = 1e-3
"""Of the median deviation: a feature that varies less says nothing of the training pictures, but may of others."""


class FeatureLoader:
    """A rank's batches, epoch by epoch; the features that are not kept yet are computed first. A collective.

    Args:
        encoder: on its device; its backbone is frozen.
        dataset: an opened shard folder.
        config: the run's settings.
        scale: what the backbone expects of pixels.
        say: takes one line for people.
        tick: called now and then while features are computed.

    Attributes:
        notes: lines for people on where the features lie.
        steps_per_epoch: global steps.

    Raises:
        DataError: the dataset has no such split; a picture that cannot be read; features that are not finite.
        LaunchError: the folder of the features cannot be written.
    """

    def __init__(
        self,
        encoder: Encoder,
        dataset: Dataset,
        config: Config,
        scale: PixelScale,
        say: Callable[[str], None],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.dataset, self.config, self.rank, self.world = dataset, config, comm.rank(), comm.world()
        self._order = EpochOrder(dataset, config)
        self.steps_per_epoch = num_steps(self._order.length(), config.train.global_batch)
        size = config.data.image_size
        kept = BackboneFeatures(encoder, config, dataset, image_size=size, scale=scale, say=say, tick=tick)
        split, num = config.data.train_split, config.data.feature_views
        clean = kept.clean(split)
        assert clean is not None, "computed where it was missing"
        self._known = dataset.rows(split)
        self._parts: list[Rows] = [store.rows(self._known) for store in (clean, *kept.views(split, num))]
        views = f" and {num} augmented views of each" if num else ""
        self.notes = [f"features of {len(self._known)} pictures{views} in {features_root(config)}"]

    def features(self, ids: Ids, part: int = 0) -> Float32:
        """(n, F) features of these pictures: as they are, or of a later part in an augmented view."""
        return np.asarray(self._parts[part][np.searchsorted(self._known, ids)])

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(F,) mean and standard deviation of the training pictures' features as they are, float64; on every rank."""
        found: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        if comm.rank() == 0:
            found = _moments(self.features, self._order.rows)
        mean, std = comm.broadcast_object(found)
        return torch.from_numpy(mean), torch.from_numpy(std)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_step`` on; a rank with no rows in a step gets an empty batch."""
        ids, visits = self._order.entries(epoch)
        batch = self.config.train.global_batch
        for step in range(start_step, self.steps_per_epoch):
            every = global_batch_ids(ids, step, batch)
            mine = rank_part(every, self.rank, self.world)
            views = self._views(epoch, mine, rank_part(global_batch_ids(visits, step, batch), self.rank, self.world))
            yield Batch(
                images=torch.from_numpy(views),
                labels=torch.from_numpy(self.dataset.label_rows(mine)),
                ids=torch.from_numpy(mine.copy()),
                step=step,
                global_size=len(every),
            )

    def close(self) -> None:
        """Nothing to end."""

    def _views(self, epoch: int, ids: Ids, visits: Ids) -> Float32:
        """(V * B, F): all of view 0, then all of view 1, ..."""
        num, seed = self.config.data.num_views, self.config.train.seed
        unique = visits * np.int64(1 << 40) + ids  # a second visit draws anew
        hashes = [keyed(unique, seed, epoch, "part", part) for part in range(len(self._parts))]
        chosen = np.argsort(np.stack(hashes, axis=1), axis=1) if len(ids) else np.zeros((0, 1), dtype=np.int64)
        width = int(self._parts[0].shape[1])
        out = np.empty((num, len(ids), width), dtype=np.float32)
        for view in range(num):
            of_view = chosen[:, view % chosen.shape[1]]
            for part in range(len(self._parts)):
                there = np.flatnonzero(of_view == part)
                out[view, there] = self.features(ids[there], part)
            drop(out[view], unique, self.config.augment.feature_dropout, (seed, epoch, "drop", view))
        return out.reshape(num * len(ids), width)


def drop(features: Float32, ids: Ids, share: float, key: tuple[object, ...]) -> None:
    """Set a share of the numbers to zero, in place, and scale the others by 1 / (1 - share), as dropout does.

    Args:
        features: (n, F).
        ids: (n,) what tells the rows apart, wherever they lie.
        share: 0 to below 1, in steps of 2^-16.
        key: what the choice depends on besides.
    """
    if not share or not len(ids):
        return
    width = features.shape[1]
    words = -(-width // 4)  # of 64 bits, four numbers each
    bits = keyed(ids[:, None] * np.int64(words) + np.arange(words), *key, "words")
    parts = np.stack([(bits >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)], axis=2)
    kept = parts.reshape(len(ids), -1)[:, :width] >= np.uint64(round(share * 65536))
    features *= kept / np.float32(1 - share)


def _moments(rows: Callable[[Ids], Float32], ids: Ids) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation by columns, in two passes over blocks of rows."""

    def mean(of: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
        total = np.zeros(1)
        for start in range(0, len(ids), STEP):
            total = total + of(rows(ids[start : start + STEP]).astype(np.float64)).sum(axis=0)
        return np.asarray(total / len(ids))

    middle = mean(lambda block: block)
    spread = np.sqrt(mean(lambda block: (block - middle) ** 2))
    usual = np.median(spread[spread > 0]) if (spread > 0).any() else 1.0
    # divided by its own deviation, a constant feature would outweigh all others in a picture where it is not constant
    return middle, np.where(spread > LEAST * usual, spread, usual)
