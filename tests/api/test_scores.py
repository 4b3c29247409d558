"""Metrics of anybody's vectors and rankings: what marc-eval says, from arrays and tensors, in blocks."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from marc_dist import load_encoder, metrics, open_dataset, retrieval_metrics, score_ranking
from marc_dist.api import encoder as api_encoder
from marc_dist.api import scores as sc
from marc_dist.data.dataset import Dataset
from marc_dist.run import evaluations


def world(num: int = 30, num_queries: int = 12, seed: int = 0) -> dict[str, Any]:
    """Vectors of any length and label sets, some of them empty; queries 0 and 5 lie in the archive."""
    rng = np.random.default_rng(seed)
    out = {
        "query_vectors": rng.standard_normal((num_queries, 6)) * 3,
        "query_labels": rng.random((num_queries, 4)) < 0.4,
        "archive_vectors": rng.standard_normal((num, 6)),
        "archive_labels": rng.random((num, 4)) < 0.4,
    }
    out["archive_labels"][2] = out["query_labels"][1] = False
    own = np.full(num_queries, -1)
    for query, item in ((0, 3), (5, num - 1)):
        own[query] = item
        for what in ("vectors", "labels"):
            out[f"query_{what}"][query] = out[f"archive_{what}"][item]
    return {**out, "self_positions": own}


def ranked(given: dict[str, Any]) -> list[list[int]]:
    """By cosine, one query after the other; the query's own item left out."""
    lists = []
    for vector, own in zip(given["query_vectors"], given["self_positions"], strict=True):
        lengths = np.linalg.norm(given["archive_vectors"], axis=1)
        order = np.argsort(-(given["archive_vectors"] @ vector) / lengths, kind="stable")
        lists.append([item for item in order.tolist() if item != own])
    return lists


def labels_of(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if "vectors" not in name}


def same(one: sc.RetrievalScores, other: sc.RetrievalScores, *, without: str = "no metric") -> None:
    assert set(other.means) == {name for name in one.means if without not in name}
    for name, value in other.means.items():
        assert one.means[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name
    for third, told in other.thirds.items():
        assert one.thirds[third] == pytest.approx(told, abs=1e-12)
    for ours, theirs in zip(one.per_label, other.per_label, strict=True):
        assert ours == {**theirs, "ap": pytest.approx(theirs["ap"], abs=1e-12)}
    assert one.complete == other.complete


def test_what_marc_eval_says_to_the_bit(finished: Path, packed: Dataset) -> None:
    """From the folder of a run: data set, encoder, vectors, metrics, with no convention at its default."""
    summary, rows = evaluations.read(finished / "eval" / "leave_one_out")
    encoder = load_encoder(finished)
    test = open_dataset(packed.root, "test")
    vectors = api_encoder.embed(encoder, test, batch=4)
    stored = next((finished / "embeddings").glob("trained-*/test-*.npy"))
    assert np.array_equal(vectors, np.load(stored))
    got = retrieval_metrics(
        vectors, test.labels, torch.from_numpy(vectors), test.labels, ks=[3, 10], gain="jaccard", relevance=0.4,
        denominator="min", ideal="retrieved", ndcg_form="exponential", without_relevant="skip", extra=True,
        query_ids=test.keys, archive_ids=test.keys, classes=test.classes, per_query=True,
    )  # fmt: skip
    assert got.means == summary["scores"]["trained"] and {"MRR", "R@3", "kNN_F1@10", "ANMRR"} <= set(got.means)
    assert got.queries_without_relevant == summary["queries_without_relevant"] > 0
    assert (got.num_queries, got.num_archive) == (summary["num_queries"], summary["num_archive"])
    for name, value in got.conventions.items():
        assert summary[name] == (list(value) if name == "ks" else value), name
    for third, told in summary["thirds"]["trained"].items():
        assert got.thirds[third]["mAP"] == pytest.approx(told["mAP"], abs=1e-12)
        assert got.thirds[third]["num_labels"] == told["num_labels"]
    for ours, theirs in zip(got.per_label, summary["per_label"], strict=True):
        assert ours.pop("ap") == pytest.approx(theirs.pop("ap")["trained"], abs=1e-12)
        assert ours == theirs
    kept = [row for row in rows if row["encoder"] == "trained"]
    for name, values in got.per_query.items():
        assert np.array_equal(values, [row[name] for row in kept], equal_nan=True), name


def test_every_convention_is_passed_on() -> None:
    """Each of them changes a figure that its metric alone has."""
    given = world()
    usual = retrieval_metrics(**given, ks=(5,))
    changes = {
        "gain": ("cosine", {"ACG@5", "wAP@5", "nDCG@5"}),
        "relevance": ("exact", {"mAP", "mAP@5", "P@5"}),
        "denominator": ("k", {"mAP@5"}),
        "ideal": ("retrieved", {"nDCG@5"}),
        "ndcg_form": ("linear", {"nDCG@5"}),
        "without_relevant": ("skip", set(usual.means)),
    }
    for name, (word, changed) in changes.items():
        got = retrieval_metrics(**given, ks=(5,), **{name: word})
        assert {metric for metric in got.means if got.means[metric] != usual.means[metric]} == changed, name
        assert got.conventions[name] == word
        same(got, score_ranking(ranked(given), **labels_of(given), ks=(5,), **{name: word}))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_say_what_arrays_say(kind: torch.dtype) -> None:
    given = world()
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    for name in ("query_vectors", "archive_vectors"):
        tensors[name] = tensors[name].to(kind).requires_grad_()
        given[name] = tensors[name].detach().double().numpy()
    same(retrieval_metrics(**given, extra=True), retrieval_metrics(**tensors, extra=True))


def test_rankings_of_ones_own() -> None:
    """Lists, padded arrays and rankings that still hold the query itself say what the vectors say."""
    given = world()
    whole = retrieval_metrics(**given, ks=(5, 10), extra=True)
    lists = ranked(given)
    same(whole, score_ranking(lists, **labels_of(given), ks=(5, 10), extra=True), without="kNN")
    with_own = [[own, *order] if own >= 0 else order for own, order in zip(given["self_positions"], lists, strict=True)]
    tensor = torch.tensor(with_own, dtype=torch.int32)
    same(whole, score_ranking(tensor, **labels_of(given), ks=(5, 10), extra=True), without="kNN")


def test_cut_rankings() -> None:
    given = world()
    whole = retrieval_metrics(**given, ks=(5,), extra=True, per_query=True)
    cut = retrieval_metrics(**given, ks=(5,), extra=True, complete=False, per_query=True)
    assert not cut.complete and {"mAP", "MRR", "R_precision", "ANMRR", "mAP_hard"}.isdisjoint(cut.means)
    for name in cut.means:
        assert np.array_equal(cut.per_query[name], whole.per_query[name], equal_nan=True), name
    lists = [order[:10] for order in ranked(given)]
    same(cut, score_ranking(lists, **labels_of(given), ks=(5,), extra=True), without="kNN")


def test_blocks_change_nothing_and_memory_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    given = world(300, 200)
    whole = retrieval_metrics(**given, extra=True)
    widths = []
    ranking = sc.full_ranking
    monkeypatch.setattr(sc, "full_ranking", lambda *a: widths.append(len(a[0])) or ranking(*a))
    monkeypatch.setattr(sc, "CELLS", 300 * 7)
    same(whole, retrieval_metrics(**given, extra=True))
    assert set(widths) == {7, 200 % 7} and sum(widths) == 200


def test_never_queries_times_archive() -> None:
    """4,000 queries in 20,000 items: half a gigabyte as int64 ranks; only the first ten are wanted."""
    rng = np.random.default_rng(0)
    sides = [(rng.standard_normal((num, 2), dtype=np.float32), rng.random((num, 3)) < 0.3) for num in (4000, 20_000)]
    tracemalloc.start()
    retrieval_metrics(*sides[0], *sides[1], ks=(10,), complete=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 20_000 * 8 / 10


def test_ties_go_by_position() -> None:
    labels = np.array([[1, 0], [0, 1], [1, 0]])
    got = retrieval_metrics([[1.0, 0.0]], [[0, 1]], [[2.0, 0.0], [5.0, 0.0], [1.0, 0.0]], labels, ks=(1, 2))
    assert got.means["P@1"] == 0.0 and got.means["P@2"] == 0.5


def test_thirds_by_counts_of_ones_own() -> None:
    given = world()
    got = retrieval_metrics(**given, label_counts=[5, 100, 1, 50], classes=["a", "b", "c", "d"])
    assert [(row["label"], row["third"]) for row in got.per_label] == [
        ("a", "rare"), ("b", "common"), ("c", "rare"), ("d", "medium"),
    ]  # fmt: skip
    ap = {row["label"]: row["ap"] for row in got.per_label}
    assert got.thirds["rare"] == {"mAP": pytest.approx((ap["a"] + ap["c"]) / 2), "num_labels": 2}
    assert got.thirds["common"]["mAP"] == ap["b"] and got.thirds["all"]["num_labels"] == 4


def test_results_are_plain() -> None:
    given = world()
    given["archive_labels"][:, 3] = False
    got = retrieval_metrics(**given, extra=True)
    assert json.loads(json.dumps(dataclasses.asdict(got), allow_nan=False))["means"] == got.means
    assert got.per_label[3]["ap"] is None and got.per_query is None


def test_a_small_archive_has_all_metrics() -> None:
    got = retrieval_metrics(np.eye(3), np.eye(3), np.eye(3), np.eye(3), extra=True)
    assert got.means["mAP"] == got.means["MRR"] == got.means["R_precision"] == 1.0
    assert got.means["P@10"] == pytest.approx(0.1)


BAD = [
    ({"query_vectors": np.full((12, 6), np.nan)}, "query_vectors: expected finite numbers, got NaN .* in row 0"),
    ({"archive_vectors": np.full((30, 6), np.inf)}, "archive_vectors: expected finite numbers"),
    ({"query_vectors": np.ones(6)}, r"query_vectors: expected vectors \(n, d\) of numbers, got float64 \(6,\)"),
    ({"query_vectors": np.ones((12, 5))}, "query_vectors: expected 6 numbers a vector as on the other side, got 5"),
    ({"query_vectors": np.ones((11, 6))}, "query_labels: expected 11 rows, one a vector, got 12"),
    ({"archive_vectors": np.ones((31, 6))}, "archive_labels: expected 31 rows, one a vector, got 30"),
    ({"archive_labels": np.zeros((0, 4)), "archive_vectors": np.zeros((0, 6))}, "expected an archive of one item"),
    ({"query_labels": np.zeros((0, 4)), "query_vectors": np.zeros((0, 6)), "self_positions": None}, "one query or"),
    ({"query_labels": np.full((12, 4), 2)}, "query_labels: expected 0 or 1, got 2 in row 0, label 0"),
    ({"archive_labels": np.full((30, 4), 0.7)}, "archive_labels: expected 0 or 1, got 0.7"),
    ({"query_labels": np.zeros((12, 5))}, "query_labels: expected 4 labels as on the other side, got 5"),
    ({"ks": (0,)}, "ks: expected a whole number of 1 or more, got 0"),
    ({"gain": "jacquard"}, r"gain: .*; did you mean jaccard\?"),
    ({"relevance": "all"}, "relevance: expected one of any, exact, subset"),
    ({"ideal": "best"}, "ideal: expected one of database, retrieved, got 'best'"),
    ({"denominator": "R"}, "denominator: expected one of hits, min, all, k, got 'R'"),
    ({"self_positions": np.full(12, 30)}, "self_positions: expected -1 .none. to 29, got 30"),
    ({"query_ids": range(12)}, "query_ids: expected both query_ids and archive_ids, or self_positions alone"),
    ({"query_ids": range(12), "archive_ids": range(30)}, "or self_positions alone"),
    ({"self_positions": None, "query_ids": range(12), "archive_ids": [7] * 30}, "expected different ids, got 7 twice"),
    ({"self_positions": None, "query_ids": [1], "archive_ids": range(30)}, "query_ids: expected 12, one an item, got"),
    ({"classes": ["a", "b"]}, "classes: expected 4 names, one a label"),
    ({"classes": 5}, "classes: expected 4 names, one a label, got 5"),
    ({"classes": {"a", "b", "c", "d"}}, "classes: expected 4 names, one a label, got {"),
    ({"ks": 10}, "ks: expected a list of whole numbers, got 10"),
    ({"ks": "10"}, "ks: expected a list of whole numbers, got '10'"),
    ({"ks": np.array(10)}, "ks: expected a list of whole numbers, got array"),
    ({"query_vectors": [[1.0], [1.0, 2.0]]}, "query_vectors: expected numbers in rows of one length"),
    ({"archive_labels": [[1], [1, 0]]}, "archive_labels: expected numbers in rows of one length"),
    ({"label_counts": [[1], [1, 0]]}, "label_counts: expected numbers in rows of one length"),
    ({"self_positions": [[1], [1, 0]]}, "self_positions: expected numbers in rows of one length"),
    ({"query_vectors": torch.eye(6).to_sparse()}, r"query_vectors: .* torch.sparse_coo; use query_vectors.to_dense\("),
    ({"query_labels": torch.eye(4).to_sparse()}, r"query_labels: .* use query_labels.to_dense\(\)"),
    ({"archive_vectors": torch.ones(30, 6, device="meta")}, "archive_vectors: expected a dense tensor with numbers"),
    ({"archive_vectors": scipy.sparse.eye_array(30)}, r"archive_vectors: .*; use archive_vectors.toarray\(\)"),
    ({"relevance": np.True_}, "relevance: expected one of any, exact, subset"),
    ({"relevance": np.float32(1.5)}, "relevance: expected a label Jaccard above 0, up to 1"),
    ({"label_counts": [1, 2]}, "label_counts: expected 4 numbers of 0 or more"),
    ({"label_counts": [1, 2, -1, 0]}, "label_counts: expected 4 numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "told"), BAD)
def test_bad_input_is_one_clear_error(words: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        retrieval_metrics(**{**world(), **words})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ranking", "words", "told"),
    [
        ([[1, 1]] * 12, {"ks": (2,)}, "ranking: expected each item once, got 1 twice or more in row 0"),
        ([[1, 30]] * 12, {"ks": (2,)}, "ranking: expected -1 .* to 29, got 30"),
        ([[0.5]] * 12, {"ks": (1,)}, "ranking: expected a list of archive positions a query, got float64"),
        ([[1, 2]] * 11, {"ks": (2,)}, "ranking: expected 12 rows, one a query, got 11"),
        ([[1, 2]] * 12, {"ks": (5,)}, "ranking: expected 5 ranks or the whole archive, got 2: the largest of ks is 5"),
        ([[1, 2]] * 12, {"ks": (2,), "extra": True}, "expected 10 ranks .*: extra=True needs 10 ranks"),
        ([1, 2], {}, "ranking: expected a list of archive positions a query"),
        ([[[1], [1, 2]]] * 12, {}, "ranking: expected numbers in rows of one length"),
        (torch.eye(12).to_sparse(), {}, r"ranking: .*; use ranking.to_dense\(\)"),
        ([[1, 2]] * 12, {"ks": 2}, "ks: expected a list of whole numbers, got 2"),
    ],
)
def test_bad_rankings_are_one_clear_error(ranking: Any, words: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        score_ranking(ranking, **labels_of(world()), **words)


ROWS = np.array([7, 0, 29, 3, 4, 5, 6, 1, 8, 9, 10, 11])
IDS: list[tuple[Any, Any]] = [
    (ROWS, np.arange(30)),
    (torch.from_numpy(ROWS), range(30)),
    (list(torch.from_numpy(ROWS)), list(torch.arange(30))),
    (ROWS.tolist(), [np.int32(one) for one in range(30)]),
    (ROWS.astype(float), range(30)),
    (np.array([*map(torch.tensor, ROWS), None], dtype=object)[:-1], range(30)),
    (ROWS.astype(str), [str(one) for one in range(30)]),
    (ROWS.astype(bytes), [b"%d" % one for one in range(30)]),
    ([(one, "a") for one in ROWS.tolist()], [(one, "a") for one in range(30)]),
]


@pytest.mark.parametrize(("query_ids", "archive_ids"), IDS)
def test_ids_are_equal_by_value_whatever_holds_them(query_ids: Any, archive_ids: Any) -> None:
    given = {**world(), "self_positions": ROWS}
    want = retrieval_metrics(**given)
    del given["self_positions"]
    assert want.means != retrieval_metrics(**given).means
    assert retrieval_metrics(**given, query_ids=query_ids, archive_ids=archive_ids).means == want.means


@pytest.mark.parametrize(
    ("query_ids", "told"),
    [
        ([str(one) for one in range(12)], r"query_ids: expected the kind of archive_ids \(number\), got str: '0'"),
        ([*range(11), "11"], r"query_ids: expected the kind of archive_ids \(number\), got str: '11'"),
        ([b"0"] * 12, "query_ids: expected the kind of archive_ids .*, got bytes"),
        ([None] * 12, "query_ids: expected the kind of archive_ids .*, got NoneType"),
        ([True] * 12, "query_ids: expected the kind of archive_ids .*, got bool"),
        ("abcdefghijkl", "query_ids: expected a list of 12 ids, got str"),
        (set(range(12)), "query_ids: expected a list of 12 ids, got set"),
        (dict.fromkeys(range(12)), "query_ids: expected a list of 12 ids, got dict"),
        (5, r"query_ids: expected a list of 12 ids, got int64 \(\)"),
        (np.zeros((12, 1)), r"query_ids: expected a list of 12 ids, got float64 \(12, 1\)"),
        ([[1]] * 12, "query_ids: expected numbers or texts, got lists or the like"),
        (list(torch.ones(12, 2)), "query_ids: expected numbers or texts, got lists or the like"),
        ([0.0] * 11 + [np.nan], "query_ids: expected numbers or texts, got nan at place 11"),
    ],
)
def test_ids_that_could_match_nothing_are_refused(query_ids: Any, told: str) -> None:
    given = {**world(), "self_positions": None}
    with pytest.raises(ValueError, match=told) as caught:
        retrieval_metrics(**given, query_ids=query_ids, archive_ids=range(30))
    assert "\n" not in str(caught.value)


def test_numpy_numbers_are_thresholds_by_their_digits() -> None:
    """Two sets of 4 and 4 labels that share 3 have Jaccard 3/5, below the 0.6 of float32 as it is stored."""
    labels = np.array([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]])
    for relevance in (0.6, np.float32(0.6), np.float16(0.6), np.float64(0.6)):
        got = score_ranking([[0]], labels[:1], labels[1:], ks=[1], relevance=relevance)  # type: ignore[arg-type]
        assert got.means["P@1"] == 1 and json.dumps(got.conventions)
    assert score_ranking([[0]], labels[:1], labels[1:], ks=np.array([1]), relevance=np.int64(1)).means["P@1"] == 0  # type: ignore[arg-type]


def test_pure_functions_are_the_same_code() -> None:
    given = world()
    width = max(map(len, ranked(given)))
    ranking = np.array([order + [-1] * (width - len(order)) for order in ranked(given)])
    direct = metrics.score_queries(
        ranking, given["query_labels"], given["archive_labels"], given["self_positions"], metrics.Scoring((5,)),
        complete=True,
    )  # fmt: skip
    got = retrieval_metrics(**given, ks=(5,), per_query=True).per_query
    assert set(got) == set(direct)
    for name, values in direct.items():
        assert np.array_equal(got[name], values), name
