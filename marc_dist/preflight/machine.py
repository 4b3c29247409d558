"""What one rank sees of its own machine: versions, GPU, shards, disk, and files that appear in a shared folder."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import marc_dist
from marc_dist.config import Config, DataError, MarcError, first_line
from marc_dist.data.dataset import open_dataset
from marc_dist.encoder.model import build_encoder
from marc_dist.memory_limits import free_memory, group_room, shm_room
from marc_dist.preflight.rules import GIB, size
from marc_dist.run.folder import checkpoints

PLENTY = 16 * GIB
"""More than a checkpoint of any usual encoder (AdamW, 1.4 billion weights)."""


def host_name() -> str:
    """What tells machines apart: virtual nodes share it, containers on different machines do not."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return socket.gethostname()


def or_error(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a check finds on this machine, or why it could not: whatever it raises, the others wait for an answer."""
    try:
        return look()
    except MarcError as error:
        return {"error": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {first_line(error)}"}


def wait_for_file(path: Path, deadline: float) -> bool:
    """Whether a file comes into being before ``time.monotonic()`` is ``deadline``, seen through a network, too."""
    while True:
        with suppress(OSError):
            if path.name in os.listdir(path.parent):  # noqa: PTH208 - NFS forgets what was missing when it lists
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)


def versions(device: torch.device) -> dict[str, str]:
    """What must be the same everywhere, or one run is several."""
    try:
        timm = version("timm")  # asked for, not imported: that takes seconds
    except PackageNotFoundError:
        timm = "none"
    found = {
        "marc-dist": marc_dist.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "timm": timm,
    }
    return found | ({"CUDA": str(torch.version.cuda)} if device.type == "cuda" else {})


def gpu(device: torch.device) -> dict[str, Any]:
    """This rank's GPU and how many it sees, or only that it runs on the CPU."""
    if device.type != "cuda":
        return {"device": device.type}
    index = torch.cuda.current_device()
    told = torch.cuda.get_device_properties(index)
    return {
        "device": "cuda",
        "visible": torch.cuda.device_count(),
        "name": told.name,
        "memory": told.total_memory,
        "uuid": str(getattr(told, "uuid", "")),
    }


def shards(config: Config) -> dict[str, Any]:
    """The fingerprint of the shards, all of which can be read here.

    Raises:
        DataError: see ``open_dataset``; also a shard of which not one byte can be read.
    """
    indexed = config.data.reader == "indexed"
    dataset = open_dataset(config.data.dir, shards=indexed)
    files = [dataset.root / name for name in dataset.shards] if indexed else []
    with ThreadPoolExecutor(8) as pool:  # storage far away answers many at a time
        for file, error in zip(files, pool.map(_touch, files), strict=True):
            if error:
                raise DataError(f"{file}: cannot be read ({error}); see marc-shard --verify {dataset.root}")
    return {"fingerprint": dataset.fingerprint, "place": str(dataset.root)}


def _touch(file: Path) -> str:
    """Read one byte; the reason why that does not work, or nothing."""
    try:
        with file.open("rb", buffering=0) as opened:
            return "" if opened.read(1) else "it is empty"
    except OSError as error:
        return error.strerror or type(error).__name__


def disk(run_dir: Path) -> dict[str, Any]:
    """Bytes and files for which the run folder, or the nearest folder above it, has room."""
    place = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.is_dir())
    told = os.statvfs(place)
    inodes = told.f_favail if told.f_files else None  # some file systems do not count them
    return {"place": str(place), "free": told.f_bavail * told.f_frsize, "inodes": inodes}


def memory(config: Config, rows: int, cpu: bool) -> dict[str, Any]:
    """Bytes that are left for this rank and its neighbours on the node, and what a batch takes in /dev/shm.

    Args:
        config: the run's settings.
        rows: samples of a rank in a global step.
        cpu: the loader's processes augment and send whole batches of views; else they send pictures or nothing.
    """
    room, group = shm_room(), group_room()
    workers = config.data.num_workers if not config.model.head_only else 0
    each = rows * config.data.num_views * 3 * config.data.image_size**2 * 4
    return {
        "shm": None if room is None or not workers or not cpu else room.free,
        "batch": each,
        "ahead": each * (2 * workers + 1),
        "free": free_memory(),
        "limit": None if group is None else group.limit,
    }


def bytes_needed(config: Config, free: int) -> tuple[int | None, str]:
    """Bytes of the checkpoints that a run has still to find room for (one more than it keeps), and in words.

    Args:
        config: the run's settings.
        free: bytes; where there are more than enough, nothing is estimated: that would load timm, which takes seconds.
    """
    there = checkpoints(Path(config.train.run_dir))
    more = max(1, config.train.keep_checkpoints + 1 - len(there))
    if free > more * PLENTY:
        return None, ""
    try:
        each = there[-1].stat().st_size if there else _checkpoint_bytes(config)
    except Exception:  # a backbone that cannot be built without memory, or at all: the run itself says so
        return None, "size of a checkpoint unknown"
    return more * each, f"{more} more checkpoints take {size(more * each)}"


def _checkpoint_bytes(config: Config) -> int:
    """Weights, the optimiser's moments and the loss's memory, from shapes alone."""
    model = config.model.model_copy(update={"weights": None, "pretrained": False})
    num = 3 if config.data.bands is None else len(config.data.bands)
    with torch.device("meta"):
        encoder = build_encoder(model, 0, config.data.image_size, in_chans=num)
    numbers: int = sum(value.numel() for value in encoder.state_dict().values())
    numbers *= 3 if config.optim.name == "adamw" else 2
    return (numbers + config.loss.memory * model.head_dim) * (8 if config.train.precision == "float64" else 4)
