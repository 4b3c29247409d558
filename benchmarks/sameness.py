"""How much the same one run is at another number of ranks or threads: in float64, in float32, and where bits are equal.

    python benchmarks/sameness.py [--steps 60] [--only NAME] [--out benchmarks/out]

Trains on the built-in sample, 64 px, with live batch norms, MACL's defaults and AdamW: a pretrained EfficientNet-Lite0
for 6 steps, a ResNet-18 from random weights for as many as asked, and a Swin-T, which draws random numbers itself
(stochastic depth 0.1, and dropout 0.1 before the head), for 2. Each layout (ranks x threads of a rank) starts
``marc-launch local``. Printed is the difference of all weights from those of one rank with one thread, relative to
their length, and whether the bits are equal when the same layout is run again. Writes ``sameness.json``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import OUT, verdict, write
from safetensors.torch import load_file

LAYOUTS: dict[str, tuple[int, int, list[str]]] = {
    "1 rank, 1 thread": (1, 1, []),
    "again": (1, 1, []),
    "again, on a launcher that gives 2 threads": (1, 2, ["train.threads=1"]),
    "1 rank, 2 threads": (1, 2, []),
    "2 ranks, 1 thread": (2, 1, []),
    "3 ranks, 1 thread": (3, 1, []),
}


def trained(data: Path, run: Path, ranks: int, threads: int, words: list[str]) -> torch.Tensor:
    """All weights after a run, as one vector in float64."""
    launch = [sys.executable, "-m", "marc_dist.cli.launch", "--procs-per-node", str(ranks), "local"]
    fixed = [f"data.dir={data}", f"train.run_dir={run}", "data.image_size=64", "data.num_workers=0"]
    fixed += ["train.global_batch=60", "train.device=cpu", "train.checkpoint_every=100000", "train.epochs=40"]
    fixed += ["model.batch_norm=sync"]  # what differs most
    command = [*launch, *fixed, *words, f"cluster.threads_per_proc={threads}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    parts = [load_file(run / name) for name in ("encoder.safetensors", "head.safetensors")]
    return torch.cat([value.double().reshape(-1) for state in parts for _, value in sorted(state.items())])


def main() -> int:
    """Every encoder in both precisions in every layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of the ResNet-18")
    parser.add_argument("--only", help="of one encoder, by timm's name")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    options = parser.parse_args()
    encoders = {
        "EfficientNet-Lite0, pretrained": ("tf_efficientnet_lite0", True, 6),
        "ResNet-18, random weights": ("resnet18", False, options.steps),
        "Swin-T, random weights, with draws of its own": ("swin_tiny_patch4_window7_224", False, 2),
    }
    encoders = {name: of for name, of in encoders.items() if options.only in (None, of[0])}
    figures: dict[str, dict[str, float]] = {}
    same = {}
    with tempfile.TemporaryDirectory(prefix="sameness-") as folder:
        data = Path(folder) / "sample"
        pack = [sys.executable, "-m", "marc_dist.cli.shard", "--dataset", "sample", "--out", str(data)]
        subprocess.run(pack, check=True, capture_output=True)
        for name, (backbone, pretrained, steps) in encoders.items():
            for precision in ("float64", "float32"):
                words = [f"model.backbone={backbone}", f"model.pretrained={str(pretrained).lower()}"]
                words += [f"train.precision={precision}", f"train.max_steps={steps}"]
                words += ["model.drop_rate=0.1"] * backbone.startswith("swin")
                found = {
                    layout: trained(
                        data, Path(folder) / f"{backbone}-{precision}-{at}", ranks, threads, [*words, *more]
                    )
                    for at, (layout, (ranks, threads, more)) in enumerate(LAYOUTS.items())
                }
                first = found["1 rank, 1 thread"]
                place = f"{name}, {steps} steps, {precision}"
                same[place] = all(
                    torch.equal(first, other) for name, other in found.items() if name.startswith("again")
                )
                figures[place] = {
                    layout: float((other - first).norm() / first.norm()) for layout, other in found.items()
                }
                told = ", ".join(f"{layout} {value:.1e}" for layout, value in figures[place].items() if value)
                print(f"{place}: {told}; the same layout again: {'equal bits' if same[place] else 'OTHER BITS'}")
    write("sameness", {"relative_difference": figures, "equal_bits_again": same}, options.out)
    worst = max(max(values.values()) for place, values in figures.items() if place.endswith("float64"))
    holds = verdict("float64, any layout, relative difference x 1e9 (the bound of the tests)", worst * 1e9, 1.0, "")
    return 0 if holds and all(same.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
