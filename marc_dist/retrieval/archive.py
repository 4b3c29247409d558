"""Anybody's pictures against an archive: vectors kept in an index folder, the nearest images for each query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from marc_dist import comm
from marc_dist.augment.views import eval_transform
from marc_dist.config import Config, DataError
from marc_dist.data.bands.pick import bands_of, pick_for
from marc_dist.data.bands.query import read_band_query
from marc_dist.data.columns import CHUNK, distinct
from marc_dist.data.dataset import Dataset
from marc_dist.data.decode import Query, read_any
from marc_dist.data.plan import rank_part
from marc_dist.data.reader import IndexedReader
from marc_dist.encoder.band_scale import refuse_other_bands
from marc_dist.encoder.device import resolve_device
from marc_dist.encoder.export import load_encoder, pixel_scale
from marc_dist.geography.places import Places, read_places
from marc_dist.retrieval.exact import Float32, Int, check_finite, exact_unit
from marc_dist.retrieval.index.kept import kept_part
from marc_dist.retrieval.index.parts import build, check_spec
from marc_dist.retrieval.index.spec import IndexSpec, parse_spec
from marc_dist.retrieval.index_folder import check_index_dir, read_store
from marc_dist.retrieval.label_query import LabelQuery, parse_labels
from marc_dist.retrieval.place_filter import EVERYWHERE, PlaceFilter
from marc_dist.retrieval.search import Part, learn, top_k
from marc_dist.retrieval.vectors.embed import Embedder
from marc_dist.retrieval.vectors.store import SAME, Store

ANY = parse_labels((), ())
SAME_SCORE = 0.9999
"""Cosine below which an answer cannot be the query picture: encoding it again may round otherwise."""
SAME_ANSWERS = 5
"""The best answers that are compared with the query picture, byte by byte."""


@dataclass(frozen=True)
class Hit:
    """One answer.

    Attributes:
        id: sample of the archive.
        score: cosine (of codes: 1 - 2 x distance / bits).
        same: whether it is the query picture itself: the same bytes, or the same pixels.
    """

    id: int
    score: float
    same: bool = False


@dataclass(frozen=True)
class Answers:
    """A query picture and its nearest images, best first."""

    path: Path
    picture: Query
    hits: tuple[Hit, ...]


class Archive:
    """An encoder, an archive, and where the archive's vectors lie or shall lie; nothing is embedded yet.

    Args:
        encoder_dir: holds ``encoder.safetensors``.
        dataset: the archive.
        index_dir: folder of vectors and index; None = in the encoder's folder.
        splits: parts of the archive; none = all of it.
        config: ``eval.features``, ``eval.index``, ``eval.batch``, ``data``, ``train.device``.
        say: takes one line for people.

    Raises:
        ConfigError: an index that FAISS does not know; a folder of somebody else's.
        DataError: an index folder that another encoder or another archive made.
    """

    def __init__(
        self,
        encoder_dir: Path,
        dataset: Dataset,
        index_dir: Path | None,
        splits: Sequence[str],
        config: Config,
        say: Callable[[str], None],
    ) -> None:
        encoder, info = load_encoder(encoder_dir)
        scale = pixel_scale(info)
        refuse_other_bands(config.data.bands, scale, str(encoder_dir))
        self._pick = pick_for(dataset, scale.bands)
        self.spec = parse_spec(config.eval.index)
        device = resolve_device(config.train.device)
        self._device = device if device.type == "cuda" else None
        keep = False if config.model.head_only else None
        self.embedder = Embedder(
            encoder,
            config,
            image_size=info["image_size"],
            scale=scale,
            device=device,
            what="archive",
            say=say,
            keep=keep,
        )
        check_spec(self.spec, self.embedder.width)
        if index_dir is not None:
            check_index_dir(index_dir)
        self.dataset = dataset
        self.splits = sorted(set(splits)) or distinct(self.dataset.split)
        self.ids = np.concatenate([self.dataset.rows(split) for split in self.splits])  # as the vectors lie in files
        name = f"trained-{config.eval.features}-{self.dataset.fingerprint[:12]}"
        self.folder, self._own = index_dir or encoder_dir / "embeddings" / name, index_dir is None
        if index_dir is not None:
            self._refuse_foreign(index_dir)
        self._say = say
        self._told: set[str] = set()
        self._store: Store | None = None
        self._learnt: bytes | None = None
        self._part: Part | None = None

    def _refuse_foreign(self, folder: Path) -> None:
        """Whether an index folder that is there was made by this encoder, of this archive, in this way."""
        if not (folder / "store.json").exists():
            return
        now, kept = self.embedder.made(self.dataset), read_store(folder)
        grown = kept["about"].get("archive_dir") == str(self.dataset.root.resolve())
        what = {
            "encoder": "encoder",
            "dataset": "archive",
            "features": "eval.features",
            "image_size": "image size",
            "pixels": "pixels",
        }
        for part in kept["parts"].values():
            for key in SAME:
                if key == "dataset" and grown:  # pictures were added, changed or removed in it
                    continue
                if part["made"].get(key) != now[key]:
                    was, mine = str(part["made"].get(key))[:12], str(now[key])[:12]
                    raise DataError(
                        f"{folder}: was made with another {what.get(key, key)}, {was}, this one is {mine}; "
                        "search with the one that made it, or make another index with --index-dir"
                    )

    def _vectors(self) -> Store:
        """The archive's vectors, made when they are not there. A collective."""
        if self._store is None:
            about = {"title": self.dataset.title, "archive_dir": str(self.dataset.root.resolve())}
            earlier = self.folder.parent.glob(f"trained-{self.embedder.features}-*") if self._own else ()
            also = sorted(path for path in earlier if path != self.folder)
            self._store = self.embedder.store(self.folder, self.dataset, self.splits, about, exactly=False, also=also)
        return self._store

    def _index(self, ids: Int, *, must: bool = False) -> Part:
        """This rank's index over ``ids``; that of the whole archive is kept, in the folder if it has to be learnt.

        Codes are learnt from the whole archive, whatever part of it is searched. ``must``: see ``kept_part``.
        """
        whole, store = len(ids) == len(self.ids), self._vectors()
        if whole and self._part is not None:
            return self._part
        spec, mine = self.spec, rank_part(ids, comm.rank(), comm.world())
        if not whole and not spec.exact:
            self._say(f"index: {len(ids)} of {len(self.ids)} images pass, searched one by one (exact)")
            spec = IndexSpec("flat", "flat")
        gpu = torch.cuda.current_device() if self._device else None
        half = self.embedder.config.eval.float16
        if spec.kind == "factory":
            part: Part = kept_part(spec, store, ids, self._say, must=must)
        else:
            if self._learnt is None:
                self._learnt = learn(spec, store.rows, self.ids, self._say)
            learnt = b"" if spec.kind == "flat" else self._learnt
            part = build(spec, learnt, store.rows(mine), mine, gpu, float16=half, say=self._say)
        if whole:
            self._part = part
        return part

    @cached_property
    def places(self) -> Places:
        """Where and when the images of the data set were taken, all its splits.

        Raises:
            DataError: the index cannot be read.
        """
        return read_places(self.dataset.root / "index.parquet")

    def carriers(self, labels: LabelQuery, where: PlaceFilter = EVERYWHERE) -> Int:
        """Ids of the archive's images that pass; at least one.

        Args:
            labels: what an image has to carry.
            where: where and when it has to have been taken.

        Raises:
            DataError: none passes.
        """
        ids = self.ids
        if labels.passes is not None:
            starts = range(0, len(ids), CHUNK)
            some = [labels.passes(self.dataset.label_rows(ids[start : start + CHUNK])) for start in starts]
            ids = ids[np.concatenate(some)]
            if not len(ids):
                raise DataError(f"{self.dataset.root}: no image has the labels {labels.text}")
        if where:
            ids, told = where.passing(self.dataset, self.places, ids)
            for line in told:
                if line not in self._told:
                    self._say(f"archive: {line}")
            self._told.update(told)
            if not len(ids):
                also = f" with the labels {labels.text}" if labels.text else ""
                raise DataError(f"{self.dataset.root}: no image{also} passes {where.text}")
        return ids

    def build(self) -> None:
        """Make vectors and index now, so that searches find them ready. A collective."""
        self._index(self.ids, must=True)

    def search(
        self,
        paths: Sequence[Path],
        top: int,
        labels: LabelQuery = ANY,
        where: PlaceFilter = EVERYWHERE,
        own: Sequence[int] | None = None,
    ) -> list[Answers]:
        """The nearest images of the archive for each picture. A collective.

        Args:
            paths: pictures of any size and kind.
            top: answers a query; fewer where the archive, or its part that passes, holds fewer.
            labels: only images whose labels pass.
            where: only images whose place and date pass.
            own: an id for each picture that is not to be answered with, being the picture itself; -1 = none.

        Raises:
            DataError: a file that is not a picture; see ``carriers``.
        """
        ids = self.carriers(labels, where)
        pictures = [self._query(path) for path in paths]  # before the archive, which may take long
        vectors = self._encoded(pictures)
        check_finite(vectors, [str(path) for path in paths], "query encoder")
        units = comm.broadcast_object(exact_unit(vectors))  # ranks of other machines may round otherwise
        left_out = np.array([-1] * len(units) if own is None else own, dtype=np.int64)
        scores, found = top_k(self._index(ids), units, left_out, min(top, len(ids)), device=self._device)
        reader = IndexedReader(self.dataset, pick=self._pick)
        answers = []
        for path, query, *row in zip(paths, pictures, found, scores, strict=True):
            hits = [Hit(int(i), float(s)) for i, s in zip(*row, strict=True) if i >= 0]
            same = _same_picture(path, query, hits, reader)
            answers.append(Answers(path, query, tuple(replace(hit, same=hit is same) for hit in hits)))
        reader.close()
        return answers

    def _query(self, path: Path) -> Query:
        bands = self.embedder.scale.bands
        if bands is None:
            return read_any(path, self.embedder.image_size)
        names, _, nodata = bands_of(self.dataset)
        return read_band_query(path, bands, names, nodata, self.dataset.meta["bands"].get("statistics"))

    def _encoded(self, pictures: Sequence[Query]) -> Float32:
        size, scale = self.embedder.image_size, self.embedder.scale
        images = [one.image if one.values is None else one.values for one in pictures]
        batch = self.embedder.config.eval.batch
        parts = [
            self.embedder.vectors(
                torch.stack([eval_transform(image, size, scale) for image in images[at : at + batch]])
            )
            for at in range(0, len(images), batch)
        ]
        return np.concatenate(parts)


def _same_picture(path: Path, query: Query, hits: Sequence[Hit], reader: IndexedReader) -> Hit | None:
    """The first of the best answers that is the query picture itself: its bytes, or its pixels."""
    data, size, pixels = path.read_bytes(), query.image.size, query.image.tobytes()
    values = query.values
    for hit in hits[:SAME_ANSWERS]:
        if hit.score < SAME_SCORE:
            return None
        if reader.read(hit.id) == data:
            return hit
        if values is not None:
            if np.array_equal(reader.picture(hit.id), values):
                return hit
            continue
        image = reader.image(hit.id)
        if image.size == size and image.tobytes() == pixels:
            return hit
    return None
