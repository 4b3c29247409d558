"""A study is checked as a whole before anything starts: every mistake is one line."""

from __future__ import annotations

from marc_dist.config import Config, ConfigError, build, flatten, user_path
from marc_dist.config.suggest import suggestion
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.retrieval.label_map import NOTHING, read_label_map
from marc_dist.retrieval.protocols import shared_labels
from marc_dist.study.methods import methods, space_source
from marc_dist.study.metric_names import USUAL, check_metrics
from marc_dist.study.plan import PLACES, Plan, Task, digest
from marc_dist.study.statistics import SIGNIFICANT, seeds_needed
from marc_dist.study.study_file import RESERVED, Settings, leaves, read_study, settings_of
from marc_dist.training.validation.scores import check_groups
from marc_dist.tuning.driver import check_objectives


def make_plan(name: str, out: str | None = None) -> Plan:
    """The study that a bare name or a file means, with all of its cells checked.

    Args:
        name: see ``read_study``.
        out: its folder; None = ``runs/study-NAME``.

    Raises:
        ConfigError: a fault in the file: one line.
        DataError: no such shard folder.
    """
    study, path = read_study(name)
    folder = user_path(out or f"runs/study-{path.stem}").absolute()
    datasets = {}
    for dataset, entry in study.datasets.items():
        where = leaves(entry).get("data.dir")
        if not isinstance(where, str):
            raise ConfigError(f"{path}: datasets.{dataset}: expected data.dir, a shard folder made by marc-shard")
        datasets[dataset] = open_dataset(where)
    plan = Plan(study, path, folder, datasets, tuple(methods(study, f"{path}: ")))
    _check_titles(plan)
    _check_statistics(plan)
    _check_cells(plan)
    return plan


def _check_titles(plan: Plan) -> None:
    for part in ("datasets", "encoders", "losses", "evaluations"):
        for name, entry in getattr(plan.study, part).items():
            if not isinstance(entry.get("title", ""), str):
                raise ConfigError(f"{plan.place}{part}.{name}.title: expected text, got {entry['title']!r:.60}")


def _check_statistics(plan: Plan) -> None:
    """Enough seeds for the tests, and a loss to compare with."""
    statistics, num, least = plan.study.statistics, len(plan.study.seeds), seeds_needed()
    if statistics.tests and num < least:
        raise ConfigError(
            f"{plan.place}seeds: tests need {least} or more, got {num}: no two-sided Wilcoxon test of fewer gets to "
            f"{SIGNIFICANT}; give {least} seeds, or statistics.tests: false"
        )
    against = statistics.against
    names = [method.name for method in plan.methods]
    if against is not None and against not in names:
        raise ConfigError(f"{plan.place}statistics.against: no such loss, {against}; there are {', '.join(names)}")


def _check_cells(plan: Plan) -> None:
    """Every cell's settings, metrics and search; once for all seeds."""
    tune = plan.study.tune
    if tune is not None:
        check_objectives((tune.metric,))
    seen: dict[str, str] = {}
    for task in plan.tasks.values():
        if task.seed != plan.study.seeds[0] and task.kind == "cell":
            continue
        config = plan.config(task)
        dataset = plan.datasets[task.dataset]
        if task.kind == "search":
            _, searched = plan.search_plan(task)
            check_groups(dataset, build(Config, searched.base).data, (searched.objectives[0],), "tune.metric=")
        elif task.kind == "cell":
            dataset.train_rows(config.data)
            _check_twins(plan, task, config, seen)
        else:
            continue
        _check_evaluations(plan, task, config)


def _check_twins(plan: Plan, task: Task, config: Config, seen: dict[str, str]) -> None:
    """Two losses of other names that are the same training."""
    assert task.method is not None
    if task.method.sweep:  # curves that cross share a point
        return
    unread = {f"loss.{name}" for name in config.loss.unread()}
    told = {key: value for key, value in flatten(config).items() if key not in PLACES and key not in unread}
    by = task.method.tuned_by
    varies = None if by is None else space_source(plan.study, by)["parameters"]
    key = digest([task.dataset, task.encoder, told, varies, task.method.tuned_on])
    if key in seen:
        raise ConfigError(
            f"{plan.place}losses: {seen[key]} and {task.method.name} have the same settings on {task.dataset}; "
            "take one out"
        )
    seen[key] = task.method.name


def _check_evaluations(plan: Plan, task: Task, config: Config) -> None:
    for name, entry in plan.study.evaluations.items():
        place = f"{plan.place}evaluations.{name}: "
        shown = entry.get("metrics", list(USUAL))
        if not isinstance(shown, list) or not shown or len(set(map(str, shown))) < len(shown):
            raise ConfigError(f"{place}metrics: expected a list of different metrics, got {shown!r:.80}")
        settings = leaves(settings_of(entry, RESERVED["evaluations"]))
        for key in settings:
            if not key.startswith("eval."):
                raise ConfigError(f"{place}{key}: expected settings of eval; others belong to settings, or to a loss")
            if key in ("eval.queries_dir", "eval.archive_dir", "eval.baseline", "eval.name"):
                raise ConfigError(f"{place}{key}: a study decides this; give eval.protocol: transfer to search others")
        _check_targets(plan, settings, entry, place)
    for evaluation in plan.evaluations(task.dataset):
        place = f"{plan.place}evaluations.{evaluation.entry}: "
        one = plan.eval_config(config, evaluation)
        own = plan.datasets[task.dataset]
        if evaluation.target is not None and not _shared(plan, own, plan.datasets[evaluation.target], one, place):
            raise ConfigError(
                f"{place}datasets: {task.dataset} and {evaluation.target} have no class in common; leave one out"
            )
        target = plan.datasets[evaluation.target or task.dataset]
        archive = one.eval.query_split if one.eval.protocol in ("oml", "leave_one_out") else one.eval.archive_split
        for split in (archive, one.eval.query_split):
            target.rows(split)  # there is one
        check_metrics(list(evaluation.metrics), one, f"{place}metrics: ")


def _shared(plan: Plan, own: Dataset, target: Dataset, config: Config, place: str) -> tuple[str, ...]:
    """The labels that a cell's data and what it searches have in common, after the names were mapped."""
    sides = [(own.name, own.classes), (target.name, target.classes)]
    if config.eval.label_map is None:
        return shared_labels(sides, NOTHING)
    try:
        label_map = read_label_map(config.eval.label_map)
        label_map.check(sides)
    except ConfigError as error:
        raise ConfigError(f"{place}eval.label_map: {error}") from None
    known = [dataset.name for dataset in plan.datasets.values()]
    for name in label_map.datasets:
        if name not in known:
            raise ConfigError(
                f"{place}eval.label_map: {label_map.place}: datasets.{name}: no data set of the study has this name"
                f"{suggestion(name, known)}; they are {', '.join(known)}"
            )
    return shared_labels(sides, label_map)


def _check_targets(plan: Plan, settings: Settings, entry: Settings, place: str) -> None:
    transfer = settings.get("eval.protocol") == "transfer"
    if transfer and len(plan.datasets) < 2:
        raise ConfigError(f"{place}eval.protocol: transfer searches other data sets; there is only one")
    targets = entry.get("datasets", [])
    if targets and not transfer:
        raise ConfigError(f"{place}datasets: is for eval.protocol: transfer; a cell is scored on its own data set")
    for target in targets if isinstance(targets, list) else [str(targets)]:
        if target not in plan.datasets:
            raise ConfigError(f"{place}datasets: unknown data set {target}; there are {', '.join(plan.datasets)}")
