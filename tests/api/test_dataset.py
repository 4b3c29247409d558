"""A shard folder as a torch data set."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from marc_dist import DataError, Sample, load_encoder, open_dataset
from marc_dist.data.dataset import Dataset
from marc_dist.data.reader import IndexedReader


def test_samples_are_those_of_the_folder(packed: Dataset) -> None:
    test = open_dataset(packed.root, "test")
    rows, reader = packed.rows("test"), IndexedReader(packed)
    assert len(test) == len(rows) and len(open_dataset(str(packed.root))) == len(packed)
    assert test.classes == packed.classes and test.keys == packed.keys[rows].tolist()
    for at, row in enumerate(rows.tolist()):
        sample = test[at]
        assert isinstance(sample, Sample) and isinstance(sample.image, Image.Image)
        assert sample.image.tobytes() == reader.image(row).tobytes()
        assert sample.labels.dtype == torch.bool and sample.labels.tolist() == packed.labels[row].tolist()
        assert sample.key == packed.keys[row]
    assert test[-1].key == test[len(test) - 1].key
    for at in (len(test), -len(test) - 1):
        with pytest.raises(IndexError):
            test[at]


def test_workers_and_pickles_read_the_same(packed: Dataset, finished: Path) -> None:
    test = open_dataset(packed.root, "test", transform=load_encoder(finished).transform)
    again = pickle.loads(pickle.dumps(test))
    alone = [test[at] for at in range(len(test))]
    batches = list(DataLoader(again, batch_size=4, num_workers=2))
    assert torch.equal(torch.cat([one.image for one in batches]), torch.stack([one.image for one in alone]))
    assert np.array_equal(torch.cat([one.labels for one in batches]).numpy(), test.labels)
    assert [key for one in batches for key in one.key] == test.keys


def test_what_is_not_there(packed: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split named 'val'; it has test, train"):
        open_dataset(packed.root, "val")
    with pytest.raises(DataError, match="no such shard folder"):
        open_dataset(tmp_path / "none")


def test_paths_and_transforms_that_are_none(packed: Dataset) -> None:
    with pytest.raises(ValueError, match="path: expected a text or a pathlib.Path, got int"):
        open_dataset(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="transform: expected a function of a PIL picture, got 'resize'"):
        open_dataset(packed.root, transform="resize")  # type: ignore[arg-type]
