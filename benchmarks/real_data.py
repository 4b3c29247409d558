"""Real files end to end: ML-AID packed, trained for a short time and scored; GID masks; the three UCM tables.

    python benchmarks/real_data.py [--data ../shared/data] [--epochs 6] [--faults 10] [--out benchmarks/out]

Prints what was found beside what the data's own documentation says, and writes ``real_data.json``. A part whose files
are absent is skipped with a clear word. The training is short (96 px, ResNet-18, two CPU processes): it shows that real
pictures go through every room and that the trained encoder beats the untrained one, nothing more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from marc_dist.augment.views import IMAGENET
from marc_dist.config import Config, build
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.loader import TrainLoader
from marc_dist.packing.reading.tables import read_table

ROOT = Path(__file__).resolve().parents[1]
ML_AID_TRAIN = [79, 1171, 1744, 1617, 75, 269, 221, 175, 1829, 1, 1870, 207, 177, 237, 87, 1923, 674]
ML_AID_TEST = [20, 304, 417, 409, 37, 75, 50, 39, 466, 1, 458, 52, 44, 47, 21, 483, 178]
GID_COUNTS = {"builtup": 414, "farmland": 539, "forest": 208, "meadow": 90, "water": 519}


def command(module: str, *words: str) -> float:
    """Run one of our commands as a person would; its wall time in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"marc_dist.cli.{module}", *words], check=True, cwd=ROOT)
    return time.perf_counter() - start


def labels_of(dataset: Dataset, stem: str) -> list[str]:
    """The label names of the picture with this key."""
    (row,) = [i for i, key in enumerate(dataset.keys) if str(key).lower() == stem]
    return [name for name, on in zip(dataset.classes, dataset.labels[row], strict=True) if on]


def ml_aid(data: Path, work: Path, epochs: int, num_faults: int) -> dict[str, Any]:
    """Pack, check against the published counts, train, evaluate, throw faults."""
    shards = work / "ml-aid"
    seconds = command("shard", "--dataset", "ml-aid", "--source", str(data), "--out", str(shards), "--force")
    dataset = open_dataset(shards)
    rows = {split: dataset.rows(split) for split in ("train", "test")}
    counts = {split: dataset.label_counts(split).tolist() for split in rows}
    parks = {
        split: sorted(
            int(str(dataset.keys[i]).rsplit("_", 1)[1]) for i in rows[split] if "park_" in str(dataset.keys[i])
        )
        for split in rows
    }
    found: dict[str, Any] = {
        "pack_s": seconds,
        "images_per_s": len(dataset) / seconds,
        "num_train": len(rows["train"]),
        "num_test": len(rows["test"]),
        "train_counts_as_published": counts["train"] == ML_AID_TRAIN,
        "test_counts_as_published": counts["test"] == ML_AID_TEST,
        "park_numbers": {split: (numbers[0], numbers[-1], len(numbers)) for split, numbers in parks.items()},
        "forest_2": labels_of(dataset, "forest_2"),
        "mobile_home": {split: counts[split][9] for split in counts},
    }
    run = work / "ml-aid-run"
    subprocess.run(["rm", "-rf", str(run)], check=True)
    words = [
        f"data.dir={shards}",
        "data.image_size=96",
        "data.num_workers=0",
        "model.backbone=resnet18",
        "model.pretrained=false",
    ]
    words += [f"train.epochs={epochs}", "train.global_batch=240", "train.log_every=1", "optim.lr=1e-3"]
    found["train_s"] = command(
        "launch", "--procs-per-node", "2", "local", "train", *words, f"train.run_dir={run}", "eval.ks=[10,100]"
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["train_views_per_s"] = statistics.median(line["images_per_s"] for line in lines[1:])
    found["loader"] = loader(shards)
    found["eval_s"] = command("evaluate", str(run))
    if num_faults:
        found["faults"] = faults(shards, work, num_faults)
    found["metrics"] = json.loads((run / "eval" / "test_vs_train" / "metrics.json").read_text())
    return found


def loader(shards: Path) -> dict[str, float]:
    """Views/s of an epoch in this process at the training's size: decoded each time, making the cache, from it."""
    dataset, figures = open_dataset(shards), {}
    with tempfile.TemporaryDirectory(prefix="real-data-") as folder:
        for name, cache in (("decoded each time", "none"), ("making the cache", "auto"), ("from the cache", "auto")):
            words = {"data.dir": str(shards), "data.cache": cache, "data.cache_dir": folder, "data.image_size": 96}
            start = time.perf_counter()
            made = TrainLoader(
                dataset, build(Config, words | {"data.num_workers": 0, "train.global_batch": 240}), 0, 1, IMAGENET
            )
            views = sum(len(batch.images) for batch in made.epoch(0))
            made.close()
            figures[name] = views / (time.perf_counter() - start)
    return figures


def faults(shards: Path, out: Path, count: int) -> dict[str, Any]:
    """The fault campaign on these shards."""
    script = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--data", str(shards), "--batch", "240"]
    done = subprocess.run([*script, "--count", str(count), "--out", str(out / "real-faults")], check=False, cwd=ROOT)
    figures: dict[str, Any] = json.loads((out / "real-faults" / "faults.json").read_text())
    return {"exit": done.returncode, "faults": figures["faults"], "failures": figures["failures"]}


def gid(data: Path, work: Path) -> dict[str, Any]:
    """Index masks without a palette through the mask reader; class 5 is undefined and ignored."""
    shards = work / "gid-mtl5"
    recipe = ROOT / "benchmarks" / "recipes" / "gid-mtl5.yaml"
    seconds = command("shard", "--dataset", str(recipe), "--source", str(data), "--out", str(shards), "--force")
    dataset = open_dataset(shards)
    counts = dict(zip(dataset.classes, dataset.labels.sum(axis=0).tolist(), strict=True))
    return {"pack_s": seconds, "num": len(dataset), "counts": counts, "counts_as_documented": counts == GID_COUNTS}


def ucm(data: Path) -> dict[str, Any]:
    """The three label tables of UC Merced: text and spreadsheet agree, the MATLAB file differs in one known bit."""
    text = read_table(data / "LandUse_Multilabeled.txt")
    sheet = read_table(data / "LandUse_Multilabeled.xlsx")
    matrix = read_table(data / "LandUse_multilabels.mat", classes=text.classes, stems=text.stems)
    same = text.stems == sheet.stems and text.classes == sheet.classes and bool((text.labels == sheet.labels).all())
    differ = [
        (text.stems[row], text.classes[column])
        for row, column in zip(*(text.labels != matrix.labels).nonzero(), strict=True)
    ]
    return {"rows": len(text.stems), "text_equals_sheet": same, "mat_differs_at": differ}


def main() -> int:
    """Run every part whose files are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real files")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out", help="where JSON and work files go")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the short ML-AID training")
    parser.add_argument("--faults", type=int, default=10, help="faults thrown at trainings on ML-AID")
    parser.add_argument("--only", choices=["ml-aid", "gid", "ucm"], help="one part")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    parts = {
        "ml-aid": ("ml-aid-150px", lambda folder: ml_aid(folder, options.out, options.epochs, options.faults)),
        "gid": ("gid-mtl5", lambda folder: gid(folder, options.out)),
        "ucm": ("ucm-multilabel-labels", ucm),
    }
    target = options.out / "real_data.json"
    results: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    for name, (folder, run) in parts.items():
        if options.only not in (None, name):
            continue
        if not (options.data / folder).is_dir():
            print(f"{name}: SKIPPED, {options.data / folder} is not there (see --data)")
            continue
        results[name] = run(options.data / folder)
        print(f"{name}: {json.dumps(results[name], indent=2)}")
    target.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
