"""``marc-shard --append``: what is to go, the call, and what it did in a few lines."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from marc_dist.cli.shard.after_packing import note
from marc_dist.cli.shard.words import allowed_checks
from marc_dist.config import ConfigError, user_path
from marc_dist.packing.adding.append import append
from marc_dist.packing.adding.rules import Changes, check_folder, without_download
from marc_dist.packing.layout import split_order
from marc_dist.packing.pack import Progress
from marc_dist.packing.reading.recipes import Recipe
from marc_dist.packing.reading.samples import Source


def check_early(out: Path, recipe: Recipe) -> None:
    """Before the download is read, which may take long: whether there is a folder of this recipe.

    Raises:
        DataError: see ``check_folder``.
    """
    if not out.with_name(f".{out.name}.old").exists():  # else a crash between two renames, which appending mends
        check_folder(out, recipe.rules())


def add(source: Source, out: Path, options: argparse.Namespace, workers: int, progress: Progress) -> Changes:
    """Add to a folder as the words say; see ``append``.

    Args:
        source: what was found in the download.
        out: the folder.
        options: the words.
        workers: processes.
        progress: called with samples and bytes done so far.

    Raises:
        ConfigError: the list of what is to go cannot be read.
        DataError: see ``append``.
    """
    return append(
        source,
        out,
        workers=workers,
        samples_per_shard=options.samples_per_shard,
        shard_mb=options.shard_mb,
        to_png=options.to_png,
        remove=_listed(options.remove),
        remove_missing=options.remove_missing,
        add_classes=options.add_classes,
        dry_run=options.dry_run,
        progress=progress,
    )


def only_remove(recipe: Recipe, out: Path, options: argparse.Namespace, workers: int) -> int:
    """Take pictures out of a folder, without its download; the exit code.

    Args:
        recipe: that the folder was packed with.
        out: the folder.
        options: the words.
        workers: processes.

    Raises:
        ConfigError: see ``add``.
        DataError: see ``append``.
    """
    if options.remove_missing:
        raise ConfigError("--remove-missing: expected together with --source: what a download lacks, it alone can tell")
    source, options.to_png = without_download(out, recipe)
    source.allow = frozenset(allowed_checks(options.allow))
    changes = add(source, out, options, workers, lambda done, size: None)
    for warning in source.warnings:
        note(warning)
    print(told(changes, out, options.dry_run))
    return 0


def _listed(place: str | None) -> list[str]:
    """Keys in a file, one a line; blank lines mean nothing.

    Raises:
        ConfigError: the file cannot be read.
    """
    if place is None:
        return []
    try:
        data = sys.stdin.buffer.read() if place == "-" else user_path(place).read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--remove {place}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return [line.strip() for line in lines if line.strip()]


def told(changes: Changes, out: Path, dry_run: bool) -> str:
    """What was done, for a person.

    Args:
        changes: to the folder.
        out: the folder.
        dry_run: nothing was done.
    """
    if not changes:
        return f"nothing to add: all {changes.same} pictures are in {out} as they are; no byte of it was changed"
    of_splits = ", ".join(f"{changes.new[split]} {split}" for split in sorted(changes.new, key=split_order))
    counts = {
        f"new ({of_splits})" if of_splits else "new": changes.new.total(),
        "changed": len(changes.changed),
        "relabelled": len(changes.relabelled),
        "removed": len(changes.removed),
        "as they were": changes.same,
    }
    shards = {"as they were": "kept", "written anew": "rewritten", "dropped": "dropped", "new": "new"}
    begin = f"would add to {out} (--dry-run)" if dry_run else f"added to {out}"
    pictures = ", ".join(f"{num} {name}" for name, num in counts.items())
    files = ", ".join(f"{changes.shards[kind]} {name}" for name, kind in shards.items())
    return f"{begin}: {pictures}\nshards: {files}"
