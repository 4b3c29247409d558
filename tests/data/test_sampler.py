"""Label-aware order: rare labels more often, no label of a global batch carried by one sample alone."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marc_dist.augment.views import IMAGENET
from marc_dist.config import Config, build
from marc_dist.data import batches as batches_module
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.loader import TrainLoader
from marc_dist.data.plan import epoch_order, keyed
from marc_dist.data.sampler import ONE, epoch_length, label_aware_order, repeat_factors

THRESHOLD, MAXIMUM = 0.05, 4.0


def long_tailed(num: int, num_labels: int, seed: int = 0, most: float = 0.5, least: float = 0.002) -> np.ndarray:
    """(n, L) bool, independent labels of geometrically falling frequency; some samples have none."""
    return np.random.default_rng(seed).random((num, num_labels)) < np.geomspace(most, least, num_labels)


def order(labels: np.ndarray, batch: int, rows: np.ndarray | None = None, **options: Any) -> np.ndarray:
    chosen = {"seed": 0, "epoch": 0, "fingerprint": "f", "threshold": THRESHOLD, "maximum": MAXIMUM, **options}
    return label_aware_order(np.arange(len(labels)) if rows is None else rows, labels, global_batch=batch, **chosen)


def batches(ids: np.ndarray, batch: int) -> list[list[int]]:
    return [ids[at : at + batch].tolist() for at in range(0, len(ids), batch)]


def lonely_labels(batch: list[int], labels: np.ndarray) -> set[int]:
    """Labels with one distinct carrier in the batch and more in the split."""
    carriers: dict[int, set[int]] = {}
    for sample in batch:
        for label in np.flatnonzero(labels[sample]).tolist():
            carriers.setdefault(label, set()).add(sample)
    return {label for label, found in carriers.items() if len(found) == 1 and labels[:, label].sum() > 1}


def scaled(labels: np.ndarray, threshold: float = THRESHOLD, maximum: float = MAXIMUM) -> np.ndarray:
    """Factors that add up to the epoch's length, by loops."""
    factors = []
    for row in labels:
        shares = [labels[:, label].sum() / len(labels) for label in np.flatnonzero(row)]
        factors.append(max([1.0, *(min(maximum, math.sqrt(threshold / share)) for share in shares)]))
    return np.array(factors) * round(sum(factors)) / sum(factors)


def naive_queue(ids: list[int], labels: np.ndarray, options: dict[str, Any]) -> list[int]:
    """All visits in their order, by whole-number loops."""
    key = (options["seed"], options["epoch"], options["fingerprint"])
    factors = repeat_factors(labels, threshold=options["threshold"], maximum=options["maximum"])
    fixed = dict(zip(ids, (round(float(factor) * ONE) for factor in factors), strict=True))
    total = sum(fixed.values())
    length = round(Fraction(total, ONE))
    offset = int(keyed(np.array([0]), *key, "offset")[0]) % ONE
    visits, done, at = [], 0, 0
    walk = epoch_order(np.array(ids), seed=key[0], epoch=key[1], fingerprint=key[2]).tolist()
    for sample in walk:
        at += fixed[sample]
        until = (at + round(Fraction(at * (length * ONE - total), total)) + offset) // ONE
        for copy in range(until - done):
            visits.append((int(keyed(np.array([sample + copy * 2**40]), *key, "queue")[0]), sample))
        done = until
    assert len(visits) == length
    return [sample for _, sample in sorted(visits)]


class Naive:
    """The rule of the module's docstring, word by word."""

    def __init__(self, ids: list[int], labels: np.ndarray, **options: Any) -> None:
        self.sets = {sample: set(np.flatnonzero(row).tolist()) for sample, row in zip(ids, labels, strict=True)}
        number = Counter(itertools.chain(*self.sets.values()))
        self.shared = {label for label in number if number[label] > 1}
        self.queue = list(enumerate(naive_queue(ids, labels, options)))
        self.batch: list[tuple[int | None, int]] = []  # place in the queue, None for a repeat; sample

    def order(self, batch_size: int) -> list[int]:
        length, done = len(self.queue), []
        while len(done) < length:
            self.batch = []
            self.fill(min(batch_size, length - len(done)))
            while self.lonely() and self.evict():
                self.cover()
            done += [sample for _, sample in self.batch]
        return done

    def carriers(self, label: int) -> int:
        return len({sample for _, sample in self.batch if label in self.sets[sample]})

    def lonely(self) -> set[int]:
        return {label for label in self.shared if self.carriers(label) == 1}

    def there(self) -> set[int]:
        return {sample for _, sample in self.batch}

    def fill(self, size: int) -> None:
        while len(self.batch) < size:
            if size - len(self.batch) > len(self.lonely()):
                there = self.there()
                self.batch.append(next((entry for entry in self.queue if entry[1] not in there), self.queue[0]))
                self.queue.remove(self.batch[-1])
            else:
                self.cover()

    def cover(self) -> None:
        alone, absent = self.lonely(), {label for label in self.shared if not self.carriers(label)}
        loss = {sample: len(absent & labels) - len(alone & labels) for sample, labels in self.sets.items()}
        able = {sample for sample, labels in self.sets.items() if alone & labels} - self.there()
        waiting = [(loss[sample], place, sample) for place, sample in self.queue if sample in able]
        if waiting:
            _, place, sample = min(waiting)
            self.queue.remove((place, sample))
            self.batch.append((place, sample))
        else:
            self.batch.append((None, min((loss[sample], sample) for sample in able)[1]))

    def evict(self) -> bool:
        for at in reversed(range(len(self.batch))):
            place, sample = self.batch[at]
            twice = [other for _, other in self.batch].count(sample) > 1
            if twice or all(self.carriers(label) > 2 for label in self.sets[sample]):
                self.batch.pop(at)
                self.queue = sorted([*self.queue, (place, sample)] if place is not None else self.queue)
                return True
        return False


@st.composite
def small_data(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """(n, L) labels and a global batch; n, L and the batch may all be very small."""
    num, num_labels = draw(st.integers(1, 30)), draw(st.integers(0, 5))
    seed, share = draw(st.integers(0, 1000)), draw(st.sampled_from([0.05, 0.15, 0.3, 0.6]))
    labels = np.random.default_rng(seed).random((num, num_labels)) < share
    return labels, draw(st.integers(2, 16))


def test_factors() -> None:
    labels = np.zeros((100, 4), dtype=bool)
    labels[:50, 0] = labels[:4, 1] = labels[0, 2] = True  # shares 0.5, 0.04, 0.01; the last label is not used
    factors = repeat_factors(labels, threshold=0.16, maximum=3.0)
    assert factors[0] == 3.0  # sqrt(16) = 4, capped
    assert factors[1:4].tolist() == [2.0] * 3  # sqrt(4): the largest of its labels'
    assert factors[4:].tolist() == [1.0] * 96
    assert epoch_length(factors) == 105
    assert epoch_length(np.array([1.0, 1.25, 1.0])) == 3 and epoch_length(np.array([1.5, 1.25])) == 3


@pytest.mark.parametrize("shape", [(0, 3), (5, 0), (0, 0)])
def test_nothing_to_balance(shape: tuple[int, int]) -> None:
    labels = np.zeros(shape, dtype=bool)
    assert repeat_factors(labels, threshold=0.1, maximum=4.0).tolist() == [1.0] * shape[0]
    assert sorted(order(labels, 2).tolist()) == list(range(shape[0]))


@settings(max_examples=150, deadline=None)
@given(small_data(), st.integers(0, 3), st.sampled_from([(0.05, 4.0), (0.5, 4.0), (1.0, 10.0)]))
def test_the_rule_word_by_word(data: tuple[np.ndarray, int], epoch: int, numbers: tuple[float, float]) -> None:
    labels, batch = data
    ids = (np.arange(len(labels)) * 3 + 1).tolist()
    options = {"seed": 1, "epoch": epoch, "fingerprint": "n", "threshold": numbers[0], "maximum": numbers[1]}
    assert order(labels, batch, np.array(ids), **options).tolist() == Naive(ids, labels, **options).order(batch)


CORNERS = [  # n, L, share of carriers, seed of the labels, global batch: what random data seldom meets
    (7, 6, 0.3, 731076752, 4),  # a repeat is sent back
    (12, 6, 0.2, 612519710, 4),
    (8, 6, 0.3, 928256511, 8),  # a sample that is in the batch twice is sent back once
    (7, 6, 0.3, 905108214, 7),
    (6, 5, 0.2, 1036350142, 5),  # a sample that is in the batch twice is one carrier
    (7, 4, 0.1, 586149501, 7),
]


@pytest.mark.parametrize(("num", "num_labels", "share", "seed", "batch"), CORNERS)
def test_the_rule_in_its_corners(num: int, num_labels: int, share: float, seed: int, batch: int) -> None:
    labels = np.random.default_rng(seed).random((num, num_labels)) < share
    options = {"seed": 0, "epoch": 0, "fingerprint": "f", "threshold": 1.0, "maximum": 20.0}
    assert order(labels, batch, **options).tolist() == Naive(list(range(num)), labels, **options).order(batch)


@settings(max_examples=150, deadline=None)
@given(small_data(), st.integers(0, 3))
def test_every_batch_of_two_slots_a_label_has_partners(data: tuple[np.ndarray, int], epoch: int) -> None:
    labels, size = data
    ids = order(labels, size, epoch=epoch, threshold=0.5)
    assert len(ids) == epoch_length(repeat_factors(labels, threshold=0.5, maximum=MAXIMUM))
    for batch in batches(ids, size):
        assert len(batch) < 2 * labels.shape[1] or not lonely_labels(batch, labels)


@pytest.mark.parametrize("batch", [64, 256])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_long_tail(batch: int, seed: int) -> None:
    labels = long_tailed(2000, 17, seed)
    labels[:, 16] = False
    labels[seed, 16] = True  # one carrier in the split: exempt
    for epoch in range(3):
        found = batches(order(labels, batch, epoch=epoch), batch)
        assert [len(ids) for ids in found[:-1]] == [batch] * (len(found) - 1)
        for ids in found[:-1]:
            assert not lonely_labels(ids, labels)
            assert len(set(ids)) == len(ids)
        assert len(found[-1]) < 34 or not lonely_labels(found[-1], labels)
        assert any(seed in ids for ids in found)


@pytest.mark.parametrize("batch", [64, 256])
def test_visits_are_the_floor_or_the_ceiling_of_the_factor(batch: int) -> None:
    """But for the few repeats that complete a batch and what they displace."""
    labels = long_tailed(2000, 17)
    target = scaled(labels)
    assert target.max() > 3.5
    for epoch in range(5):
        visits = np.bincount(order(labels, batch, epoch=epoch), minlength=2000)
        assert visits.sum() == round(target.sum())
        over, under = np.maximum(visits - np.ceil(target), 0), np.maximum(np.floor(target) - visits, 0)
        assert over.sum() <= 10 and under.sum() <= 10


def test_without_partners_to_find_visits_are_exact() -> None:
    """One batch as large as the epoch: nothing is repeated, nothing displaced."""
    labels = long_tailed(500, 6, least=0.01)
    target = scaled(labels)
    visits = np.mean([np.bincount(order(labels, 10_000, epoch=epoch), minlength=500) for epoch in range(400)], axis=0)
    part = target % 1
    assert np.abs(visits - target).max() <= 5 * np.sqrt((part * (1 - part)).max() / 400)


def test_label_frequencies_meet_their_targets() -> None:
    labels = long_tailed(1000, 10, least=0.004)
    target, epochs = scaled(labels), 100
    found = np.mean([labels[order(labels, 64, epoch=epoch)].sum(axis=0) for epoch in range(epochs)], axis=0)
    part = target % 1
    error = np.sqrt((part * (1 - part)) @ labels / epochs)
    assert (np.abs(found - target @ labels) <= 3 * error + 1).all()


def test_only_what_it_is_given_matters() -> None:
    labels = long_tailed(300, 8, least=0.01)
    rows = np.arange(300) * 7 + 2
    shuffled = np.random.default_rng(0).permutation(300)
    np.random.seed(1)
    first = order(labels, 32, rows)
    assert order(labels[shuffled], 32, rows[shuffled]).tolist() == first.tolist()
    np.random.seed(2)
    assert order(labels, 32, rows).tolist() == first.tolist()
    others = [order(labels, 32, rows, **change) for change in ({"seed": 1}, {"epoch": 1}, {"fingerprint": "g"})]
    assert len({tuple(ids.tolist()) for ids in (first, *others)}) == 4
    assert {len(ids) for ids in others} == {len(first)}


def test_the_order_is_pinned() -> None:
    """A change of this list changes every published run that used it: it needs a line in the changelog."""
    labels = np.array([[i % 2 == 0, i % 3 == 0, i in (1, 8), i == 5] for i in range(12)])
    ids = order(labels, 6, seed=7, epoch=3, fingerprint="pinned", threshold=0.4, maximum=2.0)
    assert ids.tolist() == PINNED


PINNED = [5, 8, 1, 6, 0, 11, 5, 1, 9, 2, 4, 3, 10, 2]


@pytest.fixture(scope="module")
def dataset(sample_dir: Path) -> Dataset:
    return open_dataset(sample_dir)


def loaded(dataset: Dataset, sample_dir: Path, world: int, workers: int, start: int = 0) -> list[list[int]]:
    """The ids of each global step from ``start`` on, joined over the ranks."""
    words = {"dir": str(sample_dir), "image_size": 16, "num_views": 1, "num_workers": workers, "sampler": "label_aware"}
    config = build(
        Config, {**{f"data.{k}": v for k, v in words.items()}, "data.repeat_threshold": 0.2, "train.global_batch": 64}
    )
    steps: list[list[int]] = []
    for rank in range(world):
        loader = TrainLoader(dataset, config, rank, world, IMAGENET)
        try:
            ranks = list(loader.epoch(1, start))
        finally:
            loader.close()
        assert [batch.step for batch in ranks] == list(range(start, loader.steps_per_epoch))
        steps = steps or [[] for _ in ranks]
        for step, batch in zip(steps, ranks, strict=True):
            step += batch.ids.tolist()
    return steps


def test_the_loader_gives_the_same_steps_however_it_runs(
    dataset: Dataset, sample_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "apply_batch", lambda *_, out, **__: out.zero_())  # only the ids matter here
    rows = dataset.rows("train")
    options = {"seed": 0, "epoch": 1, "fingerprint": dataset.fingerprint, "threshold": 0.2}
    ids = order(dataset.labels[rows], 64, rows, **options)
    assert len(ids) > len(rows)
    expected = batches(ids, 64)
    for world, workers in [(1, 0), (1, 1), (2, 0), (3, 0), (5, 0)]:
        assert loaded(dataset, sample_dir, world, workers) == expected
    assert loaded(dataset, sample_dir, 2, 1, start=2) == expected[2:]
    for batch in expected:
        assert len(batch) < 2 * len(dataset.classes) or not lonely_labels(batch, dataset.labels)


def test_each_visit_of_a_sample_is_augmented_in_its_own_way(dataset: Dataset, sample_dir: Path) -> None:
    words = {"data.dir": str(sample_dir), "data.sampler": "label_aware", "data.repeat_threshold": 0.5}
    words |= {"data.num_workers": 0, "data.image_size": 16, "train.global_batch": 64}
    seen: dict[int, dict[int, list[torch.Tensor]]] = {1: {}, 3: {}}
    for world, views in seen.items():
        loaders = [TrainLoader(dataset, build(Config, words), rank, world, IMAGENET) for rank in range(world)]
        for parts in zip(*(loader.epoch(0) for loader in loaders), strict=True):
            for part in parts:
                shaped = part.images.unflatten(0, (2, -1)) if len(part.ids) else part.images[None]
                for place, sample in enumerate(part.ids.tolist()):
                    views.setdefault(sample, []).append(shaped[:, place])
    repeated = {sample: visits for sample, visits in seen[1].items() if len(visits) > 1}
    assert len(repeated) > 20
    for sample, visits in repeated.items():
        flat = torch.stack(visits).flatten(0, 1).flatten(1)
        assert len(torch.unique(flat, dim=0)) == len(flat)
        assert all(torch.equal(a, b) for a, b in zip(visits, seen[3][sample], strict=True))
    uniform = TrainLoader(dataset, build(Config, words | {"data.sampler": "uniform"}), 0, 1, IMAGENET)
    first = next(uniform.epoch(0))
    sample = next(sample for sample in first.ids.tolist() if sample in repeated)  # the first visit draws as ever
    assert torch.equal(first.images.unflatten(0, (2, -1))[:, first.ids.tolist().index(sample)], seen[1][sample][0])
