"""``DIR/report.html`` and ``DIR/figures``: what a search found, in one file that needs no other."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from marc_dist.files import write_atomic
from marc_dist.report.charts import Chart, as_png, as_svg
from marc_dist.report.page import render_page
from marc_dist.tuning.figures import figures
from marc_dist.tuning.progress_table import shown_point
from marc_dist.tuning.state import Search, interval

REPORT = "report.html"
TITLES = {
    "history": "Every setting in order",
    "epochs": "Every setting over its epochs",
    "parallel": "Parallel coordinates",
    "surface": "alpha and beta",
    "curves": "One parameter at a time, means with 95 % intervals",
    "importance": "How much each parameter matters",
    "pareto": "Objectives against each other",
}
NOTES = {
    "epochs": "First seeds. Dotted: the epochs at which a setting may be stopped early.",
    "parallel": "A line a setting; colour is its score, grey ones were stopped early.",
    "surface": "Only settings trained in full. Between them the surface is interpolated.",
    "curves": "Only settings trained in full; the others vary beside the one on the axis.",
    "importance": "What the best third of the settings trained in full have in common; with few, a rough word only.",
}
MOST = 200  # rows of the table


def write_report(search: Search, folder: Path) -> Path:
    """Write the figures as PNG and the report that holds them; both completely or not at all, file by file."""
    charts = []
    for name, figure in figures(search).items():
        write_atomic(folder / "figures" / f"{name}.png", as_png(figure))
        charts.append((Chart(TITLES[name], as_svg(figure, name, TITLES[name])), NOTES.get(name, "")))
    page = render_page(
        "tuning_report.html.j2",
        title=search.space.title,
        heading=search.space.title,
        facts=_facts(search),
        best=_best(search),
        charts=charts,
        objectives=search.plan.objectives,
        settings=_settings(search),
    )
    write_atomic(folder / REPORT, page.encode())
    return folder / REPORT


def _facts(search: Search) -> list[str]:
    plan = search.plan
    early = (
        f"early stopping from epoch {plan.grace} on, one in {plan.eta:g} goes on" if plan.grace else "no early stopping"
    )
    return [
        f"{plan.how} search, seed {plan.seed}",
        f"{len(search.points)} of {search.num_settings} settings, {len(search.runs)} trials",
        f"{plan.epochs} epochs a trial, {search.epochs_used:g} epochs in all",
        early,
        f"scored on {float(plan.base['data.validation_share']):.0%} of {plan.base['data.train_split']}, kept aside",
    ]


def _best(search: Search) -> dict[str, Any] | None:
    """The best setting that was trained in full, a card for each objective; None for none."""
    ranked = search.finished()
    if not ranked:
        return None
    number, own = ranked[0], search.own()
    cards = []
    for name in search.plan.objectives:
        values = search.values(number, name)
        mean, low, high = interval(values)
        note = (
            f"95 % {low:.4f} to {high:.4f}, {len(values)} seeds" if low is not None and high is not None else "one seed"
        )
        if own not in (None, number):
            note += f"; the run file's own, {own:04d}: {statistics.fmean(search.values(own, name)):.4f}"
        cards.append({"objective": name, "mean": mean, "note": note})
    return {
        "name": f"{number:04d}",
        "remark": ", the run file's own: none of the others is better" if own == number else "",
        "point": shown_point(search.points[number]),
        "cards": cards,
    }


def _settings(search: Search) -> list[dict[str, Any]]:
    """A row for each setting, best first, then those that were not trained in full; at most ``MOST``."""
    objectives = search.plan.objectives
    unbeaten = set(search.pareto()) if len(objectives) > 1 else set()
    ranked = search.finished()
    order = [*ranked, *(at for at in range(len(search.points)) if at not in set(ranked))]
    rows = []
    for at in order[:MOST]:
        runs = search.of(at)
        scores = [search.values(at, name) if runs else [] for name in objectives]
        rows.append(
            {
                "name": f"{at:04d}",
                "unbeaten": at in unbeaten,
                "point": shown_point(search.points[at]),
                "states": ", ".join(run.state for run in runs) or "open",
                "reasons": "; ".join(run.reason for run in runs if run.reason),
                "epochs": "+".join(f"{run.epoch:g}" for run in runs),
                "means": [statistics.fmean(values) if values else None for values in scores],
            }
        )
    return rows
