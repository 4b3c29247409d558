"""``marc-search``: the images of an archive that are nearest to a picture, as a table, a contact sheet and a page."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from marc_dist.cli.command import run_command
from marc_dist.cli.search.words import parser, with_numbers
from marc_dist.run.rank_ends import failures_noted


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. torch and FAISS are imported when there is something to search."""
    options = parser().parse_intermixed_args(with_numbers(sys.argv[1:] if argv is None else argv))
    return run_command("marc-search", lambda: _search(options))


def _search(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="marc-search-") as scratch:
        from marc_dist.cli.search import request

        asked = request.request_of(options, Path(scratch))
        with failures_noted():
            from marc_dist.cli.search import run

            return run.search(asked)
