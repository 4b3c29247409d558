"""Findings as Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence

from marc_dist.study.plan import Plan
from marc_dist.study.statistics import SIGNIFICANT, Interval
from marc_dist.study.tables.collected import Block, Column, Findings, Pair, Ranking, Row

MISSING = "-"


def _cell(figure: Interval | None, *, bold: bool) -> str:
    if figure is None or math.isnan(figure.mean):
        return MISSING
    mean = f"**{figure.mean:.3f}**" if bold else f"{figure.mean:.3f}"
    return mean if math.isnan(figure.low) else f"{mean} [{figure.low:.3f}, {figure.high:.3f}]"


def heads_of(block: Block) -> list[str]:
    """Names of the columns, with their evaluation where there are several."""
    several = len({column.evaluation for column in block.columns}) > 1
    return [f"{column.evaluation}: {column.metric}" if several else column.metric for column in block.columns]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    clean = [[cell.replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in clean]
    return [lines[0], f"|{' --- |' * len(heads)}", *lines[1:]]


def markdown(plan: Plan, findings: Findings) -> str:
    """The whole report as one page of Markdown."""
    lines = [f"# {plan.study.title or plan.path.stem}", ""]
    for note in findings.notes:
        lines += [note, ""]
    if findings.missing:
        lines += [f"**Missing**: {len(findings.missing)} of {len(plan.tasks)} parts are not there.", ""]
        lines += [*(f"- `{name}`: {reason}" for name, reason in findings.missing.items()), ""]
    for block in findings.blocks:
        lines += [f"## {block.title}", "", *_scores(block), ""]
        lines += _tests(block, plan)
    if findings.rankings:
        lines += ["## Ranks over data sets", "", *_ranks(findings.rankings), ""]
    return "\n".join(lines).rstrip() + "\n"


def _scores(block: Block) -> list[str]:
    rows = []
    for row in block.rows:
        title = f"*{row.title}*" if row.floor else row.title
        seeds = "" if row.floor else str(len(row.seeds))
        cells = [
            _cell(row.figures.get(column), bold=not row.floor and block.best(column) == row.name)
            for column in block.columns
        ]
        rows.append([title, seeds, *cells])
    return _table(["", "seeds", *heads_of(block)], rows)


def _tests(block: Block, plan: Plan) -> list[str]:
    """The tests against one loss: the one that the study names, or its first; all pairs are in pairs.csv."""
    if not block.pairs:
        return []
    titles = {row.name: row.title for row in block.rows}
    first, tested = block.against(plan)
    heads = heads_of(block)
    rows = [[titles[name], *(_test(pairs.get(column), name) for column in block.columns)] for name, pairs in tested]
    told = (
        f"Difference to {titles.get(first, first)} (settings chosen in the same way) with its "
        f"{100 * plan.study.statistics.level:g} % interval over seeds; p of the paired t test and of the Wilcoxon "
        f"signed rank test, both corrected by Holm for all such pairs of the column; * where the first is below "
        f"{SIGNIFICANT}."
    )
    return [told, "", *_table(["", *heads], rows), ""]


def _test(pair: Pair | None, name: str) -> str:
    if pair is None or math.isnan(pair.paired.difference):
        return MISSING
    difference, low, high = pair.seen_from(name)
    star = "*" if pair.t_holm < SIGNIFICANT else ""
    return f"{difference:+.3f}{star} [{low:+.3f}, {high:+.3f}], p {p_text(pair.t_holm)}, {p_text(pair.wilcoxon_holm)}"


def p_text(value: float) -> str:
    """A p value with three digits."""
    return MISSING if math.isnan(value) else f"{value:.3f}" if value >= 0.001 else "<0.001"


def _ranks(rankings: Sequence[Ranking]) -> list[str]:
    lines: list[str] = []
    for encoder in dict.fromkeys(ranking.encoder for ranking in rankings):
        mine = [ranking for ranking in rankings if ranking.encoder == encoder]
        names = list(dict.fromkeys(name for ranking in mine for name in ranking.names))
        heads = [encoder, *(f"{one.column.evaluation}: {one.column.metric}" for one in mine)]
        rows = [[name, *(_rank(one, name) for one in mine)] for name in names]
        rows.append(["*Friedman p*", *(p_text(one.ranks.friedman_p) for one in mine)])
        rows.append(["*critical difference*", *(f"{one.ranks.critical_difference:.2f}" for one in mine)])
        lines += [*_table(heads, rows), ""]
    return [
        "Mean rank over data sets, 1 = best; mean ranks that differ by less than the critical difference (Nemenyi, "
        "0.05) cannot be told apart.",
        "",
        *lines,
    ]


def _rank(ranking: Ranking, name: str) -> str:
    return f"{ranking.ranks.mean_ranks[ranking.names.index(name)]:.2f}" if name in ranking.names else MISSING


def as_csv(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lines of a table for other programs; NaN is empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for row in rows:
        writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row])
    return text.getvalue()


def scores_csv(findings: Findings) -> str:
    """One line a data set, encoder, loss and metric."""
    heads = ["dataset", "encoder", "loss", "floor", "evaluation", "metric", "seeds", "mean", "low", "high"]
    return as_csv(
        heads,
        (
            [*_place(block, row), column.evaluation, column.metric, len(row.seeds), *row.figures[column]]
            for block, row, column in _every(findings)
        ),
    )


def seeds_csv(findings: Findings) -> str:
    """One line a data set, encoder, loss, seed and metric."""
    heads = ["dataset", "encoder", "loss", "floor", "evaluation", "metric", "seed", "value"]
    return as_csv(
        heads,
        (
            [*_place(block, row), column.evaluation, column.metric, seed, value]
            for block, row, column in _every(findings)
            for seed, value in zip(row.seeds, row.by_seed[column], strict=True)
        ),
    )


def _every(findings: Findings) -> list[tuple[Block, Row, Column]]:
    return [(b, row, c) for b in findings.blocks for row in b.rows for c in b.columns if c in row.figures]


def _place(block: Block, row: Row) -> list[object]:
    return [block.dataset, block.encoder, row.name, int(row.floor)]


def pairs_csv(findings: Findings) -> str:
    """One line a data set, encoder, pair of losses and metric."""
    heads = [
        "dataset", "encoder", "evaluation", "metric", "loss", "other", "seeds", "difference", "low", "high", "t_p",
        "t_p_holm", "wilcoxon_p", "wilcoxon_p_holm", "d_z", "rank_biserial",
    ]  # fmt: skip
    return as_csv(
        heads,
        (
            [
                block.dataset, block.encoder, pair.column.evaluation, pair.column.metric, pair.one, pair.other,
                pair.seeds, pair.paired.difference, pair.paired.low, pair.paired.high, pair.paired.t_p, pair.t_holm,
                pair.paired.wilcoxon_p, pair.wilcoxon_holm, pair.paired.d_z, pair.paired.rank_biserial,
            ]
            for block in findings.blocks
            for pair in block.pairs
        ),
    )  # fmt: skip


def ranks_csv(findings: Findings) -> str:
    """One line an encoder, metric and loss."""
    heads = ["encoder", "evaluation", "metric", "loss", "mean_rank", "friedman_p", "critical_difference"]
    return as_csv(
        heads,
        (
            [
                one.encoder, one.column.evaluation, one.column.metric, name, float(one.ranks.mean_ranks[at]),
                one.ranks.friedman_p, one.ranks.critical_difference,
            ]
            for one in findings.rankings
            for at, name in enumerate(one.names)
        ),
    )  # fmt: skip


def latex(findings: Findings) -> str:
    r"""Every table as a ``tabular`` for ``\usepackage{booktabs}``, to be put into a table with a caption."""
    lines = ["% Tables of marc-study; they need \\usepackage{booktabs}."]
    for block in findings.blocks:
        heads = " & ".join(["", *(_tex(head) for head in heads_of(block))])
        lines += ["", f"% {_tex(block.title)}", f"\\begin{{tabular}}{{l{'c' * len(block.columns)}}}", "\\toprule"]
        lines += [f"{heads} \\\\", "\\midrule"]
        last = None
        for row in block.rows:
            if last is not None and last.floor != row.floor:
                lines.append("\\midrule")
            last = row
            cells = [
                _tex_cell(row.figures.get(column), bold=not row.floor and block.best(column) == row.name)
                for column in block.columns
            ]
            title = f"\\emph{{{_tex(row.title)}}}" if row.floor else _tex(row.title)
            lines.append(" & ".join([title, *cells]) + " \\\\")
        lines += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join(lines) + "\n"


def _tex_cell(figure: Interval | None, *, bold: bool) -> str:
    if figure is None or math.isnan(figure.mean):
        return "--"
    mean = f"\\textbf{{{figure.mean:.3f}}}" if bold else f"{figure.mean:.3f}"
    ends = "" if math.isnan(figure.low) else f" {{\\scriptsize [{figure.low:.3f}, {figure.high:.3f}]}}"
    return mean + ends


SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return re.sub(r"[\\{}&%$#_~^]", lambda found: SPECIAL[found[0]], text)
