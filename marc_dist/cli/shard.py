"""``marc-shard``: a benchmark as downloaded -> WebDataset shards with an index."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from marc_dist.data.checks import Source

EXAMPLES = """examples:
  marc-shard --list                                                  the data sets that it knows
  marc-shard --info whdld                                            where to get one, what is expected inside
  marc-shard --dataset whdld --source ~/Downloads/WHDLD.zip          -> data/whdld
  marc-shard --dataset dlrsd --source DLRSD --source UCMerced_LandUse --out /data/dlrsd
  marc-shard --dataset folder --source my_pictures --out data/mine   pictures + labels.csv, or one folder a class
  marc-shard --dataset whdld --source ~/Downloads/WHDLD.zip --resume    the same after a crash, where it stopped
  marc-shard --verify data/whdld                                     read back and check every byte
"""
RESUMED_NOTHING = "--resume: nothing was left that could be kept; packed from the start"
CHECKS = (
    "counts",
    "label_counts",
    "size",
    "missing",
    "surplus",
    "doubled",
    "empty_labels",
    "label_range",
    "duplicates",
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marc-shard",
        description="Turn a multi-label image data set, as downloaded, into WebDataset tar shards with an index.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to do (one of them)").add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", metavar="NAME", help="recipe: a name of --list, or a path to a recipe's YAML file")
    what.add_argument("--list", action="store_true", help="list the recipes")
    what.add_argument("--info", metavar="NAME", help="show one recipe: source, layout, classes, splits")
    what.add_argument("--verify", metavar="DIR", help="check a shard folder: structure, checksums, labels, pictures")
    where = parser.add_argument_group("from where to where")
    where.add_argument(
        "--source", action="append", default=[], metavar="DIR_OR_ARCHIVE", help="the download; may be given twice"
    )
    where.add_argument("--out", metavar="DIR", help="shard folder to make (default: data/NAME)")
    where.add_argument("--force", action="store_true", help="replace an existing shard folder")
    where.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted packing: keep its finished shards if pictures, labels and options are the same "
        "(each is checked), write the rest; if this one is interrupted, its finished shards stay for the next --resume",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--labels",
        type=lambda word: {"file": "table", "mask": "masks", "folder": "folders"}.get(word, word),
        choices=["auto", "table", "masks", "folders"],
        default="auto",
        help="where labels come from: auto, table (or file), masks (or mask), folders (or folder)",
        metavar="KIND",
    )
    how.add_argument("--table", "--csv", metavar="FILE", help="label table that does not lie in the download")
    how.add_argument("--separator", metavar="MARK", help="between names in a `labels` column (default: ; | , or blank)")
    how.add_argument("--index-order", metavar="NAME", help="index table of masks that have no palette")
    how.add_argument("--classes", metavar="A,B,...", help="class list, in order, of a recipe that has none")
    how.add_argument("--to-png", action="store_true", help="store every picture as PNG (a set of several kinds)")
    how.add_argument("--allow", metavar="CHECK,...", default="", help=f"go on although these fail: {', '.join(CHECKS)}")
    how.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="samples of a full shard (1000)")
    how.add_argument("--shard-mb", type=float, metavar="MB", help="megabytes of pictures in a shard (no limit)")
    how.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: every core)")
    how.add_argument("--dry-run", action="store_true", help="read and check the download, write nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. ``--help`` is answered before anything of ours is imported."""
    options = _parser().parse_args(argv)
    from marc_dist.cli.common import run_command

    return run_command("marc-shard", lambda _: _main(options), argv)


def _main(options: argparse.Namespace) -> int:
    if options.list:
        return _list()
    if options.info:
        return _info(options.info)
    if options.verify:
        return _verify(Path(options.verify))
    with _termination_as_interrupt():
        return _pack(options)


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


def _list() -> int:
    from rich import print as show
    from rich.table import Table

    from marc_dist.config import list_presets
    from marc_dist.data.recipes import load_recipe

    table = Table("name", "title", "classes", "labels from", box=None)
    for name in list_presets("shards"):
        recipe = load_recipe(name)
        table.add_row(name, recipe.title, str(len(recipe.classes) or "yours"), ", ".join(recipe.labels))
    show(table)
    return 0


def _info(name: str) -> int:
    from rich.console import Console
    from rich.markup import escape

    from marc_dist.data.recipes import load_recipe

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


def _verify(path: Path) -> int:
    from rich import print as show
    from rich.markup import escape
    from rich.table import Table

    from marc_dist.config import DataError
    from marc_dist.data.verify import verify

    with _bar() as bar:
        task = bar.add_task("reading", total=None, rate="")
        reports = verify(path, lambda name: bar.update(task, description=f"reading {name}"))
    table = Table("shard", "samples", "MB", "state", box=None)
    for report in reports:
        state = f"[red]{escape(report.faults[0])}[/]" if report.faults else "sound"
        table.add_row(report.name, str(report.num_samples), f"{report.size / 1e6:.1f}", state)
    show(table)
    bad = [f"{report.name}: {fault}" for report in reports for fault in report.faults]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DataError(f"{path}: damaged: {bad[0]}{more}; pack again with marc-shard --force")
    return 0


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


def _pack(options: argparse.Namespace) -> int:
    from marc_dist.config import ConfigError, user_path
    from marc_dist.data.download import opened
    from marc_dist.data.recipes import load_recipe
    from marc_dist.data.sources import read_source

    recipe = load_recipe(options.dataset)
    allow = _allowed(options.allow)
    _ranges(options)
    if options.separator:
        recipe = recipe.model_copy(update={"separator": options.separator})
    out = user_path(options.out or f"data/{recipe.name}")
    workers = options.workers or os.cpu_count() or 1
    classes = [name.strip() for name in options.classes.split(",")] if options.classes else None
    if classes and recipe.classes:
        raise ConfigError(f"--classes: recipe {recipe.name} has its own class list")
    places = [user_path(place) for place in options.source]
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
        )
        kept = 0 if options.dry_run else _write(source, out, options, workers)
    _summary(source, out, options.dry_run)
    if options.resume and not options.dry_run:
        shards = "1 finished shard" if kept == 1 else f"{kept} finished shards"
        print(f"--resume: {shards} of the interrupted packing kept" if kept else RESUMED_NOTHING)
    return 0


def _ranges(options: argparse.Namespace) -> None:
    from marc_dist.config import ConfigError

    if options.samples_per_shard < 1:
        raise ConfigError(f"--samples-per-shard: expected 1 or more, got {options.samples_per_shard}")
    if options.workers < 0:
        raise ConfigError(f"--workers: expected 0 (every core) or more, got {options.workers}")
    if options.shard_mb is not None and not 0 < options.shard_mb < 1e9:
        raise ConfigError(f"--shard-mb: expected megabytes above 0, got {options.shard_mb}")


def _allowed(text: str) -> list[str]:
    from marc_dist.config import ConfigError
    from marc_dist.config.suggest import suggestion

    names = [name.strip().replace("-", "_") for name in text.split(",") if name.strip()]
    for name in names:
        if name not in CHECKS:
            raise ConfigError(
                f"--allow: no check named {name!r}{suggestion(name, CHECKS)}; there are {', '.join(CHECKS)}"
            )
    return names


def _write(source: Source, out: Path, options: argparse.Namespace, workers: int) -> int:
    import time

    from marc_dist.data.pack import pack

    start = time.monotonic()
    with _bar() as bar:
        task = bar.add_task("packing", total=len(source.samples), rate="")

        def progress(samples: int, size: int) -> None:
            seconds = max(time.monotonic() - start, 1e-3)
            rate = f"{samples / seconds:,.0f} samples/s, {size / seconds / 1e6:.1f} MB/s"
            bar.update(task, completed=samples, rate=rate)

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


def _summary(source: Source, out: Path, dry_run: bool) -> None:
    from collections import Counter

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    splits = list(dict.fromkeys(sample.split for sample in source.samples))
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
    end = "nothing written (--dry-run)" if dry_run else f"wrote {out}"
    console.print(end, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    raise SystemExit(main())
