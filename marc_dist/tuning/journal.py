"""The record of a search: ``search.json``, ``trials.jsonl`` (what happened, as it happens), ``trials.parquet``.

The lines are ours and the only memory of a search: everything else (what is open, what to try next, who stops) follows
from them. A line is on the disk before anything is done about it; a torn last line never happened.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from marc_dist.config import ConfigError, LaunchError, first_line
from marc_dist.config.section import Section
from marc_dist.files import read_json, sync_folder, try_lock, write_atomic
from marc_dist.run.attempts import SEARCH_LINES

SEARCH = "search.json"
LINES = SEARCH_LINES
ROWS = "trials.parquet"


class SearchPlan(Section):
    """What a search is, fixed when it begins; with the lines, all that it depends on."""

    format: Literal[1] = Field(1, description="of this file")
    space: str = Field(description="name of the space")
    source: dict[str, Any] = Field(description="the space, as in its file")
    base: dict[str, Any] = Field(description="the run's settings, flat")
    how: Literal["tpe", "random", "grid"] = Field(description="search")
    trials: int = Field(ge=1, description="settings to try; may grow")
    seeds: int = Field(1, ge=1, le=1000, description="trainings of every setting that is not stopped early")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of the search")
    objectives: tuple[str, ...] = Field(min_length=1, description="metrics, higher is better")
    epochs: int = Field(ge=1, description="of a whole trial")
    whole_epochs: int = Field(ge=1, description="of the training that best.yaml describes")
    grace: int | None = Field(None, ge=1, description="epochs before a trial may stop early; null = none does")
    eta: float = Field(4.0, gt=1.0, le=100.0, description="one in eta goes on at each rung")
    ahead: int = Field(ge=1, description="setting n is chosen from the results of settings 0 to n - ahead")
    retries: int = Field(2, ge=0, le=1000, description="further starts of a trial that fails")

    def differences(self, other: SearchPlan) -> list[str]:
        """What makes another plan another search; the number of trials and of retries may change."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        for plan in (mine, theirs):
            plan.update({f"settings: {key}": value for key, value in plan.pop("base").items()})
        names = [name for name in mine if name not in ("trials", "retries", "ahead")]
        return [
            f"{name} was {mine[name]!r}, now {theirs.get(name)!r}" for name in names if mine[name] != theirs.get(name)
        ]


def read_plan(folder: Path) -> SearchPlan:
    """The plan of a search's folder.

    Raises:
        ConfigError: there is none, or the file is not one.
    """
    path = folder / SEARCH
    try:
        return SearchPlan.model_validate(read_json(path))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no {SEARCH}; expected the folder of a search, made by marc-tune --out") from None
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"{path}: cannot be read ({first_line(error)}); expected what marc-tune wrote") from None


def write_plan(folder: Path, plan: SearchPlan) -> None:
    """Write ``search.json``, completely or not at all."""
    write_atomic(folder / SEARCH, (json.dumps(plan.model_dump(mode="json"), indent=1) + "\n").encode())


def _whole(data: bytes) -> bytes:
    """Without a torn last line: one that lacks its end, or has zeros where a crash took bytes from its middle."""
    data = data[: data.rfind(b"\n") + 1]
    start = data.rfind(b"\n", 0, -1) + 1
    return data[:start] if b"\0" in data[start:] else data


def _read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; a torn last one was never written. Every other one counts, so none is skipped.

    Raises:
        ConfigError: a line is damaged; names it.
    """
    events = []
    lines = _whole(path.read_bytes()).split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise ConfigError(
                f"{path}: line {number} of {len(lines)} is damaged, and the rest depends on it; put a copy back, "
                "keep only the lines before it, or start another search with another --out"
            )
        events.append(event)
    return events


class Journal:
    """The lines of one search.

    Args:
        folder: of the search; None keeps the lines in memory only.

    Raises:
        ConfigError: a line before the last is damaged.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        if folder is not None:
            self.events = _read_events(folder / LINES)
        self._whole = folder is None

    def append(self, event: Mapping[str, Any]) -> None:
        """Add a line; on the disk when this returns.

        Raises:
            LaunchError: the disk is full, or the folder has gone.
        """
        clean = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in event.items()}
        self.events.append(clean)
        if self.folder is None:
            return
        path = self.folder / LINES
        if not self._whole:
            data = path.read_bytes() if path.is_file() else b""
            if data != _whole(data):  # torn by a crash: the next line must not grow out of it
                write_atomic(path, _whole(data))
            self._whole = True
        try:
            new = not path.exists()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync_folder(self.folder)
        except OSError as error:
            raise LaunchError(
                f"{path}: cannot be written ({error.strerror}); free space and start again with --resume"
            ) from None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a search's folder against a second search in it; the lock ends with this process, however that ends.

    Raises:
        LaunchError: another process holds it.
    """
    lock = try_lock(folder / ".lock")
    if lock is None:
        raise LaunchError(f"{folder}: another marc-tune searches here; wait for it, or choose another --out")
    with lock:
        yield


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``trials.parquet``: one row a trial, columns as ``Search.rows`` names them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # a choice between kinds of values
            columns[name] = pa.array([None if value is None else str(value) for value in values])
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    write_atomic(folder / ROWS, sink.getvalue())
