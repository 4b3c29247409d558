"""Loader processes: tasks in, results out, in order; none outlives its main process, none takes its signals."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from multiprocessing import active_children, forkserver, resource_tracker, util
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from marc_dist.config import DataError, LaunchError, MarcError
from marc_dist.memory_limits import SHM, memory_refused, shm_room

T = TypeVar("T")
END_PRIORITY = 20
"""Of a ``multiprocessing.util.Finalize`` that must run however a worker ends, short of ``kill -9``."""
DYING_S = 1.0
"""A worker's connections break this much earlier, at most, than it is known to have ended."""
NO_SHM = ("unable to allocate shared memory", "unable to write to file </torch_", "unable to open shared memory")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Tasks(TorchDataset[Any]):
    """What a worker computes; an error that belongs to a person travels as a value, not as a wrapped traceback."""

    def __getitem__(self, task: tuple[int, ...]) -> Any:
        try:
            return self.build(*task)
        except MarcError as error:
            return error

    def build(self, *task: int) -> Any:
        """The result of one task."""
        raise AssertionError("overridden")


_POOLS: WeakSet[Pool[Any]] = WeakSet()


class _Schedule(Sampler[tuple[int, ...]]):
    """The tasks of the coming pass; workers live on between passes, so the tasks come from here and not from them."""

    def __init__(self) -> None:
        self.tasks: Sequence[tuple[int, ...]] = ()

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


def start_worker(_: int) -> None:
    """A job's stop signals are the main process's business; a worker ends when its main process does.

    torch watches the parent instead, which here is the fork server, and that lives as long as any worker does.
    """
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, lambda *_: _leave())
    threading.Thread(target=_end_with_main, daemon=True).start()


def _end_with_main() -> None:
    main = multiprocessing.parent_process()
    assert main is not None, "only workers watch"
    main.join()
    _leave()


def _leave() -> None:
    """End a worker in the middle of whatever it does, and what it has started with it."""
    util._run_finalizers(END_PRIORITY)  # type: ignore[attr-defined]
    os._exit(1)


def _kill(workers: list[Any]) -> None:
    """For workers that nobody closed: they ignore the SIGTERM that multiprocessing sends (and then waits for ever)."""
    for worker in workers:
        if worker.is_alive():
            os.kill(worker.pid, signal.SIGHUP)
    for worker in workers:
        worker.join(1.0)
        worker.kill()


def server_lives() -> bool:
    """Whether the fork server of this process is there: without it no worker starts, and none is known to live."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is None:
        return False
    try:  # a zombie has ended, too
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return not Path("/proc/self/stat").exists()


def _cause(error: Exception) -> str:
    """The last line of a worker's traceback, which torch puts into the message; else the message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def kill_workers() -> None:
    """Kill the workers of all pools of this process, frozen ones as well: for a process that ends on the spot."""
    for pool in list(_POOLS):
        for worker in pool._workers:
            with suppress(OSError):
                os.kill(worker.pid, signal.SIGKILL)


def _ready_to_send(result: Any) -> Any:
    """A result whose tensors lie where the main process will see them.

    Left to itself, multiprocessing moves them there in a thread that can tell nobody when there is no room: the main
    process would wait for ever.
    """
    if get_worker_info() is not None:
        for tensor in _tensors(result):
            if tensor.numel():
                tensor.share_memory_()  # type: ignore[no-untyped-call]
    return result


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for part in result:
            yield from _tensors(part)
    elif is_dataclass(result):
        for field in fields(result):
            yield from _tensors(getattr(result, field.name))


def worker_context(preload: Sequence[str] = ("marc_dist.data.loader",)) -> Any:
    """Fork server: a plain fork would copy a process in which gloo's or CUDA's threads hold locks, and a spawned
    worker would import torch anew. The server is born with the stop signals blocked, or it would take the workers
    with it when a whole process group is signalled; a signal that reaches this process meanwhile comes a little later.

    Args:
        preload: modules that the server imports before it forks; the first call of a process decides.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    resource_tracker.ensure_running()  # it would unblock SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class _QuietLoader(DataLoader[Any]):
    def check_worker_number_rationality(self) -> None:
        """No warning about more workers than cores: their number is a setting."""


class Pool(Generic[T]):
    """Runs tasks in order, in this process or in workers that stay alive between passes."""

    def __init__(self, tasks: Tasks, num_workers: int) -> None:
        self.schedule = _Schedule()
        workers: dict[str, Any] = {}
        if num_workers:
            workers = {
                "multiprocessing_context": worker_context(),
                "persistent_workers": True,
                "worker_init_fn": start_worker,
            }
        self._loader: _QuietLoader | None = _QuietLoader(
            tasks,
            batch_size=None,
            sampler=self.schedule,
            num_workers=num_workers,
            collate_fn=_ready_to_send,
            generator=torch.Generator(),  # its own: starting workers must not move the run's generator
            **workers,
        )

        self._workers: list[Any] = []
        _POOLS.add(self)
        Finalize(self, _kill, (self._workers,), exitpriority=10)  # before multiprocessing waits for its children

    def run(self, tasks: Sequence[tuple[int, ...]]) -> Iterator[T]:
        """Results in the order of ``tasks``."""
        assert self._loader is not None, "closed"
        self.schedule.tasks = tasks
        before = set(active_children())
        results = iter(self._loader)  # starts the workers, the first time
        self._workers += [child for child in active_children() if child not in before]
        try:
            for result in results:
                if isinstance(result, MarcError):
                    raise result
                yield result
        except (RuntimeError, OSError, EOFError, MemoryError) as error:  # OSError, EOFError while memory is taken over
            if self._workers:
                wait([worker.sentinel for worker in self._workers], DYING_S)
            raise self._told(error) from None

    def _told(self, error: Exception) -> Exception:
        """One line on loader processes that failed, for people; anything else as it is."""
        cause = _cause(error)
        room = shm_room()
        if any(words in cause for words in NO_SHM) and room is not None:
            return LaunchError(
                f"{SHM} holds {room.limit / 1e6:.0f} MB, too little for the batches that loader processes pass through "
                "it; give it more (docker run --shm-size=8g; Kubernetes: an emptyDir of medium Memory mounted there), "
                "or lower data.num_workers, or load in the main process: data.num_workers=0"
            )
        refused = memory_refused(MemoryError(cause)) if "MemoryError" in str(error) else memory_refused(error)
        if refused is not None:
            return LaunchError(f"loader process: {refused}")
        if self._workers and not server_lives():
            return LaunchError(
                "the server of the loader processes (multiprocessing's fork server, a child of this one) has ended: "
                "somebody killed it, or there was no memory left; start the same command again to go on, with "
                f"data.num_workers={max(0, len(self._workers) - 1)} if it comes back"
            )
        dead = [worker for worker in self._workers if not worker.is_alive()]
        if not dead:
            return error
        names = ", ".join(f"{worker.pid} (exit code {worker.exitcode})" for worker in dead)
        killed = any((worker.exitcode or 0) < 0 for worker in dead)
        why = "mostly for want of memory or of room in /dev/shm" if killed else "see its own message above"
        return DataError(
            f"loader process {names} ended by itself, {why}; try data.num_workers={max(0, len(self._workers) - 1)}"
        )

    def close(self) -> None:
        """End the workers."""
        # A private name of torch, because dropping the loader is not as safe: a suspended ``run`` holds its iterator,
        # and for workers that are killed before they are signed off torch raises in whatever the main thread does.
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
        _kill([worker for worker in self._workers if worker.is_alive()])
        self._workers.clear()
        self._loader = None
