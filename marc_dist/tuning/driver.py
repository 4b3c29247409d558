"""A whole search: plan and space into a folder, trials until it is over, rows and the best setting as they come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from marc_dist.config import Config, ConfigError, LaunchError
from marc_dist.config.suggest import suggestion
from marc_dist.files import make_folder
from marc_dist.training.validation.scores import METRICS
from marc_dist.tuning.asha import rungs
from marc_dist.tuning.journal import SEARCH, Journal, SearchPlan, read_plan, write_plan, write_rows
from marc_dist.tuning.search_space.space import How, Point, Space, parse_space
from marc_dist.tuning.state import Search
from marc_dist.tuning.trial import base_settings, trials_dir, write_best

TRIALS = 16
GRACE_SHARE = 27
"""A trial runs at least 1/27 of its epochs, one at least."""
WARM = 3
"""Points that another search lends to a new one: few, since each costs a trial."""
ETA = 4.0
"""As in Ray Tune. With 3, TPE's ever better suggestions pass so often that more than half of all epochs run."""


def check_objectives(names: tuple[str, ...]) -> None:
    """Refuse a metric that no trial would report, before anything starts.

    Raises:
        ConfigError: names the nearest metric.
    """
    for name in names:
        if name not in METRICS:
            known = ", ".join(METRICS)
            raise ConfigError(
                f"objective {name}: the trainer does not report it{suggestion(name, METRICS)}; it reports {known}"
            )


def warm_start(space: Space, how: How, other: Search, folder: Path) -> Space:
    """The space, with the best points of an earlier search to be tried after its own first ones.

    Points only: they are trained again, so that neither other data nor another budget can mislead. The plan records
    them as part of the space.

    Args:
        space: of the new search.
        how: it goes about it.
        other: the earlier one; its settings trained in full count, best first, ``WARM`` of them at most. Of their
            values those count that vary here; a point with one that this space cannot have is left out.
        folder: of the earlier one, for messages.

    Raises:
        ConfigError: a grid, which tries every point anyhow, or no point to start from.
    """
    if how == "grid":
        raise ConfigError(f"--start-from: a grid ({space.name}) tries all of its points; leave --start-from away")
    names = {one.name for one in space.parameters}
    points: list[Point] = []
    for number in other.finished():
        point = {name: value for name, value in other.points[number].items() if name in names}
        if point and point not in points and all(space[name].sampler.contains(value) for name, value in point.items()):
            points.append(point)
    if not points:
        raise ConfigError(
            f"--start-from {folder}: expected settings trained in full that {space.name} could have, got none of "
            f"{len(other.points)}; compare its parameters and ranges with those of {space.name}"
        )
    first = [*space.source.get("first", [{}]), *points[:WARM]]
    return parse_space({**space.source, "first": first}, space.name, space.name)


def new_plan(
    space: Space,
    config: Config,
    *,
    trials: int | None = None,
    epochs: int | None = None,
    how: How | None = None,
    objectives: tuple[str, ...] = (),
    early_stopping: bool | None = None,
    grace: int | None = None,
    eta: float = ETA,
    **values: Any,
) -> SearchPlan:
    """The plan of a search, with every key, range and first point checked.

    Args:
        space: what varies.
        config: of the run.
        trials: settings; None = ``TRIALS``, or the whole grid.
        epochs: budget of a trial; None = the run's.
        how: None = the space's.
        objectives: () = the space's.
        early_stopping: None = the space's.
        grace: epochs before a trial may stop; None = a 27th of the budget.
        eta: one in eta goes on.
        values: further fields of the plan.

    Raises:
        ConfigError: a fault in any of it.
    """
    objectives = objectives or space.objectives
    check_objectives(objectives)
    budget = epochs or config.train.epochs
    base = base_settings(config, budget)
    how = how or space.how
    if how == "grid":
        points = space.grid(base)
        trials = trials or len(points)
    else:
        space.first_points(base)
    stops = space.early_stopping if early_stopping is None else early_stopping
    grace = grace or max(1, round(budget / GRACE_SHARE))
    if grace > budget:
        raise ConfigError(f"--grace {grace}: expected at most the {budget} epochs of a trial")
    return SearchPlan(
        space=space.name,
        source=space.source,
        base=base,
        how=how,
        trials=trials or TRIALS,
        objectives=objectives,
        epochs=budget,
        whole_epochs=config.train.epochs,
        grace=grace if stops and rungs(budget, grace, eta) else None,
        eta=eta,
        ahead=values.pop("ahead", 1),
        **values,
    )


def ahead_of(concurrent: int) -> int:
    """How many settings may be under way beyond the last one whose result counts.

    Half as many again as run at a time: then nobody waits for one slow trial, and results are used soon.
    """
    return concurrent + concurrent // 2


def open_search(folder: Path, journal: Journal) -> Search:
    """The search of a folder, as far as it has come.

    Raises:
        ConfigError: there is none, or its record is damaged.
    """
    plan = read_plan(folder)
    try:
        return Search(plan, parse_space(plan.source, plan.space, str(folder / SEARCH)), journal)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder}/trials.jsonl: not the record of this search ({type(error).__name__}: {error}); "
            "start another one with another --out"
        ) from None


def begin(folder: Path, plan: SearchPlan, *, resume: bool) -> SearchPlan:
    """Make a search's folder ready; the plan to follow.

    Args:
        folder: of the search.
        plan: what is asked for now.
        resume: go on with what is there; only the number of trials and of retries may change then.

    Raises:
        ConfigError: there is a search and ``resume`` is off, or it is another one.
    """
    if not (folder / SEARCH).is_file():
        write_plan(folder, plan)
        return plan
    before = read_plan(folder)
    if not resume:
        raise ConfigError(f"{folder}: holds a search; go on with it with --resume, or choose another --out")
    changed = before.differences(plan)
    if changed:
        raise ConfigError(
            f"{folder}: the search has begun with other settings: {'; '.join(changed)}; keep them (marc-tune --resume "
            f"{folder} alone does), or start another one with another --out"
        )
    return extend(folder, trials=plan.trials, retries=plan.retries)


def extend(folder: Path, *, trials: int | None = None, retries: int | None = None) -> SearchPlan:
    """Change how many settings or retries a search has; what has been tried stays.

    Args:
        folder: of the search.
        trials: settings to try in all, those that were tried included; None leaves it.
        retries: how often a trial may fail and start again; None leaves it.

    Returns:
        The plan as it is now.
    """
    plan = read_plan(folder)
    new = {"trials": trials or plan.trials, "retries": plan.retries if retries is None else retries}
    plan = plan.model_copy(update=new)
    write_plan(folder, plan)
    return plan


class Recorder:
    """Keeps ``trials.parquet`` and ``best.yaml`` up to date with the journal.

    Args:
        search: what is recorded.
        folder: of the search.
        show: what else to do on every call.
    """

    def __init__(self, search: Search, folder: Path, show: Callable[[], None]) -> None:
        self.search, self.folder, self._show = search, folder, show
        self._over = -1

    def show(self) -> None:
        """Write the files when a trial has ended since the last call."""
        over = sum(run.state != "open" for run in self.search.runs.values())
        if over != self._over:
            self._over = over
            self.write()
        self._show()

    def write(self) -> Path | None:
        """Write both files; the path of ``best.yaml`` when there is a best setting."""
        write_rows(self.folder, self.search.rows())
        return write_best(self.search, self.folder)


def require_folder(folder: Path) -> None:
    """Refuse a folder that cannot be one, before Ray starts."""
    try:
        make_folder(trials_dir(folder))
    except OSError as error:
        raise LaunchError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from None
