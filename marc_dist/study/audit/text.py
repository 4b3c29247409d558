"""What an audit found, as CSV and as one page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from marc_dist.study.audit.label_suspects import COMPONENTS, FOLDS, LEAST
from marc_dist.study.audit.leaks import RULES
from marc_dist.study.plan import Plan
from marc_dist.study.statistics import Interval
from marc_dist.study.tables.text import as_csv

if TYPE_CHECKING:
    from marc_dist.study.audit.rescored import Rescored
    from marc_dist.study.audit.run import Audited

SHOWN = 15
"""Pairs and doubts on the page; the files have all."""
LEAKS, SCORES, CLASSES, LABELS, PAGE = (
    "audit-leaks.csv", "audit-scores.csv", "audit-classes.csv", "audit-labels-{}.csv", "audit.md"
)  # fmt: skip
RULE_TITLES = {"pixels": "pixels", "pixels_or_neighbours": "pixels or neighbours", "scene": "scene in another split"}


def files(plan: Plan, found: Sequence[Audited]) -> dict[str, str]:
    """Everything that an audit writes: name -> content.

    Args:
        plan: of the study.
        found: one a data set.
    """
    made = {LEAKS: _leaks_csv(found), SCORES: _scores_csv(found), CLASSES: _classes_csv(found)}
    made |= {LABELS.format(one.name): _labels_csv(one) for one in found}
    return {**made, PAGE: _page(plan, found)}


def _names(one: Audited, row: int) -> str:
    """The labels of a picture as they are given."""
    classes = one.dataset.classes
    return ";".join(name for name, on in zip(classes, one.dataset.label_rows(row), strict=True) if on)


def _leaks_csv(found: Sequence[Audited]) -> str:
    heads = ["dataset", "alike", "bits", "cosine", "split", "picture", "labels", "other_split", "other_picture",
             "other_labels"]  # fmt: skip
    return as_csv(heads, (line for one in found for line in _pairs(one)))


def _pairs(one: Audited) -> Iterable[list[object]]:
    keys, split = one.dataset.keys, one.dataset.split
    for pair in one.leaks.pairs:
        bits = int(pair.value) if pair.kind == "near" else ""
        cosine = round(pair.value, 6) if pair.kind == "neighbour" else ""
        sides = [str(x) for row in (pair.row, pair.other) for x in (split[row], keys[row], _names(one, row))]
        yield [one.name, pair.kind, bits, cosine, *sides]


def _scores_csv(found: Sequence[Audited]) -> str:
    heads = ["dataset", "encoder", "loss", "floor", "evaluation", "metric", "seeds", "rule", "queries", "leaked",
             "mean", "without", "without_low", "without_high", "difference"]  # fmt: skip
    return as_csv(
        heads,
        (
            [x.dataset, x.encoder, x.loss, int(x.floor), x.column.evaluation, x.column.metric, x.seeds, x.rule,
             x.queries, x.leaked, x.every.mean, x.without.mean, x.without.low, x.without.high, x.difference]
            for one in found
            for x in one.scores
        ),
    )  # fmt: skip


def _classes_csv(found: Sequence[Audited]) -> str:
    heads = ["dataset", "encoder", "label", "pictures", "missing", "extra", "probe_auc"]
    return as_csv(heads, ([one.name, one.encoder, *line] for one in found for line in _classes(one)))


def _classes(one: Audited) -> Iterable[list[object]]:
    """Label, pictures that carry it, how many lack it or carry it in vain, how well the probe tells it."""
    for at, name in enumerate(one.dataset.classes):
        mine = [doubt for doubt in one.doubts if doubt.label == at]
        given = one.dataset.labels[:, at]
        missing = sum(doubt.missing for doubt in mine)
        yield [name, int(given.sum()), missing, len(mine) - missing, _auc(given, one.probabilities[:, at])]


def _auc(given: NDArray[np.bool_], p: NDArray[np.float64]) -> float:
    if np.isnan(p).any():
        return math.nan
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(given, p))


def _labels_csv(one: Audited) -> str:
    heads = ["rank", "picture", "split", "labels", "doubt", "label", "score", "neighbours"]
    return as_csv(
        heads,
        (
            [at, str(one.dataset.keys[doubt.row]), str(one.dataset.split[doubt.row]), _names(one, doubt.row),
             "missing" if doubt.missing else "extra", one.dataset.classes[doubt.label], round(doubt.score, 6),
             round(share, 6)]
            for at, (doubt, share) in enumerate(zip(one.doubts, one.shares, strict=True), start=1)
        ),
    )  # fmt: skip


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    clean = [[" ".join(str(cell).split()).replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    return [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *(f"| {' | '.join(row)} |" for row in clean)]


def _page(plan: Plan, found: Sequence[Audited]) -> str:
    lines = [
        f"# Audit: {plan.study.title or plan.path.stem}",
        "",
        "Nothing here changes a score or a label. A query *leaks* by **pixels** when an equal or nearly equal picture "
        "(perceptual hash and small copies, as `marc-shard` has it) lies in another split; by **neighbours** when its "
        "nearest picture of another split is nearer, in the features of the pretrained backbone, than the least alike "
        "5 % of pictures are to their own mirror images; by **scene** when a picture of its scene lies in "
        "another split. Scores without leaked queries leave these queries out; the archive stays whole.",
        "",
        f"A label is *doubtful* when a logistic regression on {COMPONENTS} principal components of the features and on "
        "the picture's other labels, which has not seen the picture, is as sure of the opposite as it is on average of "
        f"pictures labelled so ({FOLDS} folds; labels with fewer than {LEAST} pictures with and without them are not "
        "judged). Doubtful is not wrong: look at the pictures.",
        "",
    ]
    for one in found:
        lines += [
            f"## {one.dataset.title}".replace("<", "&lt;"),
            "",
            *_of_leaks(one),
            *_of_scores(one),
            *_of_labels(one),
        ]
    return "\n".join(lines).rstrip() + "\n"


def _of_leaks(one: Audited) -> list[str]:
    kinds = [pair.kind for pair in one.leaks.pairs]
    asked = one.dataset.rows(one.asking)
    leaked = {rule: int(one.leaks.leaked[rule][asked].sum()) for rule in RULES if rule in one.leaks.leaked}
    lines = [
        f"{len(one.dataset)} pictures. Pairs across splits: {kinds.count('equal')} equal, {kinds.count('near')} nearly "
        f"equal, {kinds.count('neighbour')} more by neighbours (cosine of {one.leaks.threshold:.3f} or more, backbone "
        f"of `{one.encoder}`). All are in `{LEAKS}`.",
        "",
        *_table(
            ["a query leaks by", f"queries of {len(asked)} ({one.asking})"],
            [[RULE_TITLES[rule], num] for rule, num in leaked.items()],
        ),
        "",
    ]
    if "scene" not in leaked:
        lines += ["The data set names no scenes.", ""]
    if kinds:
        heads = ["alike", "bits", "cosine", "split", "picture", "labels", "other split", "other picture", "labels"]
        lines += [*_table(heads, [line[1:] for line in _pairs(one)][:SHOWN]), ""]
    return lines


def _of_scores(one: Audited) -> list[str]:
    """The metrics of the first evaluation, a line a loss; and whether the order of the losses changes."""
    if not one.scores:
        return ["No cell is done: no scores to compare.", ""]
    first = one.scores[0].column.evaluation
    rules = [rule for rule in RULES if rule in one.leaks.leaked]
    cells: dict[tuple[str, str, str], dict[str, Rescored]] = {}
    for score in one.scores:
        if score.column.evaluation == first:
            cells.setdefault((score.encoder, score.column.metric, score.loss), {})[score.rule] = score
    rows = []
    for (encoder, metric, _), by_rule in cells.items():
        any_rule = next(iter(by_rule.values()))
        title = f"*{any_rule.title}*" if any_rule.floor else any_rule.title
        rows.append(
            [encoder, metric, title, _shown(any_rule.every), *(_shown(by_rule[rule].without) for rule in rules)]
        )
    heads = ["encoder", "metric", "loss", "all queries", *(f"without: {RULE_TITLES[rule]}" for rule in rules)]
    return [
        f"Scores of `{first}`; all evaluations are in `{SCORES}`. A dash: no query is left.",
        "",
        *_table(heads, rows),
        "",
        *_orders(cells, rules),
        "",
    ]


def _shown(figure: Interval) -> str:
    if math.isnan(figure.mean):
        return "-"
    ends = "" if math.isnan(figure.low) else f" [{figure.low:.3f}, {figure.high:.3f}]"
    return f"{figure.mean:.3f}{ends}"


def _orders(cells: dict[tuple[str, str, str], dict[str, Rescored]], rules: Sequence[str]) -> list[str]:
    """One line a rule: for which metrics another loss is the best without leaked queries."""
    lines = []
    groups: dict[tuple[str, str], list[dict[str, Rescored]]] = {}
    for (encoder, metric, _), by_rule in cells.items():
        groups.setdefault((encoder, metric), []).append(by_rule)
    for rule in rules:
        changed, compared = [], 0
        for (encoder, metric), group in groups.items():
            known = [one[rule] for one in group if not one[rule].floor and not math.isnan(one[rule].without.mean)]
            if len(known) < 2:
                continue
            sign = -1.0 if known[0].column.lower else 1.0
            before = max(known, key=lambda one: sign * one.every.mean)
            after = max(known, key=lambda one: sign * one.without.mean)
            compared += 1
            if before.loss != after.loss:
                changed.append(f"{encoder}, {metric}: {after.title} in place of {before.title}")
        if compared:
            told = "; ".join(changed) if changed else f"the best loss stays the same for all {compared} metrics"
            lines.append(f"- Without queries that leak by {RULE_TITLES[rule]}: {told}.".replace("<", "&lt;"))
    return lines


def _of_labels(one: Audited) -> list[str]:
    rows = [
        [name, num, missing, extra, "not judged" if math.isnan(auc) else f"{auc:.3f}"]  # type: ignore[arg-type]
        for name, num, missing, extra, auc in _classes(one)
    ]
    lines = [
        f"{len(one.doubts)} doubtful labels of {one.dataset.labels.size}. All are in `{LABELS.format(one.name)}`.",
        "",
        *_table(["label", "pictures", "perhaps missing", "perhaps wrong", "AUC of the probe"], rows),
        "",
    ]
    if one.doubts:
        shown = [
            [one.dataset.keys[doubt.row], one.dataset.split[doubt.row], _names(one, doubt.row),
             "missing" if doubt.missing else "wrong", one.dataset.classes[doubt.label], f"{doubt.score:.3f}",
             f"{share:.1f}"]
            for doubt, share in zip(one.doubts[:SHOWN], one.shares, strict=False)
        ]  # fmt: skip
        heads = ["picture", "split", "labels", "perhaps", "label", "score", "share of 10 neighbours with it"]
        lines += [*_table(heads, shown), ""]
    return lines
