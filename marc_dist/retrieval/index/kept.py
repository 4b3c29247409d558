"""A factory index kept beside the vectors that it is of: each rank's part in a file of its own, memory-mapped.

    index-R-of-W-HASH.faiss   the part of rank R of W, as FAISS writes it; the hash is of the factory string and the ids
    index-R-of-W-HASH.json    CRC-32 of the file, of the vectors it is of, and of what all parts learnt; written last

A file a rank, because FAISS can neither cut a graph nor join one, and one file for all would have every node hold the
whole archive. Another number of ranks finds none of its own and learns again, the same: rank 0 teaches all.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from marc_dist import comm
from marc_dist.config import DataError, LaunchError
from marc_dist.data.plan import rank_part
from marc_dist.files import sync_folder, write_atomic
from marc_dist.retrieval.exact import Int
from marc_dist.retrieval.index.parts import FactoryPart, build
from marc_dist.retrieval.index.spec import IndexSpec
from marc_dist.retrieval.index_folder import read_store
from marc_dist.retrieval.search import learn
from marc_dist.retrieval.vectors.store import Store, file_crc


def kept_part(
    spec: IndexSpec, store: Store, ids: Int, say: Callable[[str], None], *, must: bool = False
) -> FactoryPart:
    """This rank's part of a factory index: from the store's folder, else made and kept there. A collective.

    Args:
        spec: of kind ``factory``.
        store: the vectors, and the folder.
        ids: of the whole archive, the same on all ranks.
        say: takes one line for people.
        must: whether an index that cannot be written is an error; if not, it is told.

    Raises:
        DataError: too few vectors to learn from.
        LaunchError: with ``must``: no room, or the folder cannot be written; on every rank.
    """
    mine = rank_part(ids, comm.rank(), comm.world())
    told = {"index": spec.factory, "vectors": store.made_of(ids), "ids": hashlib.sha256(mine.tobytes()).hexdigest()}
    name = hashlib.sha256(f"{spec.factory} {hashlib.sha256(ids.tobytes()).hexdigest()}".encode()).hexdigest()[:8]
    file = store.folder / f"index-{comm.rank()}-of-{comm.world()}-{name}.faiss"
    part, learnt = _read(file, told, spec, store, mine)
    if all(crc is not None and crc == learnt for crc in comm.gather_object(learnt)) and part is not None:
        say(f"index: {spec.text}, {part.where}, from {store.folder}")
        return part
    part = None  # of some ranks only: all make it, so that all learnt the same
    trained = learn(spec, store.rows, ids, say)
    made = build(spec, trained, store.rows(mine), mine, say=say)
    assert isinstance(made, FactoryPart)
    failed: str | None = None
    try:
        _write(file, {**told, "learnt": zlib.crc32(trained)}, made)
    except (OSError, LaunchError) as error:
        failed = str(error).partition(";")[0]  # a LaunchError says its own remedy
        if isinstance(error, OSError):
            failed = f"{file}: cannot be written ({error.strerror or error})"
    failures = [other for other in comm.gather_object(failed) if other is not None]
    if failures and must:
        raise LaunchError(f"{failures[0]}; free space or choose another folder")
    if failures:
        say(f"index: used, but not kept: {failures[0]}")
    elif comm.rank() == 0:
        _forget_others(store.folder)
    return made


def _read(
    file: Path, told: dict[str, Any], spec: IndexSpec, store: Store, mine: Int
) -> tuple[FactoryPart | None, int | None]:
    """This rank's kept part, if it is of these vectors and undamaged, and the CRC-32 of what it learnt."""
    try:
        kept = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        if not isinstance(kept, dict) or {**kept, **told} != kept or file_crc(file) != kept.get("crc32"):
            return None, None
        part = FactoryPart(spec, file, store.rows(mine), mine)
    except (OSError, ValueError, RecursionError, RuntimeError, DataError):
        return None, None
    learnt = kept.get("learnt")
    sound = part.index.ntotal == len(mine) and part.index.d == store.dim and type(learnt) is int
    return (part, learnt) if sound else (None, None)


def _write(file: Path, told: dict[str, Any], part: FactoryPart) -> None:
    """Straight into a temporary file, so that the index lies in memory once."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    crc = 0
    try:
        with temporary.open("wb") as out:

            def put(piece: bytes) -> None:
                nonlocal crc
                crc = zlib.crc32(piece, crc)
                out.write(piece)

            part.write(put)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
        sync_folder(file.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()
    write_atomic(file.with_suffix(".json"), (json.dumps({**told, "crc32": crc}, indent=2) + "\n").encode())


def _forget_others(folder: Path) -> None:
    """Remove what was kept of vectors that the store holds no more; who has it open keeps it."""
    try:
        now = {split: part["crc32"] for split, part in read_store(folder)["parts"].items()}
    except DataError:
        return
    for note in folder.glob("index-*-of-*-*.json"):
        with suppress(OSError, ValueError, AttributeError, RecursionError):
            of = json.loads(note.read_text(encoding="utf-8"))["vectors"]
            if {**now, **of} != now:
                note.unlink()
                note.with_suffix(".faiss").unlink()
