"""Unit vectors of whole splits in a memory-mapped folder: the embedding cache of a run, and what ``marc-search`` keeps.

    store.json      of each part: rows, CRC-32, and what made it (encoder, data, arithmetic); written last
    SPLIT.npy       (n, d) float32 from ``exact_unit``, the split's samples in ascending order of id

A part counts only when ``store.json`` says that it was made in the same way: to the last bit for scores, by the same
encoder from the same pictures for searches, whichever machine did it. All ranks write their rows into one temporary
file, which rank 0 renames; the folder must be one that all ranks see, as the run folder is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marc_dist import comm
from marc_dist.config import DataError, LaunchError
from marc_dist.data.dataset import Dataset
from marc_dist.retrieval.exact import Float32, Int
from marc_dist.training.model import Encoder
from marc_dist.training.runfolder import sync_folder, write_atomic

FORMAT = 1
CHUNK = 1 << 24
SAME = ("encoder", "dataset", "features", "image_size")
"""Of ``Made``, what makes vectors other vectors; the rest changes their rounding."""
Made = dict[str, Any]
"""What vectors depend on: encoder (SHA-256), dataset (fingerprint), features, image_size, batch, device, torch."""


def encoder_fingerprint(encoder: Encoder) -> str:
    """SHA-256 of the architecture and of all weights, in order."""
    digest = hashlib.sha256(json.dumps([type(encoder.backbone).__name__, encoder.create], sort_keys=True).encode())
    for name, value in sorted(encoder.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.numpy().tobytes())
    return digest.hexdigest()


def _file_name(split: str) -> str:
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}", split)
    return f"{split if plain else hashlib.sha256(split.encode()).hexdigest()[:16]}.npy"


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def read_store(folder: Path) -> dict[str, Any]:
    """``store.json``.

    Raises:
        DataError: none there, not readable, another format.
    """
    file = folder / "store.json"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: no index (no store.json); make one with marc-search ENCODER --index-only") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error}); delete {folder} and make it again") from None
    wanted = {"parts": dict, "dim": int, "about": dict}
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        got = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise DataError(f"{file}: expected format {FORMAT}, got {got!r}; delete {folder} and make it again")
    if not all(isinstance(meta.get(key), kind) for key, kind in wanted.items()):
        raise DataError(f"{file}: lacks {', '.join(wanted)}; delete {folder} and make it again")
    if not all(isinstance(part, dict) and isinstance(part.get("made"), dict) for part in meta["parts"].values()):
        raise DataError(f"{file}: does not say what made its parts; delete {folder} and make it again")
    return meta


class Store:
    """The vectors of some splits of a data set.

    Args:
        folder: where they lie.
        dataset: for the ids.
        splits: which of its parts to open; they must be there.

    Raises:
        DataError: a part is missing or of another shape.
    """

    def __init__(self, folder: Path, dataset: Dataset, splits: Sequence[str]) -> None:
        self.folder, self.dim = folder, int(read_store(folder)["dim"])
        self._parts: list[tuple[Int, NDArray[np.float32]]] = []
        for split in splits:
            ids = dataset.rows(split)
            path = folder / _file_name(split)
            try:
                rows = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: cannot be read ({error}); delete {folder} and make it again") from None
            if rows.shape != (len(ids), self.dim) or rows.dtype != np.float32:
                raise DataError(f"{path}: not the vectors of {len(ids)} images; delete {folder} and make it again")
            self._parts.append((ids, rows))

    def rows(self, ids: Int) -> Float32:
        """(n, d) the vectors of ``ids``, ascending; a view of the file where they lie in one piece.

        Raises:
            KeyError: an id of a split that was not opened.
        """
        if len(ids):
            for known, rows in self._parts:
                start = int(np.searchsorted(known, ids[0]))
                if np.array_equal(known[start : start + len(ids)], ids):
                    return rows[start : start + len(ids)]
        out = np.empty((len(ids), self.dim), dtype=np.float32)
        filled = 0
        for known, rows in self._parts:
            inside = np.isin(ids, known)
            out[inside] = rows[np.searchsorted(known, ids[inside])]
            filled += int(inside.sum())
        if filled != len(ids):
            raise KeyError(f"{len(ids) - filled} ids lie in no opened split of {self.folder}")
        return out


def splits_of(dataset: Dataset, ids: Int) -> list[str]:
    """Names of the splits that ``ids`` lie in, sorted."""
    return sorted(set(dataset.split[ids].tolist()))


def _same(part: dict[str, Any], made: Made, *, exactly: bool) -> bool:
    return all(part["made"].get(key) == made.get(key) for key in (made if exactly else SAME))


def missing_splits(folder: Path, made: Made, splits: Sequence[str], *, exactly: bool = True) -> list[str]:
    """The splits whose vectors are not in the folder, made in the same way and undamaged. Reads each once.

    Args:
        folder: of the store.
        made: how they should be made.
        splits: names.
        exactly: whether their rounding matters; if not, ``SAME`` is compared.
    """
    try:
        parts = read_store(folder)["parts"]
    except DataError:
        return list(splits)
    sound = {split for split, part in parts.items() if _same(part, made, exactly=exactly)}
    return [split for split in splits if split not in sound or not _undamaged(folder, split, parts[split])]


def _undamaged(folder: Path, split: str, part: dict[str, Any]) -> bool:
    path = folder / _file_name(split)
    try:
        return path.is_file() and _crc(path) == part.get("crc32")
    except OSError:  # what cannot be read is made again
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
    path = folder / _file_name(split)
    temporary = Path(str(comm.broadcast_object(str(folder / f".{path.name}.{os.getpid()}.tmp"))))
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
    temporary.parent.mkdir(parents=True, exist_ok=True)
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
        parts = {
            name: part for name, part in read_store(path.parent)["parts"].items() if _same(part, made, exactly=False)
        }
    except DataError:
        parts = {}
    crc = _crc(temporary)
    temporary.replace(path)
    sync_folder(path.parent)
    parts[split] = {"rows": shape[0], "crc32": crc, "file": path.name, "made": made}
    told = {"format": FORMAT, "dim": shape[1], "about": about, "parts": parts}
    write_atomic(path.parent / "store.json", (json.dumps(told, indent=2) + "\n").encode())
