"""What a study writes: floors, sweeps, transfer, ranks, in every form; from one real study of two data sets."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from marc_dist.report.example_queries import SHOWN
from marc_dist.run.evaluations import read
from marc_dist.study.checks import make_plan
from marc_dist.study.page.nearest_answers import best_losses, nearest_answers
from marc_dist.study.scores import read_scores
from marc_dist.study.statistics import hierarchical_interval, rank_diagram
from marc_dist.study.tables.collected import Row, collect, families, note_on_tests
from marc_dist.study.tables.text import latex
from tests.report.test_browser import look
from tests.retrieval.runs import pack_tiny
from tests.study.studies import run, tiny_study, write_study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> tuple[Path, Path]:
    """The file and the folder of a study that is done; read it, never write there."""
    folder = tmp_path_factory.mktemp("tables")
    other = pack_tiny(folder / "data", seed=1).root
    study = tiny_study(tiny_dir, tune=None, seeds=2, statistics={"tests": False}, keep="scores")
    del study["floors"]
    study["datasets"]["other"] = {"title": "the other_one", "data.dir": str(other), "data.image_size": 32}
    study["losses"]["supcon"] = {"loss.name": "supcon_any"}
    study["losses"]["curve"] = {"like": "macl", "sweep": {"loss.tau": [0.05, 0.2]}}
    study["losses"]["surface"] = {"like": "macl", "sweep": {"loss.alpha": [0.0, 1.0], "loss.beta": [0.0, 1.0]}}
    study["settings"]["train.epochs"] = 2
    study["evaluations"] = {
        "own": {"eval.ks": [3], "metrics": ["mAP", "nDCG@3", "rare_mAP"]},
        "away": {"eval.protocol": "transfer", "eval.ks": [3], "metrics": ["nDCG@3"]},
    }
    path = write_study(folder, study)
    found = run(path, folder / "out", "--jobs", "2")
    assert found.returncode == 0, found.stdout + found.stderr
    return path, folder / "out"


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_intervals_are_those_of_the_scores_of_every_query(done: tuple[Path, Path]) -> None:
    _, out = done
    rows = {
        (r["dataset"], r["loss"], r["metric"]): r for r in lines(out / "report/scores.csv") if r["evaluation"] == "own"
    }
    values, rare = [], []
    for seed in (0, 1):
        summary, queries = read(out / f"other/head/macl/seed-{seed}/eval/test_vs_train-own")
        values.append([row["nDCG@3"] for row in queries])
        rare.append([summary["thirds"]["trained"]["rare"]["mAP"]])
    wanted = hierarchical_interval(np.array(values))
    mine = rows["other", "macl", "nDCG@3"]
    assert [float(mine[key]) for key in ("mean", "low", "high")] == pytest.approx(list(wanted), abs=1e-12)
    mine = rows["other", "macl", "rare_mAP"]
    assert [float(mine[key]) for key in ("mean", "low", "high")] == pytest.approx(
        list(hierarchical_interval(np.array(rare)))
    )
    assert rows["other", "pretrained", "rare_mAP"]["low"] == ""  # one seed: no interval of a mean over labels


def test_floors_are_what_they_say(done: tuple[Path, Path]) -> None:
    path, out = done
    plan = make_plan(str(path), str(out))
    floors = [row.name for row in collect(plan).blocks[0].rows if row.floor]
    assert floors == ["random", "image_statistics", "pretrained", "whitened", "linear_probe"]
    own = plan.evaluations("tiny")[0]
    scores = {name: read_scores(out / "tiny/head/floors" / name, own) for name in floors}
    # the colours of the pictures follow their labels: what sees colours, or was told of labels, finds more
    assert scores["image_statistics"].means["nDCG@3"] > scores["random"].means["nDCG@3"]  # type: ignore[operator]
    assert scores["linear_probe"].means["mAP"] > scores["whitened"].means["mAP"]  # type: ignore[operator]
    assert scores["random"].summary["num_queries"] == 10


def test_sweeps_have_figures_and_no_tests(done: tuple[Path, Path]) -> None:
    _, out = done
    names = {path.name for path in (out / "report").iterdir()}
    for loss in ("curve", "surface"):
        for kind in ("png", "pdf"):
            assert f"{loss}-other-head-own-nDCG-at-3.{kind}" in names
    assert (out / "report/curve-tiny-head-own-mAP.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "report/surface-tiny-head-own-mAP.pdf").read_bytes()[:5] == b"%PDF-"
    assert "pairs.csv" not in names


def test_ranks_over_data_sets_leave_sweeps_out(done: tuple[Path, Path]) -> None:
    _, out = done
    mean = {
        (r["dataset"], r["loss"]): float(r["mean"]) for r in lines(out / "report/scores.csv") if r["metric"] == "mAP"
    }
    losses = ["macl", "mulsupcon", "supcon"]
    wanted = rank_diagram(np.array([[mean[dataset, loss] for loss in losses] for dataset in ("tiny", "other")]))
    mine = [row for row in lines(out / "report/ranks.csv") if row["metric"] == "mAP"]
    assert [row["loss"] for row in mine] == losses
    assert [float(row["mean_rank"]) for row in mine] == list(wanted.mean_ranks)
    assert float(mine[0]["critical_difference"]) == wanted.critical_difference


def test_transfer_is_of_the_other_data_set(done: tuple[Path, Path]) -> None:
    path, out = done
    summary, _ = read(out / "tiny/head/macl/seed-0/eval/transfer-away-other")
    plan = make_plan(str(path), str(out))
    assert summary["protocol"] == "transfer"
    assert summary["queries"]["fingerprint"] == plan.datasets["other"].fingerprint
    assert summary["trained_on"] == plan.datasets["tiny"].fingerprint
    page = (out / "report/tables.md").read_text()
    assert "away-other: nDCG@3" in page and "away-tiny: nDCG@3" in page


def test_only_scores_stay_where_the_study_says_so(done: tuple[Path, Path]) -> None:
    _, out = done
    cell = out / "tiny/head/macl/seed-0"
    there = {path.name for path in cell.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "eval", "task.json"} <= there
    assert not {"encoder.safetensors", "head.safetensors", "checkpoints", "embeddings"} & there
    assert run(*done).returncode == 0  # and it counts as done


def test_the_answers_of_the_best_losses_are_shown_when_their_encoders_have_gone(done: tuple[Path, Path]) -> None:
    """Found anew with numpy: six nearest by the order that the evaluation wrote down, labels from the shard folder."""
    path, out = done
    plan = make_plan(str(path), str(out))
    blocks = collect(plan).blocks
    with nearest_answers(plan, blocks) as every:
        for block, found in zip(blocks, every, strict=True):
            assert not found.missing and found.losses is not None and found.galleries is not None
            means = {row.name: row.figures[block.columns[0]].mean for row in block.rows}
            losses = sorted(("macl", "mulsupcon", "supcon"), key=lambda name: -means[name])
            assert [row.name for row in best_losses(plan, block)] == losses
            assert list(found.losses) == [*losses, "pretrained"]
            scores: dict[int, list[float]] = {}
            for name in losses:
                _, rows = read(out / f"{block.dataset}/head/{name}/seed-0/eval/test_vs_train-own")
                tops = {row["id"]: [at for at in row["top"] if at >= 0][:SHOWN] for row in rows}
                for row in rows:
                    scores.setdefault(row["id"], []).append(row["nDCG@3"])
                for example in found.examples:
                    assert example.answers[name] == tops[example.query]
            for example in found.examples:
                assert example.score == pytest.approx(np.mean(scores[example.query]))
                answer = example.answers[losses[0]][0]
                labels = plan.datasets[block.dataset].labels
                shared = sum(same for _, same in found.galleries.shared_labels(example.query, answer))
                assert shared == (labels[example.query] & labels[answer]).sum()


def test_the_page_has_pictures_and_is_made_again_to_the_byte(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, out = done
    page = out / "report/index.html"
    before = page.read_bytes()
    found = run(path, out, "--report")
    assert found.returncode == 0 and found.stdout.splitlines()[-1] == f"page: {page}"
    assert page.read_bytes() == before
    seen, log = look(page, 400, tmp_path)
    assert seen["scroll"] <= seen["width"] and seen["wide"] == [] and seen["small"] == 0
    # each data set: queries with six answers of four, pictures with six views
    assert seen["images"] >= 2 * (3 * (1 + 4 * 6) + 3 * (1 + 6)) and seen["broken"] == 0
    assert seen["loaded"] == [] and "CONSOLE" not in log
    assert b"no pictures" not in before


def test_pictures_that_are_missing_are_told(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, out = done
    plan = make_plan(str(path), str(out))
    _, other = collect(plan).blocks
    gone = replace(plan, datasets={**plan.datasets, "other": plan.datasets["tiny"]})
    with nearest_answers(gone, (other,)) as found:
        assert "was made with other data of" in found[0].missing


def test_latex_has_a_tabular_for_each_table_and_escapes_names(done: tuple[Path, Path]) -> None:
    path, out = done
    text = (out / "report/tables.tex").read_text()
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == text.count("\\toprule") == 2
    assert "the other\\_one" in text and "nDCG@3" in text
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len({line.count("&") for line in rows}) == 1
    assert latex(collect(make_plan(str(path), str(out)))) == text


def test_what_is_missing_is_named_everywhere(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, out = done
    study = path.read_text().replace("title: tiny", "title: more").replace("seeds: 2", "seeds: 3")
    more = tmp_path / "more.yaml"
    more.write_text(study)
    findings = collect(make_plan(str(more), str(out)))
    assert len(findings.missing) == 2 * 9 and set(findings.missing.values()) == {"not done yet"}
    assert all(name.endswith("/seed-2") for name in findings.missing)
    assert {row.seeds for block in findings.blocks for row in block.rows if not row.floor} == {(0, 1)}


def test_the_manifest_has_the_hash_of_every_file(done: tuple[Path, Path]) -> None:
    import hashlib

    _, out = done
    manifest = json.loads((out / "report/MANIFEST.json").read_text())
    files = {path.name for path in (out / "report").iterdir()} - {"MANIFEST.json"}
    assert set(manifest["files"]) == files
    for name, value in manifest["files"].items():
        assert hashlib.sha256((out / "report" / name).read_bytes()).hexdigest() == value
    assert {"marc-dist", "python", "torch"} <= set(manifest["versions"])


def test_losses_are_tested_against_those_chosen_in_the_same_way(tiny_dir: Path, tmp_path: Path) -> None:
    study = tiny_study(tiny_dir)
    study["datasets"]["other"] = {"data.dir": str(pack_tiny(tmp_path / "data", seed=1).root), "data.image_size": 32}
    study["tune"]["fixed_from"] = "tiny"
    study["losses"]["msc"] = {"loss.name": "msc"}
    study["losses"]["curve"] = {"like": "msc", "sweep": {"loss.tau": [0.05, 0.2]}}

    def named(**statistics: str) -> list[list[tuple[str, str]]]:
        plan = make_plan(str(write_study(tmp_path, study | {"statistics": statistics})), str(tmp_path / "out"))
        rows = [Row(one.name, one.title, False, (), {}, {}) for one in plan.methods_on("other")]
        return [[(one.name, other.name) for one, other in family] for family in families(plan, rows)]

    own = [("macl", "mulsupcon"), ("macl", "msc"), ("mulsupcon", "msc")]
    assert named() == [own, [(f"{one}@tiny", f"{other}@tiny") for one, other in own]]
    own = [("macl", "mulsupcon"), ("msc", "mulsupcon")]
    assert named(against="mulsupcon") == [own, [(f"{one}@tiny", f"{other}@tiny") for one, other in own]]


def test_a_reader_is_told_when_so_few_seeds_cannot_tell(tiny_dir: Path, tmp_path: Path) -> None:
    study = tiny_study(tiny_dir, tune=None)
    plan = make_plan(str(write_study(tmp_path, study)), str(tmp_path / "out"))
    assert note_on_tests(plan) == "Tests are paired over seeds and corrected by Holm for the 1 pair of a metric."
    study["losses"] |= {name: {"loss.name": name} for name in ("supcon_any", "supcon_all", "jaccard", "msc")}
    plan = make_plan(str(write_study(tmp_path, study)), str(tmp_path / "out"))
    assert "With 6 seeds no Wilcoxon test can be significant after that; it takes 10 seeds." in note_on_tests(plan)
    assert 15 * 2.0 ** (1 - 10) <= 0.05 < 15 * 2.0 ** (1 - 9)
