"""``marc-study --export``: the best encoders of a study, or a named one, as folders for the Hugging Face Hub."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from marc_dist.config import ConfigError, load_config
from marc_dist.run.evaluations import read_summary
from marc_dist.study.metric_names import LABEL_METRICS
from marc_dist.study.plan import Plan
from marc_dist.study.scores import eval_dir
from marc_dist.study.sharing.choice import Choice, best_cells, named_cell
from marc_dist.study.tables.collected import Column, collect

if TYPE_CHECKING:
    from marc_dist.report.sharing.model_card import Score


def export_study(
    plan: Plan, out: Path, say: Callable[[str], None], *, cell: str | None, licence: str | None, onnx: bool
) -> list[str]:
    """Write one folder a data set and encoder, or that of one cell; a line for people on each.

    Args:
        plan: of the study.
        out: the folders are made in it.
        say: takes one line for people.
        cell: name of a cell; None = the best of each data set and encoder.
        licence: identifier for the hub; None = the card says that none was chosen.
        onnx: whether to write ``model.onnx``, too.

    Raises:
        ConfigError: no such cell, none that is done, encoders that the study did not keep; see ``share_run``.
        LaunchError: see ``share_run``.
    """
    from marc_dist.encoder.hub_folder import check_share  # torch

    findings = collect(plan)
    chosen = best_cells(plan, findings) if cell is None else [named_cell(plan, findings, cell)]
    for choice in chosen:
        _refuse_light(plan, choice)
        check_share(out / choice.folder, onnx=onnx)
    return [_export(plan, choice, out / choice.folder, say, licence, onnx) for choice in chosen]


def _refuse_light(plan: Plan, choice: Choice) -> None:
    folder = plan.folder(choice.task)
    if not (folder / "encoder.json").is_file():
        raise ConfigError(
            f"{folder}: its encoder was not kept (keep: {plan.study.keep}); train it again with: marc-train "
            f"{folder}/config.yaml train.run_dir=runs/again, evaluate it, and export it with marc-eval runs/again "
            "--export DIR"
        )


def _export(plan: Plan, choice: Choice, out: Path, say: Callable[[str], None], licence: str | None, onnx: bool) -> str:
    from marc_dist.report.sharing.share import share_run, shared_words  # torch

    folder = plan.folder(choice.task)
    title = plan.study.title or plan.path.stem
    shared = share_run(
        folder,
        out,
        load_config(folder / "config.yaml"),
        say,
        licence=licence,
        onnx=onnx,
        scores=_scores(plan, choice),
        level=plan.study.statistics.level,
        notes=(f"From the study \u201c{title}\u201d of marc-study. {choice.why}",),
    )
    return shared_words(shared)


def _scores(plan: Plan, choice: Choice) -> list[Score]:
    """This encoder's own figures, with intervals over queries, then those of its loss over all seeds."""
    from marc_dist.report.sharing.share import scores_of

    own: list[Score] = []
    loss: list[Score] = []
    for evaluation in plan.evaluations(choice.task.dataset):
        summary = read_summary(eval_dir(plan.folder(choice.task), evaluation))
        for score in scores_of(summary):
            if score.metric not in evaluation.metrics:
                continue
            own.append(replace(score, evaluation=f"{evaluation.name}, this encoder"))
            mean, low, high = choice.row.figures[Column(evaluation.name, score.metric)]
            sound = not math.isnan(low)
            seeds = len(choice.row.seeds)
            loss.append(
                replace(
                    score,
                    evaluation=f"{evaluation.name}, {choice.row.title}, {seeds} seed{'s' * (seeds > 1)}",
                    value=mean,
                    low=low if sound else None,
                    high=high if sound else None,
                    over="seeds" if score.metric in LABEL_METRICS else "seeds and queries",
                    own=False,
                )
            )
    return own + loss
