"""A rank's part of a global step: first pictures with the numbers drawn for them, then augmented, wherever that is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from marc_dist.augment.band_views import apply_band_batch
from marc_dist.augment.batched import apply_batch
from marc_dist.augment.views import PixelScale, View, draw
from marc_dist.config import Config, DataError
from marc_dist.data.dataset import Dataset
from marc_dist.data.plan import Ids

Picture = NDArray[Any]
"""(H, W, 3) uint8; of named bands (H, W, C) of 8 or 16 bits or floats."""


@dataclass(frozen=True)
class Batch:
    """A rank's part of one global step.

    Attributes:
        images: (V * B, C, S, S) float32, normalised, C = 3 or the number of bands; all of view 0, then all of view 1,
            ...; of a frozen backbone (V * B, F), its features.
        labels: (B, L) bool.
        ids: (B,) int64 sample ids.
        step: number of the global step in its epoch.
        global_size: samples of the global step over all ranks, bad ones included.
        bad: (id, what is wrong) of this rank's samples that were left out (``data.on_error=skip``).
        seconds: what the loader took to read, decode and augment it; in another process than the training's, mostly.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    step: int
    global_size: int
    bad: tuple[tuple[int, str], ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


class Loader(Protocol):
    """What feeds a training: pictures from shards at hand, from streamed tars, or kept features.

    Attributes:
        notes: lines for people on where batches come from.
        steps_per_epoch: global steps.
    """

    notes: list[str]
    steps_per_epoch: int

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The rank's batches of an epoch, from a step on."""

    def close(self) -> None:
        """End what helps; safe to call twice."""


@dataclass(frozen=True)
class Pictures:
    """A batch before its augmentation.

    Attributes:
        pixels: (N, H, W, C) as ``Picture``, smaller pictures at the top left; None when the training device
            holds them all.
        sizes: (N, 2) int32, height and width; None with ``pixels``.
        rows: of the B good samples, where in ``pixels`` each lies.
        views: (V * B) what to do, in the order of ``Batch.images``.
        labels, ids, step, global_size, bad, seconds: as in ``Batch``.
    """

    pixels: Tensor | None
    sizes: Tensor | None
    rows: list[int]
    views: list[View]
    labels: Tensor
    ids: Tensor
    step: int
    global_size: int
    bad: tuple[tuple[int, str], ...]
    seconds: dict[str, float]


class Stopwatch:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the time inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start


def stack(pictures: Sequence[Picture], *, shared: bool = True) -> tuple[Tensor, Tensor]:
    """Pictures of any sizes as one (N, H, W, C) tensor, and their (N, 2) sizes.

    Args:
        pictures: (H, W, C) each, of one type.
        shared: a loader process puts them where the main process will see them.
    """
    sizes = torch.tensor([picture.shape[:2] for picture in pictures], dtype=torch.int32).reshape(-1, 2)
    height, width = sizes.amax(0).tolist() if len(pictures) else (1, 1)
    shape = (len(pictures), height, width, pictures[0].shape[2] if len(pictures) else 3)
    kind = torch.from_numpy(np.empty(0, pictures[0].dtype)).dtype if len(pictures) else torch.uint8
    pixels = _shared(shape, kind) if shared else torch.empty(shape, dtype=kind)
    rows = pixels.numpy()
    for row, picture in zip(rows, pictures, strict=True):
        row[: picture.shape[0], : picture.shape[1]] = picture
    return pixels, sizes


def draw_views(config: Config, epoch: int, ids: Sequence[int], visits: Sequence[int], num_bands: int = 0) -> list[View]:
    """The numbers of all views of some samples, in the order of ``Batch.images``.

    A function of (seed, epoch, sample, view). A sample's second visit in an epoch draws as views V to 2 V - 1.

    Args:
        config: ``augment``, ``data.num_views`` (V) and ``train.seed``.
        epoch: from 0.
        ids: of B samples.
        visits: of B, how often the epoch has used the sample before.
        num_bands: of named bands; 0 = plain RGB.
    """
    num, seed = config.data.num_views, config.train.seed
    return [
        draw(config.augment, seed=seed, epoch=epoch, sample=sample, view=visit * num + view, num_bands=num_bands)
        for view in range(num)
        for sample, visit in zip(ids, visits, strict=True)
    ]


def try_each(
    config: Config, ids: Ids, read: Callable[[int], Picture]
) -> tuple[list[Picture], list[int], tuple[tuple[int, str], ...]]:
    """Read samples, and tell good ones from bad ones.

    Args:
        config: ``data.on_error`` says what a bad sample does.
        ids: (B,) samples.
        read: id -> picture; raises ``DataError`` for a bad one.

    Returns:
        Pictures of the good samples, their places among ``ids``, and (id, what is wrong) of the bad ones.

    Raises:
        DataError: a bad sample, and ``data.on_error=stop``.
    """
    pictures, good, bad = [], [], []
    for place, sample in enumerate(ids.tolist()):
        try:
            pictures.append(read(sample))
        except DataError as error:
            if config.data.on_error == "stop":
                raise
            bad.append((sample, str(error)))
        else:
            good.append(place)
    return pictures, good, tuple(bad)


class Where(NamedTuple):
    """A global step: its epoch, its number there, and its samples over all ranks."""

    epoch: int
    step: int
    global_size: int


class Placed(NamedTuple):
    """Pictures to augment: ``Pictures.pixels``, ``sizes`` and ``rows``."""

    pixels: Tensor | None
    sizes: Tensor | None
    rows: list[int]


def with_views(
    config: Config,
    dataset: Dataset,
    where: Where,
    ids: Ids,
    visits: Ids,
    placed: Placed,
    bad: tuple[tuple[int, str], ...],
    watch: Stopwatch,
    num_bands: int = 0,
) -> Pictures:
    """Good samples with the numbers of their views.

    Args:
        config: the run's settings.
        dataset: for labels.
        where: the global step.
        ids: (B,) samples.
        visits: (B,) see ``draw_views``.
        placed: their pictures.
        bad: see ``Batch``.
        watch: what it took so far.
        num_bands: see ``draw_views``.
    """
    with watch.on("augment"):
        views = draw_views(config, where.epoch, ids.tolist(), visits.tolist(), num_bands)
    return Pictures(
        pixels=placed.pixels,
        sizes=placed.sizes,
        rows=placed.rows,
        views=views,
        labels=torch.from_numpy(dataset.label_rows(ids)),
        ids=torch.from_numpy(ids),
        step=where.step,
        global_size=where.global_size,
        bad=bad,
        seconds=watch.seconds,
    )


def merge(parts: Sequence[Batch], num_views: int) -> Batch:
    """Parts of a rank's part of a global step as one, in order; a single one is not copied."""
    if len(parts) == 1:
        return parts[0]
    images = torch.cat([part.images.view(num_views, len(part.ids), *part.images.shape[1:]) for part in parts], dim=1)
    return Batch(
        images=images.flatten(0, 1),
        labels=torch.cat([part.labels for part in parts]),
        ids=torch.cat([part.ids for part in parts]),
        step=parts[0].step,
        global_size=parts[0].global_size,
        bad=tuple(found for part in parts for found in part.bad),
        seconds={key: sum(part.seconds.get(key, 0.0) for part in parts) for key in parts[0].seconds},
    )


def augmented(
    batch: Pictures, image_size: int, scale: PixelScale, pixels: Tensor | None = None, sizes: Tensor | None = None
) -> Batch:
    """Apply what was drawn, where the pixels are.

    Args:
        batch: its pixels, if it has any, are used.
        image_size: S.
        scale: what the encoder expects.
        pixels: (N, H, W, C) to use otherwise.
        sizes: (N, 2) of ``pixels``, on the CPU.
    """
    pixels = batch.pixels if pixels is None else pixels
    sizes = batch.sizes if sizes is None else sizes
    assert pixels is not None and sizes is not None, "pixels come with the batch or beside it"
    watch = Stopwatch()
    with watch.on("augment") if pixels.device.type == "cpu" else nullcontext():  # a GPU has only been told to
        shape = (len(batch.views), scale.num_bands or 3, image_size, image_size)
        out = _shared(shape, torch.float32) if pixels.device.type == "cpu" else None
        num_views = len(batch.views) // max(len(batch.rows), 1)
        apply = apply_band_batch if scale.bands is not None else apply_batch
        images = apply(
            pixels.permute(0, 3, 1, 2), sizes, batch.views, image_size, scale, rows=batch.rows * num_views, out=out
        )
    return Batch(
        images=images,
        labels=batch.labels,
        ids=batch.ids,
        step=batch.step,
        global_size=batch.global_size,
        bad=batch.bad,
        seconds={**batch.seconds, **watch.seconds},
    )


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Empty memory. A loader process takes it where the main process will see it, as torch's own collation does: the
    batch is then sent without being copied.
    """
    if get_worker_info() is None or 0 in shape:
        return torch.empty(shape, dtype=dtype)
    size = dtype.itemsize * int(np.prod(shape))
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)
