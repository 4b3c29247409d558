"""Samples -> a shard folder: planned first, written in parallel beside the place, published by one rename.

A shard is a function of the plan and the pictures' bytes, so any number of processes gives equal files. Until the last
rename the old folder, if any, is untouched; after a crash the next start clears what was half-written.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import multiprocessing
import os
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from marc_dist.config import DataError
from marc_dist.data.sidecars import describe
from marc_dist.data.sources import Sample, Source
from marc_dist.data.tar import Entry, Shard, write_shard

EXTENSIONS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".tif": "tif", ".tiff": "tif"}
KEY_BYTES = 80  # leaves room for the extension in ustar's 100
Progress = Callable[[int, int], None]
Task = tuple[Path, list[Entry], tuple[int, int] | None]


def safe_key(origin: str, taken: set[str]) -> str:
    """A sample's key: ASCII, no dots or slashes (a dot silently merges samples in WebDataset), unique in any case.

    Args:
        origin: place of the picture inside the download.
        taken: keys given so far, lower case; the new one is added.
    """
    base = unicodedata.normalize("NFKD", Path(origin).stem).encode("ascii", "ignore").decode()
    base = re.sub(r"[^A-Za-z0-9_-]+", "_", base).strip("_") or "sample"
    if len(base) > KEY_BYTES or base.lower() in taken:
        base = f"{base[: KEY_BYTES - 13]}_{hashlib.sha256(origin.encode()).hexdigest()[:12]}"
    if base.lower() in taken:
        raise DataError(f"{origin}: two pictures of this place; expected distinct places inside the download")
    taken.add(base.lower())
    return base


def plan_entries(source: Source, *, to_png: bool) -> dict[str, list[tuple[Sample, Entry]]]:
    """Split -> its samples in key order, with the one image extension that the whole data set gets.

    Args:
        source: what was found.
        to_png: store every picture as PNG, whatever it was.

    Raises:
        DataError: pictures of several kinds, or names that clash.
    """
    kinds = Counter(EXTENSIONS[sample.file.suffix.lower()] for sample in source.samples)
    stored = {"png" if to_png or kind == "tif" else kind for kind in kinds}
    if len(stored) > 1:
        named = " and ".join(f"{num} {kind}" for kind, num in sorted(kinds.items()))
        raise DataError(f"pictures of several kinds ({named}); expected one, or pass --to-png to store all as PNG")
    (ext,) = stored or {"png"}
    taken: set[str] = set()
    splits: dict[str, list[tuple[Sample, Entry]]] = defaultdict(list)
    for sample in sorted(source.samples, key=lambda sample: sample.origin):
        meta: dict[str, object] = {
            "labels": [source.classes[label] for label in sample.labels],
            "scene": sample.scene,
            "path": sample.origin,
        }
        key = safe_key(sample.origin, taken)
        entry = Entry(sample.file, key, EXTENSIONS[sample.file.suffix.lower()], ext, meta)
        splits[sample.split].append((sample, entry))
    order = ["train", "val", "test"]
    names = sorted(splits, key=lambda name: (order.index(name) if name in order else len(order), name))
    return {name: sorted(splits[name], key=lambda pair: pair[1].key) for name in names}


def pack(
    source: Source,
    out: Path,
    *,
    workers: int = 1,
    samples_per_shard: int = 1000,
    to_png: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a shard folder.

    Args:
        source: what was found in the download.
        out: the folder to make.
        workers: processes.
        samples_per_shard: samples of a full shard.
        to_png: store every picture as PNG.
        force: replace an existing shard folder; it stays as it is until the new one is complete.
        progress: called with samples and bytes done so far.

    Raises:
        DataError: nothing to pack, a picture that cannot be packed, a folder in the way, a full disk.
    """
    plan = plan_entries(source, to_png=to_png)
    if not plan:
        raise DataError(f"{source.recipe.title}: nothing to pack")
    with _publication(out, force) as folder:
        _room(source, out)
        shards = _write_shards(plan, folder, source, workers, samples_per_shard, progress)
        _duplicates(source, plan, shards)
        describe(source, plan, shards, folder)


@contextmanager
def _publication(out: Path, force: bool) -> Iterator[Path]:
    """A private folder beside ``out`` that becomes ``out`` when the block ends well, and vanishes when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial_dir, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    try:
        partial_dir.mkdir(exist_ok=True)
        lock = os.open(partial_dir, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{out.parent}: cannot write there ({error.strerror})") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{out}: another marc-shard is writing it; wait for it") from None
        try:
            _clear(partial_dir)
            if old.exists() and not out.exists():  # died between the two renames below
                old.rename(out)
            shutil.rmtree(old, ignore_errors=True)
            _in_the_way(out, force)
            yield partial_dir
            _sync(partial_dir)
            if out.exists():
                out.rename(old)
            partial_dir.rename(out)
            _sync(out.parent)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            shutil.rmtree(partial_dir, ignore_errors=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise DataError(f"{out}: the disk is full; nothing was kept, free some room and start again") from None
            raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None
        except BaseException:
            shutil.rmtree(partial_dir, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _in_the_way(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        if out.exists():
            out.rmdir()
        return
    if not (out / "dataset.json").is_file():
        raise DataError(f"{out}: exists and is not a shard folder; choose another --out")
    if not force:
        raise DataError(f"{out}: exists; pass --force to replace it")


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _room(source: Source, out: Path) -> None:
    """Refuse before the first byte when the disk cannot hold the pictures as they are."""
    need = sum(sample.file.stat().st_size + 2048 for sample in source.samples)
    free = shutil.disk_usage(out.parent).free
    if need > free:
        raise DataError(f"{out}: needs about {need / 1e6:.1f} MB, the disk has {free / 1e6:.1f} MB free")


def _write_shards(
    plan: dict[str, list[tuple[Sample, Entry]]],
    folder: Path,
    source: Source,
    workers: int,
    samples_per_shard: int,
    progress: Progress | None,
) -> dict[str, list[Shard]]:
    """Every shard of every split, in order."""
    expect = source.recipe.expect.image_size
    strict = source.recipe.policies.size == "stop" and "size" not in source.allow
    tasks = [
        (split, f"{split}-{number:06d}.tar", [entry for _, entry in pairs[start : start + samples_per_shard]])
        for split, pairs in plan.items()
        for number, start in enumerate(range(0, len(pairs), samples_per_shard))
    ]
    calls = [(folder / name, entries, expect if strict else None) for _, name, entries in tasks]
    done: dict[str, list[Shard]] = defaultdict(list)
    for (split, _, _), shard in zip(tasks, _run(calls, workers, progress), strict=True):
        done[split].append(shard)
    if expect and not strict:
        sizes = Counter((row.width, row.height) for shards in done.values() for shard in shards for row in shard.rows)
        other = [f"{w}x{h} ({num})" for (w, h), num in sorted(sizes.items()) if (w, h) != expect]
        if other:
            source.warnings.append(f"size: pictures that are not {expect[0]}x{expect[1]}: {', '.join(other)}")
    return dict(done)


_counter: Any = None  # in a worker: (samples, bytes) done by all workers


def _share(counter: Any) -> None:
    """Start of a worker: keep the shared counter."""
    global _counter  # noqa: PLW0603 - the only way to hand a shared value to a pool's workers
    _counter = counter


def _count(size: int) -> None:
    with _counter.get_lock():
        _counter[0] += 1
        _counter[1] += size


def _shard_in_worker(task: Task) -> Shard:
    return write_shard(*task, tick=_count)


def _run(tasks: Sequence[Task], workers: int, progress: Progress | None) -> list[Shard]:
    """Shards in order; the first failure ends the rest."""
    tell = progress or (lambda samples, size: None)
    if workers <= 1 or len(tasks) == 1:
        done = [0, 0]

        def tick(size: int) -> None:
            done[0], done[1] = done[0] + 1, done[1] + size
            tell(*done)

        return [write_shard(*task, tick=tick) for task in tasks]
    # spawn: the caller may hold threads (the progress display, a test's torch), which a fork must not copy
    context = multiprocessing.get_context("spawn")
    counter = context.Array("q", 2)
    with ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=_share, initargs=(counter,)) as pool:
        futures: list[Future[Shard]] = [pool.submit(_shard_in_worker, task) for task in tasks]
        pending = set(futures)
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                tell(counter[0], counter[1])
                for future in finished:
                    future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _duplicates(source: Source, plan: dict[str, list[tuple[Sample, Entry]]], shards: dict[str, list[Shard]]) -> None:
    """Equal pixels in two splits: what is trained on is then also asked for."""
    seen: dict[str, tuple[str, str]] = {}
    faults = []
    for split in plan:
        for row in (row for shard in shards[split] for row in shard.rows):
            other = seen.setdefault(row.pixels, (split, row.key))
            if other[0] != split:
                faults.append(f"{other[1]} ({other[0]}) = {row.key} ({split})")
    source.check("duplicates", faults, "equal pictures in two splits")
