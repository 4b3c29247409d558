"""The built-in sample, packed when a command has no other data to begin with."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from marc_dist.cli import shard
from marc_dist.config import Config, DataConfig, DataError


def pack_sample(config: Config) -> None:
    """Pack the sample where ``data.dir`` has its default, and nothing lies there; says so.

    Raises:
        DataError: it cannot be packed.
    """
    folder = Path(config.data.dir)
    if config.data.dir == DataConfig().dir and not folder.exists():
        print(f"packing the built-in sample into {folder}", flush=True)
        with redirect_stdout(StringIO()):  # its tables are for who packs it to see it
            code = shard.main(["--dataset", "sample", "--out", str(folder)])
        if code:
            raise DataError(f"{folder}: the built-in sample could not be packed")
