"""The first answers of the same queries for the best losses side by side, from what every evaluation keeps of them.

An evaluation writes down the first answers of each query (``per_query.parquet``), so encoders may have gone.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marc_dist.config import DataError
from marc_dist.data.dataset import Dataset
from marc_dist.run.evaluations import name_of, read
from marc_dist.study.plan import Plan
from marc_dist.study.scores import eval_dir
from marc_dist.study.state import is_done
from marc_dist.study.study_file import FLOORS_DIR
from marc_dist.study.tables.collected import Block, Row

if TYPE_CHECKING:
    from marc_dist.report.example_queries import Example, Galleries

LOSSES, QUERIES = 3, 4
FLOOR = "pretrained"
"""The floor whose answers stand beside those of the losses."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Answered:
    """Queries of a data set with the answers of several losses.

    Attributes:
        title: of the data set and the encoder.
        evaluation: whose answers they are.
        seed: of the runs.
        metric: by whose mean over these losses the queries were chosen.
        losses: name in ``Example.answers`` -> title, the best loss first.
        galleries: the pictures; their readers are open.
        examples: queries and answers.
        missing: why there are no pictures; empty where there are.
    """

    title: str
    evaluation: str = ""
    seed: int = 0
    metric: str = ""
    losses: Mapping[str, str] | None = None
    galleries: Galleries | None = None
    examples: tuple[Example, ...] = ()
    missing: str = ""


@contextmanager
def nearest_answers(plan: Plan, blocks: tuple[Block, ...]) -> Iterator[list[Answered]]:
    """The queries and answers of every table; their pictures can be read inside the block.

    Args:
        plan: of the study.
        blocks: its tables.
    """
    found: list[Answered] = []
    try:
        for block in blocks:
            try:
                found.append(_answered(plan, block))
            except DataError as error:
                found.append(Answered(block.title, missing=str(error)))
        yield found
    finally:
        for one in found:
            if one.galleries is not None:
                one.galleries.queries.reader.close()
                one.galleries.archive.reader.close()


def best_losses(plan: Plan, block: Block) -> list[Row]:
    """The best losses of a table by its first column, with the settings that were chosen for its own data set.

    Points of sweeps count only where there is nothing else.

    Args:
        plan: of the study.
        block: one of its tables.
    """
    lead = block.columns[0]
    own = {method.name: method for method in plan.methods if method.tuned_on is None}
    known = [row for row in block.rows if row.name in own and not row.floor and lead in row.figures]
    known = [row for row in known if row.figures[lead].mean == row.figures[lead].mean]
    plain = [row for row in known if not own[row.name].sweep] or known
    sign = 1.0 if lead.lower else -1.0
    return sorted(plain, key=lambda row: sign * row.figures[lead].mean)[:LOSSES]


def _answered(plan: Plan, block: Block) -> Answered:
    from marc_dist.report.example_queries import Galleries, choose_examples, score_name

    evaluations = plan.evaluations(block.dataset)
    if not evaluations:
        return Answered(block.title, missing="no evaluation is of this data set")
    rows = best_losses(plan, block)
    if not rows:
        return Answered(block.title, missing="no loss is scored yet")
    seeds = [seed for seed in rows[0].seeds if all(seed in row.seeds for row in rows)]
    if not seeds:
        return Answered(block.title, missing="the best losses have no seed in common yet")
    evaluation = next((one for one in evaluations if one.target is None), evaluations[0])
    folder = plan.out / block.dataset / block.encoder
    places = {row.name: folder / row.name / f"seed-{seeds[0]}" for row in rows}
    titles = {row.name: row.title for row in rows}
    floors = plan.tasks.get(f"{block.dataset}/{block.encoder}/{FLOORS_DIR}")
    if FLOOR in plan.study.floors and floors is not None and is_done(plan, floors):
        titles[FLOOR] = next(row.title for row in block.rows if row.name == FLOOR)
        places[FLOOR] = folder / FLOORS_DIR / FLOOR
    summaries, told = _read_all({name: eval_dir(place, evaluation) for name, place in places.items()})
    summary = summaries[rows[0].name]
    metric = score_name(summary)
    classes = tuple(summary["classes"])
    asking, answering = (_side(plan, summary[side], evaluation.name) for side in ("queries", "archive"))
    sides = {one.fingerprint: _gallery(one, classes) for one in (asking, answering)}
    galleries = Galleries(sides[asking.fingerprint], sides[answering.fingerprint], classes)
    every = [row for name, of in told.items() for row in of]
    every += _averaged([told[row.name] for row in rows], metric)
    examples = tuple(choose_examples(galleries.queries.labels, summary, every, QUERIES))
    return Answered(block.title, name_of(summary), seeds[0], metric, titles, galleries, examples)


def _read_all(places: Mapping[str, Path]) -> tuple[dict[str, dict[str, Any]], dict[str, Rows]]:
    """Summaries and rows of evaluations; a row's encoder is the name of its loss."""
    summaries, told = {}, {}
    for name, place in places.items():
        summaries[name], rows = read(place)
        told[name] = [{**row, "encoder": name} for row in rows if row["encoder"] == "trained"]
    return summaries, told


def _averaged(told: list[Rows], metric: str) -> Rows:
    """Rows whose score is the mean over the losses: no loss alone says which queries are looked at."""
    scores: dict[int, list[float]] = {}
    for rows in told:
        for row in rows:
            scores.setdefault(row["id"], []).append(float(row[metric]))
    return [{**row, "encoder": "trained", metric: statistics.fmean(scores[row["id"]])} for row in told[0]]


def _side(plan: Plan, told: dict[str, Any], evaluation: str) -> Dataset:
    for dataset in plan.datasets.values():
        if dataset.fingerprint == told["fingerprint"]:
            return dataset
    raise DataError(f"evaluation {evaluation}: was made with other data of {told['title']}")


def _gallery(dataset: Dataset, classes: tuple[str, ...]) -> Any:
    from marc_dist.data.reader import IndexedReader
    from marc_dist.report.example_queries import Gallery
    from marc_dist.retrieval.protocols import labels_over

    return Gallery(dataset, IndexedReader(dataset), labels_over(dataset, classes))
