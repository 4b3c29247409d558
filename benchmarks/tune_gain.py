"""Does tuning help? The setting that ``marc-tune`` chooses against the defaults, on the test split, with new seeds.

    python benchmarks/tune_gain.py [--only sample|ml-aid] [--data ../shared/data] [--trials N] [--seeds 3]

The search (alpha, beta, tau, learning rate; TPE with early stopping) sees the training split alone and scores trials on
a fifth of it. Then the defaults of the schema and the chosen setting are trained in full, on the whole training split,
each with the same new seeds, and scored once on the test split by ``marc-eval``. Prints the difference with its 95 %
interval over seeds (paired), and says so when there is no gain. Short trainings of small encoders on two CPU cores: it
shows whether the search finds something that holds on other data, not how good MACL can be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common

from marc_dist.config import load_config
from marc_dist.tuning.driver import open_search
from marc_dist.tuning.journal import Journal
from marc_dist.tuning.state import interval

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("mAP", "nDCG@10", "rare", "medium", "common", "labels")
SMALL = [
    "data.num_workers=0",
    "data.image_size=64",
    "augment.crop_min=0.6",
    "model.head_hidden=256",
    "model.head_dim=64",
]
SETS: dict[str, dict[str, Any]] = {
    "sample": {
        "trials": 24,
        "words": [
            *SMALL,
            "model.backbone=resnet10t",
            "model.pretrained=false",
            "train.global_batch=75",
            "train.epochs=12",
        ],
    },
    "ml-aid": {
        "trials": 24,
        "words": [
            *SMALL,
            "model.backbone=test_resnet",
            "model.pretrained=false",
            "train.global_batch=120",
            "train.epochs=8",
        ],
    },
}
TUNED = ("loss.alpha", "loss.beta", "loss.tau", "optim.lr")
FIRST_SEED = 100


def command(module: str, *words: str) -> None:
    """Run one of our commands as a person would, its output in the log only."""
    done = subprocess.run([sys.executable, "-m", f"marc_dist.cli.{module}", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"marc-{module} {' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def scores(run: Path, words: list[str]) -> dict[str, float]:
    """Train in ``run`` and score it on the test split."""
    command("train", *words, f"train.run_dir={run}", "train.log_every=50")
    command("evaluate", str(run), "eval.baseline=false", "eval.ks=[10]", "--no-report")
    summary = json.loads((run / "eval" / "test_vs_train" / "metrics.json").read_text())
    thirds = summary["thirds"]["trained"]
    found = {name: summary["scores"]["trained"][name] for name in ("mAP", "nDCG@10")}
    return (
        found | {name: thirds[name]["mAP"] for name in ("rare", "medium", "common")} | {"labels": thirds["all"]["mAP"]}
    )


def compared(name: str, shards: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Search, train both, score both."""
    entry = SETS[name]
    words = [*entry["words"], f"data.dir={shards}"]
    trials, folder = options.trials or entry["trials"], work / f"{name}-search"
    subprocess.run(["rm", "-rf", str(folder), *map(str, work.glob(f"{name}-run-*"))], check=True)
    start = time.perf_counter()
    command(
        "tune",
        "macl",
        *words,
        "--trials",
        str(trials),
        "--executor",
        "local",
        "--concurrent",
        "2",
        "--out",
        str(folder),
    )
    seconds = time.perf_counter() - start
    search = open_search(folder, Journal(folder))
    best = load_config(folder / "best.yaml")
    tuned = {key: getattr(getattr(best, key.split(".")[0]), key.split(".")[1]) for key in TUNED}
    settings = {"default": list(words), "tuned": [*words, *(f"{key}={value}" for key, value in tuned.items())]}
    with ThreadPoolExecutor(2) as pool:
        jobs = {
            (who, seed): pool.submit(scores, work / f"{name}-run-{who}-{seed}", [*given, f"train.seed={seed}"])
            for seed in range(FIRST_SEED, FIRST_SEED + options.seeds)
            for who, given in settings.items()
        }
        found = {key: job.result() for key, job in jobs.items()}
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    figures: dict[str, Any] = {}
    for metric in METRICS:
        pairs = [(found["default", seed][metric], found["tuned", seed][metric]) for seed in seeds]
        gains = [after - before for before, after in pairs]
        figures[metric] = {
            "default": statistics.fmean(before for before, _ in pairs),
            "tuned": statistics.fmean(after for _, after in pairs),
            "gain": dict(zip(("mean", "low", "high"), interval(gains), strict=True)),
        }
    whole = len(search.points) * search.plan.epochs
    states = [run.state for run in search.runs.values()]
    return {
        "setting": tuned,
        "validation": {"default": search.values(0, "mAP"), "tuned": search.values(search.finished()[0], "mAP")},
        "trials": {state: states.count(state) for state in sorted(set(states))},
        "epochs_used": search.epochs_used,
        "share_of_all_in_full": search.epochs_used / whole,
        "search_s": seconds,
        "seeds": list(seeds),
        "test": figures,
    }


def told(name: str, figures: dict[str, Any]) -> bool:
    """Print what was found; whether tuning helped and stayed within its budget."""
    gain = figures["test"]["mAP"]["gain"]
    before, after = (figures["test"]["mAP"][who] for who in ("default", "tuned"))
    print(f"{name}: {json.dumps(figures['setting'])}, search {figures['search_s']:.0f} s, {figures['trials']}")
    for metric in METRICS:
        one = figures["test"][metric]
        low, high = one["gain"]["low"], one["gain"]["high"]
        ends = "" if low is None else f" ({low:+.4f} to {high:+.4f})"
        both = f"default {one['default']:.4f}  tuned {one['tuned']:.4f}"
        print(f"  test {metric:8} {both}  gain {one['gain']['mean']:+.4f}{ends}")
    word = "beats" if gain["mean"] > 0 else "does NOT beat"
    print(f"  the tuned setting {word} the default on the test split: mAP {after:.4f} against {before:.4f}")
    used = common.verdict("epochs used, of all trials in full", 100 * figures["share_of_all_in_full"], 50, " %")
    helped = common.verdict("gain in test mAP", 100 * gain["mean"], 0, " points", at_least=True)
    return used and helped


def main() -> int:
    """Compare on every data set whose files are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SETS))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real files")
    parser.add_argument("--trials", type=int, help="settings of each search")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each setting in the comparison")
    parser.add_argument("--out", type=Path, default=common.OUT, help="where JSON and work files go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "tune_gain.json"
    results = json.loads(target.read_text()) if target.exists() else {}
    holds = True
    for name in SETS:
        source = options.data / "ml-aid-150px"
        if options.only not in (None, name):
            continue
        if name == "ml-aid" and not source.is_dir():
            print(f"{name}: SKIPPED, {source} is not there (see --data)")
            continue
        shards = options.out / f"tune-{name}"
        if not (shards / "dataset.json").is_file():
            command(
                "shard",
                "--dataset",
                name,
                "--out",
                str(shards),
                *(["--source", str(source)] if name == "ml-aid" else []),
            )
        results[name] = compared(name, shards, options.out, options)
        holds &= told(name, results[name])
        common.write("tune_gain", results, options.out)
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
