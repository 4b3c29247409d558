"""``DIR/report.html`` and ``DIR/figures``: what a search found, in one file that needs no other."""

from __future__ import annotations

import base64
import statistics
from pathlib import Path

from marc_dist.retrieval.charts import esc
from marc_dist.retrieval.style import CSS
from marc_dist.training.runfolder import write_atomic
from marc_dist.tuning.board import shown_point
from marc_dist.tuning.figures import figures
from marc_dist.tuning.search import Search, interval

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
    drawn = figures(search)
    for name, data in drawn.items():
        write_atomic(folder / "figures" / f"{name}.png", data)
    path = folder / REPORT
    write_atomic(path, _html(search, drawn).encode())
    return path


def _html(search: Search, drawn: dict[str, bytes]) -> str:
    plan = search.plan
    runs = list(search.runs.values())
    early = (
        f"early stopping from epoch {plan.grace} on, one in {plan.eta:g} goes on" if plan.grace else "no early stopping"
    )
    facts = [
        f"{plan.how} search, seed {plan.seed}",
        f"{len(search.points)} of {search.num_settings} settings, {len(runs)} trials",
        f"{plan.epochs} epochs a trial, {search.epochs_used:g} epochs in all",
        early,
        f"scored on {float(plan.base['data.validation_share']):.0%} of {plan.base['data.train_split']}, kept aside",
    ]
    listed = "".join(f"<li>{esc(fact)}</li>" for fact in facts)
    pictures = "".join(
        f"<h2>{esc(TITLES[name])}</h2><p class='lead'>{esc(NOTES.get(name, ''))}</p>"
        f'<figure class="chart"><img style="width:100%" alt="{esc(TITLES[name])}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}"></figure>'
        for name, data in drawn.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{esc(search.space.title)}</title><style>{CSS}</style></head>'
        f'<body><main><header><p class="kicker">marc-tune</p><h1>{esc(search.space.title)}</h1>'
        f'<ul class="facts">{listed}</ul></header>{_best(search)}{pictures}{_table(search)}</main></body></html>\n'
    )


def _best(search: Search) -> str:
    ranked = search.finished()
    if not ranked:
        return "<h2>No setting was trained in full</h2>"
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
        cards.append(
            f'<div class="card"><p>validation {esc(name)}</p><strong>{mean:.4f}</strong><p>{esc(note)}</p></div>'
        )
    same = ", the run file's own: none of the others is better" if own == number else ""
    chosen = "the best of many is a little lucky; score it on the test split once, with new seeds"
    return (
        f'<h2>Best: setting {number:04d}{esc(same)}</h2><p class="lead">{esc(shown_point(search.points[number]))}</p>'
        f'<div class="cards">{"".join(cards)}</div>'
        f'<p class="lead">Train it in full: marc-train best.yaml ({chosen}).</p>'
    )


def _table(search: Search) -> str:
    plan = search.plan
    head = "".join(f'<th scope="col" class="num">{esc(name)}</th>' for name in plan.objectives)
    pareto = set(search.pareto()) if len(plan.objectives) > 1 else set()
    lines = []
    ranked = search.finished()
    order = [*ranked, *(at for at in range(len(search.points)) if at not in set(ranked))]
    for at in order[:MOST]:
        runs = search.of(at)
        states = ", ".join(run.state for run in runs) or "open"
        why = "; ".join(run.reason for run in runs if run.reason)
        cells = []
        for name in plan.objectives:
            values = search.values(at, name) if runs else []
            cells.append(f'<td class="num">{statistics.fmean(values):.4f}</td>' if values else '<td class="num">-</td>')
        epochs = "+".join(f"{run.epoch:g}" for run in runs)
        mark = " *" if at in pareto else ""
        small = f"<small>{esc(why)}</small>" if why else ""
        point = f'<small style="min-width:11em">{esc(shown_point(search.points[at]))}</small>'
        lines.append(
            f'<tr><th scope="row">{at:04d}{mark}{point}</th>'
            f'<td style="overflow-wrap:break-word">{esc(states)}{small}</td>'
            f'<td class="num">{esc(epochs)}</td>{"".join(cells)}</tr>'
        )
    note = '<p class="lead">* no other setting is better in one objective and as good in the rest</p>' if pareto else ""
    return (
        f'<h2>Settings</h2>{note}<div style="overflow-x:auto"><table><thead><tr>'
        f'<th scope="col">setting</th><th scope="col">state</th>'
        f'<th scope="col" class="num">epochs</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )
