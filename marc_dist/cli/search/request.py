"""The search that the words of ``marc-search`` ask for: all that can be checked without torch is checked here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import marc_dist.config as settings
from marc_dist.cli.run_words import encoder_folder, split_files
from marc_dist.cli.search.own_pictures import OwnPicture, own_pictures
from marc_dist.cli.search.query_files import query_files
from marc_dist.cli.search.words import TAKEN
from marc_dist.config import Config, ConfigError, user_path
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.geography.areas import any_of, parse_box, parse_circle, parse_point, read_area
from marc_dist.retrieval.index.spec import parse_spec
from marc_dist.retrieval.index_folder import archive_of, check_index_dir
from marc_dist.retrieval.label_query import LabelQuery, parse_labels
from marc_dist.retrieval.place_filter import PlaceFilter, parse_span, scenes_of
from marc_dist.run.settings import load_run


class Request(NamedTuple):
    """A search that the words ask for.

    Attributes:
        config: settings of the encoder's run, with the words on top.
        folder: where the encoder lies.
        queries: the query pictures; none when only the index is made.
        own: an image of the archive for each query that is one; None for others.
        dataset: the archive.
        index_dir: where vectors and index are kept; None: in the run.
        out: where sheet and page go; None: into a new folder in the run; nowhere with ``json``.
        splits: only these splits of the archive; none: all of it.
        top: answers to a query, 1 or more.
        labels: only images whose labels pass.
        where: only images whose place and date pass.
        json: print one JSON object instead of tables.
    """

    config: Config
    folder: Path
    queries: list[Path]
    own: list[OwnPicture | None]
    dataset: Dataset
    index_dir: Path | None
    out: Path | None
    splits: list[str]
    top: int
    labels: LabelQuery
    where: PlaceFilter
    json: bool


def request_of(options: argparse.Namespace, scratch: Path) -> Request:
    """The search that the words ask for.

    Args:
        options: of the parser.
        scratch: an empty folder for a picture of standard input.

    Raises:
        ConfigError: what cannot work, before anything is computed.
        DataError: no such archive.
    """
    words, settings_words = split_files(options.arguments)
    folder = encoder_folder([options.encoder])
    _check_options(options, words)
    out = None if options.out is None else _folder("--out", options.out)
    index_dir = None if options.index_dir is None else user_path(options.index_dir)
    where, near = _place_filter(options), [(text, parse_point(text)) for text in options.near]
    queries = query_files(words, options.list, scratch)
    known = (folder / "config.yaml").is_file() and (index_dir is None or not (index_dir / "store.json").exists())
    config = _config(folder, options, settings_words, own=known and not options.archive)
    parse_spec(config.eval.index)
    if index_dir is not None:
        check_index_dir(index_dir)
    dataset = open_dataset(options.archive or (config.data.dir if known else archive_of(index_dir)))
    for split in options.split:
        dataset.rows(split)
    labels = parse_labels(options.label, dataset.classes)
    where = replace(where, scenes=scenes_of(options.scene, dataset))
    own = own_pictures(options.like, near, dataset, scratch)
    return Request(
        config,
        folder,
        [*queries, *(one.path for one in own)],
        [*[None] * len(queries), *own],
        dataset,
        index_dir,
        out,
        options.split,
        options.top,
        labels,
        where,
        json=options.json,
    )


def _place_filter(options: argparse.Namespace) -> PlaceFilter:
    """What the words ask about place and time; scenes come with the archive."""
    since, until, spans = parse_span(options.since, options.until)
    kinds = [
        [parse_box(text) for text in options.box],
        [read_area(user_path(text)) for text in options.area],
        [parse_circle(text) for text in options.around],
    ]
    return PlaceFilter(tuple(any_of(areas) for areas in kinds if areas), since, until, (), spans)


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


def _check_options(options: argparse.Namespace, queries: Sequence[str]) -> None:
    if not (queries or options.list or options.like or options.near or options.index_only):
        raise ConfigError("expected a query picture, --list FILE, --like KEY, --near LON,LAT or --index-only")
    given = ("list", "label", "like", "near", "box", "area", "around", "since", "until", "scene", "out", "json")
    if options.index_only and (queries or any(getattr(options, name) for name in given)):
        raise ConfigError(
            "--index-only: makes the index of the whole archive; expected no pictures, and none of "
            f"{', '.join(f'--{name}' for name in given)}"
        )
    if options.top < 1:
        raise ConfigError(f"--top: expected 1 or more, got {options.top}")


def _folder(name: str, text: str) -> Path:
    path = user_path(text)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{name} {path}: a file, expected a folder")
    return path
