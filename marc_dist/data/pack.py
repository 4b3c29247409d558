"""Samples -> a shard folder: planned first, written in parallel beside the place, published by one rename.

A shard is a function of the plan and the pictures' bytes, so any number of processes gives equal files. Until the last
rename the old folder, if any, is untouched; after a crash the next start clears what was half-written.
"""

from __future__ import annotations

import multiprocessing
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from marc_dist.config import DataError
from marc_dist.data.checks import Sample, Source, odd_sizes
from marc_dist.data.layout import cut, plan_entries
from marc_dist.data.publish import publication
from marc_dist.data.sidecars import describe
from marc_dist.data.tar import Entry, Shard, write_shard
from marc_dist.data.workers import start_worker

Progress = Callable[[int, int], None]
Task = tuple[Path, list[Entry], tuple[int, int] | None]


def pack(
    source: Source,
    out: Path,
    *,
    workers: int = 1,
    samples_per_shard: int = 1000,
    shard_mb: float | None = None,
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
        shard_mb: megabytes of pictures that a shard may hold, if fewer samples reach them.
        to_png: store every picture as PNG.
        force: replace an existing shard folder; it stays as it is until the new one is complete.
        progress: called with samples and bytes done so far.

    Raises:
        DataError: nothing to pack, a picture that cannot be packed, a folder in the way, a full disk.
    """
    plan = plan_entries(source, to_png=to_png)
    if not plan:
        raise DataError(f"{source.recipe.title}: nothing to pack")
    with publication(out, force) as folder:
        _room(source, out)
        tasks = [
            (split, f"{split}-{number:06d}.tar", part)
            for split, pairs in plan.items()
            for number, part in enumerate(cut(pairs, samples_per_shard, shard_mb))
        ]
        shards = _write_shards(tasks, folder, source, workers, progress)
        odd_sizes(
            source, {row.key: (row.width, row.height) for s in shards.values() for shard in s for row in shard.rows}
        )
        _duplicates(source, plan, shards)
        describe(source, plan, shards, folder)


def _room(source: Source, out: Path) -> None:
    """Refuse before the first byte when the disk cannot hold the pictures as they are."""
    need = sum(sample.file.stat().st_size + 2048 for sample in source.samples)
    free = shutil.disk_usage(out.parent).free
    if need > free:
        raise DataError(f"{out}: needs about {need / 1e6:.1f} MB, the disk has {free / 1e6:.1f} MB free")


def _write_shards(
    tasks: Sequence[tuple[str, str, list[Entry]]],
    folder: Path,
    source: Source,
    workers: int,
    progress: Progress | None,
) -> dict[str, list[Shard]]:
    """Every shard of every split, in order."""
    strict = source.recipe.policies.size == "stop" and "size" not in source.allow
    size = source.recipe.expect.image_size if strict else None
    calls = [(folder / name, entries, size) for _, name, entries in tasks]
    done: dict[str, list[Shard]] = defaultdict(list)
    for (split, _, _), shard in zip(tasks, _run(calls, workers, progress), strict=True):
        done[split].append(shard)
    return dict(done)


_counter: Any = None  # in a worker: (samples, bytes) done by all workers


def _share(counter: Any) -> None:
    """Start of a worker: keep the shared counter."""
    global _counter  # noqa: PLW0603 - the only way to hand a shared value to a pool's workers
    _counter = counter
    start_worker()


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
        except BaseException as error:
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise DataError("a packing process was killed; out of memory? try --workers 1") from None
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
