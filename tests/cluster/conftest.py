"""One Slurm cluster for all tests that ask for ``slurm``; each of them finds it idle."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.slurm_cluster import REMEDY, SlurmCluster, missing_programs


def require_slurm() -> None:
    """In CI a missing Slurm is a failure, not a skip."""
    if missing := missing_programs():
        message = f"no Slurm on this machine, {', '.join(missing)} missing ({REMEDY})"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """Four nodes. Slurm's variables are in ``slurm.env`` only: hand it to every subprocess."""
    require_slurm()
    with SlurmCluster(nodes=4) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def slurm_idle(request: pytest.FixtureRequest) -> None:
    """Whatever the test before has left: no job, no dead daemon, all nodes idle."""
    if "slurm" in request.fixturenames:
        request.getfixturevalue("slurm").reset()
