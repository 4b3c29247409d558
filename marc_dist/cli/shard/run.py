"""What ``marc-shard`` does: list and show recipes, pack a download, verify a shard folder."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import print as rich_print
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from marc_dist.cli.shard import adding
from marc_dist.cli.shard.words import allowed_checks
from marc_dist.config import ConfigError, DataError, list_presets, user_path
from marc_dist.packing.append import Changes
from marc_dist.packing.inspection import inspect
from marc_dist.packing.layout import split_order
from marc_dist.packing.pack import pack
from marc_dist.packing.reading.recipes import Recipe, load_recipe, schema_text
from marc_dist.packing.reading.samples import Source
from marc_dist.packing.reading.source import read_source
from marc_dist.packing.reading.unpack import opened
from marc_dist.packing.verify import verify

RESUMED_NOTHING = "--resume: nothing was left that could be kept; packed from the start"


def shard(options: argparse.Namespace) -> int:
    """Do what the words ask for; the exit code.

    Raises:
        ConfigError: a word that the recipe cannot follow.
        DataError: a fault in the download or the shard folder.
    """
    if options.list:
        return _list_recipes()
    if options.info:
        return _show_recipe(options.info)
    if options.schema:
        print(schema_text(Recipe), end="")
        return 0
    if options.verify:
        return _verify(Path(options.verify))
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
    with tempfile.TemporaryDirectory() as beside, opened(recipe, [place], Path(beside)) as roots:
        text = inspect(roots, recipe, name, workers=options.workers or os.cpu_count() or 1, foreign=options.to_png)
    for root in roots:
        text = text.replace(str(root), str(place))
    print(text, end="")
    return 0


def _verify(path: Path) -> int:
    with _bar() as bar:
        task = bar.add_task("reading", total=None, rate="")
        reports = verify(path, lambda name: bar.update(task, description=f"reading {name}"))
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


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


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
    with opened(recipe, places, out.parent) as roots:
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
        )
        done = 0 if options.dry_run and not options.append else _write(source, out, options, workers)
    end = "nothing written (--dry-run)" if options.dry_run else f"wrote {out}"
    if isinstance(done, Changes):
        end = adding.told(done, out, options.dry_run)
    _summary(source, end)
    if options.resume and not options.dry_run:
        shards = "1 finished shard" if done == 1 else f"{done} finished shards"
        print(f"--resume: {shards} of the interrupted packing kept" if done else RESUMED_NOTHING)
    return 0


def _write(source: Source, out: Path, options: argparse.Namespace, workers: int) -> int | Changes:
    start = time.monotonic()
    with _bar() as bar:
        task = bar.add_task("packing", total=len(source.samples), rate="")

        def progress(samples: int, size: int) -> None:
            seconds = max(time.monotonic() - start, 1e-3)
            rate = f"{samples / seconds:,.0f} samples/s, {size / seconds / 1e6:.1f} MB/s"
            bar.update(task, completed=samples, rate=rate)

        if options.append:
            return adding.add(source, out, options, workers, progress)
        return pack(
            source,
            out,
            workers=workers,
            samples_per_shard=options.samples_per_shard,
            shard_mb=options.shard_mb,
            to_png=options.to_png,
            force=options.force,
            resume=options.resume,
            progress=progress,
        )


def _summary(source: Source, end: str) -> None:
    console = Console()
    splits = sorted({sample.split for sample in source.samples}, key=split_order)
    console.print(f"[bold]{escape(source.recipe.title)}[/]: pictures per class", soft_wrap=True, highlight=False)
    table = Table("class", *splits, box=None)
    counts = Counter((label, sample.split) for sample in source.samples for label in sample.labels)
    for label, name in enumerate(source.classes):
        table.add_row(escape(name), *(str(counts[label, split]) for split in splits))
    total = Counter(sample.split for sample in source.samples)
    table.add_row("[bold]all[/]", *(f"[bold]{total[split]}[/]" for split in splits))
    console.print(table)
    for warning in source.warnings:
        console.print(f"[yellow]note[/] {escape(warning)}", soft_wrap=True, highlight=False)
    console.print(end, soft_wrap=True, highlight=False)
