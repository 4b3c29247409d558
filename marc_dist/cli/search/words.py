"""The words of ``marc-search``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from marc_dist.cli.command import command_parser

USAGE = """\
ENCODER query.jpg | DIR | - ... [key=value ...] [options]
ENCODER --list FILE [options]
ENCODER --like KEY | --near LON,LAT [options]
ENCODER --index-only [options]"""
EPILOG = """\
The archive is a shard folder (marc-shard makes one of any images). Its vectors
are made once and kept in the run, or in --index-dir. That folder can be copied;
it refuses an encoder that did not make it. Each search writes its contact sheet
and its page into a folder of its own, RUN/search/0001-harbour and so on; of an
archive that knows places, a map is on the page, and search.geojson and
search.parquet (GeoParquet) hold the answers with their footprints and scores.

Filters choose the images before the search, so its answers are the best of
those that pass. All kinds of filters must pass; of a kind that is given several
times (--label aside), one. Longitudes and latitudes are WGS84.

examples:
  marc-search runs/demo harbour.jpg
  marc-search runs/demo harbour.jpg --label 'water and (dock or ship)'
  marc-search runs/demo a.tif more/ --archive data/ml-aid --top 24
  marc-search runs/demo --like t31_0042 --box 5.9,45.8,10.5,47.8
  marc-search runs/demo --near 7.44,46.95 --since 2020-06 --until 2020-08
  find . -name '*.jpg' | marc-search runs/demo --list - --json > answers.json
  marc-search runs/demo --archive data/ml-aid --index-dir indexes/ml-aid \\
              --index IVF256,PQ32 --index-only
  marc-search runs/demo harbour.jpg --index-dir indexes/ml-aid \\
              --index IVF256,PQ32
"""
TAKEN = ("eval.features", "eval.batch", "eval.float16", "data.num_workers", "data.verify_crc", "train.device")
"""Settings that a search takes, or how they begin."""


def parser() -> argparse.ArgumentParser:
    """The words that ``marc-search`` takes."""
    words = command_parser("search", USAGE, EPILOG)
    words.add_argument("encoder", metavar="ENCODER", help="a run folder, or its encoder.safetensors")
    words.add_argument(
        "arguments",
        nargs="*",
        metavar="query.jpg | DIR | - | key=value",
        help="query pictures of any size and kind, folders of them, - for a picture on standard input; settings",
    )
    words.add_argument(
        "--list", metavar="FILE", help="a file of paths of query pictures, one a line; - for standard input"
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
        metavar="NAMES",
        help="only images with this label; and, or, not and brackets join labels; repeated: all must hold",
    )
    where = words.add_argument_group("place and time, of archives that were packed with them")
    where.add_argument("--like", action="append", default=[], metavar="KEY", help="query: this image of the archive")
    where.add_argument(
        "--near",
        action="append",
        default=[],
        metavar="LON,LAT",
        help="query: the image of the archive at this place, or the one nearest to it",
    )
    where.add_argument(
        "--box",
        action="append",
        default=[],
        metavar="W,S,E,N",
        help="only images that lie in this box; W above E: over 180 degrees",
    )
    where.add_argument(
        "--area",
        action="append",
        default=[],
        metavar="FILE",
        help="only images that lie in the polygons of this GeoJSON file",
    )
    where.add_argument(
        "--around",
        action="append",
        default=[],
        metavar="LON,LAT,KM",
        help="only images that lie within so many km of a place",
    )
    where.add_argument("--since", metavar="DATE", help="only images taken then or later: 2020, 2020-06, 2020-06-30")
    where.add_argument("--until", metavar="DATE", help="only images taken then (to its end) or earlier")
    where.add_argument(
        "--scene",
        action="append",
        default=[],
        metavar="NAME",
        help="only images of this scene, * for any text; or of one of several",
    )
    words.add_argument("--index", metavar="SPEC", help="flat, sign, itq64, IVF256,PQ32, ... (eval.index)")
    words.add_argument(
        "--index-dir", metavar="DIR", help="where vectors and index are kept (default: in ENCODER/embeddings)"
    )
    words.add_argument("--index-only", action="store_true", help="make the index and stop")
    words.add_argument(
        "--out",
        metavar="DIR",
        help="where search.png, search.html and, with places, search.geojson and search.parquet go (default: a new "
        "folder in ENCODER/search)",
    )
    words.add_argument("--json", action="store_true", help="print the answers as JSON; no sheet or page unless --out")
    return words


def with_numbers(words: Sequence[str]) -> list[str]:
    """The words, such that argparse takes ``--box -10,35,30,60`` for an option and its value.

    Args:
        words: of the command line.
    """
    out: list[str] = []
    for word in words:
        if out and out[-1] in ("--box", "--near", "--around") and re.match(r"-[\d.]", word):
            out[-1] += f"={word}"
        else:
            out.append(word)
    return out
