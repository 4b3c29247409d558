"""A run's real parts with fresh weights, for a measurement that leaves the run alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from marc_dist import comm
from marc_dist.config import Config
from marc_dist.data.batches import Batch
from marc_dist.encoder.device import resolve_device
from marc_dist.retrieval.vectors.features import features_root
from marc_dist.training.log import console
from marc_dist.training.setup import Setup


@contextmanager
def fresh_run(config: Config, name: str, at: Callable[[int, str], None]) -> Iterator[tuple[Setup, Path]]:
    """One rank of a run that begins anew; nothing in ``train.run_dir`` but the folder ``name`` changes. A collective.

    What ``model.thaw_after`` would let learn later learns from the first step on.

    Args:
        config: the run's settings.
        name: of the folder of the measurement inside the run folder; it is given beside the run's parts.
        at: told (step from 1, phase) on the way; see ``watchdog.PHASES``.

    Raises:
        ConfigError, DataError, LaunchError: as ``trainer.train``.
    """
    out = Path(config.train.run_dir) / name
    data = config.data.model_copy(update={"features_dir": str(features_root(config))})  # beside the run, not inside
    train = config.train.model_copy(update={"run_dir": str(out)})
    config = config.model_copy(update={"train": train, "data": data})
    comm.join(resolve_device(config.train.device).type, timeout_s=config.train.timeout_s, folder=out)
    setup = Setup(config, False, at, console(comm.rank() == 0).print)
    try:
        if setup.thaw_step is not None:
            setup.thaw()  # the long part of the run, and what its learning rate is for
        out.mkdir(parents=True, exist_ok=True)
        yield setup, out
    finally:
        setup.loader.close()
    comm.barrier()
    comm.leave()


def endless_batches(setup: Setup, equal: bool = False) -> Generator[Batch, None, None]:
    """Epoch after epoch; close it when there are enough.

    Args:
        setup: the run's parts.
        equal: leave out the smaller batch at an epoch's end.
    """
    size = 0
    for epoch in count():
        for batch in setup.loader.epoch(epoch):
            size = max(size, batch.global_size)  # the first one is whole
            if not equal or batch.global_size == size:
                yield batch
