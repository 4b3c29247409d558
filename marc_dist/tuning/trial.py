"""A trial is an ordinary training run in an ordinary run folder: ``marc-train DIR/trials/0007`` would go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marc_dist.config import Config, ConfigError, dump_yaml, flatten, user_path
from marc_dist.files import write_atomic
from marc_dist.run.attempt_id import AttemptId, attempt_from_env, new_token
from marc_dist.run.folder import VALIDATION, prepare, read_lines
from marc_dist.run.rank_ends import job_end, read_ends
from marc_dist.tuning.journal import SearchPlan
from marc_dist.tuning.search_space.space import Point, Space
from marc_dist.tuning.state import Search, Trial

BEST = "best.yaml"
SHARE = 0.2
"""Share of the training split that trials are scored on, unless ``data.validation_share`` says otherwise."""


def trials_dir(folder: Path) -> Path:
    """Where the run folders of a search lie."""
    return folder / "trials"


def trial_config(search: Search, run: Trial, folder: Path) -> Config:
    """The settings of one run: the search's base, its point, its seed, its folder.

    Args:
        search: the run's.
        run: number, seed and point.
        folder: of the search.

    Raises:
        ConfigError: the schema refuses them together.
    """
    plan = search.plan
    own = {
        "train.run_dir": str(trials_dir(folder) / run.name),
        "train.seed": (int(plan.base["train.seed"]) + run.seed) % (1 << 32),
        "train.epochs": plan.epochs,
        "data.features_dir": _features_dir(plan, folder),
    }
    return search.space.config(run.point, plan.base, own)


def _features_dir(plan: SearchPlan, folder: Path) -> str:
    """Features of a frozen backbone lie beside the search, as beside a run, so that all trials and runs share them."""
    given = plan.base.get("data.features_dir")
    return str(given) if given else str(folder.absolute().parent / "features")


def prepare_trial(search: Search, run: Trial, folder: Path) -> Path:
    """Make the run folder of a trial ready, with its ``config.yaml``; a trial that has begun can go on there.

    Args:
        search: the run's.
        run: number, seed and point.
        folder: of the search.

    Raises:
        ConfigError: see ``trial_config``; or the trial has begun with other settings.
        LaunchError: the folder cannot be written.
    """
    return prepare(trial_config(search, run, folder))


def arguments(run_dir: Path) -> list[str]:
    """Of the Python interpreter of every rank of a trial."""
    return ["-m", "marc_dist.cli.train", str(run_dir)]


def search_token(env: Mapping[str, str]) -> str:
    """What the trials of one driver have in common: in a cluster job its token, so that its next start knows them.

    Two drivers never share one: then the earlier holder of a trial's folder would be taken for gone while it trains.

    Args:
        env: of this process.
    """
    return attempt_from_env(env).token or new_token()


def trial_attempt(token: str, run: Trial) -> AttemptId:
    """The attempt that a run's newest start is; its number comes from the journal, so it grows over drivers, too.

    Args:
        token: see ``search_token``.
        run: that has begun.
    """
    return AttemptId(token, run.starts - 1)


def reported(run_dir: Path) -> list[dict[str, Any]]:
    """What a trial has reported so far, in order of epochs."""
    return sorted(read_lines(run_dir / VALIDATION), key=lambda row: float(row["epoch"]))


def trial_end(run_dir: Path, world: int, code: int, mine: AttemptId) -> tuple[int, str]:
    """Exit code and cause of a trial whose ranks have gone, from what they left in its folder.

    Args:
        run_dir: of the trial.
        world: ranks.
        code: of whatever looked after them; 0 when all ended well.
        mine: the attempt that has ended.
    """
    found = job_end(read_ends(run_dir / "logs", world, mine), code, run_dir / "logs")
    if code and found.rank is None:
        return found.code or code, "its processes or their node were lost"
    return found.code, found.error or ""


def base_settings(config: Config, epochs: int) -> dict[str, Any]:
    """The flat settings that all trials share: those of the run file, and what a search needs of them.

    Raises:
        ConfigError: a setting that no search can follow.
    """
    if config.train.max_steps is not None:
        raise ConfigError("train.max_steps: a search counts in epochs; use --epochs instead")
    flat = {key: list(value) if isinstance(value, tuple) else value for key, value in flatten(config).items()}
    if not config.data.validation_share:
        flat["data.validation_share"] = SHARE
    if config.train.keep_checkpoints == type(config.train).model_fields["keep_checkpoints"].default:
        flat["train.keep_checkpoints"] = 1
    for key in (
        "data.dir",
        "data.cache_dir",
        "data.features_dir",
        "model.weights",
    ):  # a search may go on from another folder
        if flat[key] is not None:
            flat[key] = str(user_path(str(flat[key])).absolute())
    # trials are compared epoch by epoch, and a search stops the poor ones itself
    flat |= {"train.epochs": epochs, "train.keep_best": None, "train.patience": None}
    return flat


def full_config(plan: SearchPlan, space: Space, point: Point, run_dir: Path, **more: Any) -> Config:
    """A setting trained in full: on all samples of the split, as many epochs as the run file says.

    Args:
        plan: of the search.
        space: the plan's.
        point: the setting.
        run_dir: of that training.
        more: stronger settings, ``train__seed=3``.
    """
    whole: Mapping[str, Any] = {
        "data.validation_share": 0.0,
        "train.epochs": plan.whole_epochs,
        "train.run_dir": str(run_dir),
        "train.keep_checkpoints": 2,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return space.config(point, plan.base, whole)


def write_best(search: Search, folder: Path) -> Path | None:
    """Write ``best.yaml``, a run file that trains the best setting in full; None while there is none."""
    ranked = search.finished()
    if not ranked:
        return None
    more = {"data__features_dir": _features_dir(search.plan, folder)}
    config = full_config(search.plan, search.space, search.points[ranked[0]], folder / "best", **more)
    path = folder / BEST
    write_atomic(path, dump_yaml(config, comments=True).encode())
    return path
