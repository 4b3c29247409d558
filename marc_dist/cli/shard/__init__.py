"""``marc-shard``: a benchmark as downloaded -> WebDataset shards with an index."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from marc_dist.cli.command import run_command
from marc_dist.cli.shard.words import check_words, read_words


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. Readers of pictures and tables are imported once the words are sound."""
    options = read_words(argv)
    return run_command("marc-shard", lambda: _shard(options))


def _shard(options: argparse.Namespace) -> int:
    check_words(options)
    from marc_dist.cli.shard import run

    return run.shard(options)
