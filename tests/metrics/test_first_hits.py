"""R@k, hit@k, MRR and R-precision: against loops, and against libraries that have the same."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from marc_dist import metrics as m
from tests.metrics.test_extra import draw

KS = (1, 4, 100)


@pytest.mark.parametrize("relevance", ["any", "exact", 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_against_loops(seed: int, relevance: m.Relevance) -> None:
    world = draw(seed)
    got = m.score_queries(
        world.ranking, world.queries, world.archive, world.own, m.Scoring(KS, relevance=relevance),
        complete=True, extra=True,
    )  # fmt: skip
    items = world.items()
    rules = {"any": lambda a, b: bool(a & b), "exact": lambda a, b: bool(a) and a == b}
    answers = rules.get(str(relevance), lambda a, b: bool(a & b) and len(a & b) >= 0.5 * len(a | b))
    none = 0
    for q in range(len(world.queries)):
        order = [answers(world.asked(q), items[i]) for i in world.order(q)]
        r = sum(order)
        none += not r
        first = math.inf if not r else order.index(True) + 1
        for k in KS:
            assert got[f"R@{k}"][q] == pytest.approx(sum(order[:k]) / r if r else 0.0, abs=1e-12)
            assert got[f"hit@{k}"][q] == float(first <= k)
            assert got[f"MRR@{k}"][q] == pytest.approx(1 / first if first <= k else 0.0, abs=1e-12)
        assert got["MRR"][q] == pytest.approx(1 / first, abs=1e-12)
        assert got["R_precision"][q] == pytest.approx(sum(order[:r]) / r if r else 0.0, abs=1e-12)
    assert none  # queries without a relevant item are seen


def test_torchmetrics() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    world = draw(1)
    num = world.archive.shape[0]
    world.own[:] = -1
    ranking = np.argsort(np.random.default_rng(1).random((len(world.queries), num)), axis=1)
    got = m.score_queries(
        ranking, world.queries, world.archive, world.own, m.Scoring((4, 20)), complete=True, extra=True
    )
    hit = m.relevant(world.queries, world.archive, "any")
    for q in range(len(world.queries)):
        score = torch.empty(num)
        score[torch.from_numpy(ranking[q])] = torch.arange(num, 0, -1.0)  # all above 0: it drops the others
        target = torch.from_numpy(hit[q])
        assert got["MRR"][q] == pytest.approx(float(retrieval.retrieval_reciprocal_rank(score, target)), abs=1e-6)
        assert got["R_precision"][q] == pytest.approx(float(retrieval.retrieval_r_precision(score, target)), abs=1e-6)
        for k in (4, 20):
            peer = {
                f"R@{k}": retrieval.retrieval_recall(score, target, top_k=k),
                f"hit@{k}": retrieval.retrieval_hit_rate(score, target, top_k=k),
                f"MRR@{k}": retrieval.retrieval_reciprocal_rank(score, target, top_k=k),
            }
            for name, value in peer.items():
                assert got[name][q] == pytest.approx(float(value), abs=1e-6), name


def test_torchmetrics_drops_scores_of_zero_or_less() -> None:
    """The difference that docs/python.md tells of: cosines below 0 are not retrieved there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    score, target = torch.tensor([0.5, 0.1, -0.2, -0.6]), torch.tensor([False, True, True, False])
    peer = float(retrieval.retrieval_average_precision(score, target))
    labels, hit = np.array([[True]]), target.numpy()[:, None]
    own = m.full_average_precision(np.array([[0, 1, 2, 3]]), labels, hit, np.array([-1]), "any")[0]
    assert own == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert peer == pytest.approx(1 / 2)


@pytest.mark.parametrize("extra", [False, True])
def test_queries_without_a_relevant_item_can_be_left_out(extra: bool) -> None:
    world = draw(2)
    most = m.most_relevant(world.queries, world.archive, world.own, "any")
    arguments = (world.ranking, world.queries, world.archive, world.own)
    counted, left_out = (
        m.score_queries(*arguments, m.Scoring(KS, without_relevant=fate), complete=True, extra=extra, most=most)
        for fate in ("zero", "skip")
    )
    none = counted["num_relevant"] == 0
    assert 0 < none.sum() < len(none) and list(counted) == list(left_out)
    assert np.array_equal(left_out["num_relevant"], counted["num_relevant"])
    for name in set(counted) - {"num_relevant"}:
        assert np.isnan(left_out[name][none]).all(), name
        assert np.array_equal(left_out[name][~none], counted[name][~none], equal_nan=True), name
        if extra and not name.endswith("_oml"):
            assert not np.isnan(counted[name]).any(), name
