"""The process behind one mirror: ``python -m marc_dist.training.trackers.process NAME RUN_DIR RUN_PID``.

Standard input brings messages, a JSON object a line. Standard output is the run's own voice, one line a matter; what
the libraries print goes into RUN/logs/NAME.log.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from marc_dist.config import Config, first_line, flatten, load_config, printable
from marc_dist.files import read_json, write_atomic

RETRY_S = 60.0
"""Between two tries to reach a tracker."""
ANSWER_S = 5.0
"""Longest wait for W&B's server, before the run goes on offline."""
LEFT_S = 60.0
"""A process whose run is over or gone ends by itself after this time, even from a call that hangs."""
LOOK_S = 1.0
"""Between two looks whether the run is still there."""


class Tracker(Protocol):
    """What a tracker can do."""

    def open(self) -> None:
        """Begin a run there, or go on with it; called again when it failed."""

    def log(self, step: int, at: float, figures: dict[str, float]) -> None:
        """Take the figures of one step.

        Args:
            step: global step.
            at: seconds since 1970.
            figures: by name; all finite.
        """

    def close(self, done: bool) -> None:
        """End the run there: done, or stopped before its end."""


class Wandb:
    """Weights & Biases; offline where its server does not answer.

    Args:
        run_dir: the run folder; offline files lie in its folder ``wandb``.
        config: the run's settings.
        say: takes one line for people.
    """

    def __init__(self, run_dir: Path, config: Config, say: Callable[[str], None]) -> None:
        self._run_dir, self._config, self._say = run_dir, config, say
        self._run: Any = None

    def open(self) -> None:
        """See ``Tracker.open``."""
        mode = os.environ.get("WANDB_MODE")
        reason = None if mode else _unreachable(self._host())
        try:
            self._run = self._begin("offline" if reason else None)
        except Exception as error:
            if mode or reason:
                raise
            reason = first_line(error)  # no key, most of all
            self._run = self._begin("offline")
        if self._run.offline:
            why = f" ({reason})" if reason else ""
            self._say(f"offline{why}; to upload later: wandb sync {self._run_dir}/wandb/offline-run-*")

    @staticmethod
    def _host() -> str:
        """The server of W&B's settings: of its files, which ``wandb login --host`` writes, or of the environment."""
        import wandb

        return str(wandb.setup(wandb.Settings(silent=True)).settings.base_url)

    def _begin(self, mode: Any) -> Any:
        import wandb

        return wandb.init(
            project=self._config.train.tracker_project,
            id=_remembered(self._run_dir, "wandb", lambda: uuid.uuid4().hex[:8]),
            resume="allow",
            name=self._run_dir.name,
            dir=str(self._run_dir),
            config=_plain(self._config),
            allow_val_change=True,  # a run may go on with other harmless settings
            mode=mode,
            settings=wandb.Settings(console="off", silent=True, init_timeout=30),
        )

    def log(self, step: int, at: float, figures: dict[str, float]) -> None:
        """See ``Tracker.log``."""
        self._run.log(figures, step=step)

    def close(self, done: bool) -> None:
        """See ``Tracker.close``."""
        self._run.finish(exit_code=0 if done else 1)


class Mlflow:
    """MLflow: the server of MLFLOW_TRACKING_URI, or a database in the run folder.

    Args:
        run_dir: the run folder.
        config: the run's settings.
        say: takes one line for people.
    """

    def __init__(self, run_dir: Path, config: Config, say: Callable[[str], None]) -> None:
        self._run_dir, self._config, self._say = run_dir, config, say
        self._client: Any = None
        self._id = ""

    def open(self) -> None:
        """See ``Tracker.open``."""
        # MLflow's defaults: seven tries of two minutes each, and usage data sent to its makers at each import
        for name, value in (("HTTP_REQUEST_MAX_RETRIES", 2), ("HTTP_REQUEST_TIMEOUT", 10), ("DISABLE_TELEMETRY", True)):
            os.environ.setdefault(f"MLFLOW_{name}", str(value))
        import mlflow

        folder = self._run_dir / "mlruns"
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            folder.mkdir(exist_ok=True)
        client = mlflow.MlflowClient(uri or f"sqlite:///{folder}/mlflow.db")
        self._id = _remembered(self._run_dir, "mlflow", lambda: self._create(client, None if uri else folder))
        client.update_run(self._id, status="RUNNING")
        self._log_params(client)
        self._client = client

    def _create(self, client: Any, folder: Path | None) -> str:
        name = self._config.train.tracker_project
        found = client.get_experiment_by_name(name)
        if found is not None:
            experiment = found.experiment_id
        else:
            experiment = client.create_experiment(name, None if folder is None else (folder / "artifacts").as_uri())
        return str(client.create_run(experiment, run_name=self._run_dir.name).info.run_id)

    def _log_params(self, client: Any) -> None:
        """The settings that the run does not have there; a param cannot be changed later."""
        from mlflow.entities import Param

        there = client.get_run(self._id).data.params
        params = [Param(key, str(value)) for key, value in _plain(self._config).items() if key not in there]
        for start in range(0, len(params), 100):  # as many as a request may have
            client.log_batch(self._id, params=params[start : start + 100])

    def log(self, step: int, at: float, figures: dict[str, float]) -> None:
        """See ``Tracker.log``."""
        from mlflow.entities import Metric

        metrics = [Metric(_mlflow_name(name), value, round(1000 * at), step) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, done: bool) -> None:
        """See ``Tracker.close``."""
        self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")


def _mlflow_name(name: str) -> str:
    """``nDCG@10`` -> ``nDCG_at_10``: MLflow knows no @."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"))


def _plain(config: Config) -> dict[str, Any]:
    return dict(json.loads(json.dumps(flatten(config))))


def _remembered(run_dir: Path, name: str, new: Callable[[], str]) -> str:
    """The id of a run at a tracker, made once in the life of a run folder."""
    path = run_dir / "trackers" / f"{name}.json"
    try:
        return str(read_json(path)["id"])
    except FileNotFoundError:
        made = new()
        write_atomic(path, json.dumps({"id": made}).encode() + b"\n")
        return made


def _unreachable(url: str) -> str | None:
    """Why a server does not answer; None when it does, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=ANSWER_S).close()  # noqa: S310 - through the proxy of the environment
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return f"{url} does not answer: {first_line(error)}"
    return None


class Mirroring:
    """What a tracker is given; a fault is told once and never raised.

    Args:
        tracker: not open yet.
        say: takes one line for people.
    """

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        self._tracker, self._say = tracker, say
        self._is_open, self._next_try, self._told, self._missed = False, 0.0, False, 0

    def follow(self, messages: Iterable[str]) -> None:
        """Give the tracker what comes, until the end.

        Args:
            messages: a JSON object each: figures of a step, or how the run ended.
        """
        self._opened()  # not only when the first figures come
        for message in map(json.loads, messages):
            if "done" in message:
                self._end(bool(message["done"]))
            elif not (self._opened() and self._attempt(partial(self._tracker.log, **message))):
                self._missed += 1

    def _end(self, done: bool) -> None:
        if self._is_open:
            self._attempt(lambda: self._tracker.close(done))
        if self._missed:
            self._say(f"{self._missed} log lines were not mirrored")

    def _opened(self) -> bool:
        if not self._is_open and time.monotonic() >= self._next_try:
            self._is_open = self._attempt(self._tracker.open)
            self._next_try = time.monotonic() + RETRY_S
        return self._is_open

    def _attempt(self, what: Callable[[], None]) -> bool:
        try:
            what()
        except Exception as error:  # whatever the libraries raise
            traceback.print_exc()
            if not self._told:
                self._say(f"not mirrored: {first_line(error)}; the run goes on, and this is tried again")
            self._told = True
            return False
        return True


def leave_in_time(run_pid: int, over: threading.Event) -> None:
    """End this process ``LEFT_S`` after its run, whatever its main thread waits for.

    Args:
        run_pid: the process that started this one.
        over: set when the run has said that it ends.
    """
    while os.getppid() == run_pid and not over.wait(LOOK_S):
        pass
    time.sleep(LEFT_S)
    os._exit(1)


def main() -> None:
    """Mirror until standard input ends."""
    name, run_dir, run_pid = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for the run, whose end ends us
    voice = os.dup(1)
    os.dup2(2, 1)

    over = threading.Event()
    threading.Thread(target=leave_in_time, args=(run_pid, over), daemon=True).start()

    def say(text: str) -> None:
        with suppress(OSError):  # the run is gone
            os.write(voice, f"{name}: {printable(' '.join(text.split()))}\n".encode())

    def lines() -> Iterable[str]:
        for line in sys.stdin:
            if line.startswith('{"done"'):
                break
            yield line
        else:
            line = '{"done": false}'
        over.set()
        yield line

    config = load_config(run_dir / "config.yaml")
    kinds: dict[str, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}
    Mirroring(kinds[name](run_dir, config, say), say).follow(lines())


if __name__ == "__main__":
    main()
