"""The k-th call of a command to the file system fails, for every k; then the command is started again.

Failed are Python's calls on paths of the command's own folders: open, write, fsync, rename, replace, link, unlink,
mkdir, rmdir, truncate, listdir, scandir. Not failed: ``stat``, reads and writes inside of C libraries, close, other
processes that the command starts.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from marc_dist.config import EXIT_USER, dump_yaml
from marc_dist.config.errors import PASSING
from marc_dist.data.dataset import open_dataset
from marc_dist.encoder.export import load_encoder
from marc_dist.packing.verify import verify
from marc_dist.retrieval.vectors.store import encoder_fingerprint
from marc_dist.run import attempts, evaluations
from marc_dist.run.exit_codes import EXIT_HUNG
from marc_dist.run.folder import METRICS, read_lines
from marc_dist.run.job import Job, write_job
from marc_dist.run.lock_file import read_holder, write_over
from marc_dist.tuning.driver import open_search
from marc_dist.tuning.journal import Journal
from tests.retrieval.runs import make_run
from tests.simulation.crash_protocols import _download, _settings, _tiny

ERRORS = (errno.ENOSPC, errno.EIO, errno.EINTR, errno.EACCES, errno.ESTALE)
PATH_CALLS = (
    "rename",
    "replace",
    "link",
    "symlink",
    "unlink",
    "remove",
    "mkdir",
    "rmdir",
    "truncate",
    "listdir",
    "scandir",
)
FD_CALLS = ("fsync", "fdatasync", "ftruncate", "write")
MOST_ALIKE = 5
"""Calls of one kind that fail, of a command that starts processes: it looks at their files ten times a second."""
OK, MEND, AGAIN = 0, EXIT_USER, EXIT_HUNG


@dataclass
class Calls:
    """Counts the calls on paths under ``root``; one of them ends with ``error``.

    Attributes:
        fails: its number, from 1; or what it is, and how many such calls there were then, itself among them.
        kinds: how often each call came, by function and path without numbers.
        calls: all of them, as ``fails`` names them.
    """

    root: Path
    fails: int | tuple[str, int] = 0
    error: int = errno.EIO
    count: int = 0
    failed: str = ""
    kinds: Counter[str] = field(default_factory=Counter)
    calls: list[tuple[str, int]] = field(default_factory=list)

    def take(self, name: str, path: Any) -> None:
        """One call."""
        try:
            path = str(Path(f"/proc/self/fd/{path}").readlink()) if isinstance(path, int) else os.fsdecode(path)
        except OSError:
            return
        if not os.path.abspath(path).startswith(str(self.root)):
            return
        kind = f"{name} {re.sub('[0-9a-f]{8,}|[0-9]+', 'N', os.path.relpath(path, self.root))}"
        self.count += 1
        self.kinds[kind] += 1
        self.calls.append((kind, self.kinds[kind]))
        if self.fails in (self.count, self.calls[-1]):
            self.failed = f"{name} {path}"
            raise OSError(self.error, os.strerror(self.error), *([] if name in FD_CALLS else [path]))


@contextmanager
def failing(calls: Calls) -> Iterator[None]:
    """Count, and fail one."""
    real_open, real_os_open = io.open, os.open

    def through(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("dir_fd") is None:
                calls.take(name, path)
            else:
                calls.take(name, Path(f"/proc/self/fd/{kwargs['dir_fd']}").readlink() / os.fsdecode(path))
            return call(path, *args, **kwargs)

        return wrapped

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            calls.take("write", self.fileno())
            return super().write(data)

        def truncate(self, size: int | None = None) -> int:
            calls.take("ftruncate", self.fileno())
            return super().truncate(size)

    def python_open(file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None,
                    errors: str | None = None, newline: str | None = None, closefd: bool = True,
                    opener: Any = None) -> Any:  # fmt: skip
        calls.take("open", file)
        if not set(mode) & set("wax+"):
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = File(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        binary = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline, buffering == 1)

    with pytest.MonkeyPatch.context() as patch:
        for name in PATH_CALLS + FD_CALLS:
            patch.setattr(os, name, through(name, getattr(os, name)))
        patch.setattr(os, "open", through("open", real_os_open))
        for module in (io, builtins):
            patch.setattr(module, "open", python_open)
        yield


class Said(NamedTuple):
    """How a command ended."""

    code: int | str
    out: str
    err: str


@dataclass(frozen=True)
class Command:
    """One command on a folder of its own.

    Attributes:
        name: of the case.
        main: its entry point.
        words: its words, for a folder.
        shows: what the folder shows; None while there is nothing.
        before: what is there before.
        next_words: of the next start; as ``words`` by default.
        processes: it starts others, which takes seconds.
    """

    name: str
    main: Callable[[Sequence[str]], int]
    words: Callable[[Path], list[str]]
    shows: Callable[[Path], Hashable]
    before: Callable[[Path], None] = lambda root: None
    next_words: Callable[[Path], list[str]] | None = None
    processes: bool = False

    def start(self, root: Path, calls: Calls | None = None, *, again: bool = False) -> Said:
        """Run it in this process."""
        out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
        code: int | str
        with redirect_stdout(out), redirect_stderr(err):
            words = (self.next_words if again and self.next_words else self.words)(root)
            try:
                if calls is None:
                    code = self.main(words)
                else:
                    with failing(calls):
                        code = self.main(words)
            except SystemExit as end:
                code = str(end.code)
            except BaseException:
                code = traceback.format_exc()
        return Said(code, *(one.buffer.getvalue().decode(errors="replace") for one in (out, err)))  # type: ignore[attr-defined]


def shard(lab: Path, *, existing: bool) -> Command:
    """``marc-shard``, into a new folder or in place of an older one."""
    from marc_dist.cli.shard import main

    def words(root: Path, version: int = 2) -> list[str]:
        source = ["--source", str(_download(lab, version)), "--samples-per-shard", "3", "--workers", "1"]
        return ["--dataset", "folder", *source, "--out", str(root / "out"), "--force"]

    def before(root: Path) -> None:
        if existing:
            assert main(words(root, 1)) == 0

    def shows(root: Path) -> Hashable:
        if not (root / "out").exists():
            return None
        assert not [fault for report in verify(root / "out") for fault in report.faults]
        return open_dataset(root / "out").fingerprint

    return Command("marc-shard --force" if existing else "marc-shard", main, words, shows, before)


def train(lab: Path) -> Command:
    """``marc-train``: four steps, two of them saved."""
    from marc_dist.cli.train import main

    def before(root: Path) -> None:
        words = {"data.dir": str(_tiny(lab)), "train.epochs": 2, "train.global_batch": 15, "train.log_every": 1}
        config = _settings(root / "run", **words, **{"train.checkpoint_every": 2, "optim.name": "sgd"})
        (root / "run.yaml").write_text(dump_yaml(config))

    def shows(root: Path) -> Hashable:
        if not (root / "run" / "encoder.json").exists():
            return None
        steps = [line["step"] for line in read_lines(root / "run" / METRICS)]
        return encoder_fingerprint(load_encoder(root / "run")[0]), tuple(steps)

    return Command("marc-train", main, lambda root: [str(root / "run.yaml")], shows, before)


def evaluate(lab: Path) -> Command:
    """``marc-eval``, over an older evaluation."""
    from marc_dist.cli.eval import main

    def words(root: Path, gain: str = "jaccard") -> list[str]:
        return [str(root / "run"), f"eval.gain={gain}", "eval.baseline=false", "--no-report"]

    def before(root: Path) -> None:
        make_run(root / "run", open_dataset(_tiny(lab)))
        assert main(words(root, "count")) == 0

    def shows(root: Path) -> Hashable:
        summary, rows = evaluations.read(root / "run" / "eval" / "test_vs_train")
        return hashlib.sha256(repr((summary, rows)).encode()).hexdigest()

    return Command("marc-eval", main, words, shows, before)


def search(lab: Path) -> Command:
    """``marc-search`` with an index folder and a page."""
    from marc_dist.cli.search import main
    from tests import downloads

    def words(root: Path) -> list[str]:
        places = ["--archive", str(_tiny(lab)), "--index-dir", str(root / "index"), "--out", str(root / "found")]
        return [str(root / "run"), str(root / "query.png"), *places]

    def before(root: Path) -> None:
        make_run(root / "run", open_dataset(_tiny(lab)))
        downloads.save(downloads.picture(3, (20, 20)), root / "query.png")

    def shows(root: Path) -> Hashable:
        if not (root / "found" / "search.html").exists():
            return None
        return hashlib.sha256((root / "found" / "search.png").read_bytes()).hexdigest()

    return Command("marc-search", main, words, shows, before)


def jobs(lab: Path) -> Command:
    """``marc-jobs`` on a folder with two runs."""
    from marc_dist.cli.jobs import main

    def before(root: Path) -> None:
        for name in ("a", "b"):
            make_run(root / name, open_dataset(_tiny(lab)))
            job = Job(kind="local", arguments=["-m", "x"], submitted_at=1.0, host="h", user="u")
            write_job(root / name, job)
            attempts.begin_attempt(root / name, job.attempt(0), ["h"])
            attempts.end_attempt(root / name, job.attempt(0), 0, None, False, "done")

    def shows(root: Path) -> Hashable:
        return tuple((path.name, path.stat().st_size) for path in sorted(root.rglob("*")))

    return Command("marc-jobs", main, lambda root: ["list", str(root)], shows, before)


def launch(lab: Path) -> Command:
    """``marc-launch local``: the launcher's own calls fail, not those of its rank."""
    from marc_dist.cli.launch import main

    run = train(lab)
    return Command(
        "marc-launch", main, lambda root: ["local", str(root / "run.yaml")], run.shows, run.before, processes=True
    )


def tune(lab: Path) -> Command:
    """``marc-tune --executor local``: the search's own calls fail, not those of its trials."""
    from marc_dist.cli.tune import main

    def words(root: Path) -> list[str]:
        where = ["--executor", "local", "--out", str(root / "search"), "--resume"]
        return ["smoke", str(root / "run.yaml"), "--trials", "1", *where]

    def shows(root: Path) -> Hashable:
        if not (root / "search" / "best.yaml").exists():
            return None
        found = open_search(root / "search", Journal(root / "search"))
        return found.over, tuple(repr(run.curve("mAP")) for run in found.runs.values())

    return Command("marc-tune", main, words, shows, train(lab).before, processes=True)


def all_commands(lab: Path) -> list[Command]:
    """All of them; ``lab`` is a folder for what they need."""
    quick = [shard(lab, existing=False), shard(lab, existing=True), train(lab), evaluate(lab), search(lab), jobs(lab)]
    return [*quick, launch(lab), tune(lab)]


class Failing:
    """A command, undisturbed once, ready to fail at any call.

    Attributes:
        aims: calls that may fail, as ``Calls.fails`` names them: all, by number; of a command that starts processes, by
            their kind, ``MOST_ALIKE`` of each, since their number depends on how fast those are.
        count: of them.
    """

    def __init__(self, command: Command, place: Path) -> None:
        self.command, self.root, self.saved = command, place / "root", place / "before"
        self.root.mkdir(parents=True)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            command.before(self.root)
        shutil.copytree(self.root, self.saved)
        self.old = self._shows()
        calls = Calls(self.root)
        said = command.start(self.root, calls)
        assert said.code == OK, said
        self.new = self._shows()
        self.aims: list[int | tuple[str, int]] = list(range(1, calls.count + 1))
        if command.processes:
            self.aims = [one for one in calls.calls if one[1] <= MOST_ALIKE]
        self.count = len(self.aims)

    def _shows(self) -> Hashable:
        return self.command.shows(self.root)

    def _reset(self) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(self.saved, self.root)

    def at(self, k: int, error: int) -> str | None:
        """What is wrong when the k-th call fails; None when nothing is."""
        self._reset()
        calls = Calls(self.root, self.aims[k - 1], error)
        said = self.command.start(self.root, calls)
        if not calls.failed:
            return None  # it did not come to this call: fewer processes, or faster ones
        where = f"{self.command.name}: call {k} of {self.count} ({calls.failed}) fails with {errno.errorcode[error]}: "
        if said.code not in (OK, AGAIN if error in PASSING else MEND, MEND):
            return f"{where}exit code {str(said.code)[-1500:]}; {said.err[-500:]}"
        if "Traceback" in said.err + said.out:
            return f"{where}{said.err[-1500:]}"
        name = self.command.name.split()[0]
        last = said.err.strip().splitlines()[-1:]
        if said.code != OK and not (last and last[0].startswith(f"{name}: error: ")):
            return f"{where}exit code {said.code}, last line {last}"
        try:
            shown = self._shows()
        except Exception as trouble:
            return f"{where}then the folder cannot be read: {trouble}"
        if shown not in (self.old, self.new) and self.command.name != "marc-jobs":
            return f"{where}then the folder shows {shown!r:.200}"
        _as_if_ended(self.root / "run")
        said = self.command.start(self.root, again=True)
        if said.code != OK:
            return f"{where}the next start ends with {str(said.code)[-1500:]}: {said.err[-500:]}"
        last_shown = self._shows()
        return None if last_shown == self.new else f"{where}after the next start it shows {last_shown!r:.200}"


def _as_if_ended(run: Path) -> None:
    """The command ran in this process, which lives on; one that failed does not: what it left names another process."""
    job = run / "job.json"
    if job.is_file():
        told = json.loads(job.read_text())
        told["id"] = told["id"] and f"{told['id'].rpartition(':')[0]}:1"  # started at another time
        job.write_text(json.dumps(told))
    held = read_holder(run)
    if held is not None:
        write_over(run, held._replace(ticks=1, pid=_gone()))


def _gone() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid
