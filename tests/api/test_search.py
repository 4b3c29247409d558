"""Search for one process: the order, what is left out, indexes, and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from marc_dist import search
from marc_dist.retrieval.exact import exact_unit, full_ranking

RNG = np.random.default_rng(0)
ARCHIVE, QUERIES = RNG.standard_normal((500, 8)), RNG.standard_normal((7, 8))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_first_of_the_exhaustive_order(kind: str) -> None:
    own = np.array([3, -1, 499, -1, -1, 0, -1])
    QUERIES[[0, 2, 5]] = ARCHIVE[[3, 499, 0]]
    make = torch.from_numpy if kind == "torch" else np.asarray
    scores, positions = search(make(QUERIES), make(ARCHIVE * 5), 10, self_positions=make(own))
    assert np.array_equal(positions, full_ranking(exact_unit(QUERIES), exact_unit(ARCHIVE), own)[:, :10])
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (QUERIES, ARCHIVE)]
    assert scores == pytest.approx(np.take_along_axis(unit[0] @ unit[1].T, positions, axis=1), abs=1e-6)


def test_equal_cosines_go_by_position() -> None:
    archive = np.repeat(ARCHIVE[:2], 200, axis=0) * RNG.uniform(1, 2, (400, 1))
    archive = np.round(archive / archive[:, :1], 3)  # the same directions to the bit
    found = search(archive[:1], archive, 5, self_positions=[2])
    assert found.positions.tolist() == [[0, 1, 3, 4, 5]]


def test_short_archives_are_padded() -> None:
    found = search([[1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], 4, query_ids=["b"], archive_ids=["a", "b"])
    assert found.positions.tolist() == [[0, -1, -1, -1]] and found.scores[0, 1:].tolist() == [-np.inf] * 3


@pytest.mark.parametrize(("index", "least"), [("sign", 0.0), ("IVF8,Flat:nprobe=8", 1.0), ("itq8", 0.0)])
def test_other_indexes(index: str, least: float) -> None:
    exact, found = search(QUERIES, ARCHIVE, 10), search(QUERIES, ARCHIVE, 10, index=index)
    assert found.positions.shape == (7, 10) and (found.positions >= 0).all()
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert np.mean([np.isin(a, b).mean() for a, b in zip(exact.positions, found.positions, strict=True)]) >= least


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"k": 0}, "k: expected a whole number of 1 or more, got 0"),
        ({"k": 2.5}, "k: expected a whole number"),
        ({"archive_vectors": np.ones((0, 8))}, "archive_vectors: expected an archive of one item or more, got none"),
        ({"query_vectors": np.ones((2, 3))}, "query_vectors: expected 8 numbers a vector"),
        ({"query_vectors": np.full((2, 8), np.nan)}, "query_vectors: expected finite numbers"),
        ({"index": None}, "^index=None: expected a text, got NoneType; flat is the exact search"),
        ({"index": b"flat"}, "^index=b'flat': expected a text, got bytes"),
        ({"query_ids": ["a"] * 7, "archive_ids": range(500)}, "query_ids: expected the kind of archive_ids"),
        ({"archive_vectors": torch.eye(8).to_sparse()}, r"archive_vectors: .*; use archive_vectors.to_dense\(\)"),
        ({"index": "IVFx"}, "^index=IVFx: "),
        ({"index": "itq7"}, "^index=itq7: expected a multiple of 8 bits"),
        ({"index": "IVF501,Flat"}, "^index=IVF501,Flat: "),
        ({"query_ids": list(range(7)), "archive_ids": [0] * 500}, "archive_ids: expected different ids, got 0 twice"),
    ],
)
def test_bad_input_is_one_clear_error(words: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        search(**{"query_vectors": QUERIES, "archive_vectors": ARCHIVE, "k": 3, **words})
