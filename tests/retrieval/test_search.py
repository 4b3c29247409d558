"""The index against exhaustive search, ties and all, on one rank and on several."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from marc_dist import comm
from marc_dist.config import DataError
from marc_dist.retrieval import exact, search
from marc_dist.retrieval.index import parts as ix
from tests.retrieval.clouds import cloud, naive
from tests.worlds import run_in_world


def test_scores_have_no_rounding_error() -> None:
    x = cloud(6, 300, 0)
    scores, ids, _ = ix.FlatPart(x, np.arange(6)).search(x, np.full(6, -1), 6)
    for q in range(6):
        for at in range(6):
            a, b = x[q].tolist(), x[ids[q, at]].tolist()
            assert Fraction(scores[q, at]) == sum(
                (Fraction(u) * Fraction(v) for u, v in zip(a, b, strict=True)), Fraction(0)
            )
    assert np.abs(np.linalg.norm(x.astype(np.float64), axis=1) - 1).max() < 1e-6


def test_units_of_extreme_rows() -> None:
    x = exact.exact_unit(np.array([[3e30, 4e30], [3e-30, 4e-30], [0, 0]], dtype=np.float32))
    assert np.allclose(x, [[0.6, 0.8], [0.6, 0.8], [0, 0]], atol=1e-7)


@pytest.mark.parametrize("margin", [0, 3, 32])
@pytest.mark.parametrize("copies", [0, 300])
def test_against_exhaustive_sort(margin: int, copies: int) -> None:
    archive = cloud(400, 16, 1, copies)
    ids = np.arange(400) * 3 + 5
    queries = np.concatenate([archive[:30], cloud(10, 16, 2)])
    own = np.concatenate([ids[:30], np.full(10, -1)])
    scores, got, _ = ix.FlatPart(archive, ids).search(queries, own, 12, margin)
    assert got.tolist() == naive(queries, ids, archive, own, 12)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_ties_beyond_the_margin_are_still_by_id() -> None:
    """200 equal rows: FAISS proposes any 9 of them, the right answer is the 5 lowest ids."""
    archive = np.repeat(cloud(1, 8, 3), 200, axis=0)
    ids = np.arange(200)[::-1].copy()
    _, got, _ = ix.FlatPart(archive, ids).search(archive[:1], np.array([1]), 5, margin=3)
    assert got.tolist() == [[0, 2, 3, 4, 5]]


def test_near_ties_below_float32_are_ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    base = exact.exact_unit(rng.standard_normal((1, 64)).astype(np.float32))
    archive = np.repeat(base, 300, axis=0)
    archive[np.arange(300), rng.integers(0, 64, 300)] += rng.integers(-3, 4, 300).astype(np.float32) * np.float32(
        2**-24
    )
    _, got, _ = ix.FlatPart(archive, np.arange(300)).search(base, np.array([-1]), 20, margin=2)
    assert got.tolist() == naive(base, np.arange(300), archive, np.array([-1]), 20)


def test_faiss_does_the_work_where_scores_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    index = ix.FlatPart(cloud(3000, 32, 5), np.arange(3000))
    monkeypatch.setattr(ix, "exhaustive", None)
    _, ids, _ = index.search(cloud(8, 32, 6), np.full(8, -1), 10)
    assert (ids >= 0).all()


def test_k_beyond_the_archive_pads() -> None:
    archive = cloud(4, 8, 7)
    scores, ids, _ = ix.FlatPart(archive, np.array([10, 11, 12, 13])).search(archive[:1], np.array([10]), 6)
    assert ids[0, 3:].tolist() == [-1, -1, -1] and sorted(ids[0, :3].tolist()) == [11, 12, 13]
    assert np.isneginf(scores[0, 3:]).all()


def test_blocks_of_the_archive_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = cloud(100, 8, 8, 50)
    whole = ix.FlatPart(archive, np.arange(100)).search(archive[:9], np.arange(9), 90)
    monkeypatch.setattr(exact, "ARCHIVE_BLOCK", 7)
    parts = ix.FlatPart(archive, np.arange(100)).search(archive[:9], np.arange(9), 90)
    assert np.array_equal(whole[0], parts[0]) and np.array_equal(whole[1], parts[1])


def test_full_ranking_is_the_exhaustive_sort() -> None:
    archive = cloud(60, 8, 9, 40)
    own = np.array([0, 59, -1])
    got = exact.full_ranking(archive[:3], archive, own)
    assert got.tolist() == naive(archive[:3], np.arange(60), archive, own, 60)


def part(sizes: list[int], k: int, margin: int) -> tuple[bytes, list[list[int]]]:
    archive, queries = cloud(sum(sizes), 16, 11, 150), cloud(sum(sizes), 16, 11, 150)[:40]
    start = sum(sizes[: comm.rank()])
    mine = slice(start, start + sizes[comm.rank()])
    index = ix.FlatPart(archive[mine], np.arange(sum(sizes))[mine])
    scores, ids = search.top_k(index, queries, np.arange(40), k, margin)
    return scores.tobytes(), ids.tolist()


@pytest.mark.parametrize("sizes", [[200], [137, 63], [0, 200], [3, 190, 7], [99, 0, 101]])
def test_lists_do_not_depend_on_ranks(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    archive = cloud(200, 16, 11, 150)
    expected = naive(archive[:40], np.arange(200), archive, np.arange(40), 20)
    reference = part([200], 20, 32)
    assert reference[1] == expected
    monkeypatch.setattr(search, "QUERY_BLOCK", 7)
    assert part([200], 20, 32) == reference
    for result in run_in_world(part, len(sizes), sizes, 20, 4):
        assert result == reference


def refuse() -> str:
    features = np.ones((3, 2), dtype=np.float32)
    if comm.rank() == 1:
        features[1, 0] = np.nan
    try:
        exact.check_finite(features, [f"image {comm.rank()}-{i}" for i in range(3)], "trained encoder")
    except DataError as error:
        return str(error)
    return "nothing"


def test_features_that_are_not_finite_are_named_on_all_ranks() -> None:
    for message in run_in_world(refuse, 2):
        assert "trained encoder: features of image 1-1 are not finite" in message
    with pytest.raises(DataError, match="a, b, c and 1 more are not finite"):
        exact.check_finite(np.full((4, 1), np.inf), ["a", "b", "c", "d"], "x")
    exact.check_finite(np.ones((1, 1)), ["a"], "x")
