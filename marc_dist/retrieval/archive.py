"""Anybody's pictures against an archive: vectors kept in an index folder, the nearest images for each query."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from marc_dist import comm
from marc_dist.config import Config, ConfigError, DataError
from marc_dist.config.suggest import suggestion
from marc_dist.data.augment import eval_transform
from marc_dist.data.dataset import open_dataset
from marc_dist.data.decode import decode_any
from marc_dist.data.plan import rank_part
from marc_dist.retrieval.embed import Embedder
from marc_dist.retrieval.exact import Float32, Int, check_finite, exact_unit
from marc_dist.retrieval.index import FactoryPart, check_spec
from marc_dist.retrieval.search import Part, make_part, top_k
from marc_dist.retrieval.spec import IndexSpec, parse_spec
from marc_dist.retrieval.store import SAME, Store, read_store
from marc_dist.training.device import resolve_device
from marc_dist.training.export import load_encoder
from marc_dist.training.runfolder import write_atomic


@dataclass(frozen=True)
class Hit:
    """One answer: its sample id in the archive and its cosine (of codes: 1 - 2 x distance / bits)."""

    id: int
    score: float


@dataclass(frozen=True)
class Answers:
    """A query picture, what was done to it (or nothing), and its nearest images, best first."""

    path: Path
    image: Image.Image
    remark: str
    hits: tuple[Hit, ...]


class Archive:
    """An encoder and the vectors of an archive. Making one is a collective.

    Args:
        encoder_dir: holds ``encoder.safetensors``.
        archive_dir: shard folder; None = the one that the index folder was made of.
        index_dir: where vectors and index lie, or shall lie; None = in the encoder's folder.
        splits: parts of the archive; none = all of it.
        config: ``eval.features``, ``eval.index``, ``eval.batch``, ``data``, ``train.device``.
        say: takes one line for people.

    Raises:
        ConfigError: an index that FAISS does not know.
        DataError: no such archive; an index folder that another encoder or another archive made; see ``embed``.
    """

    def __init__(
        self,
        encoder_dir: Path,
        archive_dir: str | None,
        index_dir: Path | None,
        splits: Sequence[str],
        config: Config,
        say: Callable[[str], None],
    ) -> None:
        encoder, info = load_encoder(encoder_dir)
        self.spec = parse_spec(config.eval.index)
        device = resolve_device(config.train.device)
        self._device = device if device.type == "cuda" else None
        self.embedder = Embedder(encoder, config, image_size=info["image_size"], device=device, what="archive", say=say)
        check_spec(self.spec, self.embedder.width)
        root = archive_dir or self._kept_root(index_dir)
        self.dataset = open_dataset(root)
        self.splits = sorted(splits) or sorted(set(self.dataset.split.tolist()))
        self.ids = np.sort(np.concatenate([self.dataset.rows(split) for split in self.splits]))
        name = f"trained-{config.eval.features}-{self.dataset.fingerprint[:12]}"
        self.folder = index_dir or encoder_dir / "embeddings" / name
        if index_dir is not None:
            self._refuse_foreign(index_dir)
        about = {"title": self.dataset.title, "archive_dir": str(self.dataset.root.resolve())}
        self.store: Store = self.embedder.store(self.folder, self.dataset, self.splits, about, exactly=False)
        self._say = say
        self._part: tuple[Int, Part] | None = None

    @staticmethod
    def _kept_root(index_dir: Path | None) -> str:
        if index_dir is None:
            raise ConfigError("--archive: expected the shard folder to search, got none")
        return str(read_store(index_dir)["about"].get("archive_dir", ""))

    def _refuse_foreign(self, folder: Path) -> None:
        """Whether an index folder that is there was made by this encoder, of this archive, in this way."""
        if not (folder / "store.json").exists():
            return
        now = self.embedder.made(self.dataset)
        what = {"encoder": "encoder", "dataset": "archive", "features": "eval.features", "image_size": "image size"}
        for part in read_store(folder)["parts"].values():
            for key in SAME:
                if part["made"].get(key) != now[key]:
                    was, mine = str(part["made"].get(key))[:12], str(now[key])[:12]
                    raise DataError(
                        f"{folder}: was made with another {what[key]}, {was}, this one is {mine}; "
                        "search with the one that made it, or make another index with --index-dir"
                    )

    def _index(self, ids: Int) -> Part:
        """This rank's index over ``ids``; that of the whole archive is kept, in the folder if it has to be learnt."""
        whole = len(ids) == len(self.ids)
        if whole and self._part is not None:
            return self._part[1]
        spec = self.spec
        if not whole and not spec.exact:
            self._say(f"index: {len(ids)} filtered images, searched one by one (exact)")
            spec = IndexSpec("flat", "flat")
        mine = rank_part(ids, comm.rank(), comm.world())
        gpu = torch.cuda.current_device() if self._device else None
        kept = self._read(spec) if whole else None
        if kept is not None:
            part: Part = FactoryPart(spec, kept, self.store.rows(mine), mine, filled=True)
            self._say(f"index: {spec.text}, {part.where}, from {self.folder}")
        else:
            half = self.embedder.config.eval.float16
            part = make_part(spec, self.store.rows, ids, mine, gpu, float16=half, say=self._say)
            if whole and isinstance(part, FactoryPart) and comm.world() == 1:
                self._write(spec, part.filled())
        if whole:
            self._part = mine, part
        return part

    def _depends(self, spec: IndexSpec) -> dict[str, Any]:
        """What a kept index depends on: the bytes of the vectors, and their order."""
        parts = read_store(self.folder)["parts"]
        return {"index": spec.factory, "vectors": {split: parts[split]["crc32"] for split in self.splits}}

    def _read(self, spec: IndexSpec) -> bytes | None:
        """A learnt index of the folder, if it is of these vectors and undamaged."""
        if spec.kind != "factory" or comm.world() > 1:
            return None
        try:
            told = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
            data = (self.folder / "index.faiss").read_bytes()
        except (OSError, ValueError):
            return None
        return data if told == {**self._depends(spec), "crc32": zlib.crc32(data)} else None

    def _write(self, spec: IndexSpec, data: bytes) -> None:
        write_atomic(self.folder / "index.faiss", data)
        told = {**self._depends(spec), "crc32": zlib.crc32(data)}
        write_atomic(self.folder / "index.json", (json.dumps(told, indent=2) + "\n").encode())

    def carriers(self, labels: Sequence[str]) -> Int:
        """Ids of the archive's images that carry all of ``labels``; all of them without any.

        Raises:
            ConfigError: no such label.
            DataError: no image carries them all.
        """
        ids = self.ids
        for label in labels:
            if label not in self.dataset.classes:
                raise ConfigError(
                    f"--label {label}: the archive knows no such label{suggestion(label, self.dataset.classes)}; "
                    f"it has {', '.join(self.dataset.classes)}"
                )
            ids = ids[self.dataset.labels[ids, self.dataset.classes.index(label)]]
        if not len(ids):
            raise DataError(f"{self.dataset.root}: no image carries all of {', '.join(labels)}")
        return ids

    def build(self) -> None:
        """Make the index now, so that searches find it ready."""
        self._index(self.ids)

    def search(self, paths: Sequence[Path], top: int, labels: Sequence[str] = ()) -> list[Answers]:
        """The nearest images of the archive for each picture. A collective.

        Args:
            paths: pictures of any size and kind.
            top: answers a query; fewer where the archive, or its part with the labels, holds fewer.
            labels: only images that carry all of them.

        Raises:
            DataError: a file that is not a picture; see ``carriers``.
        """
        ids = self.carriers(labels)
        pictures = [self._picture(path) for path in paths]
        vectors = self._vectors([image for image, _ in pictures])
        check_finite(vectors, [str(path) for path in paths], "query encoder")
        units = exact_unit(vectors)
        nobody = np.full(len(units), -1, dtype=np.int64)
        scores, found = top_k(self._index(ids), units, nobody, min(top, len(ids)), device=self._device)
        return [
            Answers(path, image, remark, tuple(Hit(int(i), float(s)) for i, s in zip(*row, strict=True) if i >= 0))
            for path, (image, remark), row in zip(paths, pictures, zip(found, scores, strict=True), strict=True)
        ]

    def _picture(self, path: Path) -> tuple[Image.Image, str]:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
        return decode_any(data, str(path), self.embedder.image_size)

    def _vectors(self, images: Sequence[Image.Image]) -> Float32:
        size, batch = self.embedder.image_size, self.embedder.config.eval.batch
        parts = [
            self.embedder.vectors(torch.stack([eval_transform(image, size) for image in images[at : at + batch]]))
            for at in range(0, len(images), batch)
        ]
        return np.concatenate(parts)
