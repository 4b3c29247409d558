"""Which encoder of a study is worth sharing: of the best loss, the cell whose score is the median of its seeds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from marc_dist.config import ConfigError
from marc_dist.config.suggest import suggestion
from marc_dist.study.plan import Plan, Task
from marc_dist.study.state import is_done
from marc_dist.study.tables.collected import Block, Column, Findings, Row


@dataclass(frozen=True)
class Choice:
    """A cell, and the loss that it is a seed of.

    Attributes:
        task: the cell.
        block: the table that it stands in.
        row: of its loss.
        why: how it was chosen, a sentence for the card.
    """

    task: Task
    block: Block
    row: Row
    why: str

    @property
    def folder(self) -> str:
        """Name of the folder that it is exported into."""
        name = f"{self.block.dataset}-{self.block.encoder}-{self.row.name}"
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def deciding(plan: Plan, block: Block) -> Column:
    """The metric that decides: the first one of the first evaluation of the cell's own data."""
    away = {one.name for one in plan.evaluations(block.dataset) if one.target is not None}
    own = [column for column in block.columns if column.evaluation not in away]
    return (own or list(block.columns))[0]


def best_cells(plan: Plan, findings: Findings) -> list[Choice]:
    """One a data set and encoder.

    Raises:
        ConfigError: no cell is done.
    """
    found = list(_best(plan, findings))
    if not found:
        raise ConfigError(f"{plan.out}: no cell is done, so there is nothing to export; run marc-study {plan.path}")
    return found


def _best(plan: Plan, findings: Findings) -> Iterator[Choice]:
    for block in findings.blocks:
        column = deciding(plan, block)
        name = block.best(column)
        if name is None:
            continue
        row = next(row for row in block.rows if row.name == name and not row.floor)
        values = row.by_seed[column]
        known = sorted((value, seed) for value, seed in zip(values, row.seeds, strict=True) if value == value)
        _, seed = known[(len(known) - 1) // 2]
        losses = sum(not one.floor for one in block.rows)
        why = (
            f"Of {losses} losses that the study compared on this data, {row.title} has the best mean of "
            f"{column.metric} ({column.evaluation}) over {len(known)} seeds. Of these seeds, this is the one with the "
            f"median score (seed {seed}): no seed was picked for its score."
        )
        yield Choice(plan.tasks[f"{block.dataset}/{block.encoder}/{name}/seed-{seed}"], block, row, why)


def named_cell(plan: Plan, findings: Findings, name: str) -> Choice:
    """The cell that somebody names, as it is called in the study's folder.

    Args:
        plan: of the study.
        findings: of ``collect``.
        name: DATASET/ENCODER/LOSS/seed-N.

    Raises:
        ConfigError: no such cell, or one that is not done.
    """
    cells = {task.name: task for task in plan.cells}
    task = cells.get(name.strip("/"))
    if task is None or task.method is None:
        near = suggestion(name, cells) or f"; such as {next(iter(cells))}"
        raise ConfigError(f"--cell: {name}: no such cell in {plan.path}{near}")
    if not is_done(plan, task):
        raise ConfigError(f"--cell: {name}: not done yet; run marc-study {plan.path}")
    block = next(one for one in findings.blocks if (one.dataset, one.encoder) == (task.dataset, task.encoder))
    row = next(row for row in block.rows if row.name == task.method.name and not row.floor)
    return Choice(task, block, row, f"Chosen by hand: the cell {task.name} of the study.")
