"""What people may hand to the metrics, and the one line that they read when it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from marc_dist import metrics
from marc_dist import metrics as m
from marc_dist.config import EvalConfig
from marc_dist.metrics import conventions, rank_metrics
from marc_dist.metrics.label_sets import gains, overlap, relevant

ARCHIVE = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]], dtype=bool)
QUERIES = ARCHIVE[:2].copy()
RANKING = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
NONE = np.array([-1, -1])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"gain": "jacard"}, r"gain: expected one of count, jaccard, cosine, got 'jacard'; did you mean jaccard\?"),
        ({"gain": None}, "gain: expected one of .*, got None$"),
        (
            {"relevance": "exct"},
            r"relevance: expected one of any, exact, subset or a label Jaccard .*; did you mean exact",
        ),
        ({"relevance": 0.0}, "relevance: expected a label Jaccard above 0, up to 1, got 0.0"),
        ({"relevance": 1.5}, "got 1.5"),
        ({"relevance": float("nan")}, "got nan"),
        ({"relevance": True}, "relevance: expected one of .* got True"),
        ({"denominator": "hit"}, r"denominator: expected one of hits, min, all, k, got 'hit'; did you mean hits\?"),
        ({"ideal": "databse"}, r"ideal: expected one of database, retrieved, .* did you mean database\?"),
        ({"ndcg_form": "exp"}, "ndcg_form: expected one of auto, linear, exponential, got 'exp'"),
        ({"without_relevant": "drop"}, "without_relevant: expected one of zero, skip, got 'drop'"),
        ({"ks": (10, 0)}, "ks: expected a whole number of 1 or more, got 0"),
        ({"ks": (True,)}, "got True"),
        ({"ks": (2.5,)}, "got 2.5"),
        ({"ks": 10}, "ks: expected a list of whole numbers, got 10"),
        ({"ks": "10"}, "ks: expected a list of whole numbers, got '10'"),
        ({"ks": ()}, "ks: expected one cut-off or more, got none"),
    ],
)
def test_conventions_are_checked(words: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        m.Scoring(**words)


def test_cut_offs_come_from_numpy_and_lists_too() -> None:
    assert m.Scoring(list(np.array([3, 10]))).ks == (3, 10)


def test_settings_know_the_same_conventions() -> None:
    fields = EvalConfig.model_fields
    for name, known in (
        ("gain", conventions.Gain), ("denominator", conventions.Denominator), ("ideal", conventions.Ideal),
        ("ndcg_form", conventions.NdcgForm), ("without_relevant", conventions.WithoutRelevant),
    ):  # fmt: skip
        assert get_args(fields[name].annotation) == get_args(known)
        assert fields[name].default == getattr(m.Scoring(), name)
    assert get_args(get_args(fields["relevance"].annotation)[0]) == get_args(conventions.Rule)
    assert m.Scoring().relevance == fields["relevance"].default and m.Scoring().ks == fields["ks"].default


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.array([[0, 1, 2]]), "query_labels: expected 0 or 1, got 2 in row 0, label 2"),
        (np.array([[0, 0, 1], [0.0, 0.7, 1]]), "expected 0 or 1, got 0.7 in row 1, label 1"),
        (np.array([[np.nan, 0, 1]]), "expected 0 or 1, got nan in row 0"),
        (np.array([[0, -1, 1]]), "got -1 in row 0, label 1"),
        (np.array([1, 2]), r"query_labels: expected multi-hot rows .* got shape \(2,\); of class numbers c"),
        (np.array([[1, 0]]), "query_labels: expected 3 labels as on the other side, got 2"),
        (np.array([["a", "b", "c"]]), "query_labels: expected bool, or numbers 0 and 1, got <U1"),
    ],
)
def test_labels_are_checked(labels: np.ndarray, told: str) -> None:
    asked = [
        lambda: gains(labels, ARCHIVE, "count"),
        lambda: relevant(labels, ARCHIVE, "any"),
        lambda: overlap(labels, ARCHIVE),
        lambda: m.most_relevant(labels, ARCHIVE, np.full(len(labels), -1), "any"),
        lambda: m.score_queries(RANKING[:1], labels, ARCHIVE, NONE[:1], m.Scoring((2,)), complete=True),
        lambda: m.score_labels(RANKING[:1], labels, ARCHIVE, NONE[:1], complete=True),
    ]
    for call in asked:
        with pytest.raises(ValueError, match=told):
            call()


def test_zeros_and_ones_of_any_type_are_labels() -> None:
    whole = m.score_queries(RANKING, QUERIES, ARCHIVE, NONE, m.Scoring((2,)), complete=True, extra=True)
    for kind in (np.int64, np.uint8, np.float32):
        got = m.score_queries(
            RANKING, QUERIES.astype(kind), ARCHIVE.astype(kind), NONE, m.Scoring((2,)), complete=True, extra=True
        )
        for name, values in whole.items():
            assert np.array_equal(got[name], values, equal_nan=True), name


@pytest.mark.parametrize(
    ("ranking", "told"),
    [
        ([[0, 1, 1, 2], [0, 1, 2, 3]], "ranking: expected each item once, got 1 twice or more in row 0"),
        ([[0, 1, 2, 3], [3, 3, -1, -1]], "got 3 twice or more in row 1"),
        ([[0, 1, 2, 4], [0, 1, 2, 3]], "ranking: expected -1 .* to 3, got 4 in row 0"),
        ([[0, 1, 2, 3], [0, -2, 1, 2]], "got -2 in row 1"),
        ([[0.0, 1.0], [1.0, 0.0]], r"ranking: expected whole numbers .* got float64 \(2, 2\)"),
        ([0, 1], r"got int64 \(2,\)"),
        ([[0, 1, 2, 3]], "ranking: expected one row a query, got 1 rows for 2 rows of query_labels"),
    ],
)
def test_rankings_are_checked(ranking: Any, told: str) -> None:
    ranking, scoring = np.asarray(ranking), m.Scoring((2,))
    calls: list[Callable[[], object]] = [
        lambda: m.score_queries(ranking, QUERIES, ARCHIVE, NONE, scoring, complete=True),
        lambda: m.score_labels(ranking, QUERIES, ARCHIVE, NONE, complete=True),
        lambda: m.full_average_precision(ranking, QUERIES, ARCHIVE, NONE, "any"),
        lambda: m.query_curves(ranking, QUERIES, ARCHIVE, NONE, "any"),
        lambda: m.label_curves(ranking, QUERIES, ARCHIVE, NONE),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=told):
            call()


def test_ranks_without_an_item_may_repeat() -> None:
    ranking = np.array([[2, -1, 0, -1]], dtype=np.int32)
    assert metrics.check_ranking(ranking, 4).dtype == np.int64


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (np.array([0, 4]), r"self_positions: expected -1 \(none\) to 3, got 4"),
        (np.array([-2, 0]), "got -2"),
        (np.array([0]), r"self_positions: expected 2 whole numbers, one a query, got int64 \(1,\)"),
        (np.array([0.0, 1.0]), "got float64"),
    ],
)
def test_own_positions_are_checked(own: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        m.score_labels(RANKING, QUERIES, ARCHIVE, own, complete=True)
    with pytest.raises(ValueError, match=told):
        m.most_relevant(QUERIES, ARCHIVE, own, "any")


def test_formulas_check_their_cut_off_and_their_words() -> None:
    hit, num = np.ones((1, 3)), np.array([3.0])
    for call in (m.acg, m.wap, m.precision, rank_metrics.success, rank_metrics.reciprocal_rank):
        with pytest.raises(ValueError, match="k: expected a whole number of 1 or more, got 0"):
            call(hit, 0)
    for call in (lambda: m.dcg(hit, 0, linear=True), lambda: m.recall(hit, num, 0), lambda: m.ndcg(hit, hit, 0)):
        with pytest.raises(ValueError, match="got 0"):
            call()
    with pytest.raises(ValueError, match="did you mean hits"):
        m.average_precision(hit, num, 2, "hist")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected values .queries, ranks., got shape .3,."):
        m.acg(hit[0], 1)
    with pytest.raises(ValueError, match="did you mean cosine"):
        gains(QUERIES, ARCHIVE, "cosin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean subset"):
        relevant(QUERIES, ARCHIVE, "subsets")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [0.6, np.float32(0.6), np.float16(0.6), np.float64(0.6)])
def test_a_threshold_of_numpy_is_taken_by_its_digits(rule: Any) -> None:
    """Sets of 4 and 4 labels that share 3 have Jaccard 3/5, which the 0.6 of float32 exceeds as it is stored."""
    query, other = np.array([[1, 1, 1, 1, 0]], dtype=bool), np.array([[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]], dtype=bool)
    assert m.relevant(query, other, rule).tolist() == [[True, False]]
