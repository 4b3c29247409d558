"""The map: which images, and where; the same every time."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from marc_dist.config import EvalConfig
from marc_dist.data.dataset import Dataset
from marc_dist.retrieval.embedding_map import FEW, embedding_map, map_samples, principal_plane
from marc_dist.retrieval.protocols import choose


def sides(queries: int, archive: int) -> Any:
    """A protocol of two data sets, as far as ``map_samples`` looks."""
    ids = [SimpleNamespace(ids=np.arange(num, dtype=np.int64)) for num in (queries, archive)]
    return SimpleNamespace(queries=ids[0], archive=ids[1], one_dataset=False)


def test_small_sets_are_shown_whole(tiny: Dataset) -> None:
    chosen = choose(tiny, EvalConfig())
    queries, archive = map_samples(chosen)
    assert np.array_equal(queries, chosen.queries.ids) and np.array_equal(archive, chosen.archive.ids)


def test_an_image_that_asks_and_answers_is_shown_once(tiny: Dataset) -> None:
    queries, archive = map_samples(choose(tiny, EvalConfig(protocol="leave_one_out")))
    assert queries.tolist() == list(range(3, 40, 4)) and archive.tolist() == []


@pytest.mark.parametrize(
    ("queries", "archive", "shown"),
    [
        (1000, 2000, (500, 1000)),
        (600, 2400, (375, 1125)),
        (50, 100_000, (50, 1450)),
        (1000, 100_000, (375, 1125)),
        (3000, 10, (1495, 5)),
    ],
)
def test_large_sets_are_shown_evenly(queries: int, archive: int, shown: tuple[int, int]) -> None:
    parts = map_samples(sides(queries, archive))
    assert tuple(map(len, parts)) == shown
    for part, num in zip(parts, (queries, archive), strict=True):
        steps = np.diff(part)
        assert (steps >= 1).all() and steps.max() - steps.min() <= 1
        assert part[0] == 0 and part[-1] >= num - 1 - steps.max()


def test_groups_stay_together_and_the_map_is_the_same_again() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(3), 30)
    features = 3 * np.eye(16)[group] + rng.normal(size=(90, 16)) * 0.3
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    placed = embedding_map(features.astype(np.float32))
    assert placed.shape == (90, 2) and placed.dtype == np.float32
    distance = np.linalg.norm(placed[:, None] - placed[None], axis=2) + np.diag(np.full(90, np.inf))
    assert np.mean(group[distance.argmin(axis=1)] == group) > 0.95
    assert np.array_equal(embedding_map(features.astype(np.float32)), placed)


def test_few_or_equal_points_are_placed_without_a_search() -> None:
    rng = np.random.default_rng(1)
    assert np.array_equal(embedding_map(np.ones((40, 8), dtype=np.float32)), np.zeros((40, 2)))
    assert embedding_map(np.empty((0, 8), dtype=np.float32)).shape == (0, 2)
    few = rng.normal(size=(FEW, 5))
    assert np.allclose(embedding_map(few), principal_plane(few))
    assert np.isfinite(embedding_map(np.repeat(rng.normal(size=(2, 5)), 20, axis=0))).all()  # many equal rows


def test_the_plane_is_that_of_the_largest_variance() -> None:
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    points = rng.normal(size=(500, 6)) * [9, 4, 0.1, 0.1, 0.1, 0.1] @ basis
    plane = principal_plane(points)
    assert np.allclose(plane.std(axis=0), [9, 4], rtol=0.1) and abs(np.corrcoef(plane.T)[0, 1]) < 1e-9
    assert np.allclose(principal_plane(points[::-1])[::-1], plane)  # the sign does not depend on the order
    assert np.allclose(principal_plane(np.array([[1.0], [3.0]])), [[-1, 0], [1, 0]])


def test_a_protocol_without_archive_beyond_the_queries(tiny: Dataset) -> None:
    chosen = choose(tiny, EvalConfig(protocol="leave_one_out"))
    half = dataclasses.replace(chosen, queries=dataclasses.replace(chosen.queries, ids=chosen.queries.ids[:4]))
    queries, archive = map_samples(half)
    assert [*queries, *archive] == chosen.archive.ids.tolist()
