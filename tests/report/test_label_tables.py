"""The tables of labels: right numbers, in 80 columns, for few labels and for many."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from marc_dist.data.dataset import cooccurrence
from marc_dist.report.label_tables import print_label_tables


def printed(classes: list[str], labels: dict[str, NDArray[np.bool_]]) -> str:
    out = io.StringIO()
    both = {split: cooccurrence([rows]) for split, rows in labels.items()}
    num = {split: len(rows) for split, rows in labels.items()}
    print_label_tables(classes, num, both, Console(file=out, width=80))
    return out.getvalue()


def test_counts_shares_and_companions() -> None:
    train = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]], dtype=np.bool_)
    test = np.array([[0, 1, 0], [1, 1, 0]], dtype=np.bool_)
    text = printed(["water", "[red]dock[/]", "sand"], {"train": train, "test": test})
    words = [line.split() for line in text.splitlines()]
    assert ["water", "4", "100%", "1", "50%"] in words
    assert ["[red]dock[/]", "2", "50%", "2", "100%"] in words
    assert ["sand", "1", "25%", "0", "0%"] in words
    assert ["all", "pictures", "4", "2"] in words and ["labels", "a", "picture", "1.75", "1.50"] in words
    assert ["water", "[red]dock[/]", "60%", "sand", "20%"] in words  # 3 and 1 of its 5 pictures
    assert ["[red]dock[/]", "water", "75%"] in words and ["sand", "water", "100%"] in words


def test_one_label_a_picture_has_no_companions() -> None:
    text = printed(["a", "b"], {"train": np.eye(2, dtype=np.bool_)})
    assert "together" not in text and "1.00" in text


@pytest.mark.parametrize("num", [5, 60])
@pytest.mark.parametrize("splits", [("train", "test"), ("train", "val", "test"), tuple(f"fold{n}" for n in range(6))])
def test_it_fits_eighty_columns(num: int, splits: tuple[str, ...]) -> None:
    draw = np.random.default_rng(0)
    classes = [f"{n:02d} a rather long name of a land cover" if n % 2 else f"c{n:02d}" for n in range(num)]
    labels = {split: draw.random((1500, num)) < 0.4 for split in splits}
    text = printed(classes, labels)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) == 2 * num + 5
    for name in classes:
        assert sum(line.startswith(name[:3]) for line in lines) >= 2
    counts = {f"{int(rows.sum(axis=0)[0]):,}" for rows in labels.values()}
    assert counts <= set(next(line for line in lines if line.startswith("c00")).split())
