"""The query pictures that words name: files, folders of files, a list of paths, standard input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from marc_dist.config import ConfigError, DataError, user_path
from marc_dist.packing.reading.names import PICTURE_ENDS

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def query_files(words: Sequence[str], list_file: str | None, scratch: Path) -> list[Path]:
    """The pictures, in the order of the words; those of a folder by name.

    Args:
        words: paths of pictures or folders; ``-`` is a picture on standard input.
        list_file: a file of paths, one a line, relative to where the command runs; ``-`` is standard input.
        scratch: an empty folder for the picture of standard input.

    Raises:
        ConfigError: a path that is not there, a web address, a folder or list without pictures, standard input twice.
        DataError: the list cannot be read.
    """
    if (list_file == "-") + list(words).count("-") > 1:
        raise ConfigError("-: standard input is one thing, a picture or a list; expected one -")
    found = [path for word in words for path in _pictures(word, scratch)]
    if list_file is not None:
        listed = [line for line in _lines(list_file) if line.strip()]
        if not listed:
            raise ConfigError(f"--list {list_file}: no paths in it; expected one a line")
        found += [path for line in listed for path in _pictures(line, scratch, listed=True)]
    return found


def _pictures(word: str, scratch: Path, *, listed: bool = False) -> Iterable[Path]:
    if word == "-" and not listed:
        return [_standard_input(scratch)]
    if ADDRESS.match(word):
        raise ConfigError(f"{word}: an address, expected a file; fetch it first, as with curl -O {word}")
    path = user_path(word)
    if path.is_dir():
        inside = sorted(one for one in path.iterdir() if one.is_file() and re.fullmatch(PICTURE_ENDS, one.suffix[1:]))
        if not inside:
            raise ConfigError(f"{path}: a folder without pictures")
        return inside
    if not path.is_file():
        raise ConfigError(f"{path}: no such picture")
    return [path]


def _standard_input(scratch: Path) -> Path:
    if sys.stdin.isatty():
        raise ConfigError("-: expected a picture on standard input, as in marc-search runs/demo - < harbour.jpg")
    path = scratch / "standard-input"
    path.write_bytes(sys.stdin.buffer.read())
    return path


def _lines(list_file: str) -> list[str]:
    if list_file == "-":
        return [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines()]
    path = user_path(list_file)
    try:
        return [os.fsdecode(line) for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise DataError(f"--list {path}: cannot be read ({error.strerror})") from None
