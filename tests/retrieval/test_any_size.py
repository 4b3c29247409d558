"""Archives of any size: the same bits as one sort a query, whatever is ranked at a time and on however many ranks."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from marc_dist.config import Config, EvalConfig, build
from marc_dist.retrieval import evaluate as ev
from marc_dist.retrieval import exact, scoring
from marc_dist.retrieval.exact import Pieces, Signs, exact_unit, full_ranking, queries_at_once
from marc_dist.retrieval.index.spec import parse_spec
from marc_dist.retrieval.protocols import Protocol, Side
from marc_dist.retrieval.scoring import Searched
from tests.metrics.test_score import naive
from tests.retrieval.clouds import cloud
from tests.retrieval.clouds import naive as naive_lists
from tests.retrieval.small_path import order_of, scored
from tests.worlds import run_in_world

SEEDS = range(12)
TWO_BLOCKS = 0
"""A seed whose world has more than 64 queries."""
GAINS = ("count", "jaccard", "cosine")
RULES = ("any", "exact", "subset", 0.4)


class Vectors:
    """Unit vectors in memory; stands where a ``Store`` does."""

    def __init__(self, unit: np.ndarray) -> None:
        self.unit = unit

    def rows(self, ids: np.ndarray) -> np.ndarray:
        return self.unit[ids]


def draw(seed: int) -> tuple[Vectors, Vectors, Protocol, Config]:
    """Ties by the dozen, copies, pictures without labels, queries in their own archive, one class, small archives."""
    rng = np.random.default_rng(seed)
    one_dataset, num_labels = seed % 3 == 1, 1 if seed % 6 == 5 else int(rng.integers(2, 12))
    num = int(rng.integers(2, 90)) if seed % 4 else int(rng.integers(2, 9))
    num_queries = num if one_dataset else int(rng.integers(1, 140))
    dim = int(rng.integers(1, 9))

    def side(size: int) -> tuple[Vectors, np.ndarray]:
        rough = np.rint(2 * rng.standard_normal((size, dim)))  # few directions: equal scores everywhere
        copies = rng.integers(0, size, size // 3)
        rough[copies] = rough[rng.integers(0, size, len(copies))]
        rough[rng.integers(0, size)] = 0.0  # a vector of no direction: score 0
        labels = rng.random((size, num_labels)) < rng.uniform(0.1, 0.6)
        labels[rng.integers(0, size)] = False
        return Vectors(exact_unit(rough)), labels

    answering, theirs = side(num)
    asking, ours = (answering, theirs) if one_dataset else side(num_queries)
    data = [SimpleNamespace(fingerprint=name) for name in ("one", "one" if one_dataset else "other")]
    ids = [np.arange(len(labels)) for labels in (ours, theirs)]
    if one_dataset:  # queries that lie in the archive, and others
        ids = [ids[0][:: 1 + seed % 2], np.sort(rng.permutation(num)[: max(1, 3 * num // 4)])]
    sides = [Side(one, of, labels) for one, of, labels in zip(data, ids, (ours, theirs), strict=True)]
    classes = tuple(map(str, range(num_labels)))
    words = {"eval.ks": [1, 7], "eval.gain": GAINS[seed % 3], "eval.relevance": RULES[seed % 4]}
    words |= {"eval.extra": seed % 2 == 0, "eval.index": "sign" if seed % 5 == 4 else "flat"}
    return asking, answering, Protocol(sides[0], sides[1], classes, ""), build(Config, words)


def searched(seed: int, at_once: int | None = None) -> Searched:
    """What an evaluation finds in a world; ``at_once``: bytes of rankings."""
    if at_once is not None:
        exact.RANKED_AT_ONCE = at_once
    asking, answering, protocol, config = draw(seed)
    spec = parse_spec(config.eval.index)
    return ev.rank_and_score(asking, answering, protocol, config, spec, None, lambda line: None)[0]


def same(one: Searched, other: Searched) -> None:
    assert list(one.scores) == list(other.scores)
    for name, values in one.scores.items():
        assert values.tobytes() == other.scores[name].tobytes(), name
    assert one.label_ap.tobytes() == other.label_ap.tobytes() and np.array_equal(one.top, other.top)
    assert one.curves.queries.tobytes() == other.curves.queries.tobytes()
    assert one.curves.labels.tobytes() == other.curves.labels.tobytes()


@pytest.fixture
def one_query_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "RANKED_AT_ONCE", 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bits_of_one_sort_a_query(seed: int, one_query_at_once: None) -> None:
    found = searched(seed)
    asking, answering, protocol, config = draw(seed)
    own = protocol.self_positions(protocol.own_ids())
    asked, labels = (one.labels[one.ids] for one in (protocol.queries, protocol.archive))
    queries, archive = asking.rows(protocol.queries.ids), answering.rows(protocol.archive.ids)
    if config.eval.index == "sign":
        centre = answering.rows(protocol.archive.ids).mean(axis=0)
        queries, archive = (np.where(one - centre >= 0, 1.0, -1.0) for one in (queries, archive))
        if not np.array_equal(order_of(queries, archive, own)[:, :1], found.top[:, :1]):
            queries, archive = _spaces(seed)  # a mean that FAISS rounds otherwise turns a sign
    order = order_of(queries, archive, own)
    expected, label_ap, curve, sums, num = scored(
        order, asked, labels, own, config.eval.relevance, extra=config.eval.extra
    )
    for name, values in expected.items():
        assert found.scores[name].tobytes() == values.tobytes(), name
    assert found.label_ap.tobytes() == label_ap.tobytes()
    assert found.curves.queries.tobytes() == curve.tobytes()
    mean = np.divide(sums, num[:, None], out=np.full(sums.shape, np.nan), where=num[:, None] > 0)
    assert found.curves.labels.tobytes() == mean.tobytes()
    ids = np.where(order < 0, -1, protocol.archive.ids[order])[:, : scoring.TOP]
    assert np.array_equal(found.top[:, : ids.shape[1]], ids) and (found.top[:, ids.shape[1] :] == -1).all()
    items, convention = [set(np.flatnonzero(x).tolist()) for x in labels], scoring.scoring_of(config.eval)
    for row, one in enumerate(order):  # the cut-offs, too: loops over everything
        query = set(np.flatnonzero(asked[row]).tolist())
        for name, value in naive([i for i in one.tolist() if i >= 0], query, items, int(own[row]), convention).items():
            assert found.scores[name][row] == pytest.approx(value, abs=1e-12), name


def _spaces(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and archive as +1 and -1, with the centre that FAISS finds."""
    from marc_dist.retrieval.index.parts import Coder, train

    asking, answering, protocol, config = draw(seed)
    archive = answering.rows(protocol.archive.ids)
    coder = Coder(train(parse_spec(config.eval.index), archive))
    return tuple(np.where(coder.signs(one), 1.0, -1.0) for one in (asking.rows(protocol.queries.ids), archive))


@pytest.mark.parametrize("seed", [TWO_BLOCKS, 7])
def test_ranks_and_parts_change_no_bit(seed: int) -> None:
    alone = searched(seed)
    for world, at_once in ((2, 1 << 28), (3, 8 * 200)):
        for other in run_in_world(searched, world, seed, at_once):
            same(alone, other)


@pytest.mark.parametrize("seed", [TWO_BLOCKS, 7])
def test_threads_change_no_bit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = searched(seed)
    monkeypatch.setattr(scoring, "LONG", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    same(alone, searched(seed))


def test_a_large_archive_is_ranked_in_full(one_query_at_once: None) -> None:
    """Above the former limit, and so large that the radix sort sees different scores as equal."""
    rng = np.random.default_rng(0)
    num = 70_000
    unit = exact_unit(rng.standard_normal((num, 2)))
    unit[rng.integers(0, num, num // 4)] = unit[rng.integers(0, num, num // 4)]
    labels = rng.random((num, 3)) < (0.5, 0.01, 0.0001)
    asked = np.array([0, 5, 69_999])
    sides = [Side(SimpleNamespace(fingerprint="one"), ids, labels) for ids in (asked, np.arange(num))]
    config = Config(eval=EvalConfig(ks=(10,), extra=True))
    protocol = Protocol(*sides, ("a", "b", "c"), "")
    found = ev.rank_and_score(Vectors(unit), Vectors(unit), protocol, config, parse_spec("flat"), None, print)[0]
    order = order_of(unit[asked], unit, asked)
    expected, label_ap, curve, _, _ = scored(order, labels[asked], labels, asked, "any", extra=True)
    for name, values in expected.items():
        assert found.scores[name].tobytes() == values.tobytes(), name
    assert found.label_ap.tobytes() == label_ap.tobytes() and found.curves.queries.tobytes() == curve.tobytes()


CLOUDS = {
    "spread": lambda rng: rng.standard_normal((50_000, 3)),
    "copies": lambda rng: rng.standard_normal((40, 3))[rng.integers(0, 40, 50_000)],
    "collapsed": lambda rng: np.ones(8) + 1e-7 * rng.standard_normal((40_000, 8)),
    "collapsed but one": lambda rng: np.vstack([-np.ones(8), np.ones(8) + 1e-7 * rng.standard_normal((40_000, 8))]),
    "all alike": lambda rng: np.ones((40_000, 4)),
    "one": lambda rng: np.ones((1, 4)),
    "two": lambda rng: np.array([[1.0, 0.0], [0.0, 1.0]]),
}


@pytest.mark.parametrize("kind", CLOUDS)
def test_rankings_are_those_of_a_stable_sort(kind: str) -> None:
    rng = np.random.default_rng(1)
    archive = exact_unit(CLOUDS[kind](rng))
    asked = np.unique(np.linspace(0, len(archive) - 1, 4).astype(int))
    for own in (asked, np.full(len(asked), -1)):
        assert np.array_equal(full_ranking(archive[asked], archive, own), order_of(archive[asked], archive, own))


def test_rankings_of_scores_that_the_radix_sort_cannot_tell_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 4 bits nearly everything is sorted again; against Python's own sort, too."""
    monkeypatch.setattr(exact, "BITS", 4)
    archive = cloud(300, 3, 0, copies=80)
    own = np.array([-1, 7, 299, 0])
    order = full_ranking(archive[:4], archive, own)
    assert np.array_equal(order, order_of(archive[:4], archive, own))
    assert order.tolist() == naive_lists(archive[:4], np.arange(300), archive, own, 300)


def test_rankings_of_mapped_pieces_and_packed_codes() -> None:
    archive = cloud(1000, 16, 3, copies=50)
    own, whole = np.arange(5), order_of(archive[:5], archive, np.arange(5))
    assert np.array_equal(full_ranking(archive[:5], Pieces([archive[:1], archive[1:700], archive[700:]]), own), whole)
    bits = archive[:, :13] > 0
    signs = Signs(np.packbits(bits, axis=1), 13)
    plain = np.where(bits, np.float32(1), np.float32(-1))
    assert signs.shape == plain.shape and np.array_equal(signs[100:200], plain[100:200])
    assert np.array_equal(full_ranking(plain[:5], signs, own), order_of(plain[:5], plain, own))
    assert full_ranking(archive[:2], archive[:0], np.array([-1, -1])).shape == (2, 0)


def test_memory_is_that_of_the_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 whole rankings of 100,000 would be 51 MB."""
    monkeypatch.setattr(exact, "RANKED_AT_ONCE", 1 << 20)
    rng = np.random.default_rng(0)
    unit, labels = exact_unit(rng.standard_normal((100_000, 2))), rng.random((100_000, 2)) < 0.3
    sides = [Side(SimpleNamespace(fingerprint="one"), ids, labels) for ids in (np.arange(64), np.arange(100_000))]
    protocol, config = Protocol(*sides, ("a", "b"), ""), Config(eval=EvalConfig(ks=(10,)))
    tracemalloc.start()
    ev.rank_and_score(Vectors(unit), Vectors(unit), protocol, config, parse_spec("flat"), None, lambda line: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert queries_at_once(100_000, 64) == 1 and peak < 30e6


def test_queries_at_once() -> None:
    assert queries_at_once(20_000, 64) == queries_at_once(0, 64) == queries_at_once(500_000, 64) == 64
    assert queries_at_once(1_000_000, 64) == 33 and queries_at_once(1 << 40, 64) == 1


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ev, "LINE_S", 0.0)
    monkeypatch.setattr(ev, "BLOCK", 16)
    told: list[str] = []
    asking, answering, protocol, config = draw(TWO_BLOCKS)
    num: Any = len(protocol.queries.ids)
    assert num > 64
    ev.rank_and_score(asking, answering, protocol, config, parse_spec("flat"), None, told.append)
    lines = [line for line in told if line.startswith("ranking: ")]
    assert len(lines) == -(-num // 16) - 1
    assert lines[0].startswith(f"ranking: 16 of {num} queries ({16 / num:.0%}), ") and lines[0].endswith(" left")
