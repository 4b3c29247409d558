"""Augmented views of training images, drawn by the code that trains."""

from __future__ import annotations

import numpy as np
from PIL import Image

from marc_dist.augment.views import Augment
from marc_dist.config import Config
from marc_dist.data.bands.pick import pick_for
from marc_dist.data.bands.preview import shown_bands
from marc_dist.data.dataset import Dataset
from marc_dist.data.reader import IndexedReader, decoded
from marc_dist.encoder.published import resolve_scale

VIEWS_SHOWN = 6


def training_views(
    config: Config, dataset: Dataset, reader: IndexedReader, num: int
) -> list[tuple[int, list[Image.Image]]]:
    """Samples of the training split, evenly spaced, each with ``VIEWS_SHOWN`` views as training drew them.

    View 0, view 1, ... of epoch 0, then of epoch 1, and so on; none when the data have no such split.

    Args:
        config: of the run that trained.
        dataset: what it was trained on.
        reader: of its pictures.
        num: how many samples.
    """
    rows = np.flatnonzero(dataset.split == config.data.train_split)
    chosen = np.unique(rows[np.linspace(0, len(rows) - 1, num).astype(np.int64)]) if len(rows) else rows
    scale = resolve_scale(config, dataset)
    pick = pick_for(dataset, scale.bands)
    shown = (0, 1, 2) if pick is None else shown_bands(pick.names)
    augment = Augment(config.augment, config.data.image_size, config.train.seed, scale)
    out = []
    for sample in chosen.tolist():
        at = [divmod(number, config.data.num_views) for number in range(VIEWS_SHOWN)]
        picture = decoded(reader.read(sample), dataset.place(sample), pick)
        views = [augment(picture, epoch, sample, view).numpy() for epoch, view in at]
        pixels = [view.transpose(1, 2, 0) * np.array(scale.std) + np.array(scale.mean) for view in views]
        pixels = [x[:, :, shown] for x in pixels]
        pictures = [Image.fromarray(np.rint(x.clip(0, 1) * 255).astype(np.uint8)) for x in pixels]
        out.append((sample, pictures))
    return out
