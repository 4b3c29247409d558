"""Images -> unit vectors, on all ranks at once."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from marc_dist import comm
from marc_dist.config import Config
from marc_dist.data.dataset import Dataset
from marc_dist.data.loader import iter_eval
from marc_dist.data.plan import rank_part
from marc_dist.retrieval.index import Float32, check_finite, exact_unit
from marc_dist.training.model import Encoder

Int = NDArray[np.int64]


def rank_ids(ids: Int, batch: int) -> Int:
    """This rank's contiguous part of ``ids``, in whole batches of the one-process run.

    Every forward pass then has the same rows whatever the number of ranks, and so the same features.
    """
    starts = rank_part(np.arange(0, len(ids), batch, dtype=np.int64), comm.rank(), comm.world())
    return ids[starts[0] : starts[-1] + batch] if len(starts) else ids[:0]


def embed(
    encoder: Encoder,
    dataset: Dataset,
    ids: Int,
    config: Config,
    *,
    image_size: int,
    device: torch.device,
    what: str,
    say: Callable[[str], None],
) -> Float32:
    """Unit vectors of this rank's part (``rank_ids``) of ``ids``. A collective.

    Args:
        encoder: put in evaluation mode; float32 or float64, no autocast.
        dataset: where the images are.
        ids: sample ids, the same on all ranks.
        config: ``eval.features``, ``eval.batch``, ``data.num_workers``, ``data.verify_crc``.
        image_size: side of the square that the encoder takes, pixels.
        device: where the encoder runs.
        what: the encoder's name in messages.
        say: takes one line for people.

    Raises:
        DataError: unreadable image, or features that are not finite; names them.
    """
    started = time.monotonic()
    mine = rank_ids(ids, config.eval.batch)
    encoder = encoder.eval().to(device)
    parameter = next(encoder.parameters())
    width = encoder.num_features
    if config.eval.features == "projection":
        width = [layer.out_features for layer in encoder.head.modules() if isinstance(layer, torch.nn.Linear)][-1]
    parts = [np.empty((0, width), dtype=np.float32)]
    with torch.inference_mode():
        batches = iter_eval(
            dataset, mine, image_size, config.eval.batch, config.data.num_workers, config.data.verify_crc
        )
        for images, _ in batches:
            both = encoder(images.to(device, parameter.dtype))
            parts.append(both[config.eval.features == "projection"].float().cpu().numpy())
    features = np.concatenate(parts)
    check_finite(features, [dataset.place(sample) for sample in mine.tolist()], f"{what} encoder")
    seconds = time.monotonic() - started
    say(f"{what} encoder: {len(ids)} images in {seconds:.1f} s, {len(ids) / max(seconds, 1e-9):.0f} images/s")
    return exact_unit(features)
