"""Which samples an epoch visits, in which order: the plan or the label-aware sampler, as the settings say."""

from __future__ import annotations

import numpy as np

from marc_dist.config import Config
from marc_dist.data.dataset import Dataset
from marc_dist.data.plan import Ids, epoch_order
from marc_dist.data.sampler import epoch_length, label_aware_order, repeat_factors, visit_numbers


class EpochOrder:
    """The order of every epoch of a run; a function of settings, seed and data, of nothing else.

    Args:
        dataset: an opened shard folder.
        config: the run's settings.
    """

    def __init__(self, dataset: Dataset, config: Config) -> None:
        self.dataset, self.config = dataset, config
        self.rows = dataset.train_rows(config.data)
        self._newest: tuple[int, Ids, Ids] | None = None

    def length(self) -> int:
        """Entries of every epoch."""
        data = self.config.data
        if data.sampler == "uniform":
            return len(self.rows)
        labels = self.dataset.label_rows(self.rows)
        return epoch_length(repeat_factors(labels, threshold=data.repeat_threshold, maximum=data.repeat_max))

    def entries(self, epoch: int) -> tuple[Ids, Ids]:
        """The ids of an epoch in order, and which visit of its sample in that epoch each is, from 0."""
        if self._newest is None or self._newest[0] != epoch:
            ids = self._new(epoch)
            once = self.config.data.sampler == "uniform"
            self._newest = epoch, ids, np.zeros(len(ids), dtype=np.int64) if once else visit_numbers(ids)
        return self._newest[1:]

    def _new(self, epoch: int) -> Ids:
        seed, fingerprint = self.config.train.seed, self.dataset.fingerprint
        if self.config.data.sampler == "uniform":
            return epoch_order(self.rows, seed=seed, epoch=epoch, fingerprint=fingerprint)
        return label_aware_order(
            self.rows,
            self.dataset.label_rows(self.rows),
            seed=seed,
            epoch=epoch,
            fingerprint=fingerprint,
            global_batch=self.config.train.global_batch,
            threshold=self.config.data.repeat_threshold,
            maximum=self.config.data.repeat_max,
        )
