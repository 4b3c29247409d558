"""Simulated time, machines and processes: one of them runs at a time, and a seed says everything that happens.

Code of marc-dist runs here unchanged, as processes of simulated machines. A process gives the others a turn whenever it
sleeps, waits, or is about to touch a file; so another one may do anything between two of its file operations. Threads
carry the processes, since Python functions cannot be left in the middle otherwise, but never two at once: a baton goes
round, and the order is that of simulated time.
"""

from __future__ import annotations

import heapq
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

EPOCH = 1_800_000_000.0
"""What a right clock shows when a story begins, in seconds since 1970."""


class Killed(BaseException):
    """Ends the thread of a process that is dead; no code of marc-dist may catch it."""


class Exit(BaseException):
    """``os._exit``: nothing is tidied up."""


@dataclass(eq=False)
class Node:
    """A machine.

    Attributes:
        name: as its own users call it.
        skew: seconds that its clock is ahead.
        up: whether it has power.
    """

    name: str
    skew: float = 0.0
    up: bool = True
    processes: list[Process] = field(default_factory=list)


@dataclass(eq=False)
class Tasklet:
    """A thread of a process."""

    process: Process
    fn: Callable[[], Any]
    ticket: int = 0  # of what it waits for; older wake-ups are void
    go: threading.Lock | None = None  # set once it runs
    done: bool = False
    quiet: bool = False  # its sleeps may last until a child ends or a signal comes: it only looks at those


@dataclass(eq=False)
class Process:
    """A process of a simulated machine.

    Attributes:
        code: exit code, negative for a signal, once ``alive`` is False.
        crash_after: file operations that it may still do before it is killed; None for no limit.
    """

    name: str
    node: Node
    env: dict[str, str]
    pid: int
    parent: Process | None = None
    dies_with_parent: bool = False
    started: float = 0.0
    alive: bool = True
    code: int | None = None
    frozen: bool = False
    crash_after: int | None = None
    tasklets: list[Tasklet] = field(default_factory=list)
    children: list[Process] = field(default_factory=list)
    handlers: dict[int, Any] = field(default_factory=dict)
    pending: list[int] = field(default_factory=list)
    stashed: list[tuple[Tasklet, int]] = field(default_factory=list)
    files: list[Any] = field(default_factory=list)
    at_end: list[Callable[[Process], None]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Condition:
    """What tasklets wait for."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Tasklet, int]] = []


class _Worker(threading.Thread):
    """A thread that carries one tasklet after another."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="simulated")
        self.go = threading.Lock()
        self.go.acquire()
        self.job: Callable[[], None] | None = None
        self.start()

    def run(self) -> None:
        while True:
            self.go.acquire()
            job = self.job
            if job is None:
                return
            job()


_idle: list[_Worker] = []


class Kernel:
    """The clock, the queue of events, the processes.

    Args:
        seed: of every draw.
    """

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.current: Tasklet | None = None
        self.nodes: dict[str, Node] = {}
        self.story: list[tuple[float, str, str]] = []
        self.faults_seen: list[str] = []
        self.after_event: Callable[[], None] = lambda: None
        self.num_events = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._pid = 1000
        self._back = threading.Lock()
        self._back.acquire()

    # --- time

    def at(self, delay: float, fn: Callable[[], None]) -> None:
        """Call ``fn`` after ``delay`` seconds."""
        self._number += 1
        heapq.heappush(self._queue, (self.now + max(delay, 0.0), self._number, fn))

    def run(self, until: float, enough: Callable[[], bool] = lambda: False) -> bool:
        """Let events happen until nothing is left; False when something still is at that time, or when it is enough."""
        while self._queue:
            if enough():
                return False
            when, _, fn = self._queue[0]
            if when > until:
                return False
            heapq.heappop(self._queue)
            self.now = max(self.now, when)
            fn()
            self.num_events += 1
            self.after_event()
        return True

    def tell(self, text: str) -> None:
        """Add a line to the story."""
        who = self.current.process.name if self.current is not None else "the world"
        where = self.current.process.node.name if self.current is not None else ""
        self.story.append((self.now, f"{where}/{who}" if where else who, text))

    def clock(self) -> float:
        """What the clock of the present machine shows."""
        skew = self.current.process.node.skew if self.current is not None else 0.0
        return EPOCH + self.now + skew

    # --- processes

    def node(self, name: str, skew: float = 0.0) -> Node:
        self.nodes[name] = Node(name, skew)
        return self.nodes[name]

    def spawn(
        self,
        name: str,
        node: Node,
        fn: Callable[[], Any],
        env: dict[str, str] | None = None,
        *,
        parent: Process | None = None,
        dies_with_parent: bool = False,
        delay: float = 0.0,
    ) -> Process:
        """Start a process; ``fn`` returns its exit code, None for 0."""
        self._pid += 1
        process = Process(name, node, dict(env or {}), self._pid, parent, dies_with_parent, self.now)
        if parent is not None:
            parent.children.append(process)
        if not node.up:
            process.alive, process.code = False, -9
            return process
        node.processes.append(process)
        self._tasklet(process, lambda: self._main(process, fn), delay)
        return process

    def thread(self, fn: Callable[[], Any]) -> Tasklet:
        """Start another thread of the present process."""
        assert self.current is not None
        return self._tasklet(self.current.process, fn, 0.0)

    def _tasklet(self, process: Process, fn: Callable[[], Any], delay: float) -> Tasklet:
        tasklet = Tasklet(process, fn)
        process.tasklets.append(tasklet)
        self._wake_later(tasklet, delay)
        return tasklet

    def _main(self, process: Process, fn: Callable[[], Any]) -> None:
        code: int | None
        try:
            code = int(fn() or 0)
        except (Exit, SystemExit) as left:
            code = int(left.args[0]) if left.args and left.args[0] is not None else 0
        except Exception as error:
            code = 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.tell(
                f"traceback: {type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})"
            )
        self.end(process, code)

    def end(self, process: Process, code: int) -> None:
        """A process ends, by itself (its code) or by a signal (negative): files close, locks go, threads unwind."""
        if not process.alive:
            return
        process.alive, process.code = False, code
        process.node.processes.remove(process)
        for file in list(process.files):
            file.dropped()
        for call in process.at_end:
            call(process)
        for child in process.children:
            if child.alive and child.dies_with_parent:
                self.end(child, -9)
        if process.parent is not None:
            self.wake(process.parent)
        for tasklet in process.tasklets:
            if not tasklet.done and tasklet is not self.current:
                tasklet.ticket += 1
                self.at(0.0, lambda tasklet=tasklet, ticket=tasklet.ticket: self._resume(tasklet, ticket))

    def send(self, process: Process, number: int) -> None:
        """A signal."""
        if not process.alive:
            return
        if number == signal.SIGKILL:
            self.end(process, -9)
        elif number not in process.handlers:
            self.end(process, -int(number))
        else:
            process.pending.append(int(number))
            self.wake(process)

    def wake(self, process: Process) -> None:
        """A child ended or a signal came: the main thread, and who looks after children, look up from their sleep."""
        for number, tasklet in enumerate(process.tasklets):
            if process.alive and (number == 0 or tasklet.quiet):
                self._wake_later(tasklet, 0.0)

    def freeze(self, process: Process) -> None:
        process.frozen = True

    def thaw(self, process: Process) -> None:
        process.frozen = False
        for tasklet, ticket in process.stashed:
            self.at(0.0, lambda tasklet=tasklet, ticket=ticket: self._resume(tasklet, ticket))
        process.stashed.clear()

    # --- turns

    def _wake_later(self, tasklet: Tasklet, delay: float) -> None:
        self.at(delay, lambda ticket=tasklet.ticket: self._resume(tasklet, ticket))

    def _resume(self, tasklet: Tasklet, ticket: int) -> None:
        if tasklet.done or ticket != tasklet.ticket:
            return
        if tasklet.process.frozen and tasklet.process.alive:
            tasklet.process.stashed.append((tasklet, ticket))
            return
        if tasklet.go is None:
            if not tasklet.process.alive:
                tasklet.done = True
                return
            worker = _idle.pop() if _idle else _Worker()
            tasklet.go = worker.go
            worker.job = lambda: self._carry(tasklet, worker)
        tasklet.ticket += 1
        self.current = tasklet
        tasklet.go.release()
        self._back.acquire()
        self.current = None

    def _carry(self, tasklet: Tasklet, worker: _Worker) -> None:
        try:
            tasklet.fn()
        except Killed:
            pass
        except Exit as left:  # of a thread beside the main one
            self.end(tasklet.process, int(left.args[0]))
        except Exception as error:
            self.tell(f"traceback in a thread: {type(error).__name__}: {error}")
        tasklet.done = True
        _idle.append(worker)
        self._back.release()

    def _turn(self, tasklet: Tasklet) -> None:
        """Give the baton back, until somebody wakes us."""
        assert tasklet.go is not None
        self._back.release()
        tasklet.go.acquire()

    def live(self) -> Tasklet:
        """The present tasklet; a dead process does nothing any more."""
        assert self.current is not None
        if not self.current.process.alive:
            raise Killed
        return self.current

    def pause(self, delay: float) -> None:
        """Let time pass for the present tasklet; others run meanwhile; signals reach it."""
        tasklet = self.live()
        until = self.now + delay
        if not tasklet.quiet and not tasklet.process.frozen and (not self._queue or self._queue[0][0] > until):
            self.now = until  # nobody has anything to do before
            self._signals(tasklet)
            return
        while True:
            self._wake_later(tasklet, until - self.now)
            self._turn(tasklet)
            self.live()
            self._signals(tasklet)
            if self.now >= until - 1e-9:
                return
            tasklet.ticket += 1

    def sleep(self, delay: float) -> None:
        """``time.sleep``. A quiet process that only looks after children sleeps on until one ends or a signal comes.

        It would have looked every ``delay`` seconds and seen nothing; it wakes where it would have looked next.
        """
        tasklet = self.live()
        if not tasklet.quiet or not tasklet.process.children:
            self.pause(delay)
            return
        began, process = self.now, tasklet.process
        while not process.pending and all(child.alive for child in process.children):
            self._turn(tasklet)
            self.live()
        looks = int((self.now - began) / delay) + 1
        process.facts["looked"] = EPOCH + began + (looks - 1) * delay + process.node.skew
        tasklet.ticket += 1
        tasklet.quiet = False
        self.pause(began + looks * delay - self.now)

    def wait(self, condition: Condition, limit: float | None = None) -> bool:
        """Wait until ``notify``; False after ``limit`` seconds."""
        tasklet = self.live()
        until = None if limit is None else self.now + limit
        while True:
            condition.waiting.append((tasklet, tasklet.ticket))
            if until is not None:
                self._wake_later(tasklet, until - self.now)
            number = tasklet.ticket
            self._turn(tasklet)
            self.live()
            told = (tasklet, number) not in condition.waiting
            condition.waiting = [one for one in condition.waiting if one[0] is not tasklet]
            self._signals(tasklet)
            if told:
                return True
            if until is not None and self.now >= until - 1e-9:
                return False

    def notify(self, condition: Condition) -> None:
        """Wake all that wait."""
        for tasklet, ticket in condition.waiting:
            self.at(0.0, lambda tasklet=tasklet, ticket=ticket: self._resume(tasklet, ticket))
        condition.waiting = []

    def _signals(self, tasklet: Tasklet) -> None:
        process = tasklet.process
        if tasklet is not process.tasklets[0]:
            return
        while process.pending:
            number = process.pending.pop(0)
            handler = process.handlers.get(number)
            if callable(handler):
                handler(number, None)
