"""How well a streamed epoch is shuffled: pairs of one scene within a batch, against an exact shuffle.

    python benchmarks/shuffle_quality.py [--data ../shared/data/ml-aid-150px] [--batch 64] [--quick]

A streamed epoch reads ``data.lanes`` shards side by side, each through a buffer of ``data.shuffle`` samples, so what
lies together in an archive may come together in a batch. Figures are of the order itself, computed from the index; no
picture is read. 1 is an exact shuffle. Two archives: a sorted one (2,400 samples, 24 scenes, 48 shards of 50), and
ML-AID where it is at hand, packed by name, its scenes the part of the name before the last ``_``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import verdict, write

from marc_dist.data.dataset import open_dataset
from marc_dist.data.plan import Ids
from marc_dist.data.stream_order import Lanes, alike, pair_rate
from marc_dist.packing.pack import pack
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.source import read_source

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ((1, 1), (1, 1000), (4, 50), (8, 50), (8, 300), (16, 300), (48, 50))
GOOD = (8, 300)


def sorted_archive() -> tuple[list[str], dict[int, Ids]]:
    """Scenes, and the ids of each shard."""
    scene = [f"scene {number // 100}" for number in range(2400)]
    return scene, {shard: np.arange(50 * shard, 50 * shard + 50) for shard in range(48)}


def ml_aid(data: Path) -> tuple[list[str], dict[int, Ids]]:
    """The same of ML-AID's training split, packed in shards of 50."""
    with tempfile.TemporaryDirectory(prefix="shuffle-quality-") as folder:
        pack(read_source(load_recipe("ml-aid"), [data]), Path(folder) / "out", samples_per_shard=50)
        dataset = open_dataset(Path(folder) / "out")
    rows = dataset.rows("train")
    scene = [str(key).rsplit("_", 1)[0] for key in dataset.keys]
    return scene, {int(shard): rows[dataset.shard[rows] == shard] for shard in np.unique(dataset.shard[rows])}


def rates(scene: list[str], samples: dict[int, Ids], batch: int) -> dict[tuple[int, int], float]:
    """Of each setting, the mean over three epochs."""
    groups, _ = alike(scene, samples)
    every = groups[np.concatenate(list(samples.values()))]
    found = {}
    for lanes, buffer in SETTINGS:
        order = Lanes(samples, lanes, buffer, batch, seed=0, fingerprint="f")
        epochs = [order.order(epoch) for epoch in range(3)]
        found[lanes, buffer] = float(np.mean([pair_rate(groups[ids], steps, every) for ids, steps in epochs]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "ml-aid-150px")
    parser.add_argument("--batch", type=int, default=64, help="samples of a global batch")
    parser.add_argument("--quick", action="store_true", help="the sorted archive only")
    args = parser.parse_args()
    archives = {"sorted": sorted_archive()}
    if args.quick or not args.data.is_dir():
        print("ML-AID: left out" if args.quick else f"ML-AID: SKIPPED, {args.data} is not there (see --data)")
    else:
        archives["ML-AID"] = ml_aid(args.data)
    figures: dict[str, dict[str, float]] = {}
    held = []
    for name, (scene, samples) in archives.items():
        found = rates(scene, samples, args.batch)
        print(f"{name}: {sum(map(len, samples.values()))} samples, {len(samples)} shards, batches of {args.batch}")
        for (lanes, buffer), rate in found.items():
            print(f"  lanes {lanes:3d}  buffer {buffer:5d}  same-scene pairs {rate:6.2f} x an exact shuffle's")
        figures[name] = {f"{lanes}/{buffer}": rate for (lanes, buffer), rate in found.items()}
        held.append(verdict(f"{name}: lanes {GOOD[0]}, buffer {GOOD[1]}", found[GOOD], 1.5, "x"))
    write("shuffle_quality" + "-quick" * args.quick, {"batch": args.batch, "rates": figures})
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
