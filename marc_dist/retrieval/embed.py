"""Images -> unit vectors in a store, on all ranks at once; vectors that are there already are not made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from marc_dist import comm
from marc_dist.config import Config
from marc_dist.data.augment import EVAL_TRANSFORM
from marc_dist.data.dataset import Dataset
from marc_dist.data.loader import iter_eval
from marc_dist.data.plan import rank_part
from marc_dist.retrieval.exact import Float32, exact_unit, refuse_not_finite
from marc_dist.retrieval.store import Made, Store, encoder_fingerprint, missing_splits, write_split
from marc_dist.training.model import Encoder

Int = NDArray[np.int64]


def rank_ids(ids: Int, batch: int) -> Int:
    """This rank's contiguous part of ``ids``, in whole batches of the one-process run.

    Every forward pass then has the same rows whatever the number of ranks, and so the same features.
    """
    starts = rank_part(np.arange(0, len(ids), batch, dtype=np.int64), comm.rank(), comm.world())
    return ids[starts[0] : starts[-1] + batch] if len(starts) else ids[:0]


def feature_width(encoder: Encoder, features: str) -> int:
    """Numbers of the vector that ``eval.features`` means."""
    if features == "projection":
        return int([layer.out_features for layer in encoder.head.modules() if isinstance(layer, torch.nn.Linear)][-1])
    return encoder.num_features


class Embedder:
    """An encoder that is ready to embed: on its device, in evaluation mode, with what its vectors depend on.

    Args:
        encoder: float32 or float64, no autocast.
        config: ``eval.features``, ``eval.batch``, ``data.num_workers``, ``data.verify_crc``.
        image_size: side of the square that the encoder takes, pixels.
        device: where it runs.
        what: the encoder's name in messages.
        say: takes one line for people.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: Config,
        *,
        image_size: int,
        device: torch.device,
        what: str,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.image_size, self.device, self.what, self.say = config, image_size, device, what, say
        self.fingerprint = encoder_fingerprint(encoder)
        self.encoder = encoder.eval().to(device)
        self.dtype = next(encoder.parameters()).dtype
        self.width = feature_width(encoder, config.eval.features)

    def made(self, dataset: Dataset) -> Made:
        """What the vectors of this data set depend on."""
        return {
            "encoder": self.fingerprint,
            "dataset": dataset.fingerprint,
            "features": self.config.eval.features,
            "image_size": self.image_size,
            "batch": self.config.eval.batch,  # other shapes round otherwise
            "device": self.device.type,
            "torch": torch.__version__,
            "transform": EVAL_TRANSFORM,
        }

    def vectors(self, images: torch.Tensor) -> NDArray[np.float32]:
        """(B, 3, S, S) normalised pixels -> (B, d) features, as the encoder gives them."""
        with torch.inference_mode():
            both = self.encoder(images.to(self.device, self.dtype))
            return np.asarray(both[self.config.eval.features == "projection"].float().cpu().numpy())

    def store(
        self,
        folder: Path,
        dataset: Dataset,
        splits: Sequence[str],
        about: Mapping[str, object],
        *,
        exactly: bool = True,
    ) -> Store:
        """The vectors of these splits, from the folder or made now. A collective.

        Args:
            folder: of the store, seen by all ranks.
            dataset: where the images are.
            splits: names.
            about: what ``store.json`` says besides.
            exactly: whether vectors of another machine, which may round otherwise, are made again.

        Raises:
            DataError: unreadable image, or features that are not finite; names them.
            LaunchError: the folder cannot be written.
        """
        made = self.made(dataset)
        missing = missing_splits(folder, made, splits, exactly=exactly) if comm.rank() == 0 else []
        wanted = comm.broadcast_object(missing)
        started, num = time.monotonic(), 0
        for split in wanted:
            ids = dataset.rows(split)
            num += len(ids)
            bad: list[str] = []
            write_split(
                folder,
                split,
                (len(ids), self.width),
                made,
                dict(about),
                partial(self._fill, dataset, ids, bad),
                partial(refuse_not_finite, bad, f"{self.what} encoder"),
            )
        kept = sum(len(dataset.rows(split)) for split in splits) - num
        seconds = time.monotonic() - started
        if num:
            self.say(f"{self.what} encoder: {num} images in {seconds:.1f} s, {num / max(seconds, 1e-9):.0f} images/s")
        if kept:
            self.say(f"{self.what} encoder: vectors of {kept} images from {folder}")
        return Store(folder, dataset, splits, made, exactly=exactly)

    def _fill(self, dataset: Dataset, ids: Int, bad: list[str], put: Callable[[int, Float32], None]) -> None:
        """Embed this rank's part of ``ids``; pictures whose vectors are not finite are named in ``bad``."""
        data, batch = self.config.data, self.config.eval.batch
        mine = rank_ids(ids, batch)
        place = int(np.searchsorted(ids, mine[0])) if len(mine) else 0
        for images, of in iter_eval(dataset, mine, self.image_size, batch, data.num_workers, data.verify_crc):
            rows = self.vectors(images)
            wrong = ~np.isfinite(rows).all(axis=1)
            bad += [dataset.place(sample) for sample in of[torch.from_numpy(wrong)].tolist()]
            rows[wrong] = 0.0
            put(place, exact_unit(rows))
            place += len(rows)
