"""Metrics against loops that follow the formulas word by word, and against worked figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from marc_dist import metrics as m

RNG = np.random.default_rng(7)


def row(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float64)


def test_golden_values() -> None:
    gain, ideal = row(2, 0, 1, 0, 3), row(3, 2, 1, 1, 0, 0)
    hit = (gain > 0).astype(float)
    assert m.acg(gain, 5)[0] == pytest.approx(1.2)
    assert m.wap(gain, 5)[0] == pytest.approx(1.4)
    assert m.ndcg(gain, gain, 5)[0] == pytest.approx(0.660929302, abs=1e-9)
    assert m.ndcg(gain, ideal, 5)[0] == pytest.approx(0.631953097, abs=1e-9)
    four = np.array([4.0])
    assert m.average_precision(hit, four, 5, "hits")[0] == pytest.approx(0.755555556, abs=1e-9)
    assert m.average_precision(hit, four, 5, "min")[0] == pytest.approx(0.566666667, abs=1e-9)
    assert m.average_precision(hit, np.array([9.0]), 5, "all")[0] == pytest.approx(2.266666667 / 9, abs=1e-9)
    assert m.average_precision(hit, four, 5, "k")[0] == pytest.approx(2.266666667 / 5, abs=1e-9)
    assert m.ndcg(gain, ideal, 5, linear=True)[0] == pytest.approx(3.6605584217 / 5.1925360652, abs=1e-9)
    assert m.precision(hit, 5)[0] == pytest.approx(0.6)


def naive_gain(a: set[int], b: set[int], kind: str) -> float:
    shared = len(a & b)
    if not shared:
        return 0.0
    return {"count": shared, "jaccard": shared / len(a | b), "cosine": shared / math.sqrt(len(a) * len(b))}[kind]


def naive_relevant(a: set[int], b: set[int], rule: str | float) -> bool:
    if not a & b:
        return False
    if rule == "any":
        return True
    if rule == "exact":
        return a == b
    if rule == "subset":
        return b <= a
    return len(a & b) / len(a | b) >= float(rule) - 1e-12


def naive(order: list[int], query: set[int], items: list[set[int]], own: int, s: m.Scoring) -> dict[str, float]:
    others = [i for i in range(len(items)) if i != own]
    r = sum(naive_relevant(query, items[i], s.relevance) for i in others)
    out = {"num_relevant": float(r)}
    exponential = s.ndcg_form == "exponential" or (s.ndcg_form == "auto" and s.gain == "count")
    form = (lambda g: 2**g - 1) if exponential else (lambda g: g)
    for k in (*s.ks, None):
        top = order if k is None else order[:k]
        g = [naive_gain(query, items[i], s.gain) for i in top]
        d = [naive_relevant(query, items[i], s.relevance) for i in top]
        total = sum(sum(d[: at + 1]) / (at + 1) for at in range(len(d)) if d[at])
        if k is None:
            out["mAP"] = total / r if r else 0.0
            continue
        below = {"hits": sum(d), "min": min(k, r), "all": r, "k": k}[s.denominator]
        out[f"mAP@{k}"] = total / below if below else 0.0
        out[f"P@{k}"] = sum(d) / k
        out[f"ACG@{k}"] = sum(g) / k
        hits = [at for at in range(len(g)) if g[at] > 0]
        out[f"wAP@{k}"] = sum(sum(g[: at + 1]) / (at + 1) for at in hits) / len(hits) if hits else 0.0
        best = [naive_gain(query, items[i], s.gain) for i in others] if s.ideal == "database" else g
        best = sorted(best, reverse=True)[:k]
        ideal = sum(form(x) / math.log2(at + 2) for at, x in enumerate(best))
        out[f"nDCG@{k}"] = sum(form(x) / math.log2(at + 2) for at, x in enumerate(g)) / ideal if ideal else 0.0
    return out


def world(num: int, labels: int, share: float) -> np.ndarray:
    return RNG.random((num, labels)) < share


@pytest.mark.parametrize("gain", ["count", "jaccard", "cosine"])
@pytest.mark.parametrize("relevance", ["any", "exact", "subset", 0.4, 0.6])
@pytest.mark.parametrize(
    ("denominator", "ideal", "form"),
    [
        ("hits", "database", "auto"),
        ("min", "retrieved", "linear"),
        ("all", "database", "exponential"),
        ("k", "retrieved", "auto"),
    ],
)
def test_every_metric_against_loops(gain: m.Gain, relevance: m.Relevance, denominator, ideal, form) -> None:
    scoring = m.Scoring((1, 4, 100), gain, relevance, denominator, ideal, form)
    archive, queries = world(23, 5, 0.3), world(9, 5, 0.3)
    queries[0] = False  # a query without labels
    archive[3] = False
    own = np.array([-1, 0, 5, -1, 22, -1, -1, 7, 3])
    ranking = np.full((9, 23), -1)
    for q in range(9):
        order = [i for i in RNG.permutation(23) if i != own[q]]
        ranking[q, : len(order)] = order
    got = m.score_queries(ranking, queries, archive, own, scoring, complete=True)
    items = [set(np.flatnonzero(x).tolist()) for x in archive]
    for q in range(9):
        order = [i for i in ranking[q].tolist() if i >= 0]
        expected = naive(order, set(np.flatnonzero(queries[q]).tolist()), items, own[q], scoring)
        assert set(expected) == set(got)
        for name, value in expected.items():
            assert got[name][q] == pytest.approx(value, abs=1e-12), name


def test_incomplete_rankings_have_no_full_map() -> None:
    ranking = np.array([[2, 0]])
    got = m.score_queries(ranking, world(1, 3, 1), world(5, 3, 1), np.array([-1]), m.Scoring((2,)), complete=False)
    assert "mAP" not in got and got["P@2"][0] == 1.0


def test_jaccard_threshold_is_met_exactly() -> None:
    query = np.array([[True] * 5])
    item = np.array([[True, True, True, False, False]])  # 3 / 5, which floats miss
    assert m.relevant(query, item, 0.6)[0, 0] and not m.relevant(query, item, 0.61)[0, 0]


def test_label_ap_against_loops() -> None:
    archive, queries = world(15, 4, 0.3), world(8, 4, 0.5)
    archive[:, 3] = False
    archive[6, 3] = True  # one carrier, and query 2 is that item itself
    own = np.array([-1, -1, 6, -1, -1, 0, -1, -1])
    queries[2] = archive[6]
    ranking = np.full((8, 15), -1)
    for q in range(8):
        order = [i for i in RNG.permutation(15) if i != own[q]]
        ranking[q, : len(order)] = order
    got = m.score_labels(ranking, queries, archive, own, complete=True)
    cut = m.score_labels(ranking[:, :4], queries, archive, own, complete=False)
    for q in range(8):
        order = [i for i in ranking[q].tolist() if i >= 0]
        for label in range(4):
            carriers = [i for i in range(15) if archive[i, label] and i != own[q]]
            if not queries[q, label] or not carriers:
                assert np.isnan(got[q, label]) and np.isnan(cut[q, label])
                continue
            for ap, depth in ((got, 15), (cut, 4)):
                found, total = 0, 0.0
                for at, i in enumerate(order[:depth]):
                    if archive[i, label]:
                        found += 1
                        total += found / (at + 1)
                assert ap[q, label] == pytest.approx(total / min(depth, len(carriers)), abs=1e-12)
    assert np.isnan(got[2, 3])


def test_means_leave_out_what_is_unknown() -> None:
    values = np.array([[1.0, np.nan, np.nan], [0.5, 0.25, np.nan]])
    assert m.mean_known(values)[:2].tolist() == [0.75, 0.25]
    assert np.isnan(m.mean_known(values)[2])


def test_thirds_go_by_count_then_by_label_order() -> None:
    assert m.label_thirds(np.array([5, 1, 5, 9, 0, 5, 7])).tolist() == [0, 0, 1, 2, 0, 1, 2]
    assert m.label_thirds(np.array([4, 4])).tolist() == [0, 1]


def test_lists_shorter_than_k_are_divided_by_k() -> None:
    gain = row(1, 1)
    assert m.precision(gain, 4)[0] == 0.5 and m.acg(gain, 4)[0] == 0.5
    assert m.average_precision(gain, np.array([2.0]), 4, "min")[0] == 1.0


def test_rank_without_item_counts_nothing() -> None:
    """-1 must not become the last item of the archive."""
    archive = np.array([[False], [True]])
    got = m.score_queries(
        np.array([[0, -1]]), np.array([[True]]), archive, np.array([1]), m.Scoring((2,)), complete=True
    )
    assert got["P@2"][0] == 0.0 and got["mAP"][0] == 0.0 and got["num_relevant"][0] == 0.0


def test_no_relevant_item_scores_zero() -> None:
    got = m.score_queries(
        np.array([[0, 1]]),
        np.array([[True, False]]),
        np.array([[False, True]] * 2),
        np.array([-1]),
        m.Scoring((1,)),
        complete=True,
    )
    assert all(value[0] == 0.0 for value in got.values())
