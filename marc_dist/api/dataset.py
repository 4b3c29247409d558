"""A shard folder as a torch data set of the map style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from marc_dist.api.arrays import check_path
from marc_dist.data import dataset as shard_folder
from marc_dist.data.bands.pick import BandPick
from marc_dist.data.reader import IndexedReader


class Sample(NamedTuple):
    """One picture: PIL RGB (of named bands a (H, W, C) array), or what the transform made of it; its (L,) bool labels;
    its key.
    """

    image: Any
    labels: Tensor
    key: str


class ShardDataset(TorchDataset[Sample]):
    """Pictures of a shard folder, any one at once. Made by ``open_dataset``.

    May be pickled and handed to the workers of a ``DataLoader``: files are opened in each process on first use.

    Args:
        index: the opened shard folder.
        ids: (n,) rows of the index to show, ascending.
        transform: what is done to each PIL picture; None leaves it.
        verify_crc: compare each picture's CRC-32 with the index.
        bands: names of the bands to give, in order; None = all, or red, green and blue where none are named.

    Attributes:
        index: the opened folder: classes, splits, sizes and places of all its pictures.
        ids: (n,) which rows of the index these are, ascending.
        classes: L names of the labels.
        labels: (n, L) bool.
        keys: n names of the pictures.
    """

    def __init__(
        self,
        index: shard_folder.Dataset,
        ids: NDArray[np.int64],
        transform: Callable[[Any], Any] | None,
        *,
        verify_crc: bool,
        bands: Sequence[str] | None = None,
    ) -> None:
        self.index, self.ids, self.transform, self.verify_crc = index, ids, transform, verify_crc
        self.classes = index.classes
        self.labels = index.label_rows(ids)
        self.keys: list[str] = index.keys[ids].tolist()
        self._reader = IndexedReader(index, verify_crc=verify_crc, pick=BandPick.named(index, bands))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: int) -> Sample:
        """The picture at this place, from 0; negative ones count from the end.

        Raises:
            IndexError: no such place.
            DataError: a picture that cannot be read, or is not the one that was packed.
        """
        if not -len(self) <= item < len(self):
            raise IndexError(f"expected a place below {len(self)}, got {item}")
        row, plain = int(self.ids[item]), self._reader.pick is None
        image: Any = self._reader.image(row) if plain else self._reader.picture(row)
        image = image if self.transform is None else self.transform(image)
        at = item % len(self)
        return Sample(image, torch.from_numpy(self.labels[at].copy()), self.keys[at])


def open_dataset(
    path: str | Path,
    split: str | None = None,
    *,
    transform: Callable[[Any], Any] | None = None,
    verify_crc: bool = True,
    bands: Sequence[str] | None = None,
) -> ShardDataset:
    """Open a folder that ``marc-shard`` wrote as a torch ``Dataset``.

    Args:
        path: the shard folder.
        split: ``train``, ``test``, ...; None = all pictures.
        transform: PIL picture -> what a sample shall hold, such as ``load_encoder(...).transform``; None = the PIL
            picture, which a ``DataLoader`` cannot collate by itself.
        verify_crc: check every picture's CRC-32.
        bands: of pictures with named bands, which ones, in this order; None = all. A sample's picture is then an array,
            (H, W, C) of the files' type, missing values replaced by the mean of their band.

    Raises:
        ValueError: a path or a transform that is none.
        DataError: no such folder, not a shard folder, no such split, no such band.
    """
    check_path(path)
    if transform is not None and not callable(transform):
        raise ValueError(f"transform: expected a function of a PIL picture, got {transform!r:.60}")
    index = shard_folder.open_dataset(path)
    ids = np.arange(len(index), dtype=np.int64) if split is None else index.rows(split)
    return ShardDataset(index, ids, transform, verify_crc=verify_crc, bands=bands)
