"""Unit vectors of whole splits in a memory-mapped folder: the embedding cache of a run, and what ``marc-search`` keeps.

    store.json      of each part: rows, CRC-32, and what made it (encoder, data, arithmetic); written last
    SPLIT-HASH.npy  (n, d) float32 from ``exact_unit``, the split's samples in ascending order of id; the hash is of
                    what made them, so that nobody opens what another process writes at the same time

A part counts only when ``store.json`` says that it was made in the same way: to the last bit for scores, by the same
encoder from the same pictures for searches, whichever machine did it. All ranks write their rows into one temporary
file, which rank 0 renames; the folder must be one that all ranks see, as the run folder is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.nn import Module

from marc_dist import comm
from marc_dist.config import DataError, LaunchError
from marc_dist.data.columns import distinct
from marc_dist.data.dataset import Dataset
from marc_dist.encoder.model import Encoder
from marc_dist.files import make_folder, sync_folder, write_atomic
from marc_dist.retrieval.exact import Float32, Int, Pieces, Rows
from marc_dist.retrieval.index_folder import FORMAT, read_store

CHUNK = 1 << 24
FEW_PIECES = 64
OLD_S = 86_400.0
"""A temporary file that was not touched for so long belongs to a process that was killed."""
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


def _file_name(split: str, made: Made) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}", split)
    name = split if plain else hashlib.sha256(split.encode()).hexdigest()[:16]
    return f"{name}-{hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:8]}.npy"


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
    return bool(theirs == made if exactly else all(theirs.get(key) == made.get(key) for key in SAME))


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


def write_split(
    folder: Path,
    split: str,
    shape: tuple[int, int],
    made: Made,
    about: dict[str, Any],
    fill: Callable[[Callable[[int, Float32], None]], None],
    check: Callable[[], None],
) -> None:
    """Write one split's vectors, all ranks together, and enter it into ``store.json``. A collective.

    Args:
        folder: of the store; made when it is not there.
        split: name.
        shape: (n, d) of the whole split.
        made: what the vectors depend on; parts of another encoder or other data are forgotten.
        about: what else people or commands want to know.
        fill: computes this rank's rows and hands them over, with the place of the first in the split.
        check: a collective that raises, on all ranks alike, when the rows should not be kept.

    Raises:
        LaunchError: no room, or the folder cannot be written; on every rank.
        DataError: from ``fill`` or ``check``, on every rank.
    """
    path = folder / _file_name(split, made)
    own = f".{path.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"  # two hosts may share a pid
    temporary = Path(str(comm.broadcast_object(str(folder / own))))
    try:
        _together(lambda: _reserve(temporary, shape) if comm.rank() == 0 else None, path)
        _together(lambda: _fill(temporary, shape, fill), path)
        check()
        _together(lambda: _publish(temporary, path, split, shape, made, about) if comm.rank() == 0 else None, path)
    finally:
        if comm.rank() == 0:
            with suppress(OSError):
                temporary.unlink()


def _together(work: Callable[[], None], path: Path) -> None:
    """Do something on every rank; when it fails on one, all raise the error of the first that failed."""
    error: Exception | None = None
    try:
        work()
    except OSError as failure:
        reason = failure.strerror or failure
        error = LaunchError(f"{path}: cannot be written ({reason}); free space or choose another folder")
    except Exception as failure:
        error = failure
    for other in comm.gather_object(error):
        if other is not None:
            raise other


def _reserve(temporary: Path, shape: tuple[int, int]) -> None:
    make_folder(temporary.parent)
    for left in temporary.parent.glob(".*.tmp"):  # of processes that were killed
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > OLD_S:
                left.unlink()
    with temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + 4 * shape[0] * shape[1])


def _fill(temporary: Path, shape: tuple[int, int], fill: Callable[[Callable[[int, Float32], None]], None]) -> None:
    with temporary.open("r+b") as file:  # written, not mapped: a full disk is an error then, not a killed process
        start = temporary.stat().st_size - 4 * shape[0] * shape[1]

        def put(place: int, rows: Float32) -> None:
            file.seek(start + 4 * place * shape[1])
            file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())

        fill(put)
        file.flush()
        os.fsync(file.fileno())


def _publish(
    temporary: Path, path: Path, split: str, shape: tuple[int, int], made: Made, about: dict[str, Any]
) -> None:
    try:
        there = read_store(path.parent)["parts"]
    except DataError:
        there = {}
    parts = {name: part for name, part in there.items() if _same(part, made, exactly=False)}
    crc = file_crc(temporary)
    temporary.replace(path)
    sync_folder(path.parent)
    parts[split] = {"rows": shape[0], "crc32": crc, "file": path.name, "made": made}
    told = {"format": FORMAT, "dim": shape[1], "about": about, "parts": parts}
    write_atomic(path.parent / "store.json", (json.dumps(told, indent=2) + "\n").encode())
    named = {part["file"] for part in parts.values()}
    for part in there.values():  # what store.json names no more; who has it open keeps it
        if part["file"] not in named:
            with suppress(OSError):
                (path.parent / part["file"]).unlink()
