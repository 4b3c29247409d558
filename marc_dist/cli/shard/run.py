"""What ``marc-shard`` does: list and show recipes, pack a download, verify a shard folder."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import print as rich_print
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from marc_dist.cli.shard import adding
from marc_dist.cli.shard.after_packing import draw_sheet, leave_leaks_out, list_leaks, summary
from marc_dist.cli.shard.words import allowed_checks
from marc_dist.config import ConfigError, DataError, list_presets, user_path
from marc_dist.data.dataset import open_dataset
from marc_dist.packing.adding.rules import Changes
from marc_dist.packing.inspection import inspect
from marc_dist.packing.pack import pack
from marc_dist.packing.reading.recipes import Recipe, load_recipe, schema_text
from marc_dist.packing.reading.samples import Source
from marc_dist.packing.reading.source import read_source
from marc_dist.packing.reading.unpack import opened
from marc_dist.packing.verify import verify_opened
from marc_dist.progress_bar import progress

RESUMED_NOTHING = "--resume: nothing was left that could be kept; packed from the start"


def shard(options: argparse.Namespace) -> int:
    """Do what the words ask for; the exit code.

    Raises:
        ConfigError: a word that the recipe cannot follow.
        DataError: a fault in the download or the shard folder.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # pyarrow's own keeps 40 MB that it does not use
    if options.list:
        return _list_recipes()
    if options.info:
        return _show_recipe(options.info)
    if options.schema:
        print(schema_text(Recipe), end="")
        return 0
    if options.verify:
        return _verify(user_path(options.verify))
    workers = options.workers or os.cpu_count() or 1
    if options.leaks:
        list_leaks(user_path(options.leaks), workers, always=True)
        return 0
    if options.sheet and not options.dataset:
        draw_sheet(user_path(options.sheet), None)
        return 0
    with _termination_as_interrupt():
        return _inspect(options) if options.inspect else _pack(options)


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does: what is half-written is removed on the way out."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _list_recipes() -> int:
    table = Table("name", "title", "classes", "labels from", box=None)
    for name in list_presets("shards"):
        recipe = load_recipe(name)
        table.add_row(name, recipe.title, str(len(recipe.classes) or "yours"), ", ".join(recipe.labels))
    rich_print(table)
    return 0


def _show_recipe(name: str) -> int:
    recipe = load_recipe(name)
    expect = recipe.expect
    size = f"{expect.image_size[0]} x {expect.image_size[1]} pixels" if expect.image_size else "any size"
    lines = {
        "title": recipe.title,
        "get it from": recipe.download,
        "layout": recipe.layout,
        "licence": recipe.licence,
        "cite": recipe.citation,
        "pictures": f"{expect.num_images or 'any number'}, {size}",
        "classes": ", ".join(recipe.class_names) or "taken from the data",
        "labels from": ", ".join(recipe.labels),
        "splits": recipe.splits.source,
    }
    for key, value in lines.items():
        Console().print(f"[bold]{key:>12}[/]  {escape(value)}", soft_wrap=True, highlight=False)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    place = user_path(options.inspect)
    recipe = load_recipe("folder")
    name = place.name.partition(".")[0] or "inspected"
    with tempfile.TemporaryDirectory() as beside, opened(recipe, [place], Path(beside), show=progress) as roots:
        text = inspect(roots, recipe, name, workers=options.workers or os.cpu_count() or 1, foreign=options.to_png)
    for root in roots:
        text = text.replace(str(root), str(place))
    print(text, end="")
    return 0


def _verify(path: Path) -> int:
    dataset = open_dataset(path)
    with progress("verifying", len(dataset)) as tell:
        reports = verify_opened(dataset, tell)
    table = Table("shard", "samples", "MB", "state", box=None)
    for report in reports:
        state = f"[red]{escape(report.faults[0])}[/]" if report.faults else "sound"
        table.add_row(report.name, str(report.num_samples), f"{report.size / 1e6:.1f}", state)
    rich_print(table)
    bad = [f"{report.name}: {fault}" for report in reports for fault in report.faults]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DataError(f"{path}: damaged: {bad[0]}{more}; pack again with marc-shard --force")
    return 0


def _pack(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.dataset)
    allow = allowed_checks(options.allow)
    if options.separator:
        recipe = recipe.model_copy(update={"separator": options.separator})
    out = user_path(options.out or f"data/{recipe.name}")
    workers = options.workers or os.cpu_count() or 1
    classes = [name.strip() for name in options.classes.split(",")] if options.classes else None
    if classes and recipe.classes:
        raise ConfigError(f"--classes: recipe {recipe.name} has its own class list")
    places = [user_path(place) for place in options.source]
    if options.append:
        adding.check_early(out, recipe)
        if options.remove and not places and recipe.builtin is None:
            return adding.only_remove(recipe, out, options, workers)
    with opened(recipe, places, out.parent, workers, progress) as roots:
        source = read_source(
            recipe,
            roots,
            labels=options.labels,
            table=user_path(options.table) if options.table else None,
            index_order=options.index_order,
            classes=classes,
            allow=allow,
            workers=workers,
            foreign=options.to_png,
            show=progress,
        )
        if options.drop_leaks:
            leave_leaks_out(source, workers)
        done = 0 if options.dry_run and not options.append else _write(source, out, options, workers)
    summary(source)
    changed = not isinstance(done, Changes) or bool(done)
    if changed and not options.dry_run and not options.drop_leaks and not options.no_leaks and recipe.builtin is None:
        list_leaks(out, workers, always=False)
    if options.sheet is not None and not options.dry_run:
        draw_sheet(out, user_path(options.sheet) if options.sheet else None)
    if isinstance(done, Changes):
        print(adding.told(done, out, options.dry_run))
    else:
        print("nothing written (--dry-run)" if options.dry_run else f"wrote {out}")
    if options.resume and not options.dry_run:
        shards = "1 finished shard" if done == 1 else f"{done} finished shards"
        print(f"--resume: {shards} of the interrupted packing kept" if done else RESUMED_NOTHING)
    return 0


def _write(source: Source, out: Path, options: argparse.Namespace, workers: int) -> int | Changes:
    with progress("packing", len(source.samples)) as tell:
        if options.append:
            return adding.add(source, out, options, workers, tell)
        return pack(
            source,
            out,
            workers=workers,
            samples_per_shard=options.samples_per_shard,
            shard_mb=options.shard_mb,
            to_png=options.to_png,
            force=options.force,
            resume=options.resume,
            progress=tell,
        )
