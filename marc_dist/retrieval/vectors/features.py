"""Backbone features of whole splits, kept: what a frozen backbone says of each picture is computed once, for all runs.

    FEATURES/NAME/store.json   NAME is a hash of all that the features depend on: those of other backbones lie elsewhere
    train-HASH.npy             (n, F) float32, of the pictures as they are
    train.AUGMENT.3-HASH.npy   of view 3 of each picture; AUGMENT is a hash of the section ``augment``

The store is that of ``store.py``; rows are features as the backbone gives them, not of length 1. Runs of one search
come here at the same time, so one of them computes and the others wait.
"""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from marc_dist import comm
from marc_dist.augment.views import EVAL_TRANSFORM, PixelScale
from marc_dist.config import Config, LaunchError, user_path
from marc_dist.data.dataset import Dataset
from marc_dist.data.loader import FixedView, iter_eval
from marc_dist.data.plan import rank_part
from marc_dist.encoder.model import Encoder
from marc_dist.files import try_lock
from marc_dist.retrieval.exact import Float32, refuse_bad_features
from marc_dist.retrieval.vectors.known import runs_of
from marc_dist.retrieval.vectors.store import Made, Store, backbone_fingerprint, missing_splits
from marc_dist.retrieval.vectors.writer import RowWriter, write_split

Int = NDArray[np.int64]
POLL_S = 0.2
TELL_S = 30.0
FIELDS = ("crop_min", "crop_max", "crop_ratio", "hflip", "vflip", "quarter_turns", "jitter", "brightness", "contrast",
          "saturation", "hue", "gray", "blur", "cutout", "cutout_size")  # fmt: skip
"""Of ``augment``, what changes pixels; ``feature_dropout`` works on features."""


def features_root(config: Config) -> Path:
    """The folder in which runs keep the features of frozen backbones: ``data.features_dir``, or beside the run."""
    given = config.data.features_dir
    return user_path(given) if given else Path(config.train.run_dir).absolute().parent / "features"


def rank_ids(ids: Int, batch: int) -> Int:
    """This rank's contiguous part of ``ids``, in whole batches of the one-process run.

    Every forward pass then has the same rows whatever the number of ranks, and so the same features.
    """
    starts = rank_part(np.arange(0, len(ids), batch, dtype=np.int64), comm.rank(), comm.world())
    return ids[starts[0] : starts[-1] + batch] if len(starts) else ids[:0]


def whole_batches(there: NDArray[np.bool_], batch: int) -> NDArray[np.bool_]:
    """(n,) which rows lie in batches of which all rows are there: the others are made in the same batches as ever.

    Args:
        there: (n,) which rows are there.
        batch: rows a batch; the last one may be shorter.
    """
    starts = np.arange(0, len(there), batch)
    whole = np.logical_and.reduceat(there, starts) if len(there) else there
    return np.repeat(whole, np.diff([*starts, len(there)]))


def put_finite(put: RowWriter, ids: Int, of: Int, rows: Float32, dataset: Dataset) -> list[str]:
    """Hand over the rows that are finite.

    Args:
        put: takes them.
        ids: (n,) of the whole split, ascending.
        of: (B,) the ids of the rows, ascending.
        rows: (B, d) vectors.
        dataset: where the pictures are.

    Returns:
        The places of the pictures whose rows are not finite.
    """
    right = np.isfinite(rows).all(axis=1)
    places = np.searchsorted(ids, of[right])
    kept = rows[right]
    for run in runs_of(places):
        put(int(places[run][0]), kept[run])
    return [dataset.place(sample) for sample in of[~right].tolist()]


class BackboneFeatures:
    """The kept features of one backbone, of the pictures of one data set.

    Args:
        encoder: on its device; only its backbone runs, in evaluation mode, float32 or float64, without autocast.
        config: ``eval.batch``, ``data.num_workers``, ``data.verify_crc``, ``augment``; ``features_root`` of it.
        dataset: an opened shard folder.
        image_size: side of the square that the backbone takes, pixels.
        scale: what the backbone expects of them.
        say: takes one line for people; of rank 0 only.
        tick: called now and then, so that a watchdog sees progress.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: Config,
        dataset: Dataset,
        *,
        image_size: int,
        scale: PixelScale,
        say: Callable[[str], None],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.encoder, self.config, self.dataset, self.image_size = encoder, config, dataset, image_size
        self.scale, self.say, self.tick = scale, say, tick
        parameter = next(encoder.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.width = encoder.num_features
        self.made: Made = {
            "encoder": backbone_fingerprint(encoder),
            "dataset": dataset.fingerprint,
            "features": "features of the backbone",
            "image_size": image_size,
            "pixels": scale.plain(),
            "batch": config.eval.batch,  # other shapes round otherwise
            "device": self.device.type,
            "torch": torch.__version__,
            "transform": EVAL_TRANSFORM,
        }
        # parts that differ in their rounding alone lie apart, too: else two runs would remove each other's for ever
        name = hashlib.sha256(json.dumps(self.made, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = features_root(config) / name

    def clean(self, split: str, *, only_kept: bool = False) -> Store | None:
        """Features of a split's pictures as they are, computed now if they are not kept yet. A collective.

        Args:
            split: name.
            only_kept: None rather than computing anything.

        Raises:
            DataError: a picture that cannot be read, or features that are not finite.
            LaunchError: the folder cannot be written.
        """
        return self._part(split, split, None, only_kept=only_kept)

    def views(self, split: str, num: int) -> list[Store]:
        """Features of the first ``num`` augmented views of a split's pictures. A collective; see ``clean``."""
        fields = {name: getattr(self.config.augment, name) for name in FIELDS}
        augment = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
        stores = []
        for number in range(num):
            view = FixedView(self.config.augment, number)
            store = self._part(f"{split}.{augment}.{number}", split, view, only_kept=False)
            assert store is not None
            stores.append(store)
        return stores

    def _part(self, name: str, split: str, view: FixedView | None, *, only_kept: bool) -> Store | None:
        made = self.made if view is None else {**self.made, "view": name}
        if self._missing(name, made):
            if only_kept:
                return None
            with self._alone():
                if self._missing(name, made):
                    self._compute(name, split, view, made)
        return Store(self.folder, self.dataset, [name], made, ids_of={name: self.dataset.rows(split)})

    def _missing(self, name: str, made: Made) -> bool:
        missing = missing_splits(self.folder, made, [name]) if comm.rank() == 0 else []
        return bool(comm.broadcast_object(missing))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One run at a time computes features of this folder; a lock ends with its process, however that ends.

        Ranks meet in every round, so that the ones that wait are seen to be alive.
        """
        lock: FileLock | None = None

        def held() -> bool | LaunchError:
            nonlocal lock
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = try_lock(self.folder / ".lock")
            except OSError as error:
                no_locks = error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
                what = "this file system has no locks" if no_locks else "cannot be written"
                return LaunchError(f"{self.folder}: {what} ({error.strerror}); set data.features_dir to another folder")
            return lock is not None

        try:
            told = False
            while (got := comm.broadcast_object(held() if comm.rank() == 0 else None)) is not True:
                if isinstance(got, LaunchError):
                    raise got
                if not told:
                    self.say(f"features: waiting for another run that computes them in {self.folder}")
                told = True
                self.tick()
                time.sleep(POLL_S)
            yield
        finally:
            if lock is not None:
                lock.release()

    def _compute(self, name: str, split: str, view: FixedView | None, made: Made) -> None:
        ids = self.dataset.rows(split)
        started, bad = time.monotonic(), list[str]()
        about = {"title": self.dataset.title, "split": split, "augment": self.config.augment.model_dump()}
        write_split(
            self.folder,
            name,
            (len(ids), self.width),
            made,
            about,
            partial(self._fill, ids, view, bad),
            partial(refuse_bad_features, bad, "frozen backbone"),
        )
        seconds = max(time.monotonic() - started, 1e-9)
        what = "as they are" if view is None else f"in augmented view {view.number + 1}"
        rate = len(ids) / seconds
        self.say(f"features of the frozen backbone: {len(ids)} pictures {what}, {seconds:.1f} s, {rate:.0f} images/s")

    def _fill(self, ids: Int, view: FixedView | None, bad: list[str], put: RowWriter) -> None:
        data, batch = self.config.data, self.config.eval.batch
        mine = rank_ids(ids, batch)
        left = mine[~whole_batches(put.there(len(ids))[np.searchsorted(ids, mine)], batch)]
        told, num = time.monotonic(), len(mine) - len(left)
        for images, of in iter_eval(
            self.dataset, left, self.image_size, self.scale, batch, data.num_workers, data.verify_crc, view
        ):
            rows = self.compute(images)
            bad += put_finite(put, ids, of.numpy(), rows, self.dataset)
            num += len(rows)
            self.tick()
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                self.say(f"features of the frozen backbone: {num} of {len(mine)} pictures of this rank done")

    def compute(self, images: torch.Tensor) -> Float32:
        """(B, C, S, S) normalised pixels -> (B, F) features of the backbone."""
        modes = [(module, module.training) for module in self.encoder.backbone.modules()]
        self.encoder.backbone.eval()
        try:
            with torch.inference_mode():
                found: Any = self.encoder.features(images.to(self.device, self.dtype))
                return np.asarray(found.float().cpu().numpy())
        finally:
            for module, mode in modes:
                module.training = mode
