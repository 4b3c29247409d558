"""What ``metrics.json``, ``per_label.csv`` and ``per_query.parquet`` say of metrics and their intervals."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from marc_dist import metrics
from marc_dist.config import Config, DataError, build
from marc_dist.metrics import metric_help
from marc_dist.metrics.intervals import percentile_interval, resampled_means
from marc_dist.report import score_rows, text_tables
from marc_dist.retrieval import results
from marc_dist.retrieval.embedding_map import map_samples
from marc_dist.retrieval.protocols import Protocol, choose
from marc_dist.retrieval.scoring import TOP, Curves, Searched
from marc_dist.run import evaluations
from tests.retrieval.runs import pack_tiny

INFO = {"backbone": "none", "image_size": 32}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Protocol, results.Tables]:
    """Scores drawn at random; one metric leaves queries out, in one less is better, one label has no query."""
    dataset = pack_tiny(tmp_path_factory.mktemp("tiny") / "data")
    config = build(Config, {"data.dir": str(dataset.root)})
    protocol, rng = choose(dataset, config.eval), np.random.default_rng(0)
    num, tables = len(protocol.queries.ids), {}
    for at, name in enumerate(("trained", "untrained")):
        scores = {"num_relevant": np.full(num, 3.0), "mAP": rng.random(num) + 1 - at, "mAP_easy_oml": rng.random(num)}
        scores["mAP_easy_oml"][:4] = np.nan
        scores["ANMRR"] = rng.random(num) + at
        label_ap = np.where(dataset.labels[protocol.queries.ids], rng.random((num, len(dataset.classes))), np.nan)
        curves = Curves(rng.random(101), rng.random((len(dataset.classes), 101)))
        curves.labels[-1] = np.nan
        tables[name] = Searched(scores, label_ap, np.full((num, TOP), -1), curves)
    return config, protocol, tables


def summary_of(made: Any) -> dict[str, Any]:
    config, protocol, tables = made
    return results.summarise(config, protocol, INFO, tables)


def test_intervals_are_those_of_the_queries(made: Any) -> None:
    tables, summary = made[2], summary_of(made)
    told = summary["intervals"]
    means = {name: resampled_means(one.scores["mAP"][:, None]) for name, one in tables.items()}
    means["difference"] = means["trained"] - means["untrained"]
    for name, drawn in means.items():
        assert told["scores"][name]["mAP"] == [end[0] for end in percentile_interval(drawn)]
    assert told["scores"]["difference"]["mAP"][0] > 0  # better by about 1
    for name in ("trained", "untrained"):
        low, high = told["scores"][name]["mAP"]
        assert low < summary["scores"][name]["mAP"] < high
        for row, pair in zip(summary["per_label"], told["per_label"][name], strict=True):
            column = tables[name].label_ap[:, summary["per_label"].index(row)]
            assert (pair is None) == ((~np.isnan(column)).sum() < 2)
            assert pair is None or pair[0] <= row["ap"][name] <= pair[1]
        for third, pair in told["thirds"][name].items():
            assert pair[0] <= summary["thirds"][name][third]["mAP"] <= pair[1]
    assert (told["draws"], told["level"]) == (1000, 0.95)


def test_thirds_are_of_the_same_labels_in_every_draw(made: Any) -> None:
    """One label of four has a single query, which a third of all draws miss, and an AP far from the others'."""
    config, protocol, tables = made
    found = tables["trained"]
    label_ap = np.full_like(found.label_ap, 0.9)
    label_ap[:, 0] = np.nan
    label_ap[2, 0] = 0.1
    label_ap[:, -1] = np.nan
    changed = {"trained": dataclasses.replace(found, label_ap=label_ap)}
    told = results.summarise(config, protocol, INFO, changed)
    assert told["intervals"]["per_label"]["trained"][0] is None and told["per_label"][0]["ap"]["trained"] == 0.1
    mean = told["thirds"]["trained"]["all"]["mAP"]
    assert mean == pytest.approx(0.7) and told["intervals"]["thirds"]["trained"]["all"] == pytest.approx([mean, mean])


def test_queries_that_are_left_out_are_counted(made: Any) -> None:
    (_, protocol, tables), summary = made, summary_of(made)
    values = tables["trained"].scores["mAP_easy_oml"]
    assert summary["queries_kept"] == {"mAP_easy_oml": len(protocol.queries.ids) - 4}
    assert summary["scores"]["trained"]["mAP_easy_oml"] == pytest.approx(np.nanmean(values))
    assert "num_relevant" not in summary["scores"]["trained"]


def test_files_hold_the_intervals(made: Any, tmp_path: Path) -> None:
    (_, protocol, tables), summary = made, summary_of(made)
    (tmp_path / "eval").mkdir()
    results.write(tmp_path / "eval", summary, protocol, tables)
    read, rows = evaluations.read(tmp_path / "eval")
    assert read["intervals"] == summary["intervals"]
    assert np.isnan(rows[0]["mAP_easy_oml"]) and rows[4]["mAP_easy_oml"] == tables["trained"].scores["mAP_easy_oml"][4]
    with (tmp_path / "eval" / "per_label.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for at, line in enumerate(lines):
        pair = summary["intervals"]["per_label"]["untrained"][at]
        told = [line["ap_untrained_low"], line["ap_untrained_high"]]
        assert told == (["", ""] if pair is None else [repr(end) for end in pair])
    assert lines[-1]["ap_untrained_low"] == ""


def test_one_encoder_has_no_difference(made: Any) -> None:
    config, protocol, tables = made
    summary = results.summarise(config, protocol, INFO, {"trained": tables["trained"]})
    assert list(summary["intervals"]["scores"]) == ["trained"]
    rows = {row.name: row for row in score_rows.metric_rows(summary, usual=True)}
    assert rows["mAP"].difference is None and rows["mAP"].verdict == ""


def test_curves_are_told_of_queries_thirds_and_labels(made: Any) -> None:
    (_, _, tables), summary = made, summary_of(made)
    for name, one in tables.items():
        told, curves = summary["curves"][name], one.curves
        assert told["queries"] == [round(value, 4) for value in curves.queries.tolist()]
        assert told["labels"][-1] is None and len(told["labels"][0]) == 101
        third = [row["third"] for row in summary["per_label"]]
        for group in ("rare", "medium", "common"):
            some = [curves.labels[at] for at in range(len(third)) if third[at] == group and told["labels"][at]]
            assert told["thirds"][group] == pytest.approx(np.mean(some, axis=0), abs=6e-5) if some else True
        assert told["thirds"]["all"] == pytest.approx(np.nanmean(curves.labels, axis=0), abs=6e-5)


def test_better_is_told_by_the_metric(made: Any) -> None:
    """Both differ by about 1; of mAP more is better, of ANMRR less."""
    summary = summary_of(made)
    rows = {row.name: row for usual in (True, False) for row in score_rows.metric_rows(summary, usual=usual)}
    assert rows["mAP"].difference > 0.5 and rows["mAP"].verdict == "better"
    assert rows["ANMRR"].difference < -0.5 and rows["ANMRR"].verdict == "better" and rows["ANMRR"].lower
    assert rows["mAP_easy_oml"].verdict == ""
    assert dataclasses.replace(rows["ANMRR"], between=(0.1, 0.2)).verdict == "worse"
    assert dataclasses.replace(rows["mAP"], between=(-0.2, -0.1)).verdict == "worse"
    assert dataclasses.replace(rows["mAP"], between=(-0.2, 0.1)).verdict == ""
    assert dataclasses.replace(rows["mAP"], between=(0.2, 0.2)).verdict == ""  # of one query


def test_the_terminal_tells_intervals_and_stars(made: Any) -> None:
    text = io.StringIO()
    text_tables.print_tables(summary_of(made), Console(file=text, width=80))
    lines = {line.split()[0]: line for line in text.getvalue().splitlines() if line.split()}
    low, high = summary_of(made)["intervals"]["scores"]["difference"]["mAP"]
    assert " *" in lines["mAP"] and f"{low:+.3f} to {high:+.3f}" in lines["mAP"]
    assert " *" in lines["ANMRR"] and " *" not in lines["mAP_easy_oml"]
    assert max(map(len, text.getvalue().splitlines())) <= 80 and "less is better" in text.getvalue()


def test_numbers_stand_on_one_line(made: Any, tmp_path: Path) -> None:
    (_, protocol, tables), summary = made, summary_of(made)
    strange = "[\n  1\n]"
    results.write(tmp_path, {**summary, "title": strange, "none": [], "words": ["a", "b"]}, protocol, tables)
    text = (tmp_path / "metrics.json").read_text()
    read = json.loads(text)
    assert read["curves"] == summary["curves"] and read["intervals"] == summary["intervals"]
    assert read["title"] == strange and read["none"] == [] and read["words"] == ["a", "b"]
    assert not [line for line in text.splitlines() if line.strip(" ,").replace(".", "").isdigit()]


def test_the_map_is_one_of_the_files(made: Any, tmp_path: Path) -> None:
    (_, protocol, tables), summary = made, summary_of(made)
    asked, answering = map_samples(protocol)
    rng = np.random.default_rng(0)
    maps = {name: rng.random((len(asked) + len(answering), 2)) for name in tables}
    results.write(tmp_path, summary, protocol, tables, maps)
    read, _ = evaluations.read(tmp_path)
    rows = [row for row in evaluations.read_map(tmp_path, read) if row["encoder"] == "untrained"]
    assert [(row["side"], row["id"]) for row in rows] == [
        *(("query", i) for i in asked.tolist()),
        *(("archive", i) for i in answering.tolist()),
    ]
    assert np.array_equal([[row["x"], row["y"]] for row in rows], maps["untrained"].astype(np.float32))
    (tmp_path / "map.parquet").write_bytes(b"of another evaluation")
    with pytest.raises(DataError, match="different evaluations"):
        evaluations.read_map(tmp_path, read)
    results.write(tmp_path, summary, protocol, tables)
    assert (
        not (tmp_path / "map.parquet").exists() and evaluations.read_map(tmp_path, evaluations.read(tmp_path)[0]) == []
    )


def test_older_formats_are_refused(made: Any, tmp_path: Path) -> None:
    (_, protocol, tables), summary = made, summary_of(made)
    results.write(tmp_path, {**summary, "format": 1}, protocol, tables)
    with pytest.raises(DataError, match="expected format 2, got 1; evaluate again"):
        evaluations.read(tmp_path)


def test_every_metric_has_a_meaning_and_a_place() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((30, 4)) < 0.5
    ranking = np.tile(np.arange(30), (3, 1))
    scored = metrics.score_queries(
        ranking, labels[:3], labels, np.full(3, -1), metrics.Scoring((3, 10)), complete=True, extra=True, most=20,
        cosine=np.ones((3, 10)),
    )  # fmt: skip
    names = [name for name in scored if name != "num_relevant"]
    usual = [name for name in names if metric_help.is_usual(name)]
    plain = metrics.score_queries(ranking, labels[:3], labels, np.full(3, -1), metrics.Scoring((3, 10)), complete=True)
    assert usual == [name for name in plain if name != "num_relevant"]
    assert {metric_help.group_of(name) for name in set(names) - set(usual)} == set(metric_help.GROUPS)
    told = {name: metric_help.meaning(name) for name in names}
    assert all(told.values()) and "{" not in "".join(told.values()) and "first 3" in told["P@3"]


def test_words_follow_the_conventions(made: Any) -> None:
    config, protocol, tables = made
    words = {"denominator": "min", "ideal": "retrieved", "ndcg_form": "linear", "without_relevant": "skip"}
    other = build(Config, {"data.dir": config.data.dir, **{f"eval.{name}": word for name, word in words.items()}})
    tables["trained"].scores["num_relevant"][0] = 0.0
    try:
        plain, summary = summary_of(made), results.summarise(other, protocol, INFO, tables)
    finally:
        tables["trained"].scores["num_relevant"][0] = 3.0
    assert {name: summary[name] for name in words} == words
    assert plain["ndcg_form"] == "exponential" and plain["without_relevant"] == "zero"
    told = {which: metric_help.meaning("mAP@5", denominator=which) for which in metric_help.BELOW}
    assert told["hits"].endswith("divided by the hits among them") and told["k"].endswith("divided by 5")
    assert "5 or the number of relevant" in told["min"] and len(set(told.values())) == 4
    assert "same answers in their best order" in metric_help.meaning("nDCG@5", ideal="retrieved")
    before = {name: value for name, value in plain.items() if name not in ("ndcg_form", "without_relevant")}
    for one, fate in ((summary, "are left out of all means"), (plain, "score 0 and count"), (before, "score 0 and")):
        text = io.StringIO()
        text_tables.print_tables(one, Console(file=text, width=200))
        assert f"1 queries without a relevant image {fate}" in text.getvalue()
