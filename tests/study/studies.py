"""What the tests of studies share: a study of tiny cells, how one is started, and what its tables say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TABLES = ("tables.md", "tables.tex", "scores.csv", "seeds.csv", "pairs.csv", "chosen.csv")


def tiny_study(data: Path, **changes: Any) -> dict[str, Any]:
    """Two losses, tuned, six seeds, of a head of eight numbers on a backbone with random weights."""
    study: dict[str, Any] = {
        "title": "tiny",
        "datasets": {"tiny": {"data.dir": str(data), "data.image_size": 32}},
        "encoders": {
            "head": {
                "recipe": "head",
                "model.backbone": "test_resnet",
                "model.pretrained": False,
                "model.head_hidden": 8,
                "model.head_dim": 6,
            }
        },
        "losses": {"macl": {"loss.name": "macl"}, "mulsupcon": {"title": "MulSupCon", "loss.name": "mulsupcon"}},
        "settings": {
            "data.num_workers": 0, "train.device": "cpu", "train.epochs": 4, "train.global_batch": 8, "eval.batch": 4,
            "train.checkpoint_every": 2,
        },
        "seeds": 6,
        "evaluations": {
            "count": {"eval.ks": [3], "metrics": ["mAP", "nDCG@3", "label_mAP"]},
            "jaccard": {"eval.gain": "jaccard", "eval.ks": [3], "metrics": ["nDCG@3"]},
        },
        "tune": {"trials": 2, "validation_share": 0.3, "all": {"optim.lr": {"loguniform": [3e-4, 1e-2]}}},
        "floors": ["random", "image_statistics"],
    }  # fmt: skip
    return study | changes


def write_study(folder: Path, study: dict[str, Any], name: str = "tiny") -> Path:
    """The file of a study."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def command(path: Path, out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "marc_dist.cli.study", str(path), "--out", str(out), *words]


def run(path: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(path, out, *words), capture_output=True, text=True, timeout=600)


def tables(out: Path) -> dict[str, bytes]:
    """What the report says, by file."""
    return {name: (out / "report" / name).read_bytes() for name in TABLES}


def records(out: Path) -> Iterator[Path]:
    return out.rglob("task.json")
