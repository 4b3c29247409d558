"""The words of ``marc-search``, and the search that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import marc_dist.config as settings
from marc_dist.cli.command import command_parser
from marc_dist.cli.run_words import encoder_folder, split_files
from marc_dist.config import ConfigError, user_path
from marc_dist.run.settings import load_run

if TYPE_CHECKING:
    from marc_dist.config import Config

USAGE = """\
ENCODER query.jpg ... [key=value ...] [options]
ENCODER --index-only [options]"""
EPILOG = """\
The archive is a shard folder (marc-shard makes one of any images). Its vectors
are made once and kept in the run, or in --index-dir. That folder can be copied;
it refuses an encoder that did not make it.

examples:
  marc-search runs/demo harbour.jpg
  marc-search runs/demo a.tif b.png --archive data/ml-aid --top 24 \\
              --label water --label dock
  marc-search runs/demo --archive data/ml-aid --index-dir indexes/ml-aid \\
              --index IVF256,PQ32 --index-only
  marc-search runs/demo harbour.jpg --index-dir indexes/ml-aid \\
              --index IVF256,PQ32
"""
TAKEN = ("eval.features", "eval.batch", "eval.float16", "data.num_workers", "data.verify_crc", "train.device")


class Request(NamedTuple):
    """A search that the words ask for.

    Attributes:
        config: settings of the encoder's run, with the words on top.
        folder: where the encoder lies.
        queries: the query pictures; none when only the index is made.
        archive_dir: shard folder to search; None where the index folder knows it.
        index_dir: where vectors and index are kept; None: in the run.
        out: where sheet and page go.
        splits: only these splits of the archive; none: all of it.
        top: answers to a query, 1 or more.
        labels: only images that carry all of them.
    """

    config: Config
    folder: Path
    queries: list[Path]
    archive_dir: str | None
    index_dir: Path | None
    out: Path
    splits: list[str]
    top: int
    labels: list[str]


def parser() -> argparse.ArgumentParser:
    """The words that ``marc-search`` takes."""
    words = command_parser("search", USAGE, EPILOG)
    words.add_argument("encoder", metavar="ENCODER", help="a run folder, or its encoder.safetensors")
    words.add_argument(
        "arguments",
        nargs="*",
        metavar="query.jpg | key=value",
        help="query pictures of any size and kind, then any number of settings",
    )
    words.add_argument("--archive", metavar="DIR", help="shard folder to search (default: the run's own)")
    words.add_argument(
        "--split", action="append", default=[], metavar="NAME", help="search only this split; may be repeated"
    )
    words.add_argument("--top", type=int, default=12, metavar="K", help="answers to each query (default: 12)")
    words.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME",
        help="only images that carry this label; repeated: all of the labels",
    )
    words.add_argument("--index", metavar="SPEC", help="flat, sign, itq64, IVF256,PQ32, ... (eval.index)")
    words.add_argument(
        "--index-dir", metavar="DIR", help="where vectors and index are kept (default: in ENCODER/embeddings)"
    )
    words.add_argument("--index-only", action="store_true", help="make the index and stop")
    words.add_argument("--out", metavar="DIR", help="where search.png and search.html go (default: ENCODER/search)")
    return words


def request_of(options: argparse.Namespace) -> Request:
    """The search that the words ask for.

    Raises:
        ConfigError: what cannot work, before anything is computed.
    """
    queries, words = split_files(options.arguments)
    folder = encoder_folder([options.encoder])
    paths, out, index_dir = _paths(options, queries, folder)
    known = (folder / "config.yaml").is_file() and (index_dir is None or not (index_dir / "store.json").exists())
    config = _config(folder, options, words, own=known and not options.archive)
    archive_dir = options.archive or (config.data.dir if known else None)
    return Request(config, folder, paths, archive_dir, index_dir, out, options.split, options.top, options.label)


def _config(folder: Path, options: argparse.Namespace, words: Sequence[str], *, own: bool) -> Config:
    """Settings of the run, the words and the options on top; ``own``: the run's own data is searched."""
    strange = [word.partition("=")[0] for word in words if not word.startswith(TAKEN)]
    if strange:
        settings.load_config(None, words)  # a misspelt key is reported as such
        raise ConfigError(f"{strange[0]}: marc-search takes {', '.join(TAKEN)}")
    given = {} if options.index is None else {"eval.index": options.index}
    if not (folder / "config.yaml").is_file():
        return settings.load_config(None, words, place=given)
    return load_run(folder, words, needed=("data.dir",) if own else (), place=given)


def _paths(options: argparse.Namespace, queries: Sequence[str], folder: Path) -> tuple[list[Path], Path, Path | None]:
    """The query pictures, where the sheet goes, and the index folder."""
    if not queries and not options.index_only:
        raise ConfigError("expected a query picture, or --index-only")
    if options.index_only and (queries or options.label or options.out):
        raise ConfigError("--index-only: makes the index of the whole archive; expected no pictures, --label or --out")
    if options.top < 1:
        raise ConfigError(f"--top: expected 1 or more, got {options.top}")
    paths = [user_path(query) for query in queries]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{path}: no such picture")
    out = folder / "search" if options.out is None else user_path(options.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: a file, expected a folder")
    return paths, out, None if options.index_dir is None else user_path(options.index_dir)
