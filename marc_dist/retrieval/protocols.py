"""Who asks and who answers: the query and archive samples of each protocol."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marc_dist.config import DataError, EvalConfig
from marc_dist.data.dataset import Dataset

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
    """The two sides, the classes that are scored, and one sentence that says how the sides were chosen."""

    queries: Side
    archive: Side
    classes: tuple[str, ...]
    sentence: str

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
    dataset: Dataset, config: EvalConfig, *, archive: Dataset | None = None, known: tuple[str, ...] | None = None
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

    Raises:
        DataError: a split does not exist, or holds too few samples; the two sides name different classes, or share
            none.
    """
    split = config.query_split
    rows = dataset.rows(split)
    if config.protocol == "transfer":
        return _transfer(dataset, archive or dataset, known or dataset.classes, config)
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


def _plain(name: str) -> str:
    """A class name without case, separators and plural: ``Bare-Soil`` and ``bare soils`` are one."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", name).casefold()).removesuffix("s")


def common_classes(*classes: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The classes that all lists name, in the order of the first; each as it is written in every list.

    Case, separators and a plural s do not count. A name that a list holds twice under that reading joins nothing.
    """
    tables = []
    for names in classes:
        plain = [_plain(name) for name in names]
        tables.append({key: name for key, name in zip(plain, names, strict=True) if key and plain.count(key) == 1})
    return [tuple(table[key] for table in tables) for key in tables[0] if all(key in table for table in tables)]


def labels_over(dataset: Dataset, classes: tuple[str, ...]) -> Bool:
    """(len(dataset), L) labels over the classes of an evaluation, however the data set writes and orders them."""
    if dataset.classes == classes:
        return dataset.labels
    names = {pair[0]: pair[1] for pair in common_classes(classes, dataset.classes)}
    return dataset.labels[:, np.array([dataset.classes.index(names[name]) for name in classes])]


def _transfer(asking: Dataset, answering: Dataset, known: tuple[str, ...], config: EvalConfig) -> Protocol:
    shared = common_classes(known, asking.classes, answering.classes)
    if not shared:
        raise DataError(
            f"{answering.root}: no class that the encoder's training data and both sides know; "
            f"the encoder knows {', '.join(known[:8])}, the archive {', '.join(answering.classes[:8])}"
        )
    classes = tuple(names[0] for names in shared)
    ours, theirs = labels_over(asking, classes), labels_over(answering, classes)
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
    return Protocol(Side(asking, kept, ours), Side(answering, archive, theirs), classes, told)
