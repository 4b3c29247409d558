"""Ten steps with every loss, as they were when this file's neighbour was written: no change of a number goes unseen.

``loss_curves.json`` holds the losses of ten float64 steps on the built-in sample, on one thread, each loss with its
default settings; also what they depend on besides the code. Where all of that is the same, the bits must be; elsewhere
(another torch, another kind of CPU) kernels may round otherwise, and the losses must agree to 1e-12. Augmentation and
random weights are left out: they are float32, and their rounding alone would be 1e-8.

A change on purpose: ``python -m tests.training.test_loss_curves`` writes the file anew.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from marc_dist.cli import shard
from marc_dist.config import Config, OptimConfig, build
from marc_dist.config.loss import LossName
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.encoder.model import Learner
from marc_dist.run.folder import read_lines
from marc_dist.training import setup
from marc_dist.training.schedule import build_optimiser
from marc_dist.training.trainer import train
from tests.training.test_trainer import _words
from tests.worlds import run_in_world

STORED = Path(__file__).with_name("loss_curves.json")
STEPS = 10
RTOL = 1e-12


def layout() -> dict[str, str]:
    """What the bits depend on besides the code."""
    cpu = Path("/proc/cpuinfo")
    vendor = (
        next((line.split()[-1] for line in cpu.read_text().splitlines() if "vendor_id" in line), "")
        if (cpu.exists())
        else ""
    )
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "machine": platform.machine(), "vendor": vendor, "cpu": capability}


def _one_label(*given: Any, **more: Any) -> Dataset:
    """The sample with the first label of each picture, for the loss that allows no more."""
    dataset = open_dataset(*given, **more)
    labels = dataset.labels.copy()
    labels &= labels.cumsum(axis=1) == 1
    return dataclasses.replace(dataset, bits=np.packbits(labels, axis=1, bitorder="little"))


class _Exact(setup.TrainLoader):  # type: ignore[misc]
    """The real loader's order; two corners of each picture as views, in numbers that no machine rounds."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        reader = IndexedReader(self.pictures)
        for batch in super().epoch(epoch, start_step):
            pictures = [np.asarray(reader.image(sample)) for sample in batch.ids.tolist()]
            views = [picture[corner, corner] for corner in (slice(0, 32), slice(32, 64)) for picture in pictures]
            pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
            yield dataclasses.replace(batch, images=pixels.double() / 128 - 1)
        reader.close()

    def __init__(self, dataset: Dataset, *more: Any) -> None:
        self.pictures = dataset
        super().__init__(dataset, *more)


def _whole_numbers(config: OptimConfig, learner: Learner) -> torch.optim.Optimizer:
    """First weights in numbers that no machine rounds, in place of float32 draws; then the real optimiser."""
    draws = np.random.default_rng(0)
    with torch.no_grad():
        for name, weight in learner.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim > 1:
                whole = torch.from_numpy(draws.integers(-64, 65, size=tuple(weight.shape))).double()
                weight.copy_(whole / 64 * 2.0 ** -round(np.log2(weight[0].numel()) / 2))
    return build_optimiser(config, learner)


def curves(data: str, folder: str) -> dict[str, list[float]]:
    """The losses of every step, by the name of the loss; in a process of one thread."""
    found = {}
    setup.TrainLoader, setup.build_optimiser = _Exact, _whole_numbers  # type: ignore[misc]
    for name in get_args(LossName):
        more = {"model.batch_norm": "sync", "train.max_steps": STEPS, "loss.name": name, "train.threads": 1}
        run = Path(folder) / name
        setup.open_dataset = _one_label if name == "supcon_single" else open_dataset
        train(build(Config, _words(Path(data), run) | more))
        found[name] = [line["loss"] for line in read_lines(run / "metrics.jsonl")]
    return found


def test_ten_steps_of_every_loss_are_those_that_were_stored(sample_dir: Path, tmp_path: Path) -> None:
    stored = json.loads(STORED.read_text())
    (found,) = run_in_world(curves, 1, str(sample_dir), str(tmp_path))
    assert found.keys() == stored["losses"].keys() == set(get_args(LossName))
    same = stored["layout"] == layout()
    for name, losses in found.items():
        assert len(losses) == STEPS and len(set(losses)) == STEPS
        expected = stored["losses"][name]
        assert losses == (expected if same else pytest.approx(expected, rel=RTOL)), name


def _write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/sample"
        assert shard.main(["--dataset", "sample", "--out", data]) == 0
        (found,) = run_in_world(curves, 1, data, f"{folder}/runs")
    Path(sys.argv[1] if len(sys.argv) > 1 else STORED).write_text(
        json.dumps({"layout": layout(), "losses": found}, indent=1) + "\n"
    )
    print("written")


if __name__ == "__main__":
    sys.exit(_write())
