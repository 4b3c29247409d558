"""The run folder: what lies where, atomic files, settings that may change when it goes on. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marc_dist.config import Config, ConfigError, ModelConfig, dump_yaml, flatten, load_config
from marc_dist.files import json_records, write_atomic
from marc_dist.run.settings import placed

METRICS = "metrics.jsonl"
"""Figures of training steps, a line a step that was logged."""
SKIPPED = "skipped.jsonl"
"""Steps that were not taken, because something was not finite."""
BAD = "bad_samples.jsonl"
"""Samples that could not be read."""
VALIDATION = "validation.jsonl"
"""Scores of the validation samples."""

HARMLESS = frozenset(
    {
        "data.dir",  # the fingerprint says whether it is the same data
        "data.num_workers",
        "data.verify_crc",
        "data.urls",
        "data.augment_on",
        "data.cache",
        "data.cache_dir",
        "data.features_dir",
        "data.retries",
        "data.on_error",
        "data.max_bad",
        "loss.implementation",
        "loss.tile",
        "train.run_dir",
        "train.chunk",
        "train.compile",
        "train.keep_best",
        "train.patience",
        "train.trackers",
        "train.tracker_project",
        "train.max_steps",
        "train.device",
        "train.threads",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.log_every",
        "train.digest_every",
        "train.max_nonfinite",
        "train.timeout_s",
        "train.validate_every",
    }
)
"""Settings that may change when a run goes on; all of ``eval`` belongs to them, and ``train.epochs`` may grow."""


def checkpoint_dir(run_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_dir / "checkpoints"


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(checkpoint_dir(run_dir).glob("step-*.pt"))


def log_path(run_dir: Path, rank: int) -> Path:
    """Where the launcher collects what a rank prints."""
    return run_dir / "logs" / f"rank-{rank}.log"


def plain_settings(config: Config) -> dict[str, Any]:
    """Dotted key -> JSON value, the form in which a checkpoint remembers its settings."""
    return dict(json.loads(json.dumps(flatten(config))))


def refuse_changes(before: Mapping[str, Any], config: Config, place: str) -> None:
    """Refuse settings that would make the rest of a run another run.

    Args:
        before: ``plain_settings`` of the run so far.
        config: what is asked for now.
        place: the run's name in the message.

    Raises:
        ConfigError: names each changed key with both values.
    """
    now = plain_settings(placed(config))
    was = {**plain_settings(Config()), **before}  # a setting that is newer than the run had its default
    same = {"model.batch_norm"} if _norm(was) == _norm(now) else set()
    typed = Path(was["model.weights"] or "").as_posix().removeprefix("~/")
    if was["model.weights"] and str(now["model.weights"]).endswith(f"/{typed}"):  # earlier versions kept it as typed
        same |= {"model.weights"}
    changed = [
        f"{key} was {was[key]!r}, now {value!r}"
        for key, value in now.items()
        if was[key] != value
        and key not in HARMLESS | same
        and not key.startswith("eval.")
        and not (key == "train.epochs" and value > was[key])
    ]
    if changed:
        raise ConfigError(
            f"{place}: the run has begun with other settings: {'; '.join(changed)}; "
            "keep them, or start a new run with another train.run_dir"
        )


def _norm(settings: Mapping[str, Any]) -> str | None:
    """What batch norms do; None when none is trained."""
    model = ModelConfig(**{name: settings[f"model.{name}"] for name in ModelConfig.model_fields})
    return None if model.head_only else model.norm


def write_config(config: Config, folder: Path | None = None) -> Path:
    """Write the resolved settings into the run folder, or another one, paths absolute: a valid run file."""
    path = (Path(config.train.run_dir) if folder is None else folder) / "config.yaml"
    write_atomic(path, dump_yaml(placed(config), comments=True).encode())
    return path


def refuse_other_run(config: Config) -> Path:
    """Refuse settings that a run folder's checkpoints were not made with; nothing is written. The run folder.

    Raises:
        ConfigError: see ``refuse_changes``.
    """
    run_dir = Path(config.train.run_dir)
    path = run_dir / "config.yaml"
    if checkpoints(run_dir) and path.is_file():
        refuse_changes(plain_settings(load_config(path)), config, str(run_dir))
    return run_dir


def prepare(config: Config) -> Path:
    """Make a run folder ready before any rank starts: refuse changed settings early, then write ``config.yaml``.

    Whoever calls this has the right to the folder: nobody else trains there, or is about to.

    Raises:
        ConfigError: see ``refuse_changes``.
        LaunchError: the folder cannot be written.
    """
    run_dir = refuse_other_run(config)
    write_config(config)
    return run_dir


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a ``.jsonl`` file, without a torn last line or anything else that is not one; none if missing."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return []
    return [record for line, record in json_records(lines) if line.endswith(b"\n")]


def truncate_lines(path: Path, step: int) -> None:
    """Drop the lines of a ``.jsonl`` file after ``step``, and a torn last line, so that a resumed run repeats none."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line, record in json_records(lines) if line.endswith(b"\n") and record.get("step", 0) <= step]
    if kept != lines:
        write_atomic(path, b"".join(kept))
