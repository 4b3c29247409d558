"""Who asks and who answers: the query and archive samples of each protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import DataError, EvalConfig
from marc_dist.data.dataset import Dataset
from marc_dist.retrieval.label_map import NOTHING, LabelMap, groups, plain_name, read_label_map

Int = NDArray[np.int64]
Bool = NDArray[np.bool_]
OML_SHARE = 0.2


@dataclass(frozen=True)
class Side:
    """Samples of one data set that ask, or that answer.

    Attributes:
        dataset: where they lie; a sample id is a row of it.
        ids: (n,) ascending.
        labels: (len(dataset), L) labels over the classes of the evaluation, by sample id.
    """

    dataset: Dataset
    ids: Int
    labels: Bool


@dataclass(frozen=True)
class Protocol:
    """The two sides, the classes that are scored, one sentence on how the sides were chosen, and what was renamed."""

    queries: Side
    archive: Side
    classes: tuple[str, ...]
    sentence: str
    label_map: LabelMap = NOTHING

    @property
    def one_dataset(self) -> bool:
        """Whether both sides are of the same data, so that a query may meet itself."""
        return self.queries.dataset.fingerprint == self.archive.dataset.fingerprint

    def own_ids(self) -> Int:
        """(Q,) archive sample id of each query itself, -1 where the sides are of different data."""
        return self.queries.ids if self.one_dataset else np.full(len(self.queries.ids), -1, dtype=np.int64)

    def self_positions(self, own_ids: Int) -> Int:
        """Position among the archive's ids of each of ``own_ids``, -1 for one that is not part of the archive."""
        place = np.searchsorted(self.archive.ids, own_ids)
        inside = place < len(self.archive.ids)
        inside[inside] = self.archive.ids[place[inside]] == own_ids[inside]
        return np.where(inside, place, -1)


def _draw(dataset: Dataset, rows: Int, seed: int) -> Int:
    """The rows in an order that depends on the seed and each sample's key alone, not on numpy or on the packing."""
    order = sorted(
        rows.tolist(), key=lambda row: (hashlib.sha256(f"{seed}:{dataset.keys[row]}".encode()).digest(), row)
    )
    return np.array(order, dtype=np.int64)


def choose(
    dataset: Dataset,
    config: EvalConfig,
    *,
    archive: Dataset | None = None,
    known: tuple[str, ...] | None = None,
    known_name: str = "",
) -> Protocol:
    """The queries and the archive that ``eval.protocol`` means.

    test_vs_train: all of ``query_split`` against all of ``archive_split``. oml: a fifth of ``query_split``, drawn by
    ``eval.seed``, against the rest of it (RImbriaco/OML draws with Python's ``random``, seed 24; ours is a hash of seed
    and key, so the sets differ from theirs). leave_one_out: each of ``query_split`` against all others of it. transfer:
    as test_vs_train, over the labels that the encoder, the queries and the archive all know; see ``common_classes``.

    Args:
        dataset: of the queries, and of the archive unless that is given.
        config: the section ``eval``.
        archive: the data set that answers, when it is another one.
        known: classes of the encoder's training data; needed for transfer only.
        known_name: name of that data, as ``eval.label_map`` has it.

    Raises:
        DataError: a split does not exist, or holds too few samples; the two sides name different classes, or share
            none.
        ConfigError: a fault in ``eval.label_map``, or a label in it that nobody has.
    """
    split = config.query_split
    rows = dataset.rows(split)
    if config.protocol == "transfer":
        return _transfer(dataset, archive or dataset, known or dataset.classes, known_name, config)
    if config.protocol == "test_vs_train":
        answering = archive or dataset
        if answering.classes != dataset.classes:
            raise DataError(
                f"{answering.root}: other classes than those of the queries, {dataset.root}; "
                "search over the labels that both know with --protocol transfer"
            )
        told = f"every image of {split} asks, every image of {config.archive_split} may answer"
        if archive is not None:
            told += f"; queries from {dataset.title}, archive {answering.title}"
        return _protocol(dataset, rows, answering, answering.rows(config.archive_split), told)
    if archive is not None:
        raise DataError(
            f"eval.protocol={config.protocol} splits one data set; for an archive of its own: test_vs_train"
        )
    if len(rows) < 2:
        raise DataError(f"{dataset.root}: split {split!r} has 1 image; eval.protocol={config.protocol} needs 2 or more")
    if config.protocol == "leave_one_out":
        told = f"every image of {split} asks, all others of {split} may answer"
        return _protocol(dataset, rows, dataset, rows, told)
    order = _draw(dataset, rows, config.seed)
    num = max(1, round(OML_SHARE * len(rows)))
    told = f"{num} images of {split}, drawn with seed {config.seed}, ask; the other {len(rows) - num} may answer"
    return _protocol(dataset, np.sort(order[:num]), dataset, np.sort(order[num:]), told)


def _protocol(asking: Dataset, queries: Int, answering: Dataset, archive: Int, sentence: str) -> Protocol:
    ours, theirs = Side(asking, queries, asking.labels), Side(answering, archive, answering.labels)
    return Protocol(ours, theirs, asking.classes, sentence)


def common_classes(*classes: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The classes that all lists name, in the order of the first; each as it is written in every list.

    Case, separators and a plural s do not count. A name that a list holds twice under that reading joins nothing.
    """
    tables = [groups(names, "", NOTHING) for names in classes]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    return [tuple(table[key][0] for table in tables) for key in shared]


def shared_labels(sides: Sequence[tuple[str, tuple[str, ...]]], label_map: LabelMap) -> tuple[str, ...]:
    """The labels that all data sets have once a map has renamed their classes, in the order of the first.

    Args:
        sides: name and classes of each data set.
        label_map: what classes become.
    """
    tables = [groups(classes, name, label_map) for name, classes in sides]
    return tuple(written for key, (written, _) in tables[0].items() if all(key in table for table in tables))


def labels_over(dataset: Dataset, classes: tuple[str, ...], label_map: LabelMap = NOTHING) -> Bool:
    """(len(dataset), L) labels over the classes of an evaluation, however the data set writes and orders them.

    Args:
        dataset: whose labels.
        classes: of the evaluation.
        label_map: what classes of the data set become; a picture has a label if it has any class that becomes it.
    """
    if dataset.classes == classes and not label_map.plain():
        return dataset.labels
    places = groups(dataset.classes, dataset.name, label_map)
    columns = [dataset.labels[:, places[plain_name(name)][1]].any(axis=1) for name in classes]
    return np.stack(columns, axis=1)


def _transfer(
    asking: Dataset, answering: Dataset, known: tuple[str, ...], known_name: str, config: EvalConfig
) -> Protocol:
    label_map = NOTHING if config.label_map is None else read_label_map(config.label_map)
    sides = [(known_name, known), (asking.name, asking.classes), (answering.name, answering.classes)]
    label_map.check(sides)
    classes = shared_labels(sides, label_map)
    if not classes:
        raise DataError(
            f"{answering.root}: no class that the encoder's training data and both sides know; "
            f"the encoder knows {', '.join(known[:8])}, the archive {', '.join(answering.classes[:8])}"
        )
    ours, theirs = (labels_over(side, classes, label_map) for side in (asking, answering))
    rows, archive = asking.rows(config.query_split), answering.rows(config.archive_split)
    kept = rows[ours[rows].any(axis=1)]
    if not len(kept):
        raise DataError(f"{asking.root}: no image of {config.query_split!r} carries a label that all know")
    told = (
        f"{len(kept)} images of {config.query_split} of {asking.title} ask, every image of {config.archive_split} of "
        f"{answering.title} may answer; scored over the {len(classes)} labels that encoder, queries and archive know "
        f"({', '.join(classes)})"
    )
    if len(kept) < len(rows):
        told += f"; {len(rows) - len(kept)} images carry none of them and do not ask"
    if config.label_map is not None:
        told += f"; names mapped by {config.label_map}"
    return Protocol(Side(asking, kept, ours), Side(answering, archive, theirs), classes, told, label_map)
