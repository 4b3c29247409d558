"""``marc-eval`` as people call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from marc_dist.cli.eval import main
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
    assert "expected one run folder" in refused(capsys, "eval.gain=count")
    assert "expected one run folder" in refused(capsys, str(run), str(tmp_path))
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
