"""``marc-eval`` as people call it."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from marc_dist.cli.eval import main
from marc_dist.config import load_config
from marc_dist.encoder.export import save_encoder
from marc_dist.encoder.model import build_encoder
from marc_dist.run.evaluations import evaluation_folder, evaluation_folders, read_summary
from tests.retrieval.runs import OTHERS, make_run, pack_tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    make_run(folder / "run", pack_tiny(folder / "data"))
    return folder / "run"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("marc-eval: error: ") and err.count("\n") == 1
    return err


def test_a_run_is_scored_and_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    out, err = capsys.readouterr()
    summary = json.loads((run / "eval" / "test_vs_train" / "metrics.json").read_text())
    assert {path.name for path in (run / "eval" / "test_vs_train").iterdir()} == {
        "metrics.json",
        "per_label.csv",
        "per_query.parquet",
        "map.parquet",
        "panel.png",
        "report.html",
    }
    for scores in summary["scores"].values():
        assert f"{scores['mAP']:.4f}" in out and f"{scores['nDCG@3']:.4f}" in out
    for word in ("trained", "untrained", "label AP, rare (1)", "red & blue", "<script>", "queries without a relevant"):
        assert word in out
    assert f"report: {run / 'report.html'}" in out
    assert (run / "report.html").read_bytes() == (run / "eval" / "test_vs_train" / "report.html").read_bytes()
    assert "evaluation test_vs_train" in (run / "report.html").read_text()
    assert "untrained encoder: 40 images" in err


def test_words_and_encoder_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").unlink(missing_ok=True)
    words = ["eval.protocol=oml", "--no-report", "eval.query_split=train", "eval.baseline=false", "eval.ks=[2]"]
    assert main([str(run / "encoder.safetensors"), "--data", str(run.parent / "data"), *words]) == 0
    summary = json.loads((run / "eval" / "oml" / "metrics.json").read_text())
    assert summary["protocol"] == "oml" and summary["num_queries"] == 6 and "P@2" in summary["scores"]["trained"]
    assert not (run / "report.html").exists() and "report:" not in capsys.readouterr().out


def test_print_resolves_and_stops(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--print", "eval.gain=jaccard", "--data", "elsewhere"]) == 0
    out = capsys.readouterr().out
    assert "gain: jaccard" in out and "dir: elsewhere" in out and "backbone: test_resnet" in out


def test_another_benchmark_is_searched(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack_tiny(tmp_path / "other", 24, 3, OTHERS, "other")
    words = ["--protocol", "transfer", "--no-report", "eval.baseline=false"]
    assert main([str(run), "--archive", str(tmp_path / "other"), *words]) == 0
    summary = json.loads((run / "eval" / "transfer" / "metrics.json").read_text())
    assert summary["protocol"] == "transfer" and "carry none of them" in capsys.readouterr().err
    assert main([str(run), "--queries", str(tmp_path / "other"), "--index", "sign", *words]) == 0
    assert json.loads((run / "eval" / "transfer" / "metrics.json").read_text())["index"] == "sign"
    capsys.readouterr()
    assert "search over the labels that both know" in refused(capsys, str(run), "--archive", str(tmp_path / "other"))
    assert "eval.protocol: " in refused(capsys, str(run), "--protocol", "transfre")
    assert "FAISS refuses it" in refused(capsys, str(run), "--index", "NOPE")


def test_a_second_evaluation_learns_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run), "--index", "IVF2,Flat:nprobe=1", "--no-report"]
    written = []
    for origin in ("threads)\n", f"from {run / 'embeddings'}"):
        assert main(words) == 0
        told = capsys.readouterr()
        line = next(line for line in (told.out + told.err).splitlines(keepends=True) if "index: IVF2" in line)
        assert origin in line
        written.append((run / "eval" / "test_vs_train" / "metrics.json").read_bytes())
    assert written[0] == written[1]


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Runs of three encoders of the same data, not yet evaluated."""
    data = pack_tiny(tmp_path / "data")
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for at, folder in enumerate(folders):
        make_run(folder, data, train__seed=at, eval__baseline=False)
        save_encoder(
            build_encoder(load_config(folder / "config.yaml").model, 50 + at, 32),
            load_config(folder / "config.yaml"),
            {"dataset": data.name, "classes": list(data.classes), "fingerprint": data.fingerprint, "step": 3},
        )
    return folders


def test_named_evaluations_stay_and_pages_show_their_own(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = three[0]
    assert main([str(run)]) == 0
    assert main([str(run), "--name", "jac", "eval.gain=jaccard", "--no-report"]) == 0
    plain, named = (evaluation_folder(run, "test_vs_train", name) for name in (None, "jac"))
    assert read_summary(plain)["gain"] == "count" and read_summary(named)["gain"] == "jaccard"
    shown = (run / "report.html").read_bytes()
    assert shown == (plain / "report.html").read_bytes() and not (named / "report.html").exists()
    capsys.readouterr()
    assert main([str(run), "--name", "jac", "eval.gain=cosine"]) == 0
    assert "replaced: test_vs_train-jac of eval.gain=jaccard; --name NAME keeps" in capsys.readouterr().err
    assert "evaluation test_vs_train-jac" in (run / "report.html").read_text() and (plain / "report.html").exists()
    assert main([str(run), "--name", "jac", "eval.gain=jaccard", "--no-report"]) == 0
    assert not (run / "report.html").exists() and not (named / "report.html").exists()
    assert not (named / "panel.png").exists() and (plain / "panel.png").exists()
    assert main([str(run), "--no-report"]) == 0  # the same figures: its page is still true
    assert (plain / "report.html").read_bytes() == shown
    capsys.readouterr()
    (run / "eval" / "oml").mkdir()
    (run / "eval" / "oml" / "metrics.json").write_text("{")
    assert main([str(run), str(three[1]), "--list"]) == 0
    out = capsys.readouterr().out
    assert "test_vs_train-jac" in out and "jaccard" in out and "oml" in out and "damaged" in out
    assert f"{three[1]}: no evaluation; make one with marc-eval" in out and max(map(len, out.splitlines()[:12])) <= 80
    assert "eval.name" in refused(capsys, str(run), "--name", "../up")


def test_runs_are_compared_with_the_first(
    three: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(three[0].parent)
    words = [folder.name for folder in three]
    assert main([*words, "--csv", "out/found.csv"]) == 0
    out, err = capsys.readouterr()
    assert err.count("no evaluation test_vs_train yet, making it") == 3 and "comparison: out/found.csv" in out
    assert max(map(len, out.splitlines())) <= 80
    summaries = [read_summary(evaluation_folder(folder, "test_vs_train")) for folder in three]
    with Path("out/found.csv").open(newline="") as file:
        lines = {(line["figure"], line["metric"], line["run"]): line for line in csv.DictReader(file)}
    for name, summary in zip(words, summaries, strict=True):
        for metric, value in summary["scores"]["trained"].items():
            line = lines["metric", metric, name]
            assert float(line["score"]) == value and f"{value:.4f}" in out
            assert [float(line["low"]), float(line["high"])] == summary["intervals"]["scores"]["trained"][metric]
            gap = value - summaries[0]["scores"]["trained"][metric]
            assert line["difference"] == "" if name == "first" else float(line["difference"]) == gap
        for group, told in summary["thirds"]["trained"].items():
            line = lines["labels", f"label AP, {group} ({told['num_labels']})", name]
            assert line["score"] == ("" if told["mAP"] is None else repr(told["mAP"]))
            ends = summary["intervals"]["thirds"]["trained"][group]
            assert [line["low"], line["high"]] == (["", ""] if ends is None else [repr(end) for end in ends])
    assert main(words) == 0  # again, from what is kept
    again = capsys.readouterr()
    assert "making it" not in again.err and again.out.rstrip() in out
    assert "expected eval.gain=jaccard, was made with count" in refused(capsys, *words, "eval.gain=jaccard")
    assert main([*words, "--name", "jac", "eval.gain=jaccard", "--no-report"]) == 0
    assert main([*words, "--name", "jac", "eval.gain=jaccard", "--no-report"]) == 0


def test_what_cannot_be_compared_is_refused(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = map(str, three)
    for words in (
        [first],
        [second, "eval.relevance=exact"],
        [third, "eval.query_split=train", "eval.archive_split=test"],
    ):
        assert main([*words, "--no-report"]) == 0
    capsys.readouterr()
    assert "eval.relevance: expected any, as in" in refused(capsys, first, second)
    assert "queries, split of the data: expected tiny test" in refused(capsys, first, third)
    pack_tiny(three[0].parent / "other", seed=3)
    assert "its queries are not of" in refused(capsys, first, second, "--data", str(three[0].parent / "other"))
    assert main([second, "--data", str(three[0].parent / "other"), "--no-report"]) == 0
    capsys.readouterr()
    assert "queries, fingerprint of the data" in refused(capsys, first, second)
    (evaluation_folder(three[1], "test_vs_train") / "per_query.parquet").write_bytes(b"torn")
    assert "different evaluations; evaluate again" in refused(capsys, first, second)
    (three[1] / "eval" / "test_vs_train" / "metrics.json").unlink()
    (three[1] / "encoder.json").unlink()
    assert "no encoder.json; a finished marc-train run writes it" in refused(capsys, first, second)


def test_evaluations_of_earlier_versions_are_read(three: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """They lie in RUN/eval itself, without the labels' AP of each query, name or settings."""
    old = three[0] / "eval"
    for folder in three[:2]:
        assert main([str(folder), "--no-report"]) == 0
    for path in (old / "test_vs_train").iterdir():
        path.rename(old / path.name)
    (old / "test_vs_train").rmdir()
    table = pq.read_table(old / "per_query.parquet").drop_columns("label_ap")
    pq.write_table(table, old / "per_query.parquet")
    summary = json.loads((old / "metrics.json").read_text())
    summary = {key: value for key, value in summary.items() if key not in ("name", "settings")}
    summary["sha256"]["per_query.parquet"] = hashlib.sha256((old / "per_query.parquet").read_bytes()).hexdigest()
    (old / "metrics.json").write_text(json.dumps(summary))
    capsys.readouterr()
    assert main([str(three[1]), str(three[0])]) == 0
    out = capsys.readouterr().out
    assert f"{summary['scores']['trained']['mAP']:.4f}" in out
    assert main([str(three[0]), "--list"]) == 0
    assert " eval " in capsys.readouterr().out


def test_two_at_once_are_both_kept(three: list[Path]) -> None:
    run = str(three[0])
    words = [["eval.ks=[3]"], ["--protocol", "leave_one_out", "eval.ks=[3]"], ["--name", "b", "eval.ks=[3]"]]
    command = [sys.executable, "-m", "marc_dist.cli.eval", run]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen([*command, *more], **pipes) for more in words]
    for process in started:
        assert process.communicate(timeout=300)[1] is None and process.returncode == 0
    found = [read_summary(folder)["protocol"] for folder in evaluation_folders(three[0])]
    assert found == ["leave_one_out", "test_vs_train", "test_vs_train"]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from marc_dist.cli.eval import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'faiss', 'numpy', 'pydantic', 'pyarrow', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: marc-eval") and done.stdout.splitlines()[-1] == "[]"


def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such run; make one with marc-train" in refused(capsys, str(tmp_path / "nothing"))
    assert "neither config.yaml nor encoder.json" in refused(capsys, str(tmp_path))
    assert "expected a run folder or encoder.safetensors, got none" in refused(capsys, "eval.gain=count")
    assert "expected different run folders" in refused(capsys, str(run), str(run / "encoder.safetensors"))
    assert "--csv: expected several run folders" in refused(capsys, str(run), "--csv", "x.csv")
    assert "expected a run folder or its encoder" in refused(capsys, str(run / "config.yaml"))
    assert "eval.gian: unknown key" in refused(capsys, str(run), "eval.gian=count")
    assert "loss.tau: belongs to training" in refused(capsys, str(run), "loss.tau=0.2")
    assert "no such shard folder" in refused(capsys, str(run), "--data", str(tmp_path / "gone"))
    (tmp_path / "config.yaml").write_text("{train: {device: cpu}, data: {dir: /gone}}\n")
    assert "no encoder.json; a finished marc-train run writes it" in refused(capsys, str(tmp_path))
    (tmp_path / "encoder.json").write_text("{")
    assert "the encoder cannot be read" in refused(capsys, str(tmp_path))


def test_an_encoder_of_other_classes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    info = json.loads((tmp_path / "run" / "encoder.json").read_text())
    info["classes"].append("snow")
    (tmp_path / "run" / "encoder.json").write_text(json.dumps(info))
    assert "differing: snow" in refused(capsys, str(tmp_path / "run"))
