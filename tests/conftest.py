"""What every test stands on: a clean environment, one thread, and one packed copy of the built-in sample."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from marc_dist.run.attempt_id import NUMBER, TOKEN

if TYPE_CHECKING:
    from marc_dist.data.dataset import Dataset

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network for weights; read when huggingface_hub is imported
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported; only implementation=triton runs them
FOREIGN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "MARC_MASTER_FD",
    TOKEN,
    NUMBER,
)

# The same examples each time: a change is refused for what it broke, not for the luck of the draw. Others are drawn by
# hand: MARC_FUZZ_EXAMPLES=50 pytest ...
settings.register_profile("suite", derandomize="MARC_FUZZ_EXAMPLES" not in os.environ)
settings.load_profile("suite")


CLUSTER_FILES = (
    "tests/cluster/test_slurm.py",
    "tests/cluster/test_ray.py",
    "tests/cluster/test_slurm_cluster.py",
    "tests/tuning/test_ray.py",
    "tests/cluster/test_slurm_study.py",
    "tests/cluster/test_ray_study.py",
)
"""Tests on a real Slurm or Ray cluster. They wait more than they compute: they come first, the rest fills the time."""


class _ByFile(LoadFileScheduling):  # type: ignore[misc]
    """``pytest -n 2`` gives whole files to its processes, all clusters to one: none runs beside another.

    xdist's own groups (``--dist loadgroup``) do not work with pytest 9.2: items no longer have the name that it writes.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "clusters" if file in CLUSTER_FILES else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """The order of the files is ours, so that the longest come first."""
    config.option.loadscopereorder = False
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Clusters first."""
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in CLUSTER_FILES)


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


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of 20 px whose colours follow their labels; read it, never write there."""
    from tests.retrieval.runs import pack_tiny

    return pack_tiny(tmp_path_factory.mktemp("tiny") / "data").root


@pytest.fixture(scope="session")
def tiny(tiny_dir: Path) -> Dataset:
    """The tiny data set, open."""
    from marc_dist.data.dataset import open_dataset

    return open_dataset(tiny_dir)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny: Dataset) -> Path:
    """One evaluated run of the tiny data set with its report; read it, never write there."""
    from marc_dist.report.run_report import write_report
    from marc_dist.retrieval.evaluate import evaluate
    from tests.retrieval.runs import make_run

    run = tmp_path_factory.mktemp("runs") / "tiny<run>"
    config = make_run(run, tiny)
    evaluate(config, run, print)
    write_report(config, run)
    return run
