"""The words of ``marc-search``."""

from __future__ import annotations

import argparse

from marc_dist.cli.command import command_parser

USAGE = """\
ENCODER query.jpg | DIR | - ... [key=value ...] [options]
ENCODER --list FILE [options]
ENCODER --index-only [options]"""
EPILOG = """\
The archive is a shard folder (marc-shard makes one of any images). Its vectors
are made once and kept in the run, or in --index-dir. That folder can be copied;
it refuses an encoder that did not make it. Each search writes its contact sheet
and its page into a folder of its own, RUN/search/0001-harbour and so on.

examples:
  marc-search runs/demo harbour.jpg
  marc-search runs/demo harbour.jpg --label 'water and (dock or ship)'
  marc-search runs/demo a.tif more/ --archive data/ml-aid --top 24
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
    words.add_argument("--index", metavar="SPEC", help="flat, sign, itq64, IVF256,PQ32, ... (eval.index)")
    words.add_argument(
        "--index-dir", metavar="DIR", help="where vectors and index are kept (default: in ENCODER/embeddings)"
    )
    words.add_argument("--index-only", action="store_true", help="make the index and stop")
    words.add_argument(
        "--out", metavar="DIR", help="where search.png and search.html go (default: a new folder in ENCODER/search)"
    )
    words.add_argument("--json", action="store_true", help="print the answers as JSON; no sheet or page unless --out")
    return words
