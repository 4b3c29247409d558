"""The page of a study: what it says, and a real browser's word on it; from scores that are made up."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marc_dist.study.checks import make_plan
from marc_dist.study.page.score_tables import shown_block
from marc_dist.study.page.study_page import study_page
from marc_dist.study.plan import Plan
from marc_dist.study.statistics import Interval, rank_diagram
from marc_dist.study.tables.chosen import Chosen
from marc_dist.study.tables.collected import Block, Column, Findings, Ranking, Row, collect, corrected_tests, families
from marc_dist.study.tables.figures import figure_files, sweep_figures
from marc_dist.study.tables.rank_figures import rank_figures
from tests.report.test_browser import BROWSER, FLAGS, look
from tests.retrieval.runs import pack_tiny
from tests.study.studies import tiny_study, write_study

LOSSES = ("macl", "mulsupcon", "supcon_any", "supcon_all", "ntxent", "jaccard", "msc")
SEEDS = 12
AUDIT = "# Audit\n\n| key | doubt |\n| --- | --- |\n| a_1 | <missing> " + "z" * 200 + " |\n"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> Plan:
    folder = tmp_path_factory.mktemp("page")
    study = tiny_study(
        tiny_dir, title="Losses <compared>, " + "word " * 12, seeds=SEEDS, claim="MACL is the best of all."
    )
    other = pack_tiny(folder / "data", seed=1).root
    study["datasets"]["other"] = {"title": f"other & {'x' * 40}", "data.dir": str(other), "data.image_size": 32}
    study["losses"] = {name: {"title": f"{name}, every anchor equal", "loss.name": name} for name in LOSSES}
    study["losses"]["curve"] = {"like": "macl", "sweep": {"loss.tau": [0.05, 0.2, 0.4]}}
    study["losses"]["surface"] = {"like": "macl", "sweep": {"loss.alpha": [0.0, 1.0], "loss.beta": [0.0, 1.0]}}
    study["evaluations"]["count"]["metrics"] = ["mAP", "nDCG@3"]
    study["tune"]["fixed_from"] = "tiny"
    return make_plan(str(write_study(folder, study)), str(folder / "out"))


@pytest.fixture(scope="module")
def findings(plan: Plan) -> Findings:
    """Scores as a study finds them, drawn from a generator."""
    blocks = []
    for number, dataset in enumerate(plan.study.datasets):
        rng = np.random.default_rng(number)
        columns = tuple(Column(one.name, metric) for one in plan.evaluations(dataset) for metric in one.metrics)
        rows = [_row("random", "random weights", [0.1] * len(columns), columns, floor=True)]
        for method in plan.methods_on(dataset):
            means = 0.5 + 0.02 * rng.standard_normal() + 0.01 * rng.standard_normal((len(columns), SEEDS))
            rows.append(_row(method.name, method.title, means, columns))
        pairs = [
            pair
            for column in columns
            for family in families(plan, rows)
            for pair in corrected_tests(column, family, 0.95)
        ]
        title = f"{plan.study.datasets[dataset].get('title', dataset)}, head"
        blocks.append(Block(dataset, "head", title, columns, tuple(rows), tuple(pairs)))
    rankings = []
    for column in blocks[0].columns:
        scores = [[_mean(block, name, column) for name in LOSSES] for block in blocks]
        rankings.append(Ranking("head", column, LOSSES, rank_diagram(np.array(scores))))
    return Findings(
        tuple(blocks), tuple(rankings), {"tiny/head/macl/seed-3": "its process ended: " + "y" * 90}, ("A note.",)
    )


def _row(name: str, title: str, means: Any, columns: tuple[Column, ...], *, floor: bool = False) -> Row:
    by_seed = {column: list(np.atleast_1d(values)) for column, values in zip(columns, means, strict=True)}
    figures = {
        column: Interval(float(np.mean(values)), float(np.mean(values)) - 0.01, float(np.mean(values)) + 0.01)
        for column, values in by_seed.items()
    }
    return Row(name, title, floor, (0,) if floor else tuple(range(SEEDS)), by_seed, figures)


def _mean(block: Block, name: str, column: Column) -> float:
    return next(row for row in block.rows if row.name == name).figures[column].mean


@pytest.fixture(scope="module")
def page(plan: Plan, findings: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    figures = {**rank_figures(plan, findings), **sweep_figures(plan, findings)}
    chosen = [Chosen("tiny", "head", "macl", {"optim.lr": 0.00123456, "loss.tau": 0.1}, "mAP", 0.5, 12, 1)]
    path = tmp_path_factory.mktemp("html") / "index.html"
    path.write_text(study_page(plan, findings, chosen, figures, ["tables.md", "pairs.csv"], {"torch": "2"}, AUDIT))
    return path


@pytest.mark.parametrize("width", [1280, 400, 320])
def test_the_page_fits_and_is_quiet(page: Path, tmp_path: Path, width: int) -> None:
    seen, log = look(page, width, tmp_path)
    assert seen["scroll"] <= seen["width"] and seen["wide"] == [], seen["wide"]
    assert seen["loaded"] == [] and seen["broken"] == 0 and "CONSOLE" not in log
    assert seen["small"] == 0
    assert 6.0 < seen["letters"][0] <= seen["letters"][1] < 17


SORT = """<!doctype html><meta charset="utf-8"><body><pre id="out">not loaded</pre><iframe id="frame"></iframe><script>
const frame = document.getElementById("frame");
frame.onload = () => {
  const table = frame.contentDocument.querySelector("table.sortable"), heads = [...table.tHead.rows[0].cells];
  const seen = [];
  for (const at of [1, 1, 1, 0, 2]) {
    heads[at].querySelector("button").click();
    seen.push({at, sort: heads.map((one) => one.getAttribute("aria-sort")),
      words: [...table.tBodies[0].rows].map((one) => one.cells[0].dataset.value),
      values: [...table.tBodies[0].rows].map((one) => one.cells[at].dataset.value)});
  }
  document.getElementById("out").textContent = JSON.stringify(seen);
};
frame.src = %s;</script></body>"""


def clicked(page: Path, folder: Path) -> list[dict[str, Any]]:
    if BROWSER is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    probe = folder / "sort.html"
    probe.write_text(SORT % json.dumps(page.resolve().as_uri()))
    words = [f"--user-data-dir={folder / 'profile'}", "--dump-dom", probe.as_uri()]
    env = {**os.environ, "HOME": str(folder)}
    done = subprocess.run([BROWSER, *FLAGS, *words], capture_output=True, text=True, timeout=180, env=env)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1].startswith("["), done.stdout[:300] + done.stderr[-500:]
    seen: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
    return seen


def test_a_click_sorts_best_first_then_worst_then_as_it_was(
    page: Path, plan: Plan, findings: Findings, tmp_path: Path
) -> None:
    rows = findings.blocks[0].rows
    column = findings.blocks[0].columns
    down, up, none, words, other = clicked(page, tmp_path)
    means = [row.figures[column[0]].mean for row in rows]
    assert [float(value) for value in down["values"]] == sorted(means, reverse=True)
    assert [float(value) for value in up["values"]] == sorted(means)
    assert none["words"] == [row.title for row in rows]
    assert set(words["values"]) == {row.title for row in rows} and words["sort"][0] == "ascending"
    assert [float(v) for v in other["values"]] == sorted((row.figures[column[1]].mean for row in rows), reverse=True)
    assert [one["sort"][one["at"]] for one in (down, up, none, other)] == [
        "descending",
        "ascending",
        "none",
        "descending",
    ]
    assert other["sort"].count("none") == len(other["sort"]) - 1


def test_scripts_of_others_do_not_run(page: Path) -> None:
    text = page.read_text()
    assert text.count("<script>") == 1 and "unsafe-inline'; img-src data:; script-src 'sha256-" in text
    assert "Losses &lt;compared&gt;" in text and "<compared>" not in text
    assert not re.search(r'(?:src|href)="https?:', text)


def test_the_page_says_who_is_better_and_what_is_missing(page: Path, plan: Plan, findings: Findings) -> None:
    block = findings.blocks[0]
    shown = shown_block(plan, block)
    lead = block.columns[0]
    losses = [row for row in block.rows if not row.floor]
    best = max(losses, key=lambda row: row.figures[lead].mean)
    assert shown.winner is not None and shown.winner[0] == best.title
    mine = {
        next(name for name in (pair.one, pair.other) if name != "macl"): pair
        for pair in block.pairs
        if pair.column == lead and "macl" in (pair.one, pair.other)
    }
    assert len(mine) == len(LOSSES) - 1
    for line in shown.tests:
        loss = line.title.partition(",")[0]
        gap = _mean(block, loss, lead) - _mean(block, "macl", lead)
        assert line.cells[0].value == pytest.approx(gap)
        sure = mine[loss].t_holm < 0.05
        assert line.cells[0].mark == ("" if not sure else "better" if gap > 0 else "worse")
    better = sum(line.cells[0].mark == "worse" for line in shown.tests)
    assert f"is better than {better}, " in shown.told[-1] and f"of {len(mine)} others" in shown.told[-1]
    text = page.read_text()
    assert "1 part missing" in text and "MACL is the best of all." in text and "no pictures: " in text
    assert "| a_1 | &lt;missing&gt; zzz" in text
    assert "optim.lr=0.001235, loss.tau=0.1" in text and "1 failed" in text


def test_a_study_that_has_not_begun_has_a_page(tiny_dir: Path, tmp_path: Path) -> None:
    """And a data set that no evaluation looks at."""
    study = tiny_study(tiny_dir, tune=None)
    other = pack_tiny(tmp_path / "data", seed=1).root
    study["datasets"]["other"] = {"data.dir": str(other), "data.image_size": 32}
    study["evaluations"] = {"away": {"eval.protocol": "transfer", "datasets": ["other"], "eval.ks": [3]}}
    study["evaluations"]["away"]["metrics"] = ["nDCG@3"]
    plan = make_plan(str(write_study(tmp_path, study)), str(tmp_path / "out"))
    findings = collect(plan)
    text = study_page(plan, findings, [], {}, [], {})
    assert "no loss is scored yet" in text and "no evaluation is of this data set" in text
    assert f"{len(plan.tasks)} parts missing, 0 of {len(plan.tasks)} done" in text and "and 6 more, in MANIFEST" in text


def test_rank_diagrams_show_the_ranks_and_have_the_same_bytes_twice(plan: Plan, findings: Findings) -> None:
    first, second = (figure_files(rank_figures(plan, findings)) for _ in range(2))
    assert first == second
    assert set(first) >= {"ranks-head-count-mAP.png", "ranks-head-count-mAP.pdf"}
    figure = rank_figures(plan, findings)["ranks-head-count-mAP"]
    (axes,) = figure.axes
    ranks = findings.rankings[0].ranks
    told = [text.get_text() for text in axes.texts]
    for name, rank in zip(LOSSES, ranks.mean_ranks, strict=True):
        assert any(f"{name}, every anchor equal" in text and f"{rank:.2f}" in text for text in told)
    assert any(f"critical difference {ranks.critical_difference:.2f}" in text for text in told)
    bars = [line for line in axes.lines if line.get_linewidth() == 3.0]
    assert len(bars) == len(ranks.groups) >= 1
