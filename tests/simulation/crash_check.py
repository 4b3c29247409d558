"""Record a protocol, build every folder that a crash may leave, open each, and let the next run go on with it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from marc_dist.packing import publish
from tests.simulation.crash_protocols import Protocol
from tests.simulation.crash_recorder import Mark, Trace, recording
from tests.simulation.crash_states import Rules, State, crash_states, undisturbed

EVERY = 1
"""By default every state is opened, and every ``AGAIN``-th gone on with."""
AGAIN = 5


class Checked(NamedTuple):
    """What became of one protocol under one set of rules."""

    protocol: str
    rules: Rules
    operations: int
    states: int
    gone_on: int
    seconds: float
    faults: list[str]

    @property
    def line(self) -> str:
        """For people."""
        found = f"{len(self.faults)} faults" if self.faults else "sound"
        return (
            f"{self.protocol:18} {self.rules:6} {self.operations:4} operations {self.states:6} states "
            f"{self.gone_on:5} gone on  {self.seconds:5.1f} s  {found}"
        )


def check(
    protocol: Protocol, rules: Rules, place: Path, *, every: int = EVERY, again: int = AGAIN, faults: int = 3
) -> Checked:
    """Every ``every``-th state is opened, every ``again``-th of these gone on with; at most ``faults`` are listed."""
    began = time.monotonic()
    root = place / "root"
    with _file_system(rules):
        trace = _record(protocol, root)
        values = list(_values(protocol, trace, root))
        found: list[str] = []
        opened = gone_on = 0
        for number, state in enumerate(crash_states(trace, rules)):
            if number % every:
                continue
            goes_on = opened % again == 0
            opened += 1
            gone_on += goes_on
            wrong = _wrong(protocol, state, values, root, goes_on=goes_on)
            if wrong is not None:
                before = trace.ops[state.at - 1] if state.at else "nothing"
                found.append(f"{protocol.name}, {rules}, after operation {state.at} ({str(before)[:120]}): {wrong}")
                if len(found) >= faults:
                    break
    shutil.rmtree(root)
    return Checked(protocol.name, rules, len(trace.ops), opened, gone_on, time.monotonic() - began, found)


@contextmanager
def _file_system(rules: Rules) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if rules == "nfs":  # it has no RENAME_EXCHANGE
            patch.setattr(publish, "_exchange", lambda one, two: False)
        yield


def _record(protocol: Protocol, root: Path) -> Trace:
    root.mkdir()
    protocol.before(root)
    with recording(root) as recorder:
        for number, step in enumerate(protocol.steps, 1):
            step(root)
            recorder.mark(number)
    return recorder.trace


def _values(protocol: Protocol, trace: Trace, root: Path) -> Iterator[Hashable]:
    """What the folder shows before the first step and after each, undisturbed."""
    for done in range(len(protocol.steps) + 1):
        marks = (at for at, op in enumerate(trace.ops, 1) if isinstance(op, Mark) and op.number == done)
        write_folder(root, undisturbed(trace, next(marks, 0)))
        yield protocol.observe(root)


def write_folder(root: Path, paths: dict[str, bytes | None]) -> None:
    """Make a folder what ``paths`` says, and nothing else."""
    shutil.rmtree(root)
    root.mkdir()
    for name, content in paths.items():  # a folder comes before what is in it
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)


def _wrong(protocol: Protocol, state: State, values: list[Hashable], root: Path, *, goes_on: bool) -> str | None:
    write_folder(root, state.paths)
    try:
        shown = protocol.observe(root)
    except Exception as error:
        return f"cannot be read: {type(error).__name__}: {error}"
    known = values[state.acknowledged : state.acknowledged + 2]
    between = protocol.between is not None and str(shown) == f"{protocol.between}: {values[state.acknowledged]}"
    if not protocol.cache and shown not in known and not between:
        return f"shows {shown!r:.200}, expected one of {known!r:.300}"
    if not goes_on:
        return None
    write_folder(root, state.paths)
    try:
        protocol.again(root)
        last = protocol.observe(root)
    except Exception as error:
        return f"cannot go on: {type(error).__name__}: {error}"
    return None if last == values[-1] else f"after the next run it shows {last!r:.200}, expected {values[-1]!r:.200}"
