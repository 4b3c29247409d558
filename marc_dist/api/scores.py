"""Retrieval metrics of anybody's vectors or rankings, block of queries by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marc_dist import metrics
from marc_dist.api.arrays import own_positions, padded_ranking, plain, refuse_empty_archive, unit_vectors
from marc_dist.api.search import nearest
from marc_dist.metrics import Bool, Float, Int
from marc_dist.metrics.conventions import check_ks
from marc_dist.retrieval.exact import exact_scores, full_ranking
from marc_dist.retrieval.index.parts import FlatPart
from marc_dist.retrieval.scoring import TOP

if TYPE_CHECKING:
    from marc_dist.api.arrays import Array
    from marc_dist.metrics.conventions import Denominator, Gain, Ideal, NdcgForm, Relevance, WithoutRelevant

CELLS = 1 << 23
"""Ranks that are held at a time, queries times archive items."""
MOST_QUERIES = 256


@dataclass(frozen=True)
class RetrievalScores:
    """What ``retrieval_metrics`` and ``score_ranking`` find.

    Attributes:
        means: metric -> mean over the queries that count; NaN where none does.
        thirds: ``all``, ``rare``, ``medium``, ``common`` -> ``mAP`` of single labels (None without any) and
            ``num_labels``.
        per_label: one row a label: ``label``, ``ap`` (None: no query says anything of it), ``archive_count``,
            ``query_count``, ``third``.
        num_queries: Q.
        num_archive: N.
        queries_without_relevant: queries for which the archive holds nothing relevant.
        complete: whether rankings went through the whole archive, as ``mAP`` without a cut-off needs.
        conventions: what was chosen, by the names of the arguments.
        per_query: metric -> (Q,), NaN where a query does not count; None unless asked for.
    """

    means: dict[str, float]
    thirds: dict[str, dict[str, float | int | None]]
    per_label: list[dict[str, Any]]
    num_queries: int
    num_archive: int
    queries_without_relevant: int
    complete: bool
    conventions: dict[str, Any]
    per_query: dict[str, Float] | None = None


class _Block(NamedTuple):
    """Rankings of the queries from ``start`` on, and the cosines of their first answers."""

    start: int
    ranking: Int
    cosine: NDArray[np.floating] | None = None


class _Sides(NamedTuple):
    """Labels of both sides, checked, and who is whom."""

    queries: Bool
    archive: metrics.DistinctSets
    counts: Int
    names: list[Any]
    third: Int
    own: Int

    @property
    def num_archive(self) -> int:
        return len(self.archive.code) - 1


def retrieval_metrics(
    query_vectors: Array,
    query_labels: Array,
    archive_vectors: Array,
    archive_labels: Array,
    *,
    ks: Sequence[int] = (10, 100),
    gain: Gain = "count",
    relevance: Relevance = "any",
    denominator: Denominator = "hits",
    ideal: Ideal = "database",
    ndcg_form: NdcgForm = "auto",
    without_relevant: WithoutRelevant = "zero",
    extra: bool = False,
    complete: bool = True,
    self_positions: Array | None = None,
    query_ids: Array | None = None,
    archive_ids: Array | None = None,
    classes: Sequence[str] | None = None,
    label_counts: Array | None = None,
    per_query: bool = False,
) -> RetrievalScores:
    """Rank an archive by cosine for each query, and score the rankings.

    Exact and the same on every machine: see ``search``. Needs memory for both sides and a block of queries, never for
    queries times archive.

    Args:
        query_vectors: (Q, d) NumPy array or torch tensor, of any length.
        query_labels: (Q, L) multi-hot: bool, or numbers 0 and 1.
        archive_vectors: (N, d).
        archive_labels: (N, L).
        ks: cut-offs.
        gain: graded relevance of ACG, nDCG and wAP: count, jaccard or cosine of the label sets.
        relevance: what counts as relevant: any, exact, subset, or a number t, label Jaccard >= t.
        denominator: what mAP@k divides by: hits, min (of k and R), all (R) or k.
        ideal: what nDCG compares with: database, the best list of the archive, or retrieved, the best order.
        ndcg_form: gain inside nDCG: linear, exponential, or auto (exponential for count).
        without_relevant: queries without a relevant item: zero, they score 0 and count, or skip.
        extra: all further metrics, too: R@k, hit@k, MRR, R_precision, ANMRR, kNN_F1@10, ...
        complete: rank the whole archive. False ranks up to the largest cut-off (at least 10): faster in a large
            archive, without the metrics that need more; label AP then divides by min(ranks, R).
        self_positions: (Q,) each query's own row of the archive, which is left out everywhere; -1 = none.
        query_ids: (Q,) numbers or texts: a query leaves out the archive item of the same id.
        archive_ids: (N,) different ids, with ``query_ids``.
        classes: L names of the labels; None = their numbers.
        label_counts: (L,) by which labels are parted into thirds, such as those of the training data; None = the
            archive's.
        per_query: keep every query's scores, too.

    Raises:
        ValueError: an argument that cannot be right: says which, what was expected and what it got.
    """
    scoring = metrics.Scoring(check_ks(ks), gain, relevance, denominator, ideal, ndcg_form, without_relevant)
    archive = unit_vectors("archive_vectors", archive_vectors)
    queries = unit_vectors("query_vectors", query_vectors, width=archive.shape[1])
    sides = _sides(query_labels, archive_labels, self_positions, query_ids, archive_ids, classes, label_counts)
    for name, rows, labels in (("query", queries, len(sides.queries)), ("archive", archive, sides.num_archive)):
        if len(rows) != labels:
            raise ValueError(f"{name}_labels: expected {len(rows)} rows, one a vector, got {labels}")

    def blocks() -> Iterator[_Block]:
        depth = min(max(*scoring.ks, TOP), len(archive))
        part = None if complete else FlatPart(archive, np.arange(len(archive), dtype=np.int64))
        for rows in _slices(len(queries), len(archive) if complete else depth):
            asked, own = queries[rows], sides.own[rows]
            if part is not None:
                cosine, ranking = nearest(part, asked, own, depth)
            else:
                ranking = full_ranking(asked, archive, own)
                first = ranking[:, :TOP]
                cosine = np.where(first < 0, -np.inf, exact_scores(asked, archive, first))
            yield _Block(rows.start, ranking, cosine[:, :TOP])

    return _scored(blocks(), sides, scoring, complete=complete, extra=extra, per_query=per_query)


def score_ranking(
    ranking: Array | Sequence[Sequence[int]],
    query_labels: Array,
    archive_labels: Array,
    *,
    ks: Sequence[int] = (10, 100),
    gain: Gain = "count",
    relevance: Relevance = "any",
    denominator: Denominator = "hits",
    ideal: Ideal = "database",
    ndcg_form: NdcgForm = "auto",
    without_relevant: WithoutRelevant = "zero",
    extra: bool = False,
    self_positions: Array | None = None,
    query_ids: Array | None = None,
    archive_ids: Array | None = None,
    classes: Sequence[str] | None = None,
    label_counts: Array | None = None,
    per_query: bool = False,
) -> RetrievalScores:
    """Score rankings that were made elsewhere.

    Args:
        ranking: (Q, K) archive positions, best first, -1 where a list ends; or one list a query. A query's own item is
            taken out of its list, and the others move up.
        query_labels: (Q, L) multi-hot: bool, or numbers 0 and 1.
        archive_labels: (N, L).
        ks: cut-offs; where rankings do not hold the whole archive, no larger than the longest of them.
        gain: see ``retrieval_metrics``, as all that follow.
        relevance: what counts as relevant.
        denominator: what mAP@k divides by.
        ideal: what nDCG compares with.
        ndcg_form: gain inside nDCG.
        without_relevant: queries without a relevant item.
        extra: all further metrics, too, but for kNN_F1, which needs cosines.
        self_positions: (Q,) each query's own place in the archive; -1 = none.
        query_ids: (Q,) ids, with ``archive_ids``.
        archive_ids: (N,) different ids.
        classes: L names.
        label_counts: (L,) for the thirds.
        per_query: keep every query's scores, too.

    Raises:
        ValueError: an argument that cannot be right; also an item that stands twice in a list.
    """
    scoring = metrics.Scoring(check_ks(ks), gain, relevance, denominator, ideal, ndcg_form, without_relevant)
    sides = _sides(query_labels, archive_labels, self_positions, query_ids, archive_ids, classes, label_counts)
    order = metrics.check_ranking(padded_ranking(ranking), sides.num_archive)
    if len(order) != len(sides.queries):
        raise ValueError(f"ranking: expected {len(sides.queries)} rows, one a query, got {len(order)}")
    own = (order == sides.own[:, None]) & (order >= 0)
    if own.any():
        order = np.where(own, -1, order)
        place = np.argsort(own, axis=1, kind="stable")  # the own item last, the others as they were
        order = np.take_along_axis(order, place, axis=1)
    complete = bool(((order >= 0).sum(axis=1) == sides.num_archive - (sides.own >= 0)).all())
    needed = max(*scoring.ks, TOP) if extra else max(scoring.ks)
    if not complete and order.shape[1] < needed:
        why = f"extra=True needs {TOP} ranks" if needed > max(scoring.ks) else f"the largest of ks is {needed}"
        raise ValueError(f"ranking: expected {needed} ranks or the whole archive, got {order.shape[1]}: {why}")
    blocks = (_Block(rows.start, order[rows]) for rows in _slices(len(order), max(order.shape[1], 1)))
    return _scored(blocks, sides, scoring, complete=complete, extra=extra, per_query=per_query)


def _sides(
    query_labels: Any,
    archive_labels: Any,
    self_positions: Any,
    query_ids: Any,
    archive_ids: Any,
    classes: Sequence[str] | None,
    label_counts: Any,
) -> _Sides:
    """Everything but vectors and rankings, checked."""
    archive = metrics.as_labels("archive_labels", plain("archive_labels", archive_labels))
    refuse_empty_archive("archive_labels", len(archive))
    num_labels = archive.shape[1]
    queries = metrics.as_labels("query_labels", plain("query_labels", query_labels), width=num_labels)
    if not len(queries):
        raise ValueError("query_labels: expected one query or more, got none")
    names = list(range(num_labels)) if classes is None else _names(classes)
    if len(names) != num_labels:
        raise ValueError(f"classes: expected {num_labels} names, one a label, got {classes!r:.60}")
    counts = np.asarray(archive.sum(axis=0), dtype=np.int64)
    by = counts if label_counts is None else plain("label_counts", label_counts)
    if by.shape != (num_labels,) or by.dtype.kind not in "iuf" or not (by >= 0).all():  # NaN is not
        raise ValueError(f"label_counts: expected {num_labels} numbers of 0 or more, got {by.dtype} {by.shape}")
    own = own_positions(self_positions, query_ids, archive_ids, len(queries), len(archive))
    return _Sides(queries, metrics.distinct_sets(archive), counts, names, metrics.label_thirds(by), own)


def _names(classes: Any) -> list[Any]:
    """Names in an order of their own; none of what is no list of them."""
    if isinstance(classes, str | bytes | set | frozenset) or not hasattr(classes, "__iter__"):
        return []
    return list(classes)


def _slices(num: int, width: int) -> Iterator[slice]:
    """Blocks of queries whose rankings of ``width`` fit ``CELLS``."""
    step = max(1, min(MOST_QUERIES, CELLS // width))
    return (slice(start, min(start + step, num)) for start in range(0, num, step))


def _scored(
    blocks: Iterator[_Block], sides: _Sides, scoring: metrics.Scoring, *, complete: bool, extra: bool, per_query: bool
) -> RetrievalScores:
    """All metrics of all queries; of the labels' APs only sums are kept."""
    most = None
    if extra and complete:
        most = metrics.most_relevant(sides.queries, sides.archive, sides.own, scoring.relevance)
    parts: dict[str, list[Float]] = {}
    total = np.zeros(len(sides.names))
    num = np.zeros(len(sides.names), dtype=np.int64)
    for start, ranking, cosine in blocks:
        rows = slice(start, start + len(ranking))
        short = max(0, TOP - ranking.shape[1])  # an archive of fewer items
        ranking = np.pad(ranking, ((0, 0), (0, short)), constant_values=-1)
        arguments = (ranking, sides.queries[rows], sides.archive, sides.own[rows])
        scores = metrics.score_queries(
            *arguments, scoring, complete=complete, extra=extra, most=most, cosine=_padded(cosine), checked=True
        )
        for name, values in scores.items():
            parts.setdefault(name, []).append(values)
        label_ap = metrics.score_labels(*arguments, complete=complete, checked=True)
        num += (~np.isnan(label_ap)).sum(axis=0)
        total += np.nansum(label_ap, axis=0)
    every = {name: np.concatenate(values) for name, values in parts.items()}
    relevant = every["num_relevant"]
    ap = np.divide(total, num, out=np.full(len(total), np.nan), where=num > 0)
    asked = sides.queries.sum(axis=0)
    return RetrievalScores(
        means={name: float(metrics.mean_known(x[:, None])[0]) for name, x in every.items() if x is not relevant},
        thirds=metrics.group_means(ap, sides.third),
        per_label=[
            {
                "label": name,
                "ap": None if np.isnan(ap[at]) else float(ap[at]),
                "archive_count": int(sides.counts[at]),
                "query_count": int(asked[at]),
                "third": metrics.THIRDS[sides.third[at]],
            }
            for at, name in enumerate(sides.names)
        ],
        num_queries=len(sides.queries),
        num_archive=sides.num_archive,
        queries_without_relevant=int((relevant == 0).sum()),
        complete=complete,
        conventions=asdict(scoring),
        per_query=every if per_query else None,
    )


def _padded(cosine: NDArray[np.floating] | None) -> NDArray[np.floating] | None:
    """Cosines of the first answers, as many as ``kNN_F1`` looks at."""
    if cosine is None:
        return None
    return np.pad(cosine, ((0, 0), (0, max(0, TOP - cosine.shape[1]))), constant_values=-np.inf)
