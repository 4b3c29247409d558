"""A search as a state that only grows: which run is next, who stops, what is best. Follows from the journal alone.

Words: a *setting* is a point of the space, numbered from 0 in the order of suggestion; a *run* trains it with one seed;
the first seed of a setting may be stopped early, the further ones follow when it was not.

The rule that makes a search repeatable: setting n is chosen from the results of settings 0 to n - ahead, all of them
over; its run is compared, at each rung, with the first runs of exactly these settings. Which trial happens to end
first, on which machine, before or after a crash, changes nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from marc_dist.config import EXIT_USER, LaunchError
from marc_dist.config.suggest import suggestion
from marc_dist.tuning.asha import rungs, stops_at
from marc_dist.tuning.journal import Journal, SearchPlan
from marc_dist.tuning.search_space.proposals import Observation, propose
from marc_dist.tuning.search_space.space import Point, Space

Answer = Literal["go", "stop"]
RunState = Literal["open", "done", "stopped", "failed"]
BESIDE = ("step", "epoch", "time", "seconds", "host")
"""In a row beside its figures."""
DIVERGED = "not finite"
"""In the error of a training whose loss was not finite too often; see ``training/trainer.py``."""


@dataclass
class Trial:
    """One training of a search.

    Attributes:
        number: of its setting.
        seed: 0 for the setting's first, 1, 2, ... for repetitions.
        point: of its setting.
        rows: epoch -> figures, as reported.
        state: open until it is over.
        starts: how often it was started.
        faults: how often it failed by itself.
        reason: why it stopped or failed.
        host: where it was started last.
        began: first start, seconds since 1970.
        ended: when it was over.
    """

    number: int
    seed: int
    point: Point
    rows: dict[float, dict[str, Any]] = field(default_factory=dict)
    state: RunState = "open"
    starts: int = 0
    faults: int = 0
    reason: str = ""
    host: str = ""
    began: float | None = None
    ended: float | None = None

    @property
    def name(self) -> str:
        """Of its folder: ``0007`` for the first seed, ``0007-seed1`` for the next."""
        return f"{self.number:04d}" + (f"-seed{self.seed}" if self.seed else "")

    @property
    def epoch(self) -> float:
        """Epochs done, as far as scored."""
        return max(self.rows, default=0.0)

    @property
    def diverged(self) -> bool:
        """Whether its weights or its loss were not finite."""
        return DIVERGED in self.reason or any(row.get("diverged") for row in self.rows.values())

    def curve(self, metric: str) -> dict[float, float]:
        """Epoch -> value, where there is one; a value that is not finite counts as 0, the worst that a metric has."""
        values = {epoch: row[metric] for epoch, row in sorted(self.rows.items()) if metric in row}
        return {
            epoch: float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
            for epoch, value in values.items()
        }

    def last(self, metric: str) -> float | None:
        """Its last value."""
        curve = self.curve(metric)
        return curve[max(curve)] if curve else None


class Search:
    """One search.

    Args:
        plan: what it is.
        space: the plan's, parsed.
        journal: what has happened so far; replayed now.

    Attributes:
        runs: by (setting, seed).
        num_settings: settings that will be tried, all there are at most.
    """

    def __init__(self, plan: SearchPlan, space: Space, journal: Journal) -> None:
        space = replace(space, objectives=plan.objectives)
        self.plan, self.space, self.journal = plan, space, journal
        self.grid = space.grid(plan.base) if plan.how == "grid" else None
        every = self.grid if self.grid is not None else space.every_point(plan.base)
        self.num_settings = plan.trials if every is None else min(plan.trials, len(every))
        self.rungs = rungs(plan.epochs, plan.grace, plan.eta) if plan.grace is not None else ()
        self.runs: dict[tuple[int, int], Trial] = {}
        self.points: list[Point] = []
        self._active: set[tuple[int, int]] = set()
        for event in journal.events:
            self._apply(event)

    # what happened

    def _note(self, kind: str, run: Trial | None = None, **values: Any) -> None:
        place = {} if run is None else {"number": run.number, "seed": run.seed}
        event = {"event": kind, **place, **values, "time": time.time()}
        self.journal.append(event)
        self._apply(event)

    def _apply(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "setting":
            if event["number"] != len(self.points):
                raise ValueError(f"setting {event['number']} where {len(self.points)} was to come")
            self.points.append(dict(event["point"]))
            return
        key = int(event["number"]), int(event["seed"])
        run = self.runs.setdefault(key, Trial(*key, self.points[key[0]]))
        if kind == "begin":
            run.starts += 1
            run.host = str(event.get("host", ""))
            run.began = run.began or float(event["time"])
        elif kind == "row":
            run.rows[float(event["row"]["epoch"])] = dict(event["row"])
            run.host = str(event["row"].get("host", run.host))
        elif kind == "fault":
            run.faults += 1
            run.reason = str(event["reason"])
        elif kind == "end":
            run.state, run.reason, run.ended = event["state"], str(event["reason"]), float(event["time"])

    # what executors ask and tell

    def next(self) -> Trial | None:
        """The run to start now, which counts as active from here on; None when there is none at the moment.

        Runs that were interrupted or failed come first, then further seeds, then the next setting.
        """
        for key in sorted(self.runs):
            run = self.runs[key]
            if run.state == "open" and key not in self._active and not self._stopped_already(run):
                return self._start(run)
        for number in range(len(self.points)):
            for seed in range(self.plan.seeds):
                if (number, seed) not in self.runs and self._wants_seed(number, seed):
                    return self._start(self._new(number, seed))
        number = len(self.points)
        if number < self.num_settings and all(self._is_over(at) for at in range(number - self.plan.ahead + 1)):
            self._note("setting", number=number, point=self._point(number))
            return self._start(self._new(number, 0))
        return None

    def _new(self, number: int, seed: int) -> Trial:
        return self.runs.setdefault((number, seed), Trial(number, seed, self.points[number]))

    def _start(self, run: Trial) -> Trial:
        self._active.add((run.number, run.seed))
        return run

    def _wants_seed(self, number: int, seed: int) -> bool:
        if seed == 0:  # the line of the setting was written, and nothing after it
            return True
        return (number, 0) in self.runs and self.runs[number, 0].state == "done"

    def _point(self, number: int) -> Point:
        if self.grid is not None:
            return self.grid[number]
        told = [self.observation(at, usable=at <= number - self.plan.ahead) for at in range(number)]
        return propose(self.space, self.plan.base, self.plan.how, self.plan.seed, number, told)

    def began(self, run: Trial, host: str = "") -> None:
        """A run has been started."""
        self._note("begin", run, host=host, start=run.starts)

    def report(self, run: Trial, row: Mapping[str, Any]) -> Answer:
        """Take figures of an epoch, once each however often they are told; whether the run goes on.

        Raises:
            LaunchError: an objective is not among them.
        """
        if run.state != "open":
            return "stop"
        for name in self.plan.objectives:
            if name not in row:
                known = [key for key in row if key not in BESIDE]
                near = suggestion(name, known)
                raise LaunchError(
                    f"{run.name}: the trainer does not report the objective {name}{near}; it reports {', '.join(known)}"
                )
        if float(row["epoch"]) not in run.rows:
            self._note("row", run, row=dict(row))
        return "stop" if self._stopped_already(run) else "go"

    def _stopped_already(self, run: Trial) -> bool:
        """Whether the rule of early stopping ends a run with what it has reported; notes the end.

        A run that has scored its last epoch is trained in full, whatever the rungs say that no score lay at.
        """
        if run.seed or not self.rungs or run.epoch >= self.plan.epochs:
            return False
        before = range(max(run.number - self.plan.ahead + 1, 0))
        others = [self.runs[at, 0].curve(self.plan.objectives[0]) for at in before]
        rung = stops_at(run.curve(self.plan.objectives[0]), others, self.rungs, self.plan.eta)
        if rung is None:
            return False
        self._end(run, "stopped", f"at epoch {rung}, below the best 1/{self.plan.eta:g}")
        return True

    def ended(self, run: Trial, code: int, reason: str = "") -> None:
        """A run's processes have ended by themselves: done, to be started again, or failed for good.

        Args:
            run: an active one.
            code: 0 = trained in full; 2 = a mistake that would come again; anything else = try again, a few times.
            reason: in words.
        """
        if run.state != "open":
            self._active.discard((run.number, run.seed))
        elif code == 0 and run.epoch >= self.plan.epochs:
            self._end(run, "done", "")
        else:
            reason = reason or (
                f"ended after epoch {run.epoch:g} of {self.plan.epochs}" if code == 0 else f"code {code}"
            )
            self._note("fault", run, reason=reason)
            if code == EXIT_USER or run.faults > self.plan.retries:
                self._end(run, "failed", reason)
            self._active.discard((run.number, run.seed))

    def _end(self, run: Trial, state: RunState, reason: str) -> None:
        self._note("end", run, state=state, reason=reason)
        self._active.discard((run.number, run.seed))

    # what is known

    @property
    def over(self) -> bool:
        """Whether every setting is."""
        return len(self.points) >= self.num_settings and all(self._is_over(at) for at in range(len(self.points)))

    def _is_over(self, number: int) -> bool:
        if (number, 0) not in self.runs or self.runs[number, 0].state == "open":
            return False
        seeds = range(1, self.plan.seeds) if self.runs[number, 0].state == "done" else ()
        return all((number, seed) in self.runs and self.runs[number, seed].state != "open" for seed in seeds)

    def of(self, number: int) -> list[Trial]:
        """The runs of a setting, by seed."""
        return [self.runs[key] for key in sorted(self.runs) if key[0] == number]

    def values(self, number: int, metric: str) -> list[float]:
        """Last values of a setting: of its runs that are done, else of its stopped one.

        A further seed that diverged counts as 0: a setting must not look better for the trainings that it lost.
        """
        runs = self.of(number)
        if any(run.state == "done" for run in runs):
            found = [run.last(metric) if run.state == "done" else 0.0 for run in runs if _counts(run)]
        else:
            found = [run.last(metric) for run in runs if run.state == "stopped"]
        return [value for value in found if value is not None]

    def observation(self, number: int, *, usable: bool = True) -> Observation:
        """What suggestions may know of a setting."""
        point = self.points[number]
        if not usable:
            return Observation(point, "open")
        first = self.runs[number, 0]
        values = tuple(statistics.fmean(found) for name in self.plan.objectives if (found := self.values(number, name)))
        if first.state == "failed" and first.diverged:
            return Observation(point, "bad")
        if first.state == "failed" or len(values) < len(self.plan.objectives):
            return Observation(point, "failed")
        return Observation(
            point, "done" if first.state == "done" else "stopped", values, first.curve(self.plan.objectives[0])
        )

    def finished(self) -> list[int]:
        """Settings that were trained in full at least once, best first by the first objective; ties by number."""
        numbers = [at for at in range(len(self.points)) if any(run.state == "done" for run in self.of(at))]
        return sorted(numbers, key=lambda at: (-statistics.fmean(self.values(at, self.plan.objectives[0])), at))

    def own(self) -> int | None:
        """The finished setting that is the run file's own, None where there is none: what the best one must beat."""
        base = self.plan.base
        sets = {at: self.space.settings(self.points[at]) for at in sorted(self.finished())}
        return next((at for at, values in sets.items() if all(base[key] == values[key] for key in values)), None)

    def pareto(self) -> list[int]:
        """Of the finished settings, those that no other one beats in one objective without losing in another."""
        scores = {
            at: [statistics.fmean(self.values(at, name)) for name in self.plan.objectives] for at in self.finished()
        }
        return [at for at, mine in scores.items() if not any(_beats(other, mine) for other in scores.values())]

    @property
    def epochs_used(self) -> float:
        """Epochs of all runs together, as far as scored."""
        return sum(run.epoch for run in self.runs.values())

    @property
    def epochs_left(self) -> float:
        """Epochs to come, if further settings take as many as those that are over: a guess, as some stop early."""
        used = [sum(run.epoch for run in self.of(number)) for number in range(len(self.points))]
        over = [epochs for number, epochs in enumerate(used) if self._is_over(number)]
        whole = statistics.fmean(over) if over else float(self.plan.epochs * self.plan.seeds)
        begun = sum(max(whole - epochs, 0.0) for number, epochs in enumerate(used) if not self._is_over(number))
        return begun + whole * (self.num_settings - len(self.points))

    def rows(self) -> list[dict[str, Any]]:
        """One row a run: what it is, how it went, its last figures, and mean and interval of its setting."""
        out = []
        for key in sorted(self.runs):
            run = self.runs[key]
            last = run.rows.get(run.epoch, {})
            row: dict[str, Any] = {
                "number": run.number,
                "seed": run.seed,
                "run": run.name,
                "state": run.state,
                "epoch": run.epoch,
                "starts": run.starts,
                "faults": run.faults,
                "reason": run.reason,
                "host": run.host,
                "seconds": None if run.ended is None or run.began is None else run.ended - run.began,
            }
            row |= {one.name: run.point.get(one.name) for one in self.space.parameters}
            row |= {name: value for name, value in last.items() if name not in BESIDE}
            for name in self.plan.objectives:
                mean, low, high = interval(self.values(run.number, name))
                row |= {f"{name} mean": mean, f"{name} low": low, f"{name} high": high}
            out.append(row)
        return out


def _counts(run: Trial) -> bool:
    return run.state == "done" or (run.state == "failed" and run.diverged)


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Mean and 95 % interval of a setting over its seeds (Student's t); without ends for a single value."""
    if not values:
        return None, None, None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None, None
    from scipy.special import stdtrit  # here: most commands do without

    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half
