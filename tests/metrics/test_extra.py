"""The metrics that marc-eval leaves out by default, against loops that follow the formulas word by word."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marc_dist import metrics as m
from marc_dist.metrics.label_metrics import f_measure
from marc_dist.metrics.label_sets import distinct_sets
from marc_dist.metrics.rank_metrics import nmrr, recall_precision, trapezoidal_ap

STEPS = np.arange(1.0, 200.0)
NUM_LABELS = 5
KS = (1, 4, 100)


@dataclass
class World:
    queries: np.ndarray
    archive: np.ndarray
    own: np.ndarray
    ranking: np.ndarray
    cosine: np.ndarray

    def order(self, q: int) -> list[int]:
        return [i for i in self.ranking[q].tolist() if i >= 0]

    def asked(self, q: int) -> set[int]:
        return set(np.flatnonzero(self.queries[q]).tolist())

    def items(self) -> list[set[int]]:
        return [set(np.flatnonzero(x).tolist()) for x in self.archive]


def draw(seed: int, num: int = 37, num_queries: int = 12, num_labels: int = NUM_LABELS) -> World:
    """Random rankings; an item and a query without labels; some queries lie in the archive."""
    rng = np.random.default_rng(seed)
    archive, queries = (rng.random((n, num_labels)) < 0.35 for n in (num, num_queries))
    archive[3], queries[0] = False, False
    own = np.full(num_queries, -1)
    own[[1, 4, 7]] = [0, 5, num - 1]
    queries[[1, 4, 7]] = archive[[0, 5, num - 1]]
    ranking = np.full((num_queries, num), -1)
    for q in range(num_queries):
        order = [i for i in rng.permutation(num) if i != own[q]]
        ranking[q, : len(order)] = order
    cosine = np.sort(rng.uniform(-1, 0.99, ranking.shape), axis=1)[:, ::-1].copy()
    cosine[2, :2] = 1.0  # two neighbours at distance 0
    return World(queries, archive, own, ranking, np.where(ranking < 0, -np.inf, cosine))


def scored(world: World, **options: object) -> dict[str, np.ndarray]:
    scoring = m.Scoring(KS)
    most = m.most_relevant(world.queries, world.archive, world.own, "any")
    given = {"complete": True, "extra": True, "most": most, "cosine": world.cosine, **options}
    return m.score_queries(world.ranking, world.queries, world.archive, world.own, scoring, **given)  # type: ignore[arg-type]


def jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a & b else 0.0


def cosine(a: set[int], b: set[int]) -> float:
    return len(a & b) / math.sqrt(len(a) * len(b)) if a & b else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_difficulty_levels_against_loops(seed: int) -> None:
    world = draw(seed)
    got = scored(world)
    dropped = 0
    for q in range(len(world.queries)):
        y, items, order = world.asked(q), world.items(), world.order(q)
        others = [i for i in range(len(items)) if i != world.own[q]]
        hard = [i for i in others if y & items[i] and 1 - jaccard(y, items[i]) <= 0.2 + 1e-12]
        dropped += not hard
        for name, distance in (("easy", 0.6), ("medium", 0.4), ("hard", 0.2)):
            good = [i for i in others if y & items[i] and 1 - jaccard(y, items[i]) <= distance + 1e-12]
            area = 0.0
            for j, rank in enumerate(at for at, i in enumerate(order) if i in good):  # both from 0, as in the source
                before = 1.0 if rank == 0 else j / rank
                area += (before + (j + 1) / (rank + 1)) / len(good) / 2
            assert got[f"mAP_{name}"][q] == pytest.approx(area, abs=1e-12)
            assert got[f"P_{name}@10"][q] == pytest.approx(sum(i in good for i in order[:10]) / 10)
            kept = got[f"mAP_{name}_oml"][q]
            assert kept == pytest.approx(area, abs=1e-12) if hard else np.isnan(kept)
    assert 0 < dropped < len(world.queries)  # both rules are seen


@pytest.mark.parametrize("seed", range(4))
def test_strict_map_and_similarities_against_loops(seed: int) -> None:
    world = draw(seed)
    got = scored(world)
    for q in range(len(world.queries)):
        y, items, order = world.asked(q), world.items(), world.order(q)
        for k in (1, 2, 4, 8):
            strict = [bool(items[i]) and items[i] <= y for i in order[:k]]
            total = sum(sum(strict[: at + 1]) / (at + 1) for at in range(k) if strict[at])
            assert got[f"mAP_strict@{k}"][q] == pytest.approx(total / k, abs=1e-12)
        for k in KS:
            for name, similarity in (("jaccard", jaccard), ("cosine", cosine)):
                mean = sum(similarity(y, items[i]) for i in order[:k]) / k
                assert got[f"{name}@{k}"][q] == pytest.approx(mean, abs=1e-12)


def naive_set_measures(y: set[int], z: set[int]) -> dict[str, float]:
    p, r = (len(y & z) / len(z) if z else 0.0), (len(y & z) / len(y) if y else 0.0)
    accuracy = len(y & z) / len(y | z) if y | z else 0.0
    f = 2 * p * r / (p + r) if p + r else 0.0
    return {"accuracy": accuracy, "precision": p, "recall": r, "F": f, "HL": len(y ^ z) / NUM_LABELS}


@pytest.mark.parametrize("seed", range(4))
def test_label_set_measures_against_loops(seed: int) -> None:
    world = draw(seed)
    got = scored(world)
    for q in range(len(world.queries)):
        y, items, order = world.asked(q), world.items(), world.order(q)
        for k in KS:
            top = [items[i] for i in order[:k]]
            for name, value in naive_set_measures(y, set().union(*top)).items():
                assert got[f"union_{name}@{k}"][q] == pytest.approx(value, abs=1e-12), name
            top += [set()] * (k - len(top))  # an item that is not there tells no label
            each = [naive_set_measures(y, z) for z in top]
            for name in each[0]:
                value = sum(one[name] for one in each) / k
                assert got[f"item_{name}@{k}"][q] == pytest.approx(value, abs=1e-12), name


def test_f_of_the_means_is_not_the_mean_of_f() -> None:
    precision, recall = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    assert f_measure(precision, recall).tolist() == [pytest.approx(2 / 3), 0.0]
    assert f_measure(precision.mean(), recall.mean()) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(4))
def test_anmrr_against_loops(seed: int) -> None:
    world = draw(seed)
    got = scored(world)
    items = world.items()
    others = [[i for i in range(len(items)) if i != own] for own in world.own]
    good = [[i for i in others[q] if items[i] & world.asked(q)] for q in range(len(world.queries))]
    most = max(len(one) for one in good)
    for q, relevant in enumerate(good):
        ng, order = len(relevant), world.order(q)
        if not ng:
            assert got["ANMRR"][q] == got["ANMRR_mpeg7"][q] == 1.0
            continue
        depth = min(4 * ng, 2 * most)
        ranks = [order.index(i) + 1 for i in relevant]
        ours = sum(rank if rank <= depth else depth + 1 for rank in ranks) / ng - (1 + ng) / 2
        assert got["ANMRR"][q] == pytest.approx(ours / (depth + 0.5 - 0.5 * ng), abs=1e-12)
        mpeg = sum(rank if rank <= depth else 1.25 * depth for rank in ranks) / ng - (1 + ng) / 2
        assert got["ANMRR_mpeg7"][q] == pytest.approx(mpeg / (1.25 * depth - 0.5 * (1 + ng)), abs=1e-12)


@pytest.mark.parametrize("mpeg7", [False, True])
def test_nmrr_runs_from_zero_to_one(mpeg7: bool) -> None:
    assert nmrr(np.array([1.0, 2, 3]), 3, 5, mpeg7=mpeg7) == 0.0
    assert nmrr(np.array([11.0, 12, 13]), 3, 5, mpeg7=mpeg7) == 1.0  # K = min(12, 10)
    assert 0 < nmrr(np.array([10.0, 12, 13]), 3, 5, mpeg7=mpeg7) < 1
    assert nmrr(np.array([]), 0, 5, mpeg7=mpeg7) == 1.0


def test_anmrr_needs_the_largest_number_of_relevant_items() -> None:
    assert not {"ANMRR", "ANMRR_mpeg7"} & set(scored(draw(0), most=None))
    assert m.most_relevant(np.zeros((0, 3), bool), np.ones((4, 3), bool), np.zeros(0, int), "any") == 0


def test_trapezoids() -> None:
    assert trapezoidal_ap(np.array([1.0, 2, 3]), 3, STEPS) == 1.0
    # ranks from 0: 1 and 3; (0/1 + 1/2)/2 and (1/3 + 2/4)/2, over R = 2
    assert trapezoidal_ap(np.array([2.0, 4]), 2, STEPS) == pytest.approx((0.25 + 5 / 12) / 2)
    assert trapezoidal_ap(np.array([]), 0, STEPS) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_vote_as_in_a_loop(seed: int) -> None:
    world = draw(seed)
    got = scored(world)["kNN_F1@10"]
    for q in range(len(world.queries)):
        y, items = world.asked(q), world.items()
        near = [(i, math.sqrt(2 - 2 * c)) for i, c in zip(world.order(q), world.cosine[q].tolist(), strict=False)][:10]
        if any(d == 0 for _, d in near):
            near = [(i, 1.0) for i, d in near if d == 0]
        total = sum(1 / d for _, d in near)
        told = {label for label in range(NUM_LABELS) if sum(1 / d for i, d in near if label in items[i]) > total / 2}
        assert got[q] == pytest.approx(2 * len(y & told) / (len(y) + len(told)) if y or told else 0.0)


def test_neighbours_against_scikit_learn() -> None:
    neighbours, learn = pytest.importorskip("sklearn.neighbors"), pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(5)
    archive, queries = (rng.random((n, 6)) < 0.4 for n in (80, 30))
    archive[:, 0] |= ~archive.any(axis=1)
    queries[:, 0] |= ~queries.any(axis=1)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    there, here = unit(rng.standard_normal((80, 8))), unit(rng.standard_normal((30, 8)))
    here[4] = there[11]
    similar = here @ there.T
    ranking = np.argsort(-similar, axis=1)
    got = m.score_queries(
        ranking, queries, archive, np.full(30, -1), m.Scoring((1,)), complete=True, extra=True,
        cosine=np.take_along_axis(similar, ranking, axis=1),
    )  # fmt: skip
    model = neighbours.KNeighborsClassifier(10, weights="distance").fit(there, archive.astype(int))
    told = model.predict(here)
    for q in range(30):
        expected = learn.f1_score(queries[q : q + 1].astype(int), told[q : q + 1], average="samples", zero_division=0)
        assert got["kNN_F1@10"][q] == pytest.approx(expected), q


def naive_curve(hits: list[bool], num: int) -> list[float]:
    recall = [sum(hits[: at + 1]) / num for at in range(len(hits))] if num else []
    precision = [sum(hits[: at + 1]) / (at + 1) for at in range(len(hits))]
    return [
        max([p for p, r in zip(precision, recall, strict=False) if r >= at / 100 - 1e-12], default=0.0)
        for at in range(101)
    ]


@pytest.mark.parametrize("depth", [36, 9])
def test_curves_against_loops(depth: int) -> None:
    world = draw(1)
    ranking = world.ranking[:, :depth]
    queries = m.query_curves(ranking, world.queries, world.archive, world.own, "any")
    total, num = m.label_curves(ranking, world.queries, world.archive, world.own)
    sums, counts = np.zeros_like(total), np.zeros_like(num)
    items = world.items()
    for q in range(len(world.queries)):
        y, order = world.asked(q), [i for i in ranking[q].tolist() if i >= 0]
        others = [i for i in range(len(items)) if i != world.own[q]]
        hits = [bool(items[i] & y) for i in order]
        assert queries[q] == pytest.approx(naive_curve(hits, sum(bool(items[i] & y) for i in others)))
        for label in y:
            carriers = sum(label in items[i] for i in others)
            if carriers:
                sums[label] += naive_curve([label in items[i] for i in order], carriers)
                counts[label] += 1
    assert num.tolist() == counts.tolist()
    assert total == pytest.approx(sums)


def test_curves_against_scikit_learn() -> None:
    learn = pytest.importorskip("sklearn.metrics")
    hits = np.random.default_rng(2).random(150) < 0.3
    ranks = np.flatnonzero(hits) + 1.0
    precision, recall, _ = learn.precision_recall_curve(hits, -np.arange(150))
    expected = [precision[recall >= at / 100 - 1e-12].max() for at in range(101)]
    # scikit-learn ends its curve with the made-up point (recall 0, precision 1)
    assert recall_precision(ranks, len(ranks), STEPS)[1:] == pytest.approx(expected[1:])
    assert recall_precision(ranks, len(ranks), STEPS)[0] == pytest.approx(precision[:-1].max())


def test_no_relevant_item_is_the_worst_value_everywhere() -> None:
    """Lower is better: 1. The others: 0. What a source leaves out: NaN."""
    queries, archive = np.array([[True, False, False]]), np.array([[False, True, False]] * 12)
    got = m.score_queries(
        np.arange(12)[None], queries, archive, np.array([-1]), m.Scoring((5,)), complete=True, extra=True, most=3,
        cosine=np.full((1, 12), 0.5),
    )  # fmt: skip
    for name, values in got.items():
        if name.endswith("_oml"):
            assert np.isnan(values[0])
        elif "_HL@" in name:
            assert values[0] == pytest.approx(2 / 3)
        else:
            assert values[0] == (1.0 if m.lower_is_better(name) else 0.0), name
    assert m.lower_is_better("ANMRR_mpeg7") and m.lower_is_better("item_HL@5") and not m.lower_is_better("mAP_hard")


def test_cut_rankings_leave_out_what_needs_a_full_one() -> None:
    world = draw(3)
    full = scored(world)
    world.ranking, world.cosine = world.ranking[:, :12], world.cosine[:, :12]
    cut = scored(world, complete=False)
    gone = {f"mAP_{name}{rule}" for name in m.DIFFICULTIES for rule in ("", "_oml")}
    gone |= {"mAP", "ANMRR", "ANMRR_mpeg7", "MRR", "R_precision"}
    assert set(full) - set(cut) == gone
    for name in set(cut) - {name for name in cut if name.endswith("@100")}:
        assert np.array_equal(cut[name], full[name]), name


@pytest.mark.parametrize("num_labels", [5, 32, 33, 90])
def test_blocks_and_prepared_archives_change_nothing(num_labels: int) -> None:
    """Bit by bit, for any number of labels; wide label sets do not fit one integer."""
    world = draw(6, num_labels=num_labels)
    prepared = distinct_sets(world.archive)
    assert np.array_equal(prepared.sets[prepared.code[:-1]], world.archive)
    assert len(np.unique(prepared.sets, axis=0)) == len(prepared.sets) == len(prepared.counts)
    assert prepared.counts.tolist() == np.bincount(prepared.code[:-1]).tolist()
    most = m.most_relevant(world.queries, prepared, world.own, "any")
    whole = scored(world)
    labels = m.score_labels(world.ranking, world.queries, world.archive, world.own, complete=True)
    for q in range(len(world.queries)):
        one = slice(q, q + 1)
        got = m.score_queries(
            world.ranking[one], world.queries[one], prepared, world.own[one], m.Scoring(KS), complete=True, extra=True,
            most=most, cosine=world.cosine[one],
        )  # fmt: skip
        assert all(np.array_equal(got[name], values[one], equal_nan=True) for name, values in whole.items())
        own = m.score_labels(world.ranking[one], world.queries[one], prepared, world.own[one], complete=True)
        assert np.array_equal(own, labels[one], equal_nan=True)


def test_wide_label_sets_stay_apart() -> None:
    """Sets that differ in the first labels alone, beside many of the last ones."""
    labels = np.ones((8, 70), dtype=bool)
    labels[:, :3] = np.unpackbits(np.arange(8, dtype=np.uint8)[:, None], axis=1)[:, 5:]
    prepared = distinct_sets(labels)
    assert prepared.counts.tolist() == [1] * 8
    assert np.array_equal(prepared.sets[prepared.code[:-1]], labels)


def test_the_best_list_does_without_the_query() -> None:
    """Its own label set, the best of all, lies nowhere else in the archive."""
    archive = np.array([[True, True], [True, False], [False, False]])
    got = m.score_queries(
        np.array([[1, 2, -1]]), archive[:1], archive, np.array([0]), m.Scoring((1,)), complete=True
    )  # fmt: skip
    assert got["nDCG@1"][0] == 1.0


def test_a_twin_votes_alone() -> None:
    """Nine neighbours at a distance of 0.004 do not outvote one at 0."""
    archive = np.array([[True, False]] + [[False, True]] * 9)
    cosine = np.array([[1.0] + [1 - 2.0**-17] * 9])
    for queries, expected in ((archive[:1], 1.0), (archive[1:2], 0.0)):
        got = m.score_queries(
            np.arange(10)[None], queries, archive, np.array([-1]), m.Scoring((1,)), complete=True, extra=True,
            cosine=cosine,
        )  # fmt: skip
        assert got["kNN_F1@10"][0] == expected


def test_own_item_in_a_ranking_is_no_hit() -> None:
    """Whoever did not take the query out of its ranking is not rewarded for it."""
    world = draw(2)
    with_own = world.ranking.copy()
    for q in np.flatnonzero(world.own >= 0):
        with_own[q] = [world.own[q], *world.ranking[q, :-1]]
    got = m.score_queries(with_own, world.queries, world.archive, world.own, m.Scoring((1, 5)), complete=True)
    assert (got["P@1"][world.own >= 0] == 0).all() and (got["ACG@1"][world.own >= 0] == 0).all()
    per_label = m.score_labels(with_own, world.queries, world.archive, world.own, complete=True)
    before = m.score_labels(world.ranking, world.queries, world.archive, world.own, complete=True)
    later = per_label[world.own >= 0] < before[world.own >= 0]
    assert later[~np.isnan(before[world.own >= 0])].all()


def test_empty_archives_score_nothing() -> None:
    queries = np.array([[True, False]])
    got = m.score_queries(
        np.empty((1, 0), int), queries, np.empty((0, 2), bool), np.array([-1]), m.Scoring((3,)), complete=True
    )
    assert all(values.tolist() == [0.0] for values in got.values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=2, max_size=60), st.data())
def test_moving_a_hit_up_never_hurts(hits: list[bool], data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(hits) - 1))
    better = list(hits)
    if hits[at] and not hits[at - 1]:
        better[at - 1 : at + 1] = [True, False]
    ranks, above = (np.flatnonzero(one) + 1.0 for one in (hits, better))
    num, most = len(ranks), len(hits)
    assert trapezoidal_ap(above, num, STEPS) >= trapezoidal_ap(ranks, num, STEPS) - 1e-12
    for mpeg7 in (False, True):
        assert 0 <= nmrr(above, num, most, mpeg7=mpeg7) <= nmrr(ranks, num, most, mpeg7=mpeg7) + 1e-12 <= 1 + 2e-12
    curve = recall_precision(ranks, num, STEPS)
    assert (np.diff(curve) <= 0).all() and (recall_precision(above, num, STEPS) >= curve - 1e-12).all()
