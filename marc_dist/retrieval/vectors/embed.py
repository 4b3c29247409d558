"""Images -> unit vectors in a store, on all ranks at once; vectors that are there already are not made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from marc_dist import comm
from marc_dist.augment.views import EVAL_TRANSFORM, PixelScale
from marc_dist.config import Config, LaunchError
from marc_dist.data.columns import distinct
from marc_dist.data.dataset import Dataset
from marc_dist.data.loader import iter_eval
from marc_dist.encoder.model import Encoder
from marc_dist.retrieval.exact import Float32, exact_unit, refuse_bad_features
from marc_dist.retrieval.vectors.features import BackboneFeatures, put_finite, rank_ids, whole_batches
from marc_dist.retrieval.vectors.known import Known, contents
from marc_dist.retrieval.vectors.store import Made, Store, encoder_fingerprint, missing_splits
from marc_dist.retrieval.vectors.writer import RowWriter, forget_splits, write_split

Int = NDArray[np.int64]


class Embedder:
    """An encoder that is ready to embed: on its device, in evaluation mode, with what its vectors depend on.

    Args:
        encoder: float32 or float64, no autocast.
        config: ``eval.features``, ``eval.batch``, ``data.num_workers``, ``data.verify_crc``.
        image_size: side of the square that the encoder takes, pixels.
        scale: what the encoder expects of them.
        device: where it runs.
        what: the encoder's name in messages.
        say: takes one line for people.
        features: which vector; None = ``eval.features``.
        keep: the backbone's features are kept for other runs, and found there (``features.py``): of a frozen backbone.
            False only uses those that lie there; None does without.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: Config,
        *,
        image_size: int,
        scale: PixelScale,
        device: torch.device,
        what: str,
        say: Callable[[str], None],
        features: str | None = None,
        keep: bool | None = None,
    ) -> None:
        self.config, self.image_size, self.device, self.what, self.say = config, image_size, device, what, say
        self.scale = scale
        self.features, self.keep = features or config.eval.features, keep
        self.fingerprint = encoder_fingerprint(encoder)
        self.encoder = encoder.eval().to(device)
        self.dtype = next(encoder.parameters()).dtype
        self.width = encoder.searched_width(self.features)

    def made(self, dataset: Dataset) -> Made:
        """What the vectors of this data set depend on."""
        return {
            "encoder": self.fingerprint,
            "dataset": dataset.fingerprint,
            "features": self.features,
            "image_size": self.image_size,
            "pixels": self.scale.plain(),
            "batch": self.config.eval.batch,  # other shapes round otherwise
            "device": self.device.type,
            "torch": torch.__version__,
            "transform": EVAL_TRANSFORM,
        }

    def vectors(self, images: torch.Tensor) -> NDArray[np.float32]:
        """(B, C, S, S) normalised pixels -> (B, d) features, as the encoder gives them."""
        with torch.inference_mode():
            return self._searched(self.encoder.features(images.to(self.device, self.dtype)))

    def _searched(self, features: torch.Tensor) -> NDArray[np.float32]:
        return np.asarray(self.encoder.searched(features, self.features).float().cpu().numpy())

    def store(
        self,
        folder: Path,
        dataset: Dataset,
        splits: Sequence[str],
        about: Mapping[str, object],
        *,
        exactly: bool = True,
        also: Sequence[Path] = (),
    ) -> Store:
        """The vectors of these splits, from the folder or made now. A collective.

        What was embedded of an earlier state of the archive is taken over, picture by picture, where rounding does not
        matter: a picture that is embedded in another batch may round otherwise.

        Args:
            folder: of the store, seen by all ranks.
            dataset: where the images are.
            splits: names.
            about: what ``store.json`` says besides.
            exactly: whether vectors of another machine or batch, which may round otherwise, are made again.
            also: folders besides it where vectors of an earlier state of the archive may lie.

        Raises:
            DataError: unreadable image, or features that are not finite; names them.
            LaunchError: the folder cannot be written.
        """
        made = self.made(dataset)
        missing = missing_splits(folder, made, splits, exactly=exactly) if comm.rank() == 0 else []
        wanted = comm.broadcast_object(missing)
        started, num = time.monotonic(), 0
        known = Known((folder, *also) if wanted and not exactly else (), made, self.width)
        for split in wanted:
            ids = dataset.rows(split)
            bad: list[str] = []
            embedded: list[int] = []
            source = self._source(dataset, split)
            write_split(
                folder,
                split,
                (len(ids), self.width),
                made,
                dict(about),
                partial(self._fill, dataset, ids, source, known, bad, embedded),
                partial(refuse_bad_features, bad, f"{self.what} encoder"),
                contents(dataset, ids),
            )
            num += sum(comm.gather_object(sum(embedded)))
        if wanted and comm.rank() == 0:
            forget_splits(folder, made, distinct(dataset.split))
        kept = sum(len(dataset.rows(split)) for split in splits) - num
        seconds = time.monotonic() - started
        if num:
            self.say(f"{self.what} encoder: {num} images in {seconds:.1f} s, {num / max(seconds, 1e-9):.0f} images/s")
        if kept:
            self.say(f"{self.what} encoder: vectors of {kept} images from {folder}")
        return Store(folder, dataset, splits, made, exactly=exactly)

    def _source(self, dataset: Dataset, split: str) -> Store | None:
        """Kept features of the backbone, if there are some to be used. A collective."""
        if self.keep is None:
            return None
        size, scale = self.image_size, self.scale
        kept = BackboneFeatures(self.encoder, self.config, dataset, image_size=size, scale=scale, say=self.say)
        try:
            return kept.clean(split, only_kept=not self.keep)
        except LaunchError as error:  # on all ranks alike; what is read-only can still be evaluated
            self.say(f"features of the frozen backbone are not kept: {error}")
            return None

    def _fill(
        self,
        dataset: Dataset,
        ids: Int,
        source: Store | None,
        known: Known,
        bad: list[str],
        embedded: list[int],
        put: RowWriter,
    ) -> None:
        """Embed what is not there of this rank's part of ``ids``, and write down how many pictures that were.

        Pictures whose vectors are not finite are named in ``bad``.
        """
        batch = self.config.eval.batch
        mine = rank_ids(ids, batch)
        there = put.there(len(ids))[np.searchsorted(ids, mine)]
        left = mine[~(there if len(known) else whole_batches(there, batch))]
        if len(known):
            found, rows = known.find(contents(dataset, left))
            put_finite(put, ids, left[found], rows, dataset)
            left = left[~found]
        for rows, of in self._vectors(dataset, left, source):
            finite = np.isfinite(rows).all(axis=1)
            rows[finite] = exact_unit(rows[finite])
            bad += put_finite(put, ids, of, rows, dataset)
            embedded.append(len(of))

    def _vectors(self, dataset: Dataset, mine: Int, source: Store | None) -> Iterator[tuple[Float32, Int]]:
        """Vectors and ids, in batches of the same rows wherever they come from."""
        data, batch = self.config.data, self.config.eval.batch
        if source is None:
            size, workers, crc = self.image_size, data.num_workers, data.verify_crc
            for images, of in iter_eval(dataset, mine, size, self.scale, batch, workers, crc):
                yield self.vectors(images), of.numpy()
            return
        for start in range(0, len(mine), batch):
            of_batch = mine[start : start + batch]
            features = torch.from_numpy(np.array(source.rows(of_batch))).to(self.device, self.dtype)
            with torch.inference_mode():
                yield self._searched(features), of_batch
