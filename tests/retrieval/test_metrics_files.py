"""What ``metrics.json``, ``per_label.csv`` and ``per_query.parquet`` say of metrics and their intervals."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marc_dist.config import Config, build
from marc_dist.data.dataset import Dataset
from marc_dist.retrieval import results
from marc_dist.retrieval.intervals import percentile_interval, resampled_means
from marc_dist.retrieval.protocols import Protocol, choose
from tests.retrieval.runs import pack_tiny

INFO = {"backbone": "none", "image_size": 32}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Dataset, Protocol, results.Tables]:
    """Scores drawn at random; one metric leaves queries out, one label has no query."""
    dataset = pack_tiny(tmp_path_factory.mktemp("tiny") / "data")
    config = build(Config, {"data.dir": str(dataset.root)})
    protocol, rng = choose(dataset, config.eval), np.random.default_rng(0)
    num, tables = len(protocol.queries), {}
    for at, name in enumerate(("trained", "untrained")):
        scores = {"num_relevant": np.full(num, 3.0), "mAP": rng.random(num) + 1 - at, "mAP_easy_oml": rng.random(num)}
        scores["mAP_easy_oml"][:4] = np.nan
        label_ap = np.where(dataset.labels[protocol.queries], rng.random((num, len(dataset.classes))), np.nan)
        tables[name] = (scores, label_ap, np.full((num, results.TOP), -1))
    return config, dataset, protocol, tables


def summary_of(made: Any) -> dict[str, Any]:
    config, dataset, protocol, tables = made
    return results.summarise(config, dataset, protocol, INFO, tables)


def test_intervals_are_those_of_the_queries(made: Any) -> None:
    tables, summary = made[3], summary_of(made)
    told = summary["intervals"]
    means = {name: resampled_means(one["mAP"][:, None]) for name, (one, _, _) in tables.items()}
    means["difference"] = means["trained"] - means["untrained"]
    for name, drawn in means.items():
        assert told["scores"][name]["mAP"] == [end[0] for end in percentile_interval(drawn)]
    assert told["scores"]["difference"]["mAP"][0] > 0  # better by about 1
    for name in ("trained", "untrained"):
        low, high = told["scores"][name]["mAP"]
        assert low < summary["scores"][name]["mAP"] < high
        for row, pair in zip(summary["per_label"], told["per_label"][name], strict=True):
            assert (pair is None) == (row["ap"][name] is None)
            assert pair is None or pair[0] <= row["ap"][name] <= pair[1]
        for third, pair in told["thirds"][name].items():
            assert pair[0] <= summary["thirds"][name][third]["mAP"] <= pair[1]
    assert (told["draws"], told["level"]) == (1000, 0.95)


def test_queries_that_are_left_out_are_counted(made: Any) -> None:
    protocol, tables, summary = made[2], made[3], summary_of(made)
    values = tables["trained"][0]["mAP_easy_oml"]
    assert summary["queries_kept"] == {"mAP_easy_oml": len(protocol.queries) - 4}
    assert summary["scores"]["trained"]["mAP_easy_oml"] == pytest.approx(np.nanmean(values))
    assert "num_relevant" not in summary["scores"]["trained"]


def test_files_hold_the_intervals(made: Any, tmp_path: Path) -> None:
    config, dataset, protocol, tables = made
    summary = summary_of(made)
    (tmp_path / "eval").mkdir()
    results.write(tmp_path / "eval", summary, dataset, protocol, tables)
    read, rows = results.read(tmp_path / "eval")
    assert read["intervals"] == summary["intervals"]
    assert np.isnan(rows[0]["mAP_easy_oml"]) and rows[4]["mAP_easy_oml"] == tables["trained"][0]["mAP_easy_oml"][4]
    with (tmp_path / "eval" / "per_label.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for at, line in enumerate(lines):
        pair = summary["intervals"]["per_label"]["untrained"][at]
        told = [line["ap_untrained_low"], line["ap_untrained_high"]]
        assert told == (["", ""] if pair is None else [repr(end) for end in pair])
    assert lines[-1]["ap_untrained_low"] == ""


def test_one_encoder_has_no_difference(made: Any) -> None:
    config, dataset, protocol, tables = made
    summary = results.summarise(config, dataset, protocol, INFO, {"trained": tables["trained"]})
    assert list(summary["intervals"]["scores"]) == ["trained"]
