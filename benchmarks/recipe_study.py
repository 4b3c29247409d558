"""What fine-tuning a whole encoder gains over a head on its frozen features, and by which recipe; on real collections.

    python benchmarks/recipe_study.py [--data ../shared/data] [--seeds 3] [--procs 2]
    python benchmarks/recipe_study.py --report                    # the tables of docs/results.md from what is there

EfficientNet-Lite0 with ImageNet's weights at 96 px, the default loss. Cells are kept as in ``loss_study.py``: the
script may be killed at any moment and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import loss_study
from common import OUT
from loss_study import ROOT, Cell, Study, Words, markdown

HEAD_EPOCHS = {"ml-aid": 15, "gid-mtl5": 30}
EPOCHS = 4  # of the whole encoder, after those of the head
HEAD: Words = {"model.freeze": "backbone", "train.global_batch": 256}
THEN_ALL: Words = {
    "model.freeze": "backbone",
    "model.batch_norm": "frozen",
    "optim.backbone_lr_scale": 0.1,
    "augment.crop_min": 0.7,
    "train.global_batch": 100,
}


def same(**more: Any) -> Words:
    """The recipe with some changes."""
    return {**THEN_ALL, **{key.replace("__", "."): value for key, value in more.items()}}


ONE_VIEW: Words = {"data__num_views": 1, "train__global_batch": 256}
LIGHT: Words = {**ONE_VIEW, "augment__crop_min": 1.0, "augment__jitter": 0.0, "augment__gray": 0.0}
RECIPES: dict[str, Words] = {
    "head alone": HEAD,
    "head, then all": THEN_ALL,
    "same, live batch norms": same(model__batch_norm="sync"),
    "same, crops from 0.3": same(augment__crop_min=0.3),
    "same, crops of 1": same(augment__crop_min=1.0),
    "same, averaged": same(train__ema=0.98),
    "same, backbone at 0.3": same(optim__backbone_lr_scale=0.3),
    "one view, batch 256": same(**ONE_VIEW),
    "one view, batch 256, backbone at 0.3": same(**ONE_VIEW, optim__backbone_lr_scale=0.3),
    "one view, batch 256, backbone at 0.3, crops of 1": same(
        **ONE_VIEW, optim__backbone_lr_scale=0.3, augment__crop_min=1.0
    ),
    "one view, batch 256, flips and turns only": same(**LIGHT),
    "one view, batch 256, flips and turns only, backbone at 0.3": same(**LIGHT, optim__backbone_lr_scale=0.3),
}
FULL_SEEDS = ("head alone", "head, then all")  # the changes have one seed: they are to show a direction
PART = "recipes"
loss_study.PARTS[PART] = RECIPES
loss_study.WHOLE.add(PART)


class RecipeStudy(Study):
    """Cells whose epochs are those of the head and, after them, of the whole encoder."""

    def collections(self, part: str) -> list[str]:
        """The real ones that are there."""
        return [name for name in super().collections(part) if name in HEAD_EPOCHS]

    def config(self, cell: Cell) -> Any:
        """The run of a cell."""
        first = HEAD_EPOCHS[cell.collection]
        then = {"train.epochs": first} if cell.name == "head alone" else {
            "train.epochs": first + EPOCHS, "model.thaw_after": first
        }  # fmt: skip
        return super().config(cell, then)


def report(study: Study) -> None:
    """Write the tables into docs/results.md."""
    lines = list(markdown(study, PART))
    print("\n".join(lines))
    page = loss_study.RESULTS
    page.write_text(loss_study.filled(page.read_text(), PART, lines, "recipe_study.py"))


def main() -> int:
    """Run the cells, then the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real files")
    parser.add_argument("--out", type=Path, default=OUT, help="where work files go")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--procs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--report", action="store_true", help="only the tables")
    options = parser.parse_args()
    study = RecipeStudy(options.data, options.out)
    if not options.report:
        for name in study.collections(PART):
            study.dataset(name)
            study.untrained(PART, name)
        if options.procs > 1 and options.worker is None:
            command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--worker"]
            one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
            workers = [subprocess.Popen([*command, str(at)], env=one_thread) for at in range(options.procs)]
            if any([worker.wait() for worker in workers]):
                return 1
        else:
            cells = [
                Cell(PART, name, setting, seed)
                for seed in range(options.seeds)
                for name in study.collections(PART)
                for setting in (FULL_SEEDS if seed else RECIPES)
            ]
            for cell in cells[(options.worker or 0) :: options.procs]:
                study.run(cell)
        if options.worker is not None:
            return 0
    report(study)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
