"""Search on a function with a known optimum: TPE with early stopping against random search at equal cost.

    python benchmarks/tune_search.py [--trials 64] [--seeds 5] [--epochs 27]

A stand-in for the trainer reports, for every epoch, a score in closed form: a smooth peak at a known alpha, beta, tau
and learning rate, a learning curve whose speed depends on the learning rate, and noise of 0.002 that depends on seed
and epoch alone. The search, its stopping and its record are those of ``marc-tune``; only the training is replaced.
Random search then gets as many epochs as TPE with early stopping used, all of them for trials in full.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import common

from marc_dist.config import Config, build
from marc_dist.tuning.driver import new_plan
from marc_dist.tuning.journal import Journal
from marc_dist.tuning.local_executor import call_trials
from marc_dist.tuning.search_space.space import load_space
from marc_dist.tuning.state import Search

OPTIMUM = {"loss.alpha": 0.8, "loss.beta": 1.3, "loss.tau": 0.12, "optim.lr": 1.5e-3}
TOP = 0.85
NOISE = 0.002


def height(settings: Mapping[str, Any]) -> float:
    """The score of a setting trained in full, without noise; ``TOP`` at ``OPTIMUM``, never below 0.05."""
    slope = 0.30 * math.log10(settings["optim.lr"] / OPTIMUM["optim.lr"]) ** 2
    slope += 0.45 * math.log10(settings["loss.tau"] / OPTIMUM["loss.tau"]) ** 2
    alpha, beta = settings["loss.alpha"] - OPTIMUM["loss.alpha"], settings["loss.beta"] - OPTIMUM["loss.beta"]
    slope += 0.12 * alpha**2 + 0.08 * beta**2 + 0.06 * alpha * beta
    return max(TOP - slope, 0.05)


def train(settings: Mapping[str, Any], seed: int) -> Iterator[dict[str, float]]:
    """One row an epoch, as a training reports them."""
    epochs = int(settings["train.epochs"])
    speed = 4.0 * min(max(settings["optim.lr"] / OPTIMUM["optim.lr"], 0.5), 2.0)
    for epoch in range(1, epochs + 1):
        known = "/".join(f"{key}={settings[key]:g}" for key in sorted(OPTIMUM))
        digest = hashlib.sha256(f"{known}/{seed}/{epoch}".encode()).digest()
        noise = NOISE * (2 * int.from_bytes(digest[:4], "little") / 2**32 - 1)
        grown = (1 - math.exp(-speed * epoch / epochs)) / (1 - math.exp(-speed))
        yield {"epoch": epoch, "mAP": height(settings) * grown + noise}


def searched(how: str, seed: int, trials: int, epochs: int, *, early: bool, ahead: int = 6) -> Search:
    """A whole search of ``macl`` on the stand-in, four at a time."""
    config = build(Config, {"train.epochs": epochs, "loss.tau": 0.3, "optim.lr": 5e-3})  # a first point off the peak
    values = {"how": how, "seed": seed, "ahead": ahead}
    plan = new_plan(load_space("macl"), config, trials=trials, early_stopping=early, **values)
    search = Search(plan, load_space("macl"), Journal(None))
    call_trials(search, train, concurrent=4)
    return search


def found(search: Search) -> float:
    """The true height of what the search recommends, as a share of the optimum's."""
    point = search.points[search.finished()[0]]
    return height(point) / TOP


def main() -> int:
    """Search with every method and seed; print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=27)
    parser.add_argument("--out", type=Path, default=common.OUT)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        tpe = searched("tpe", seed, options.trials, options.epochs, early=True)
        cost = tpe.epochs_used
        equal = max(1, round(cost / options.epochs))
        random = searched("random", seed, equal, options.epochs, early=False)
        halved = searched("random", seed, options.trials, options.epochs, early=True)
        rows.append(
            {
                "seed": seed,
                "tpe_asha": found(tpe),
                "epochs": cost,
                "share_of_all_in_full": cost / (options.trials * options.epochs),
                "random_equal_cost": found(random),
                "random_trials": equal,
                "random_asha": found(halved),
            }
        )
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in rows[-1].items()})
    names = ("tpe_asha", "random_equal_cost", "random_asha")
    away = {name: statistics.fmean(1 - row[name] for row in rows) for name in names}
    print("mean distance from the optimum: " + ", ".join(f"{name} {value:.2%}" for name, value in away.items()))
    wins = sum(row["tpe_asha"] > row["random_equal_cost"] for row in rows)
    worst = 100 * max(1 - row["tpe_asha"] for row in rows)
    share = 100 * max(row["share_of_all_in_full"] for row in rows)
    ratio = away["random_equal_cost"] / away["tpe_asha"]
    holds = [
        common.verdict("worst seed, distance from the optimum", worst, 5, " %"),
        common.verdict("most epochs used, of all trials in full", share, 50, " %"),
        common.verdict("distance of random search at equal cost, in ours", ratio, 1, " x", at_least=True),
    ]
    print(f"it beats random search at equal cost on {wins} of {len(rows)} seeds")
    common.write("tune_search", {"rows": rows, "mean_distance": away, "wins": wins}, options.out)
    return 0 if all(holds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
