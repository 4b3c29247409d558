"""The k-th call of a command fails once: one line and an exit code, the old state whole, the next start goes on.

Here a sample of calls, each with one error. ``failing_campaign.py`` fails all calls with all errors, of those commands,
too, that start other processes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation import failing_calls as fc

NUM = 7
"""Calls of each command that fail here."""
QUICK: dict[str, Callable[[Path], fc.Command]] = {
    "marc-shard": lambda lab: fc.shard(lab, existing=False),
    "marc-shard --force": lambda lab: fc.shard(lab, existing=True),
    "marc-train": fc.train,
    "marc-eval": fc.evaluate,
    "marc-search": fc.search,
    "marc-jobs": fc.jobs,
}


def test_the_commands_are_all_eight_cases(lab: Path) -> None:
    assert [one.name for one in fc.all_commands(lab)] == [*QUICK, "marc-launch", "marc-tune"]


@pytest.mark.parametrize("name", QUICK)
def test_a_call_fails_and_the_next_start_goes_on(name: str, lab: Path) -> None:
    case = fc.Failing(QUICK[name](lab), lab / f"calls-{name}".replace(" ", ""))
    assert case.count > 10
    for at in range(NUM):
        k = 1 + at * (case.count - 1) // (NUM - 1)
        wrong = case.at(k, fc.ERRORS[at % len(fc.ERRORS)])
        assert wrong is None, wrong


@pytest.mark.parametrize("error", [one for one in fc.ERRORS if one != errno.EINTR], ids=errno.errorcode.get)
def test_tensorboard_s_file_fails_and_the_run_goes_on(error: int, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the calls above: its thread fails, and the run ended with a traceback. (A write that is interrupted is
    tried again by Python itself.)"""
    real = fc.Calls.take

    def events_only(calls: fc.Calls, name: str, path: object) -> None:
        place = str(Path(f"/proc/self/fd/{path}").readlink()) if isinstance(path, int) else os.fsdecode(path)  # type: ignore[arg-type]
        if "events.out.tfevents" in place:
            real(calls, name, path)

    root = lab / f"events-{error}"
    root.mkdir()
    command = fc.train(lab)
    command.before(root)
    monkeypatch.setattr(fc.Calls, "take", events_only)
    said = command.start(root, fc.Calls(root, 2, error))
    assert said.code == 0 and "Traceback" not in said.err
    assert "TensorBoard: its file cannot be written" in said.err and "the run goes on without it" in said.err
    assert command.shows(root) is not None


@pytest.mark.parametrize("call", ["scandir", "open"])
def test_checkpoints_that_cannot_be_listed_or_read(call: str, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the calls above: a failing file system was a traceback, not a line."""
    root = lab / f"checkpoints-{call}"
    root.mkdir()
    command = fc.train(lab)
    command.before(root)
    real = fc.Calls.take

    def checkpoints_only(calls: fc.Calls, name: str, path: object) -> None:
        if name == call and not isinstance(path, int) and "checkpoints" in os.fsdecode(path):  # type: ignore[arg-type]
            real(calls, name, path)

    monkeypatch.setattr(fc.Calls, "take", checkpoints_only)
    said = command.start(root, fc.Calls(root, 1, errno.EIO))
    assert said.code in (0, 75) and "Traceback" not in said.err
    assert said.code == 0 or said.err.splitlines()[-1].startswith("marc-train: error: ")
    assert command.start(root).code == 0
