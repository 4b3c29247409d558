"""How well an audit tells copies from neighbours by a backbone's features, and finds labels that were turned round.

    python benchmarks/audit_suspects.py data/ml-aid [--size 150] [--copies 150] [--wrong 0.05] [--features DIR]

Copies: pictures cut by 5 % on each side, 10 % brighter, saved as JPEG of quality 60. Labels: a share of
all labels of all pictures, turned round at random, seed 0. The backbone is the default one with ImageNet's weights.
"""

from __future__ import annotations

import argparse
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

import marc_dist
from marc_dist.augment.views import eval_transform
from marc_dist.config import Config, build
from marc_dist.study.audit.label_suspects import doubtful, probe_probabilities
from marc_dist.study.audit.leaks import bound_of
from marc_dist.study.floors import backbone_features, kept_features, mirror_features

OUT = Path(__file__).parent / "out"


def altered(image: Image.Image) -> Image.Image:
    x, y = round(0.05 * image.width), round(0.05 * image.height)
    cut = image.crop((x, y, image.width - x, image.height - y)).resize(image.size)
    data = BytesIO()
    ImageEnhance.Brightness(cut).enhance(1.1).save(data, "JPEG", quality=60)
    return Image.open(BytesIO(data.getvalue())).convert("RGB")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("data", help="a shard folder")
    words.add_argument("--size", type=int, default=150, help="side of the pictures, pixels")
    words.add_argument("--copies", type=int, default=150)
    words.add_argument("--wrong", type=float, default=0.05, help="share of the labels that are turned round")
    words.add_argument("--features", help="folder of kept features")
    options = words.parse_args()
    values = {"data.dir": options.data, "data.image_size": options.size, "data.num_workers": 0,
              "data.features_dir": options.features or str(OUT / "features"), "model.freeze": "backbone"}  # fmt: skip
    config = build(Config, values)
    opened = marc_dist.open_dataset(options.data)
    dataset = opened.index
    features = backbone_features(dataset, config, print)
    rows = np.unique(np.linspace(0, len(dataset) - 1, 256).astype(np.int64))
    bound = bound_of(features, rows, mirror_features(dataset, config, rows, print))
    kept = kept_features(dataset, config, print)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, options.copies).astype(np.int64))
    pictures = [eval_transform(altered(opened[int(row)].image), options.size, kept.scale) for row in chosen]
    copies = np.concatenate([kept.compute(torch.stack(pictures[at : at + 50])) for at in range(0, len(pictures), 50)])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = (unit[chosen] * (copies / np.linalg.norm(copies, axis=1, keepdims=True))).sum(axis=1)
    nearest = marc_dist.search(features, features, 1, self_positions=np.arange(len(features))).scores[:, 0]

    labels = dataset.labels
    wrong = np.random.default_rng(0).random(labels.shape) < options.wrong
    given = labels ^ wrong
    found = doubtful(given, probe_probabilities(features, given))
    num = int(wrong.sum())
    hits = np.array([wrong[doubt.row, doubt.label] for doubt in found])
    figures = {
        "bound": round(bound, 3),
        "copies_beyond": round(float((cosines >= bound).mean()), 3),
        "pictures_beyond": int((nearest >= bound).sum()),
        "pictures": len(dataset),
        "turned_labels": num,
        "doubtful_labels": len(found),
        "recall_of_all_doubts": round(float(hits.sum()) / num, 3),
        "recall_of_the_first": round(float(hits[:num].sum()) / num, 3),
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "audit_suspects.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1), f"figures in {OUT / 'audit_suspects.json'}", sep="\n")


if __name__ == "__main__":
    main()
