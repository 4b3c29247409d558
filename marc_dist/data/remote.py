"""Where the tars of a data set are to be had, and a stream of one that neither stalls for ever nor outlives its reader.

Paths are opened; ``https://`` goes through curl, ``s3://`` and ``gs://`` through their vendors' commands, ``pipe:``
through the shell. A command runs in a session of its own, so that all of a pipeline can be ended. ``pipe:`` comes from
the user's own settings alone: a file's name, whatever it is, is opened as a file.
"""

from __future__ import annotations

import glob
import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlparse

from marc_dist.config import Config, ConfigError, DataError, user_path
from marc_dist.data.dataset import Dataset
from marc_dist.data.loader_pool import END_PRIORITY

COMMANDS = {
    "https": ("curl", "-fsSL", "--connect-timeout", "20"),
    "http": ("curl", "-fsSL", "--connect-timeout", "20"),
    "s3": ("aws", "s3", "cp", "{}", "-"),
    "gs": ("gcloud", "storage", "cat"),
}
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
END_S = 10.0  # what a command may take to end by itself when its output has ended
_running: set[int] = set()
_at_exit: list[Finalize] = []


def shard_urls(config: Config, dataset: Dataset, shards: Sequence[int]) -> dict[int, str]:
    """Where each of some shards is to be had: an absolute path, a URL or a ``pipe:`` command.

    Args:
        config: ``data.urls``; empty = the files beside the index.
        dataset: names the shards.
        shards: numbers of the shards that are wanted.

    Raises:
        ConfigError: a pattern that matches no file, an entry of no shard of the data set, a shard with none or several.
    """
    if not config.data.urls:
        return {shard: str((dataset.root / dataset.shards[shard]).absolute()) for shard in shards}
    found: dict[int, str] = {}
    for number, pattern in enumerate(config.data.urls, start=1):
        for url in _expanded(pattern):
            shard = _shard_of(url, dataset, number)
            if found.setdefault(shard, url) != url:
                raise ConfigError(f"data.urls: {dataset.shards[shard]}: expected one place, got two; remove one")
    missing = [dataset.shards[shard] for shard in shards if shard not in found]
    if missing:
        raise ConfigError(
            f"data.urls: expected one for each of {len(shards)} shards of {config.data.train_split}, got none for "
            f"{len(missing)} of them, the first {missing[0]}"
        )
    return {shard: found[shard] for shard in shards}


def _expanded(pattern: str) -> Iterator[str]:
    """A command keeps its braces and backslashes, but for ``{000..004}``; a path becomes absolute."""
    import braceexpand

    if pattern.startswith("pipe:"):
        yield from _ranges(pattern)
        return
    for url in braceexpand.braceexpand(pattern, escape=False):
        if "://" in url:
            scheme = url.split("://")[0]
            if scheme not in COMMANDS:
                known = ", ".join(f"{name}://" for name in COMMANDS)
                raise ConfigError(f"data.urls: {scheme}://: expected a path, {known} or pipe:COMMAND")
            yield url
        else:
            paths = sorted(glob.glob(str(user_path(url))))  # noqa: PTH207  (Path.glob takes no absolute pattern)
            if not paths:
                raise ConfigError(f"data.urls: {url}: no such file")
            yield from (str(Path(path).absolute()) for path in paths)


def _ranges(text: str) -> Iterator[str]:
    import braceexpand

    found = re.search(r"\{\d+\.\.\d+\}", text)
    if found is None:
        yield text
        return
    for number in braceexpand.braceexpand(found.group()):
        yield from _ranges(f"{text[: found.start()]}{number}{text[found.end() :]}")


def _shard_of(url: str, dataset: Dataset, number: int) -> int:
    """The one shard whose file name a place ends with, or a command contains."""
    if url.startswith("pipe:"):
        named = [i for i, name in enumerate(dataset.shards) if re.search(rf"(?<![\w.-]){re.escape(name)}(?!\w)", url)]
    else:
        last = PurePosixPath(url if url.startswith("/") else urlparse(url).path).name
        named = [i for i, name in enumerate(dataset.shards) if name == last]
    if len(named) != 1:
        got = "none" if not named else " and ".join(dataset.shards[i] for i in named)
        raise ConfigError(
            f"data.urls: entry {number}, {printable_url(url)}: expected the name of one shard of {dataset.name}, "
            f"got {got}"
        )
    return named[0]


def printable_url(url: str) -> str:
    """A place without its secrets: no user, no query, no command."""
    if url.startswith("pipe:"):
        return "a pipe: command"
    if url.startswith("/"):
        return url
    parts = urlparse(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


class TarStream:
    """The bytes of a tar, from wherever it is.

    Args:
        url: as ``shard_urls`` gives it.
        size: bytes that the tar has; more are refused, so that no stream can fill the memory.
        stall_s: longest wait for the next bytes, seconds.

    Raises:
        OSError: the file cannot be opened, or the command not started.
    """

    def __init__(self, url: str, size: int, stall_s: float) -> None:
        self._left, self._stall_s, self._first = size, stall_s, True
        self._process: subprocess.Popen[bytes] | None = None
        if url.startswith("/"):
            self._file: IO[bytes] = Path(url).open("rb", buffering=0)
            return
        scheme = url.split(":")[0]
        command: str | list[str] = url.removeprefix("pipe:")
        if scheme != "pipe":
            words = COMMANDS[scheme]
            command = [word.format(url) for word in words] + [url] * ("{}" not in words)
        if not _at_exit:  # a loader process that ends takes its commands with it
            _at_exit.append(Finalize(None, _end_all, exitpriority=END_PRIORITY))
        self._process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        _running.add(self._process.pid)
        assert self._process.stdout is not None, "asked for"
        self._file = self._process.stdout

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end.

        Raises:
            DataError: no bytes for too long, more than the tar has, a compressed one, a command that failed.
        """
        if self._process is not None and not select.select([self._file], [], [], self._stall_s)[0]:
            raise DataError(f"no bytes for {self._stall_s:.0f} s")
        data = self._file.read(size)
        if self._first and data.startswith(PACKED):
            raise DataError("compressed, expected a plain tar; unpack it with a pipe: command")
        self._first = False
        self._left -= len(data)
        if self._left < 0:
            raise DataError("longer than the shard that dataset.json lists")
        if not data and self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(END_S)
                if code:
                    raise DataError(f"its command ended with exit code {code}")
        return data

    def close(self) -> None:
        """End it, and every process of its command."""
        self._file.close()
        if self._process is not None:
            _end(self._process.pid)
            self._process.wait()
            _running.discard(self._process.pid)


def _end(session: int) -> None:
    with suppress(OSError):
        os.killpg(session, signal.SIGKILL)


def _end_all() -> None:
    for session in list(_running):
        _end(session)
    _running.clear()
