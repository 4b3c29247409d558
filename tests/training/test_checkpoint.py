"""Checkpoints: whole or absent, checked, the previous one in reserve."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from marc_dist.config import DataError, LaunchError
from marc_dist.training import checkpoint as module
from marc_dist.training.checkpoint import checkpoint_path, load_checkpoint, newest_checkpoint, save_checkpoint
from tests.worlds import fork_server


def _payload(value: float, size: int = 4) -> dict[str, Any]:
    return {"model": {"w": torch.full((size,), value)}, "epoch": 0}


def _newest(run: Path) -> tuple[int | None, list[str]]:
    said: list[str] = []
    path = newest_checkpoint(run, said.append)
    return (None if path is None else load_checkpoint(path)["step"]), said


def test_keeps_the_newest_and_reads_them_back(tmp_path: Path) -> None:
    assert _newest(tmp_path) == (None, [])
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, _payload(float(step)), keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{s:08d}.pt{end}" for s in (2, 10) for end in ("", ".sha256")]
    path = newest_checkpoint(tmp_path, print)
    assert path is not None
    assert torch.equal(load_checkpoint(path)["model"]["w"], torch.full((4,), 10.0))


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "no sum", "empty sum"])
def test_a_damaged_newest_gives_the_one_before_and_says_so(tmp_path: Path, damage: str) -> None:
    for step in (3, 4):
        path = save_checkpoint(tmp_path, step, _payload(float(step)), keep=3)
    data = bytearray(path.read_bytes())
    side = path.with_suffix(".pt.sha256")
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-10])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no sum":
        side.unlink()
    else:
        side.write_text("")
    step, said = _newest(tmp_path)
    assert step == 3
    assert len(said) == 1 and "step-00000004.pt" in said[0] and "trying the one before" in said[0]
    save_checkpoint(tmp_path, 4, _payload(5.0), keep=3)  # the run comes by again and replaces the damaged one
    assert _newest(tmp_path) == (4, [])


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, _payload(1.0), keep=1).write_bytes(b"x")
    with pytest.raises(DataError, match="all 1 checkpoints are damaged"):
        _newest(tmp_path)


def test_no_code_is_run_from_a_checkpoint(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    path = save_checkpoint(tmp_path, 3, {"model": Evil()}, keep=1)
    with pytest.raises(DataError, match="not a checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()


def test_other_formats_and_renamed_files_are_told(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, _payload(1.0), keep=1)
    other = path.rename(checkpoint_path(tmp_path, 30))
    with pytest.raises(DataError, match="holds step 3; the file was renamed"):
        load_checkpoint(other)
    torch.save({"format": 99, "step": 3}, path)
    with pytest.raises(DataError, match="expected checkpoint format 1, got 99"):
        load_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(DataError, match="got 'list'"):
        load_checkpoint(path)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 3, _payload(1.0), keep=1)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LaunchError, match="No space left on device"):
        save_checkpoint(tmp_path, 4, _payload(2.0), keep=1)
    monkeypatch.undo()
    assert _newest(tmp_path) == (3, [])
    assert not list((tmp_path / "checkpoints").glob(".*.tmp"))


def _killed_at(run: Path, call: int) -> None:
    """Save step 4, killed by the kernel at the n-th system call of the write."""
    calls = 0

    def count(real: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return wrapped

    os.fsync = count(os.fsync)
    Path.replace = count(Path.replace)  # type: ignore[method-assign]
    Path.unlink = count(Path.unlink)  # type: ignore[method-assign]
    save_checkpoint(run, 4, _payload(4.0), keep=1)
    os._exit(0)


def test_killed_at_any_point_of_a_write_something_whole_is_left(tmp_path: Path) -> None:
    context = fork_server()
    steps, ended = [], False
    for call in range(1, 20):
        run = tmp_path / str(call)
        save_checkpoint(run, 3, _payload(3.0), keep=1)
        process = context.Process(target=_killed_at, args=(run, call))
        process.start()
        process.join()
        step, said = _newest(run)
        steps.append(step)
        assert said == []
        save_checkpoint(run, 5, _payload(5.0), keep=1)  # the next start is not disturbed by what is left
        assert _newest(run) == (5, [])
        assert not list((run / "checkpoints").glob(".*.tmp"))
        ended = process.exitcode == 0
        if ended:
            break
        assert process.exitcode == -signal.SIGKILL
    assert ended and set(steps) == {3, 4} and steps == sorted(steps)


def test_saving_where_it_was_resumed_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 3, _payload(1.0), keep=1)
    monkeypatch.setattr(module, "write_atomic", None)
    save_checkpoint(tmp_path, 3, _payload(1.0), keep=1)
