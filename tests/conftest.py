"""What every test stands on: a clean environment, one thread, and one packed copy of the built-in sample."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported; only implementation=triton runs them
FOREIGN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MARC_MASTER_FD")

# The same examples each time: a change is refused for what it broke, not for the luck of the draw. Others are drawn by
# hand: MARC_FUZZ_EXAMPLES=50 pytest ...
settings.register_profile("suite", derandomize="MARC_FUZZ_EXAMPLES" not in os.environ)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may sit inside a job; the tests must not notice."""
    for name in list(os.environ):
        if name in FOREIGN or name.startswith(("SLURM_", "SBATCH_", "SRUN_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="session")
def hears_ctrl_c() -> None:
    """A shell's background job ignores Ctrl-C, and so would every program that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded pictures of the tests lie with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Ranks and workers share the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in sample, packed by the real command; read it, never write there."""
    from marc_dist.cli.shard import main

    out = tmp_path_factory.mktemp("data") / "sample"
    assert main(["--dataset", "sample", "--out", str(out), "--workers", "1"]) == 0
    return out
