"""Blocks of queries: the same scores however they are cut and wherever they are scored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from marc_dist import metrics
from marc_dist.config import EvalConfig
from marc_dist.data.dataset import Dataset
from marc_dist.retrieval.protocols import Protocol, choose
from marc_dist.retrieval.scoring import TOP, Searched, gathered, scorer
from tests.retrieval.runs import OTHERS, pack_tiny
from tests.worlds import run_in_world


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory, tiny: Dataset) -> Protocol:
    other = pack_tiny(tmp_path_factory.mktemp("other") / "data", 24, 3, OTHERS, "other")
    return choose(tiny, EvalConfig(protocol="transfer"), archive=other, known=tiny.classes)


def rankings(protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """Complete ones in an order drawn at random, without the query itself; and falling cosines."""
    rng = np.random.default_rng(0)
    num, own = len(protocol.archive.ids), protocol.self_positions(protocol.own_ids())
    ranking = np.array([rng.permutation(num) for _ in own])
    for row, mine in enumerate(own):
        if mine >= 0:
            ranking[row] = [*ranking[row][ranking[row] != mine], -1]
    return ranking, -np.sort(-rng.random((len(own), TOP)), axis=1)


def scored(protocol: Protocol, config: EvalConfig, size: int, rank: int = 0, world: int = 1) -> Searched:
    """In blocks of ``size``, dealt to ranks in turn, so that they come back out of order."""
    ranking, cosine = rankings(protocol)
    one = scorer(protocol, config, complete=True)
    starts = list(range(0, len(ranking), size))[rank::world]
    return gathered([one.block(at, ranking[at : at + size], cosine[at : at + size]) for at in starts])


def in_world(protocol: Protocol, config: EvalConfig) -> Searched:
    from marc_dist import comm

    return scored(protocol, config, 2, comm.rank(), comm.world())


def same(one: Searched, other: Searched) -> None:
    assert list(one.scores) == list(other.scores)
    for name, values in one.scores.items():
        assert values.tobytes() == other.scores[name].tobytes(), name
    assert one.label_ap.tobytes() == other.label_ap.tobytes() and np.array_equal(one.top, other.top)
    assert one.curves.queries.tobytes() == other.curves.queries.tobytes()
    assert one.curves.labels.tobytes() == other.curves.labels.tobytes()


def test_ranks_change_no_bit(transfer: Protocol) -> None:
    config = EvalConfig(extra=True, ks=(3, 10))
    alone = scored(transfer, config, 2)
    for other in run_in_world(in_world, 3, transfer, config):
        same(alone, other)


@pytest.mark.parametrize("protocol", ["leave_one_out", "transfer"])
def test_blocks_say_what_the_metrics_say(tiny: Dataset, transfer: Protocol, protocol: str) -> None:
    chosen = transfer if protocol == "transfer" else choose(tiny, EvalConfig(protocol="leave_one_out"))
    config = EvalConfig(extra=True, ks=(3, 10), gain="jaccard", relevance=0.4)
    found, (ranking, cosine) = scored(chosen, config, 3), rankings(chosen)
    asked, archive = chosen.queries.labels[chosen.queries.ids], chosen.archive.labels[chosen.archive.ids]
    own = chosen.self_positions(chosen.own_ids())
    most = metrics.most_relevant(asked, archive, own, 0.4)
    wide = np.pad(ranking, ((0, 0), (0, max(0, TOP - ranking.shape[1]))), constant_values=-1)
    expected = metrics.score_queries(
        wide,
        asked,
        archive,
        own,
        metrics.Scoring((3, 10), "jaccard", 0.4),
        complete=True,
        extra=True,
        most=most,
        cosine=cosine,
    )
    assert list(found.scores) == list(expected) and {"ANMRR", "kNN_F1@10", "union_F@3"} <= set(expected)
    for name, values in expected.items():
        assert np.array_equal(found.scores[name], values, equal_nan=True), name
    assert np.allclose(found.curves.queries, metrics.query_curves(ranking, asked, archive, own, 0.4).mean(axis=0))
    sums, num = metrics.label_curves(ranking, asked, archive, own)
    for label in range(len(chosen.classes)):
        assert num[label] == (~np.isnan(found.label_ap[:, label])).sum()
        if num[label]:
            assert np.allclose(found.curves.labels[label], sums[label] / num[label])
        else:
            assert np.isnan(found.curves.labels[label]).all()
    ids = np.where(wide[:, :TOP] < 0, -1, chosen.archive.ids[wide[:, :TOP]])
    assert np.array_equal(found.top, ids)


def test_further_metrics_and_curves_only_when_asked_and_known(transfer: Protocol) -> None:
    ranking, cosine = rankings(transfer)
    plain = gathered([scorer(transfer, EvalConfig(), complete=True).block(0, ranking, cosine)])
    assert plain.curves is not None and not {"ANMRR", "kNN_F1@10", "jaccard@10"} & set(plain.scores)
    cut = gathered([scorer(transfer, EvalConfig(extra=True), complete=False).block(0, ranking, cosine)])
    assert cut.curves is None and "mAP" not in cut.scores and "ANMRR" not in cut.scores and "kNN_F1@10" in cut.scores
    blind = gathered([scorer(transfer, EvalConfig(extra=True), complete=True).block(0, ranking)])
    assert "kNN_F1@10" not in blind.scores and "ANMRR" in blind.scores


def test_an_archive_of_fewer_images_than_answers_kept(transfer: Protocol, tmp_path: Path) -> None:
    small = dataclasses.replace(transfer.archive, ids=transfer.archive.ids[:4])
    protocol = dataclasses.replace(transfer, archive=small)
    found = scored(protocol, EvalConfig(extra=True), 64)
    assert found.top.shape[1] == TOP and (found.top[:, 4:] == -1).all() and (found.top[:, :4] >= 0).all()
