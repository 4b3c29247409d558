"""What ``marc-train`` does: train, look at the nodes, measure where a step's time goes or which learning rates work."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from marc_dist.config import Config, LaunchError, is_passing
from marc_dist.files import write_atomic
from marc_dist.place import place_from_env
from marc_dist.preflight.checks import check_rank, show
from marc_dist.report.lr_chart import lr_picture
from marc_dist.run.exit_codes import EXIT_HUNG, EXIT_REQUEUE
from marc_dist.run.rank_ends import note_failure
from marc_dist.run.run_lock import removal, was_removed
from marc_dist.training.measure.lr_find import LOWEST, LrFind, lr_find_rank
from marc_dist.training.measure.profile import Profile, profile_rank
from marc_dist.training.signals import StopFlag
from marc_dist.training.trainer import run_rank

STORAGE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EINTR)
"""What a file system answers that is full or may not be used; ENOSPC, and what passes, besides."""


def train(config: Config, stop: StopFlag) -> int:
    """Train as one rank; the exit code.

    Args:
        config: the run's settings.
        stop: set when this process is asked to save and stop.
    """
    run_dir = Path(config.train.run_dir)
    try:
        result = run_rank(config, stop=stop, give_up=_give_up)
    except LaunchError as error:
        if _folder_has_gone(error, run_dir):
            raise LaunchError(removal(run_dir)) from None
        raise
    except OSError as error:
        if _folder_has_gone(error, run_dir):
            raise LaunchError(removal(run_dir)) from None
        if error.errno == errno.ENOSPC:
            raise LaunchError(
                f"{config.train.run_dir}: cannot be written ({error.strerror}); free space and start again"
            ) from None
        if error.errno in STORAGE or is_passing(error):
            place = error.filename or config.train.run_dir
            raise LaunchError(
                f"{place}: cannot be read or written ({error.strerror}); mend the file system and start again"
            ) from None
        # what people cause comes as ours; this one needs its traceback
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    return EXIT_REQUEUE if result.interrupted else 0


def _folder_has_gone(error: BaseException | None, run_dir: Path) -> bool:
    """Whether an error came of a file that was not found because the whole folder of the run was removed."""
    while error is not None:
        if isinstance(error, FileNotFoundError):
            return was_removed(run_dir)
        error = error.__context__
    return False


def check(config: Config) -> int:
    """Look at all nodes together; rank 0 prints the table.

    Raises:
        LaunchError: something is not well there.
    """
    here, report = check_rank(config)
    if here.rank == 0:
        show(report)
    report.require()
    return 0


def profile(config: Config, num_steps: int) -> int:
    """Measure some steps from fresh weights; rank 0 prints where their time goes."""
    measured = profile_rank(config, num_steps)
    if place_from_env(os.environ).rank == 0:
        _print_profile(measured)
    return 0


def lr_find(config: Config, num_steps: int) -> int:
    """Try learning rates from fresh weights; rank 0 prints a table, draws a picture and suggests one."""
    found = lr_find_rank(config, num_steps)
    if place_from_env(os.environ).rank == 0:
        _print_lr_find(found)
    return 0


def _print_lr_find(found: LrFind) -> None:
    taken = len(found.rates)
    print(f"{taken} of {found.num_steps} steps from {LOWEST:g} to {found.rates[-1]:.2g}, ended by {found.ended}")
    table = Table()
    for column in ("learning rate", "loss", "smoothed"):
        table.add_column(column, justify="right")
    for place in range(0, taken, max(1, taken // 15)):
        mean = found.smoothed[place]
        table.add_row(f"{found.rates[place]:.2e}", f"{found.losses[place]:.4f}", "" if mean is None else f"{mean:.4f}")
    Console().print(table)
    if taken > 1:
        picture = found.folder / "lr_find.png"
        write_atomic(picture, lr_picture(found.rates, found.losses, found.smoothed, found.suggestion))
        print(f"picture: {picture}")
    if found.suggestion is None or found.lowest is None:
        print("no suggestion: the smoothed loss does not fall; take more steps, or a larger train.global_batch")
        return
    print(
        f"suggestion: optim.lr={found.suggestion:.1e}, where the smoothed loss falls most steeply (lowest at "
        f"{found.lowest[0]:.1e}); a hint, compare it with a third and three times of it"
    )


def _print_profile(measured: Profile) -> None:
    for note in measured.notes:
        print(note)
    total = sum(measured.step.values())
    table = Table(title=f"{measured.num_steps} steps of {total:.1f} ms, {measured.images_per_s:.0f} images/s")
    table.add_column("one after the other")
    for column in ("ms a step", "share", "longest"):
        table.add_column(column, justify="right")
    for label, value in measured.step.items():
        rank, most = measured.slowest[label]
        table.add_row(label, f"{value:.1f}", f"{value / total:.1%}", f"rank {rank}: {most:.1f}")
    table.add_section()
    for label, value in measured.loader.items():
        table.add_row(f"beside it: {label}", f"{value:.1f}", "", "")
    Console().print(table)
    print(f"trace (chrome://tracing or ui.perfetto.dev): {measured.trace}")


def _give_up(reason: str) -> None:
    """End this rank, whose main thread waits for another one in vain."""
    note_failure(reason)
    print(f"marc-train: error: {reason}", file=sys.stderr, flush=True)
    os._exit(EXIT_HUNG)
