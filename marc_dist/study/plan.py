"""What a study is to do: cells, searches and floors, their folders and settings; everything checked before any starts.

OUT/DATASET/ENCODER/LOSS/seed-N         a cell: an ordinary run folder
OUT/DATASET/ENCODER/LOSS/search         an ordinary search folder of marc-tune
OUT/DATASET/ENCODER/floors/NAME         what needs no loss
OUT/features                            kept features of frozen backbones, shared by all cells
OUT/report                              tables
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from marc_dist.config import Config, ConfigError, EvalConfig, build, find_preset, flatten, load_yaml
from marc_dist.data.dataset import Dataset
from marc_dist.retrieval.label_map import read_label_map
from marc_dist.run.folder import HARMLESS
from marc_dist.run.settings import placed
from marc_dist.study.methods import Method, space_source, tuned_losses
from marc_dist.study.metric_names import USUAL
from marc_dist.study.study_file import FLOORS_DIR, OWN, RESERVED, Settings, StudyFile, leaves, settings_of
from marc_dist.tuning.driver import new_plan
from marc_dist.tuning.journal import SearchPlan
from marc_dist.tuning.search_space.space import Space, parse_space

Kind = Literal["search", "floors", "cell"]
DECIDED = {*OWN, "train.keep_best", "train.patience", "train.validate_every"}
"""Settings of a recipe that a cell leaves out: nothing of its training split is kept to look at."""
SHAPING = (
    "train.keep_best", "train.patience", "train.validate_every", "data.on_error", "data.max_bad", "train.max_nonfinite",
)  # fmt: skip
"""Settings that a run may change while it goes on, and that change what comes out."""
PLACES = ("data.dir", "data.features_dir", "train.run_dir")
"""Settings that say where something lies, and do not change what comes out."""
SEARCH_DIR = "search"


@dataclass(frozen=True)
class Evaluation:
    """One way to score a cell.

    Attributes:
        name: of its folder in ``eval``, and of its tables.
        entry: of the study file.
        settings: dotted ``eval`` keys.
        metrics: that the tables show.
        target: data set that is searched in place of the cell's own; None = its own.
    """

    name: str
    entry: str
    settings: Settings
    metrics: tuple[str, ...]
    target: str | None = None

    @property
    def protocol(self) -> str:
        """Its ``eval.protocol``; with the name, its folder in a cell's ``eval``."""
        return str(self.settings.get("eval.protocol", EvalConfig().protocol))


@dataclass(frozen=True)
class Task:
    """One thing to do, in one folder.

    Attributes:
        kind: cell, search or floors.
        name: its folder below the study's, with slashes.
        dataset: of the study file.
        encoder: likewise.
        method: of cells and searches.
        seed: of cells.
        needs: name of the search that comes first.
    """

    kind: Kind
    name: str
    dataset: str
    encoder: str
    method: Method | None = None
    seed: int = 0
    needs: str | None = None


@dataclass(frozen=True)
class Plan:
    """A checked study.

    Attributes:
        study: as its file says it.
        path: of the file.
        out: the folder, absolute.
        datasets: opened, by name.
        methods: rows of the tables.
    """

    study: StudyFile
    path: Path
    out: Path
    datasets: Mapping[str, Dataset] = field(repr=False)
    methods: tuple[Method, ...] = ()

    @cached_property
    def place(self) -> str:
        """Put before messages."""
        return f"{self.path}: "

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Everything to do, by name, in the order in which it is done: seeds come in turn."""
        return {task.name: task for task in self._tasks()}

    @property
    def cells(self) -> list[Task]:
        """The tasks that are trained and scored."""
        return [task for task in self.tasks.values() if task.kind == "cell"]

    def _tasks(self) -> Iterator[Task]:
        for encoder in self.study.encoders:
            for dataset in self.study.datasets:
                if self.study.floors:
                    yield Task("floors", f"{dataset}/{encoder}/{FLOORS_DIR}", dataset, encoder)
                for loss in tuned_losses(self.study):
                    method = next(one for one in self.methods if one.loss == loss)
                    method = replace(method, name=loss, sweep={}, tuned_on=None)
                    yield Task("search", f"{dataset}/{encoder}/{loss}/{SEARCH_DIR}", dataset, encoder, method)
            for seed in self.study.seeds:
                for dataset in self.study.datasets:
                    for method in self.methods_on(dataset):
                        name, needs = f"{dataset}/{encoder}/{method.name}/seed-{seed}", None
                        if method.tuned_by is not None:
                            needs = f"{method.tuned_on or dataset}/{encoder}/{method.tuned_by}/{SEARCH_DIR}"
                        yield Task("cell", name, dataset, encoder, method, seed, needs)

    def methods_on(self, dataset: str) -> list[Method]:
        """Rows of a data set: settings that were chosen there are not fixed there once more."""
        return [method for method in self.methods if method.tuned_on != dataset]

    def folder(self, task: Task) -> Path:
        """Where a task's files lie."""
        return self.out / task.name

    def settings(self, dataset: str, encoder: str, method: Method | None) -> Settings:
        """Dotted settings of a cell as the file has them, without what was tuned.

        Args:
            dataset: of the study file.
            encoder: likewise.
            method: a row of the tables; None for floors.

        Raises:
            ConfigError: two parts of the file give a setting two values.
        """
        study = self.study
        entry = study.encoders[encoder]
        recipe = _of_recipe(entry["recipe"]) if "recipe" in entry else {}
        parts = {
            f"datasets.{dataset}": leaves(settings_of(study.datasets[dataset], RESERVED["datasets"])),
            f"encoders.{encoder}": leaves(settings_of(entry, RESERVED["encoders"])),
            **({} if method is None else {f"losses.{method.loss}": method.settings}),
        }
        for (one, ours), (other, theirs) in combinations(parts.items(), 2):
            for key in ours.keys() & theirs.keys():
                if ours[key] != theirs[key]:
                    raise ConfigError(
                        f"{self.place}{key} is {ours[key]} by {one} and {theirs[key]} by {other}; give it once, or "
                        f"under datasets.{dataset}.encoders.{encoder}"
                    )
        special = leaves(study.datasets[dataset].get("encoders", {}).get(encoder, {}))
        sweep = {} if method is None else method.sweep
        merged = {**recipe, **leaves(study.settings)}
        for values in (*parts.values(), special, sweep):
            merged |= values
        return merged

    def config(self, task: Task, tuned: Settings | None = None) -> Config:
        """The run of a task.

        Args:
            task: a cell; or floors or a search, whose run is what its trials share.
            tuned: what a search has chosen; weaker than a sweep.

        Raises:
            ConfigError: the schema refuses the settings together.
        """
        values = self.settings(task.dataset, task.encoder, task.method)
        if tuned:
            sweep = {} if task.method is None else task.method.sweep
            own = {} if task.method is None else task.method.settings
            like = {} if task.method is None or task.method.loss == task.method.tuned_by else _changes(self, task, own)
            values |= {**tuned, **like, **sweep}
        own_values = {
            "train.run_dir": str(self.folder(task)),
            "train.seed": task.seed,
            "train.threads": self.study.threads,
            "data.features_dir": str(self.out / "features"),
        }
        try:
            return build(Config, values, own_values)
        except ConfigError as error:
            raise ConfigError(f"{self.place}{task.name}: {error}") from None

    def evaluations(self, dataset: str) -> list[Evaluation]:
        """How cells of a data set are scored."""
        found: list[Evaluation] = []
        for name, entry in self.study.evaluations.items():
            settings = leaves(settings_of(entry, RESERVED["evaluations"]))
            shown = tuple(entry.get("metrics", USUAL))
            if settings.get("eval.protocol") != "transfer":
                found.append(Evaluation(name, name, settings, shown))
                continue
            for target in entry.get("datasets", self.study.datasets):
                if target != dataset:
                    found.append(Evaluation(f"{name}-{target}", name, settings, shown, target))
        return found

    def eval_config(self, config: Config, evaluation: Evaluation) -> Config:
        """The settings with which a cell is scored.

        Args:
            config: the run's.
            evaluation: one of its data set.
        """
        more: Settings = {"eval.name": evaluation.name, "eval.protocol": evaluation.protocol}
        more["eval.baseline"] = False  # the floors have it, once for all cells
        if evaluation.target is not None:
            more["eval.queries_dir"] = str(self.datasets[evaluation.target].root)
        return build(Config, flatten(config), evaluation.settings, more)

    def search_plan(self, task: Task) -> tuple[Space, SearchPlan]:
        """The search of a task.

        Raises:
            ConfigError: a space that does not fit the run.
        """
        tune = self.study.tune
        assert tune is not None and task.method is not None
        loss = task.method.loss
        place = f"{self.place}tune.losses.{loss}"
        space = parse_space(space_source(self.study, loss), loss, place)
        config = placed(self.config(task))
        config = build(Config, flatten(config), {"data.validation_share": tune.validation_share})
        plan = new_plan(
            space,
            config,
            trials=tune.trials,
            epochs=tune.epochs,
            early_stopping=False,
            seeds=tune.seeds,
            seed=tune.seed,
            retries=1000,  # training.run_search decides when a trial has failed for good
        )
        every = space.grid(plan.base) if plan.how == "grid" else space.every_point(plan.base)
        if every is not None and len(every) < tune.trials:
            raise ConfigError(
                f"{place}: has {len(every)} settings in all, but every loss has tune.trials={tune.trials}: budgets "
                "must be equal; vary more, or lower tune.trials"
            )
        return space, plan

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return {}

    def fingerprint(self, task: Task) -> str:
        """What a task computes, in one hash: another one means that what lies in its folder is of another study."""
        if task.name not in self._fingerprints:
            self._fingerprints[task.name] = self._fingerprint(task)
        return self._fingerprints[task.name]

    def _fingerprint(self, task: Task) -> str:
        config = self.config(task)
        told: dict[str, Any] = {
            "settings": {
                key: value
                for key, value in flatten(config).items()
                if key in SHAPING or (key not in HARMLESS and not key.startswith("eval.") and key not in PLACES)
            },
            "searched": config.eval.features,
            "data": self.datasets[task.dataset].fingerprint,
        }
        if task.kind == "floors":
            told = {key: told[key] for key in ("data",)} | {
                "settings": {k: v for k, v in told["settings"].items() if k.startswith(("data.", "model."))}
            }
        if task.kind == "search":
            told["plan"] = self._plan_facts(task)
        if task.needs is not None:
            told["search"] = self.fingerprint(self.tasks[task.needs])
        return digest(told)

    def _plan_facts(self, task: Task) -> dict[str, Any]:
        _, plan = self.search_plan(task)
        return plan.model_dump(mode="json", exclude={"base", "retries", "ahead"})

    def eval_fingerprint(self, task: Task, evaluation: Evaluation) -> str:
        """What an evaluation computes, in one hash."""
        known = self._evaluations
        if (task.name, evaluation.name) not in known:
            known[task.name, evaluation.name] = self._eval_fingerprint(task, evaluation)
        return known[task.name, evaluation.name]

    @cached_property
    def _evaluations(self) -> dict[tuple[str, str], str]:
        return {}

    def _eval_fingerprint(self, task: Task, evaluation: Evaluation) -> str:
        told = flatten(self.eval_config(self.config(task), evaluation))
        target = evaluation.target or task.dataset
        values = {k: v for k, v in told.items() if k.startswith("eval.") and not k.endswith(("_dir", ".panels"))}
        label_map = values.pop("eval.label_map")
        if label_map is not None:  # what it says, wherever it lies; without one, as before there were any
            values["eval.label_map"] = read_label_map(label_map).plain()
        floors = list(self.study.floors) if task.kind == "floors" else []
        return digest({"eval": values, "data": self.datasets[target].fingerprint, "floors": floors})


def _changes(plan: Plan, task: Task, own: Settings) -> Settings:
    """What a loss that is like another one says differently: stronger than what was chosen for that one."""
    assert task.method is not None and task.method.tuned_by is not None
    root = leaves(settings_of(plan.study.losses[task.method.tuned_by], RESERVED["losses"]))
    return {key: value for key, value in own.items() if key not in root or root[key] != value}


def digest(value: Any) -> str:
    """SHA-256 of plain data, in short."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _of_recipe(name: str) -> Settings:
    """A recipe's settings without those that a study decides; cells are trained on all of the training split."""
    return {key: value for key, value in leaves(load_yaml(find_preset("recipes", name))).items() if key not in DECIDED}
