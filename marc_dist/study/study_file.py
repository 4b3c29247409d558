"""The study file: its schema, and how one is read. A YAML file that people copy and edit; see ``docs/study.md``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from marc_dist.config import Config, ConfigError, build, find_preset, load_yaml, schema_keys
from marc_dist.config.section import Section
from marc_dist.config.suggest import suggestion

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""Of a data set, an encoder or a loss: it becomes the name of a folder."""
TAKEN = ("report", "features", "jobs")
"""Folders of a study that are no data set's."""
Floor = Literal["random", "image_statistics", "pretrained", "whitened", "linear_probe"]
FLOORS: tuple[Floor, ...] = get_args(Floor)
FLOORS_DIR = "floors"
Settings = dict[str, Any]
"""Of a run: dotted keys or nested sections, as in a run file."""
RESERVED = {
    "datasets": ("title", "encoders"),
    "encoders": ("title", "recipe"),
    "losses": ("title", "like", "sweep"),
    "evaluations": ("title", "metrics", "datasets"),
}
"""Keys of an entry that are no settings."""
OWN = {
    "train.run_dir": "every cell has a folder of its own",
    "train.seed": "seeds are given once, as seeds",
    "train.threads": "threads are given once, as threads",
    "data.features_dir": "all cells share the features of the study's folder",
    "data.validation_share": "is for tuning only; give it as tune.validation_share",
    "train.max_steps": "a study counts in epochs; use train.epochs",
}
"""Settings that a study decides."""
OF_EVALUATIONS = ("eval.protocol", "eval.name", "eval.queries_dir", "eval.archive_dir", "eval.baseline")
"""Settings that have no place but an evaluation."""


class Tune(Section):
    """How settings are chosen: on a part of the training split, as many trials for every loss and data set."""

    trials: int = Field(ge=1, le=10_000, description="settings to try for each loss, data set and encoder")
    epochs: int | None = Field(None, ge=1, description="of a trial; null = those of the cell")
    seeds: int = Field(1, ge=1, le=100, description="trainings of every setting, whose scores are averaged")
    search: Literal["tpe", "random", "grid"] = Field("tpe", description="how settings are chosen")
    metric: str = Field("mAP", description="validation score to be made as high as possible")
    validation_share: float = Field(0.2, gt=0.0, le=0.9, description="share of the training split that scores trials")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of the searches")
    all: Settings = Field(default_factory=dict, description="what varies for every loss: key: {sampler: values}")
    losses: dict[Name, Settings] = Field(default_factory=dict, description="what varies for one loss besides")
    fixed_from: Name | None = Field(
        None, description="a data set: what was chosen there is used on all others, too, as LOSS@DATASET"
    )


class Statistics(Section):
    """Intervals and tests."""

    level: float = Field(0.95, gt=0.5, lt=1.0, description="of intervals")
    draws: int = Field(2000, ge=100, le=1_000_000, description="bootstrap samples of an interval")
    tests: bool = Field(True, description="paired t and Wilcoxon signed rank over seeds, of every pair of losses")
    against: Name | None = Field(None, description="test every loss against this one alone; null = every pair")


class StudyFile(Section):
    """A study, as its file says it."""

    title: str = Field("", description="one line for tables and pages")
    claim: str = Field("", description="what is to be shown, for the page; changes nothing that is computed")
    datasets: dict[Name, Settings] = Field(min_length=1, description="settings of each; data.dir first of all")
    encoders: dict[Name, Settings] = Field(min_length=1, description="settings of each; recipe: one of recipes/")
    losses: dict[Name, Settings] = Field(min_length=1, description="settings of each; loss.name first of all")
    settings: Settings = Field(default_factory=dict, description="settings of all cells, weaker than those above")
    seeds: tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...] = Field(
        tuple(range(6)), min_length=1, description="train.seed of the cells of a loss; a number n = 0 to n - 1"
    )
    evaluations: dict[Name, Settings] = Field(min_length=1, description="eval settings of each, and its metrics")
    tune: Tune | None = Field(None, description="how settings are chosen; null = they are those of the file")
    statistics: Statistics = Statistics()
    floors: tuple[Floor, ...] = Field(FLOORS, description="what needs no loss, scored beside the losses")
    keep: Literal["encoders", "scores"] = Field(
        "encoders", description="what stays of a cell: everything; or scores, log and settings, some KB instead of MB"
    )
    threads: int = Field(1, ge=1, le=1024, description="CPU threads of a cell; float32 rounds otherwise with others")

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, values: Any) -> Any:
        """``seeds: 6`` is 0 to 5."""
        seeds = values.get("seeds") if isinstance(values, dict) else None
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            if not 1 <= seeds <= 10_000:
                raise ValueError(f"seeds: expected a number of 1 to 10000, or a list of seeds, got {seeds}")
            return {**values, "seeds": list(range(seeds))}
        return values

    @model_validator(mode="after")
    def _once(self) -> StudyFile:
        for name, values in (("seeds", self.seeds), ("floors", self.floors)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: expected each once, got {', '.join(map(str, values))}")
        return self


def read_study(name: str) -> tuple[StudyFile, Path]:
    """The study that a bare name (``paper``) or a file means, and the file.

    Raises:
        ConfigError: no such study, or a fault in it: names the key and the nearest one.
    """
    path = find_preset("studies", name)
    study = build(StudyFile, load_yaml(path), place=f"{path}: ")
    for name in TAKEN:
        if name in study.datasets:
            raise ConfigError(f"{path}: datasets.{name}: is a folder of the study itself; choose another name")
    if FLOORS_DIR in study.losses:
        raise ConfigError(f"{path}: losses.{FLOORS_DIR}: is the folder of what needs no loss; choose another name")
    for part, reserved in RESERVED.items():
        for entry, values in getattr(study, part).items():
            _check_part(part, values, reserved, f"{path}: {part}.{entry}")
    _check_entry(study.settings, (), f"{path}: settings: ")
    _refuse_evaluation(study.settings, f"{path}: settings: ")
    for dataset, values in study.datasets.items():
        for encoder, more in _mapping(values.get("encoders", {}), f"{path}: datasets.{dataset}.encoders").items():
            if encoder not in study.encoders:
                raise ConfigError(
                    f"{path}: datasets.{dataset}.encoders: unknown encoder {encoder}"
                    f"{suggestion(encoder, study.encoders)}; there are {', '.join(study.encoders)}"
                )
            place = f"{path}: datasets.{dataset}.encoders.{encoder}"
            _check_entry(_mapping(more, place), (), f"{place}: ")
            _refuse_evaluation(more, f"{place}: ")
            _refuse_data(more, f"{place}: ")
    return study, path


def _mapping(value: Any, place: str) -> Settings:
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: expected a mapping of settings, got {value!r:.80}")
    return value


def _refuse_evaluation(values: Settings, place: str) -> None:
    for key in leaves(values).keys() & set(OF_EVALUATIONS):
        raise ConfigError(f"{place}{key}: belongs to an evaluation; give it under evaluations")


def _check_part(part: str, values: Settings, reserved: tuple[str, ...], place: str) -> None:
    """One entry of a part of the file."""
    _check_reserved(values, f"{place}.")
    _check_entry(values, reserved, f"{place}: ")
    if part != "evaluations":
        _refuse_evaluation(values, f"{place}: ")
    if part != "datasets":
        _refuse_data(values, f"{place}: ")
    if part == "losses" and isinstance(values.get("sweep"), dict):
        _check_sweep(values["sweep"], f"{place}.sweep: ")


def _refuse_data(values: Settings, place: str) -> None:
    if "data.dir" in leaves(values):
        raise ConfigError(f"{place}data.dir: belongs to a data set; give it under datasets")


def _check_sweep(sweep: Settings, place: str) -> None:
    """Every value of a sweep is one that an entry may have."""
    for key, values in leaves(sweep).items():
        for value in values if isinstance(values, list) else ():
            section, _, rest = key.partition(".")
            _check_entry({section: {rest: value}} if rest else {key: value}, (), place)
        _refuse_evaluation({key: None}, place)
        _refuse_data({key: None}, place)


def _check_reserved(values: Settings, place: str) -> None:
    """The keys of an entry that are no settings have values of their kind."""
    for key in ("title", "recipe", "like"):
        if key in values and not isinstance(values[key], str):
            raise ConfigError(f"{place}{key}: expected a text, got {values[key]!r:.80}")
    for key in ("metrics", "datasets"):
        names = values.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{place}{key}: expected a list of names, got {names!r:.80}")


def _check_entry(values: Settings, reserved: tuple[str, ...], place: str) -> None:
    """Every key is a setting or reserved, and none is one that a study decides."""
    for key in values:
        if key not in Config.model_fields and key not in reserved:
            known = [*reserved, *Config.model_fields, *schema_keys(Config)]
            raise ConfigError(f"{place}{key}: unknown key{suggestion(key, known)}")
    flat = leaves(settings_of(values, reserved))
    for key in flat:
        if key in OWN:
            raise ConfigError(f"{place}{key}: {OWN[key]}")
    known_keys = schema_keys(Config)
    for key in flat:  # what settings say together is seen when a cell is made
        if key not in known_keys:
            raise ConfigError(f"{place}{key}: unknown key{suggestion(key, known_keys)}")
    for key, value in flat.items():
        try:
            build(Config, {key: value})
        except ConfigError as error:
            if str(error).startswith(f"{key}:"):
                raise ConfigError(f"{place}{error}") from None


def settings_of(values: Mapping[str, Any], reserved: tuple[str, ...]) -> Settings:
    """The settings of an entry, without its other keys."""
    return {key: value for key, value in values.items() if key not in reserved}


def leaves(values: Mapping[str, Any]) -> Settings:
    """Nested sections -> dotted keys."""
    return dict(_leaves(values, ""))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
