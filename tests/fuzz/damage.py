"""What the fuzz tests share: how sound input is damaged, and what may come of it.

For a long run by hand: ``MARC_FUZZ_EXAMPLES=50 pytest tests/fuzz`` (50 times the examples, other ones each time).
"""

from __future__ import annotations

import copy
import faulthandler
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from marc_dist.config import MarcError

FACTOR = int(os.environ.get("MARC_FUZZ_EXAMPLES", "1"))
LIMIT_S = 20
NUMBERS = (-1, 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64, -(2**63), 10**18)
NAMES = (
    "", ".", "..", "../x", "../../etc/x", "/etc/passwd", "/", "a/../../x", "a\0b", "a\nb", "\x1b[2J", "\ud800",
    "x" * 300,
    "a/" * 300, "~", "~nobody-here/x", "é", "con", "a b", "-", "--", "*", "C:\\x", "\\\\x\\y",
)  # fmt: skip
STRANGE: tuple[Any, ...] = (
    *NUMBERS, *NAMES, None, True, 0.5, float("nan"), float("inf"), -1e300, [], {}, [[]], {"a": {}}, ["a", "a"], [None],
)  # fmt: skip


def fuzz(examples: int) -> settings:
    """Settings of a fuzz test: the same examples each time, unless somebody asks for more."""
    return settings(
        max_examples=examples * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def _change(data: bytes, kind: str, where: int, length: int, more: bytes) -> bytes:
    place = where % (len(data) + 1)
    if kind == "cut":
        return data[:place]
    if kind == "drop":
        return data[:place] + data[place + length :]
    if kind == "insert":
        return data[:place] + more + data[place:]
    if kind == "copy":
        return data[:place] + data[place // 2 : place // 2 + length] + data[place:]
    return data[:place] + more[: len(data) - place] + data[place + len(more) :]


def damaged(data: bytes, most: int = 4) -> st.SearchStrategy[bytes]:
    """Bytes that were sound: cut, with holes, insertions, repetitions and other bytes in place of some."""
    numbers = [value.to_bytes(size, order) for value in (0, 1, 127, 128, 255) for size in (1, 4) for order in ENDIAN]
    numbers += [b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0" * 512, b"9" * 11, b"-1"]
    change = st.tuples(
        st.sampled_from(["cut", "drop", "insert", "copy", "put", "put", "put"]),
        st.integers(0, max(1, len(data))) | st.integers(0, min(64, len(data))),
        st.integers(1, 600),
        st.sampled_from(numbers) | st.binary(min_size=1, max_size=8),
    )

    def apply(changes: list[tuple[str, int, int, bytes]]) -> bytes:
        out = data
        for kind, where, length, more in changes:
            out = _change(out, kind, where, length, more)
        return out

    return st.lists(change, min_size=1, max_size=most).map(apply)


ENDIAN: tuple[Any, ...] = ("big", "little")


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(child, (*path, key))


@st.composite
def altered(draw: st.DrawFn, value: Any, most: int = 2) -> Any:
    """A JSON or YAML value of which a part or two is another one, missing, doubled or under another key."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        *path, last = draw(st.sampled_from([place for place in _places(value) if place] or [("none",)]))
        node = value
        for key in path:
            node = node[key]
        kind = draw(st.sampled_from(["put", "put", "put", "drop", "double"]))
        if kind == "put":
            node[last] = copy.deepcopy(draw(st.sampled_from(STRANGE)))
        elif kind == "drop":
            del node[last]
        elif isinstance(node, list):
            node.append(node[last])
        else:
            node[draw(st.sampled_from(NAMES))] = node[last]
        if not value:
            break
    return value


def _stop(number: int, frame: object) -> None:
    raise AssertionError(f"hangs: more than {LIMIT_S} s")


@contextmanager
def in_time() -> Iterator[None]:
    """The block ends soon, or the test fails."""
    before = signal.signal(signal.SIGALRM, _stop)
    signal.alarm(LIMIT_S)
    faulthandler.dump_traceback_later(
        3 * LIMIT_S, exit=True, file=sys.__stderr__
    )  # inside of a library no signal is heard
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def little_memory(megabytes: int = 600) -> Iterator[None]:
    """The block takes no more than so much memory beyond what there is."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 1_000_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def error_of(call: Callable[[], object]) -> str | None:
    """What an error of ours says, or None if there is none; any other error passes through."""
    try:
        with in_time():
            call()
    except MarcError as error:
        assert str(error) and "MemoryError" not in str(error)
        return str(error)
    return None


def run(main: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and error line of a command: 0, or 2 with exactly one line that can be shown."""
    capsys.readouterr()
    try:
        with in_time():
            code = main(words)
    except SystemExit as stop:  # argparse: a usage and a line
        code = int(stop.code or 0)
        return code, capsys.readouterr().err
    error = capsys.readouterr().err
    assert code in (0, 2), code
    assert (code == 2) == bool(error), error
    if error:
        assert error.count("\n") == 1 and error.endswith("\n") and error[:-1].isprintable(), error
        assert "error: " in error and "Traceback" not in error
    return code, error


def snapshot(root: Path) -> dict[str, tuple[int, int, bytes | None]]:
    """Everything below a folder: rights, time and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        state = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[path.relative_to(root).as_posix()] = (state.st_mode, state.st_mtime_ns if path.is_file() else 0, content)
    return found


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
