"""Metrics against other people's libraries, where the definitions meet."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from marc_dist import metrics as m


def world(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores without ties, their rankings, labels; every query has a relevant item."""
    rng = np.random.default_rng(seed)
    archive, queries = (rng.random((n, 6)) < 0.3 for n in (60, 15))
    archive[:, 0] |= ~archive.any(axis=1)
    queries[:, 0] |= ~queries.any(axis=1)
    scores = rng.permuted(np.tile(np.arange(60.0), (15, 1)), axis=1)
    return scores, np.argsort(-scores, axis=1), queries, archive


@pytest.mark.parametrize("relevance", ["any", "subset", 0.4])
@pytest.mark.parametrize("gain", ["jaccard", "cosine"])
def test_scikit_learn(gain: m.Gain, relevance: m.Relevance) -> None:
    learn = pytest.importorskip("sklearn.metrics")
    scores, ranking, queries, archive = world(0)
    scoring = m.Scoring((5, 60), gain, relevance)
    got = m.score_queries(ranking, queries, archive, np.full(15, -1), scoring, complete=True)
    graded, hit = m.gains(queries, archive, gain), m.relevant(queries, archive, relevance)
    per_label = m.score_labels(ranking, queries, archive, np.full(15, -1), complete=True)
    for q in range(15):
        if hit[q].any():
            assert got["mAP"][q] == pytest.approx(learn.average_precision_score(hit[q], scores[q]))
        for k in (5, 60):
            expected = learn.ndcg_score(graded[q : q + 1], scores[q : q + 1], k=k)
            assert got[f"nDCG@{k}"][q] == pytest.approx(expected)
        for label in np.flatnonzero(queries[q]):
            expected = learn.average_precision_score(archive[:, label], scores[q])
            assert per_label[q, label] == pytest.approx(expected)


def test_scikit_learn_with_exponential_gain() -> None:
    learn = pytest.importorskip("sklearn.metrics")
    scores, ranking, queries, archive = world(1)
    got = m.score_queries(ranking, queries, archive, np.full(15, -1), m.Scoring((7,)), complete=True)["nDCG@7"]
    powers = np.exp2(m.gains(queries, archive, "count")) - 1
    assert got == pytest.approx([learn.ndcg_score(powers[q : q + 1], scores[q : q + 1], k=7) for q in range(15)])


def test_torchmetrics() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    scores, ranking, queries, archive = world(2)  # torchmetrics takes what scores 0 for not retrieved: + 1
    scoring = m.Scoring((5, 20), "jaccard")
    got = m.score_queries(ranking, queries, archive, np.full(15, -1), scoring, complete=True)
    hit, graded = m.relevant(queries, archive, "any"), m.gains(queries, archive, "jaccard")
    for q in range(15):
        told, target = torch.from_numpy(scores[q] + 1), torch.from_numpy(hit[q])
        assert got["mAP"][q] == pytest.approx(float(retrieval.retrieval_average_precision(told, target)), abs=1e-6)
        for k in (5, 20):
            peer = float(retrieval.retrieval_average_precision(told, target, top_k=k))
            assert got[f"mAP@{k}"][q] == pytest.approx(peer, abs=1e-6)
            peer = float(retrieval.retrieval_precision(told, target, top_k=k))
            assert got[f"P@{k}"][q] == pytest.approx(peer, abs=1e-6)
            peer = float(retrieval.retrieval_normalized_dcg(told, torch.from_numpy(graded[q]), top_k=k))
            assert got[f"nDCG@{k}"][q] == pytest.approx(peer, abs=1e-6)


def test_pytorch_metric_learning() -> None:
    """MAP@R of single labels, where all classes have R = 6 items: our mAP@6 with denominator min(k, R)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
        inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
        distances = pytest.importorskip("pytorch_metric_learning.distances")
    rng = np.random.default_rng(3)
    points = rng.standard_normal((30, 4)).astype(np.float32)
    asked = rng.standard_normal((12, 4)).astype(np.float32)
    classes, wanted = np.repeat(np.arange(5), 6), rng.integers(0, 5, 12)
    ranking = np.argsort(((asked[:, None] - points[None]) ** 2).sum(-1), axis=1)
    labels = np.eye(5, dtype=bool)
    got = m.score_queries(
        ranking, labels[wanted], labels[classes], np.full(12, -1), m.Scoring((1, 6), denominator="min"), complete=True
    )
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    knn = inference.CustomKNN(distances.LpDistance(normalize_embeddings=False))
    peer = accuracy.AccuracyCalculator(include=names, k="max_bin_count", knn_func=knn, device=torch.device("cpu"))
    told = peer.get_accuracy(
        torch.from_numpy(asked), torch.from_numpy(wanted), torch.from_numpy(points), torch.from_numpy(classes), False
    )
    assert got["P@1"].mean() == pytest.approx(told["precision_at_1"])
    assert got["P@6"].mean() == pytest.approx(told["r_precision"])
    assert got["mAP@6"].mean() == pytest.approx(told["mean_average_precision_at_r"])
