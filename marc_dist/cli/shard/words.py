"""The words of ``marc-shard``: what they are, and what they may be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from marc_dist.cli.command import command_parser
from marc_dist.config import ConfigError
from marc_dist.config.suggest import suggestion

USAGE = """\
--dataset NAME --source DIR_OR_ARCHIVE [--out DIR] [options]
--inspect DIR_OR_ARCHIVE > mine.yaml
--list | --info NAME | --schema
--verify DIR | --leaks DIR | --sheet DIR"""
EPILOG = """\
examples:
  marc-shard --list                          the data sets that marc-shard knows
  marc-shard --info whdld                    where to get one, what it contains
  marc-shard --dataset whdld --source ~/Downloads/WHDLD.zip    -> data/whdld
  marc-shard --dataset dlrsd --source DLRSD --source UCMerced_LandUse
  marc-shard --dataset folder --source my_pictures --out data/mine
                                             pictures + labels.csv, or one
                                             folder for each class
  marc-shard --inspect my_pictures > mine.yaml
                                             what lies there, and a recipe
                                             to edit; then --dataset mine.yaml
  marc-shard --dataset whdld --source ~/Downloads/WHDLD.zip --resume
                                             after a crash, go on from there
  marc-shard --dataset folder --source my_pictures --out data/mine --append
                                             later: add what is new there
  marc-shard --verify data/whdld             read back and check every byte
  marc-shard --sheet data/whdld              draw pictures of each class:
                                             data/whdld/sheet.png
  marc-shard --leaks data/whdld              list pictures that look alike:
                                             data/whdld/leaks.csv
  marc-shard --dataset whdld --source ~/Downloads/WHDLD.zip --drop-leaks
                                             train on none that is in test
"""
WHAT = ("dataset", "list", "info", "inspect", "schema", "verify", "leaks")
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
    "class_names",
    "bands",
    "no_place",
)


def parser() -> argparse.ArgumentParser:
    """The words that ``marc-shard`` takes."""
    words = command_parser("shard", USAGE, EPILOG)
    things = words.add_argument_group("what to do (one of them)")
    what = things.add_mutually_exclusive_group()
    what.add_argument("--dataset", metavar="NAME", help="pack: a name of --list, or a path to a recipe's YAML file")
    what.add_argument("--list", action="store_true", help="list the recipes")
    what.add_argument("--info", metavar="NAME", help="show one recipe: source, layout, classes, splits")
    what.add_argument(
        "--inspect",
        metavar="DIR_OR_ARCHIVE",
        help="say what lies in a folder or archive, and print the recipe that would pack it",
    )
    what.add_argument("--schema", action="store_true", help="print the keys of a recipe, each with its meaning")
    what.add_argument("--verify", metavar="DIR", help="check a shard folder: structure, checksums, labels, pictures")
    what.add_argument(
        "--leaks",
        metavar="DIR",
        help="look in a shard folder for equal and nearly equal pictures, in one split and across; lists them in "
        "DIR/leaks.csv (packing does this at its end)",
    )
    things.add_argument(
        "--sheet",
        nargs="?",
        const="",
        metavar="DIR",
        help="draw some pictures of each class of a shard folder into DIR/sheet.png; with --dataset: of what was "
        "packed, into the PNG file that follows, or into sheet.png beside the shards",
    )
    where = words.add_argument_group("from where to where")
    where.add_argument(
        "--source", action="append", default=[], metavar="DIR_OR_ARCHIVE", help="the download; may be repeated"
    )
    where.add_argument("--out", metavar="DIR", help="shard folder to make (default: data/NAME)")
    where.add_argument("--force", action="store_true", help="replace an existing shard folder")
    where.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted packing: keep its finished shards if pictures, labels and options are the same "
        "(each is checked), write the rest; if this one is interrupted, its finished shards stay for the next --resume",
    )
    adding = words.add_argument_group("adding to a shard folder")
    adding.add_argument(
        "--append",
        action="store_true",
        help="compare the download with the folder, picture by picture, and pack only what is new or another; shards "
        "of which nothing changed are kept to the byte. Pictures keep their split; those that the download lacks stay",
    )
    adding.add_argument(
        "--remove",
        metavar="FILE",
        help="with --append: take out the pictures with these keys, one a line (-: stdin); needs no --source",
    )
    adding.add_argument(
        "--remove-missing", action="store_true", help="with --append: take out pictures that the download lacks"
    )
    adding.add_argument(
        "--add-classes", action="store_true", help="with --append: let new classes come after those of the folder"
    )
    how = words.add_argument_group("how")
    how.add_argument(
        "--labels",
        type=lambda word: {"file": "table", "mask": "masks", "folder": "folders"}.get(word, word),
        choices=["auto", "table", "masks", "folders"],
        default="auto",
        help="where labels come from: auto, table (or file), masks (or mask), folders (or folder)",
        metavar="KIND",
    )
    how.add_argument("--table", "--csv", metavar="FILE", help="label table that does not lie in the download")
    how.add_argument(
        "--separator", metavar="MARK", help="what stands between names in a `labels` column (default: ; | , or blank)"
    )
    how.add_argument(
        "--index-order",
        metavar="NAME",
        help="a table of the recipe: which pixel value is which class, for masks without a palette",
    )
    how.add_argument("--classes", metavar="A,B,...", help="class list, in order, of a recipe that has none")
    how.add_argument(
        "--to-png", action="store_true", help="store every picture as PNG (for data that mixes JPEG, PNG and TIFF)"
    )
    how.add_argument(
        "--allow", metavar="CHECK,...", default="", help=f"go on although these checks fail: {', '.join(CHECKS)}"
    )
    how.add_argument(
        "--samples-per-shard", type=int, default=1000, metavar="N", help="samples in a full shard (default: 1000)"
    )
    how.add_argument(
        "--shard-mb", type=float, metavar="MB", help="megabytes of pictures in a shard (default: no limit)"
    )
    looks = how.add_mutually_exclusive_group()
    looks.add_argument(
        "--drop-leaks",
        action="store_true",
        help="leave out pictures of train that look like one of another split, and pictures of val that look like one "
        "of test; never one of test. dropped_leaks.csv lists them",
    )
    looks.add_argument("--no-leaks", action="store_true", help="do not look for pictures that look alike")
    how.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one for each core)")
    how.add_argument("--dry-run", action="store_true", help="read and check the download, write nothing")
    return words


def read_words(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options on a command line; without one that says what to do, it ends here with the usage.

    Args:
        argv: the words, or None for those of the process.
    """
    words = parser()
    options = words.parse_args(argv)
    if not any(getattr(options, name) for name in WHAT) and not options.sheet:
        words.error(f"one of the arguments {' '.join(f'--{name}' for name in (*WHAT, 'sheet'))} is required")
    return options


def check_words(options: argparse.Namespace) -> None:
    """Refuse words that no packing could follow.

    Raises:
        ConfigError: names the option and what it may be.
    """
    if options.sheet is not None and not options.dataset and any(getattr(options, name) for name in WHAT):
        raise ConfigError("--sheet: goes with --dataset, or alone with a shard folder; leave one of the two out")
    if options.dataset and options.sheet and not options.sheet.lower().endswith(".png"):
        raise ConfigError(f"--sheet: expected the name of a PNG file, such as classes.png, got {options.sheet}")
    if options.sheet is not None and options.dry_run:
        raise ConfigError("--sheet: --dry-run writes nothing that could be drawn; leave one of the two out")
    for word in ("append", "remove", "remove_missing", "add_classes", "drop_leaks", "no_leaks", "resume"):
        if getattr(options, word) and not options.dataset:
            raise ConfigError(f"--{word.replace('_', '-')}: expected together with --dataset and --source")
    if not (options.dataset or options.inspect):
        return
    allowed_checks(options.allow)
    _check_adding(options)
    if options.samples_per_shard < 1:
        raise ConfigError(f"--samples-per-shard: expected 1 or more, got {options.samples_per_shard}")
    if options.workers < 0:
        raise ConfigError(f"--workers: expected 0 (every core) or more, got {options.workers}")
    if options.shard_mb is not None and not 0 < options.shard_mb < 1e9:
        raise ConfigError(f"--shard-mb: expected megabytes above 0, got {options.shard_mb}")


def _check_adding(options: argparse.Namespace) -> None:
    if options.append and (options.force or options.resume):
        other = "--force" if options.force else "--resume"
        raise ConfigError(f"--append: expected without {other}; an interrupted --append is simply started again")
    if options.append and options.drop_leaks:
        raise ConfigError("--append: expected without --drop-leaks; pack all of it again with --force --drop-leaks")
    for word in ("remove", "remove_missing", "add_classes"):
        if getattr(options, word) and not options.append:
            raise ConfigError(f"--{word.replace('_', '-')}: expected together with --append")


def allowed_checks(text: str) -> list[str]:
    """The checks that ``--allow`` names.

    Raises:
        ConfigError: there is no such check.
    """
    names = [name.strip().replace("-", "_") for name in text.split(",") if name.strip()]
    for name in names:
        if name not in CHECKS:
            raise ConfigError(
                f"--allow: no check named {name!r}{suggestion(name, CHECKS)}; there are {', '.join(CHECKS)}"
            )
    return names
