"""Unit vectors of whole splits in a memory-mapped folder: the embedding cache of a run, and what ``marc-search`` keeps.

    store.json      of each part: rows, CRC-32, and what made it (encoder, data, arithmetic); written last
    SPLIT-HASH.npy  (n, d) float32 from ``exact_unit``, the split's samples in ascending order of id; the hash is of
                    what made them, so that nobody opens what another process writes at the same time
    contents-of-SPLIT-HASH.npy  (n,) which picture each row is of (``known.py``), where an archive may grow

A part counts only when ``store.json`` says that it was made in the same way: to the last bit for scores, by the same
encoder from the same pictures for searches, whichever machine did it. ``writer.py`` writes them.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.nn import Module

from marc_dist.config import DataError
from marc_dist.data.columns import distinct
from marc_dist.data.dataset import Dataset
from marc_dist.encoder.model import Encoder
from marc_dist.retrieval.exact import Float32, Int, Pieces, Rows
from marc_dist.retrieval.index_folder import read_store

CHUNK = 1 << 24
FEW_PIECES = 64
SAME = ("encoder", "dataset", "features", "image_size", "pixels")
"""Of ``Made``, what makes vectors other vectors; the rest changes their rounding."""
Made = dict[str, Any]
"""What vectors depend on: encoder (SHA-256), dataset (fingerprint), features, image_size, pixels (mean,
std, interpolation), batch, device, torch."""


def encoder_fingerprint(encoder: Encoder) -> str:
    """SHA-256 of the architecture and of all weights, in order."""
    return _fingerprint(encoder, encoder)


def backbone_fingerprint(encoder: Encoder) -> str:
    """SHA-256 of the backbone alone, whatever head stands on it."""
    return _fingerprint(encoder, encoder.backbone)


def _fingerprint(encoder: Encoder, part: Module) -> str:
    digest = hashlib.sha256(json.dumps([type(encoder.backbone).__name__, encoder.create], sort_keys=True).encode())
    for name, value in sorted(part.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.numpy().tobytes())
    return digest.hexdigest()


def file_crc(path: Path) -> int:
    """CRC-32 of a file, read in pieces."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


class Store:
    """The vectors of some splits of a data set.

    Args:
        folder: where they lie.
        dataset: for the ids.
        splits: which of its parts to open; they must be there.
        made: what made them.
        exactly: see ``missing_splits``.
        ids_of: sample ids of parts that are not named like a split.

    Attributes:
        crcs: split -> CRC-32 of its vectors.

    Raises:
        DataError: a part is missing, of another shape, or made otherwise: by another process in the meantime.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        splits: Sequence[str],
        made: Made,
        *,
        exactly: bool = True,
        ids_of: Mapping[str, Int] | None = None,
    ) -> None:
        meta = read_store(folder)
        self.folder, self.dim = folder, int(meta["dim"])
        self.crcs: dict[str, int] = {}
        self._parts: list[tuple[Int, NDArray[np.float32]]] = []
        for split in splits:
            part = meta["parts"].get(split)
            if part is None or not _same(part, made, exactly=exactly):
                raise DataError(f"{folder}: another process wrote other vectors there just now; run it again")
            self.crcs[split] = part["crc32"]
            ids = dataset.rows(split) if ids_of is None else ids_of[split]
            self._open(folder / part["file"], ids)

    def _open(self, path: Path, ids: Int) -> None:
        try:
            rows = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete it and run again") from None
        if rows.shape != (len(ids), self.dim) or rows.dtype != np.float32:
            raise DataError(f"{path}: not the vectors of {len(ids)} images; delete it and run again")
        self._parts.append((ids, rows))

    def made_of(self, ids: Int) -> dict[str, int]:
        """Split -> CRC-32 of its vectors, of the splits that ``ids`` lie in."""
        parts = zip(self.crcs.items(), self._parts, strict=True)
        return {split: crc for (split, crc), (known, _) in parts if np.isin(ids, known).any()}

    def rows(self, ids: Int) -> Rows:
        """(n, d) the vectors of ``ids``: views of the files where the ids follow each other there, else a copy.

        Raises:
            KeyError: an id of a split that was not opened.
        """
        runs: list[Float32] = []
        place = 0
        while place < len(ids) and len(runs) < FEW_PIECES:
            run = self._run(ids[place:])
            if not len(run):
                break
            runs.append(run)
            place += len(run)
        if runs and place == len(ids):
            return runs[0] if len(runs) == 1 else Pieces(runs)
        out = np.empty((len(ids), self.dim), dtype=np.float32)
        filled = 0
        for known, rows in self._parts:
            inside = np.isin(ids, known)
            out[inside] = rows[np.searchsorted(known, ids[inside])]
            filled += int(inside.sum())
        if filled != len(ids):
            raise KeyError(f"{len(ids) - filled} ids lie in no opened split of {self.folder}")
        return out

    def _run(self, ids: Int) -> Float32:
        """The longest piece of one file that begins with the first of ``ids`` and follows them."""
        for known, rows in self._parts:
            start = int(np.searchsorted(known, ids[0]))
            there = known[start : start + len(ids)]
            same = there == ids[: len(there)]
            if len(there) and same[0]:
                return rows[start : start + (len(there) if same.all() else int(same.argmin()))]
        return np.empty((0, self.dim), dtype=np.float32)


def splits_of(dataset: Dataset, ids: Int) -> list[str]:
    """Names of the splits that ``ids`` lie in, sorted."""
    return distinct(dataset.split, ids)


def _same(part: dict[str, Any], made: Made, *, exactly: bool) -> bool:
    theirs = part["made"]
    return bool(theirs == made) if exactly else same_vectors(theirs, made)


def same_vectors(theirs: Made, made: Made) -> bool:
    """Whether both made the same vectors, rounding apart."""
    return all(theirs.get(key) == made.get(key) for key in SAME)


def grown_from(theirs: Made, made: Made) -> bool:
    """Whether both made their vectors in the same way, rounding apart, of whatever data set."""
    return all(theirs.get(key) == made.get(key) for key in SAME if key != "dataset")


def missing_splits(folder: Path, made: Made, splits: Sequence[str], *, exactly: bool = True) -> list[str]:
    """The splits whose vectors are not in the folder, made in the same way and undamaged. Reads each once.

    Args:
        folder: of the store.
        made: how they should be made.
        splits: names.
        exactly: whether their rounding matters; if not, ``SAME`` is compared.
    """
    try:
        meta = read_store(folder)
    except DataError:
        return list(splits)
    parts, dim = meta["parts"], meta["dim"]
    sound = {split for split, part in parts.items() if _same(part, made, exactly=exactly)}
    return [split for split in splits if split not in sound or not _undamaged(folder, parts[split], dim)]


def _undamaged(folder: Path, part: dict[str, Any], dim: int) -> bool:
    path = folder / part["file"]
    try:
        return file_crc(path) == part["crc32"] and np.lib.format.open_memmap(path, mode="r").shape[1:] == (dim,)
    except (OSError, ValueError, EOFError):  # what cannot be read is made again
        return False
