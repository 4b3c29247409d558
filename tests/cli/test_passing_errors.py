"""Storage that does not answer is no mistake of a person: exit code 75, on which a job starts again."""

from __future__ import annotations

import errno
import pickle

import pytest

from marc_dist.cli.command import run_command
from marc_dist.config import DataError, LaunchError, is_passing
from marc_dist.run.exit_codes import EXIT_HUNG
from marc_dist.run.job import start_again


def _told(code: int, of_ours: bool) -> int:
    def body() -> int:
        try:
            raise OSError(code, "said by the system", "/data/train-000000.tar")
        except OSError as error:
            if not of_ours:
                raise
            raise DataError(f"/data/train-000000.tar: cannot be read ({error.strerror}); try again") from None

    return run_command("marc-train", body)


@pytest.mark.parametrize("of_ours", [False, True])
@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ESTALE, 75), (errno.EIO, 75), (errno.ENOSPC, 2), (errno.EACCES, 2), (errno.ENOENT, 2)],
)
def test_what_passes_is_told_from_what_a_person_mends(
    code: int, expected: int, of_ours: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _told(code, of_ours) == expected
    assert capsys.readouterr().err.count("\n") == 1


def test_every_rank_knows_that_it_passes() -> None:
    """Rank 0's error is sent to all ranks; they end with the same code."""
    with pytest.raises(LaunchError) as caught:
        try:
            raise OSError(errno.ESTALE, "Stale file handle")
        except OSError:
            raise LaunchError("runs/a: cannot be written") from None
    sent = pickle.loads(pickle.dumps(caught.value))
    assert sent.passing and is_passing(sent) and str(sent) == "runs/a: cannot be written"
    assert not LaunchError("a mistake").passing


def test_a_job_starts_again_on_it_within_its_limits() -> None:
    assert start_again(EXIT_HUNG, False, [0], 0, max_restarts=5, max_stalls=2)[0]
    assert not start_again(EXIT_HUNG, False, [0, 0, 0], 0, max_restarts=5, max_stalls=2)[0]
