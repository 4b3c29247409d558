"""Run folders for the tests: a real exported encoder, a log, and a tiny packed data set with hostile names."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from marc_dist.config import Config, build
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.encoder.export import save_encoder
from marc_dist.encoder.model import build_encoder
from marc_dist.run.folder import write_config

HOSTILE = '<script>alert("x")</script>'
CLASSES = ("red & blue", HOSTILE, "green", "dark'\"", "never")


OTHERS = ("Greens", "sea", "Red_&_Blue", "sky", "none")
"""Classes of other data; the first and the third are known to both, written otherwise and in another order."""


def pack_tiny(
    folder: Path,
    num: int = 40,
    seed: int = 0,
    classes: tuple[str, ...] = CLASSES,
    title: str = f"tiny {HOSTILE}",
    twins: tuple[tuple[int, int], ...] = (),
    scenes: tuple[str, ...] = ("",),
) -> Dataset:
    """``num`` pictures of 20 px whose colours follow their labels; a quarter is the test split; one has no labels.

    Of ``twins``, the second is the file of the first. Pictures are of ``scenes`` in turn.
    """
    copy_of = {second: first for first, second in twins}
    files: list[bytes] = []
    rng = np.random.default_rng(seed)
    labels = rng.random((num, len(classes))) < 0.35
    labels[:, -1] = False
    labels[3] = False
    folder.mkdir(parents=True)
    columns: dict[str, list[object]] = {name: [] for name in ("offset", "size", "crc32")}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row in labels:
            pixels = rng.integers(0, 90, (20, 20, 3)) + 150 * row[:3].astype(int)
            data = io.BytesIO()
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(data, "PNG")
            files.append(files[copy_of[len(files)]] if len(files) in copy_of else data.getvalue())
            entry = tarfile.TarInfo(f"{len(columns['size'])}.png")
            entry.size = len(files[-1])
            columns["offset"].append(buffer.tell() + 512)
            columns["size"].append(entry.size)
            columns["crc32"].append(zlib.crc32(files[-1]))
            tar.addfile(entry, io.BytesIO(files[-1]))
    (folder / "all.tar").write_bytes(buffer.getvalue())
    table = pa.table(
        {
            "key": [f"<b>{at}</b>" for at in range(num)],
            "split": ["test" if at % 4 == 3 else "train" for at in range(num)],
            "shard": ["all.tar"] * num,
            **columns,
            "labels": [np.packbits(row, bitorder="little").tobytes() for row in labels],
            "scene": [scenes[at % len(scenes)] for at in range(num)],
            "ext": ["png"] * num,
            "width": [20] * num,
            "height": [20] * num,
        }
    )
    pq.write_table(table, folder / "index.parquet")
    index = (folder / "index.parquet").read_bytes()
    meta = {
        "format": 1,
        "name": "tiny",
        "title": title,
        "classes": list(classes),
        "fingerprint": hashlib.sha256(index + buffer.getvalue()).hexdigest(),
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "shards": [
            {
                "name": "all.tar",
                "size": len(buffer.getvalue()),
                "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
                "num_samples": num,
            }
        ],
    }
    (folder / "dataset.json").write_text(json.dumps(meta))
    return open_dataset(folder)


def make_run(folder: Path, dataset: Dataset, **words: object) -> Config:
    """A finished run: config, log, and an encoder whose weights are not those of its seed."""
    values = {
        "data.dir": str(dataset.root),
        "data.image_size": 32,
        "data.num_workers": 0,
        "model.backbone": "test_resnet",
        "model.pretrained": False,
        "model.head_hidden": 8,
        "model.head_dim": 6,
        "train.run_dir": str(folder),
        "train.device": "cpu",
        "eval.features": "backbone",
        "eval.ks": [3, 10],
        "eval.batch": 4,
        **{key.replace("__", "."): value for key, value in words.items()},
    }
    config = build(Config, values)
    write_config(config)
    extra = {"dataset": dataset.name, "classes": list(dataset.classes), "fingerprint": dataset.fingerprint, "step": 3}
    save_encoder(build_encoder(config.model, 99, 32), config, extra)
    same = {"epoch": 0, "lr": 1e-3, "grad_norm": 0.5, "images_per_s": 9}
    lines = [{"step": at, "loss": None if at == 5 else 5 - at / 2, **same} for at in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo')
    return config
