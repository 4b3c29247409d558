"""``python -m marc_dist.cluster.srun_task JOB_DIR``: what srun starts, one a rank; it looks after the rank.

A process of its own between srun and the rank, because somebody has to write down how a rank ended that could not do so
itself, to end loader workers with it, and to keep exit code 85 ("stopped and saved") from looking like a failure to
``srun --kill-on-bad-exit``, which would kill ranks that are a moment later. When the batch script itself was killed,
Slurm ends the ranks and starts nothing again; rank 0's task then says its last words for it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from marc_dist.cluster.preset import SlurmPreset
from marc_dist.cluster.rank_process import FORWARDED, SETTLE_S, RankProcess, num_cores, what_ranks_understand
from marc_dist.cluster.sbatch_hooks import batch_script_gone, end, own_job
from marc_dist.config import EXIT_USER, MarcError, is_passing
from marc_dist.run.attempt_id import attempt_from_env
from marc_dist.run.exit_codes import EXIT_HUNG, EXIT_REQUEUE
from marc_dist.run.job import Job, element_dir
from marc_dist.run.rank_ends import end_path, failed, note_end, read_end

POLL_S = 0.2


def task_environment(preset: SlurmPreset, env: dict[str, str]) -> dict[str, str]:
    """What a rank under srun gets beside the batch script's own variables; rank and world are Slurm's to say."""
    full = env | preset.rank_variables()
    cpus = env.get("SLURM_CPUS_PER_TASK") or preset.cpus_per_proc
    full.setdefault("OMP_NUM_THREADS", str(cpus or max(1, num_cores() // preset.num_procs)))
    return full | preset.env


class _RankTask:
    """One rank and its guard."""

    def __init__(self, job: Job, preset: SlurmPreset, job_dir: Path, rank: int, world: int) -> None:
        self.rank, self.world, self.log_dir, self.preset = rank, world, job_dir / "logs", preset
        self.asked: int | None = None
        self.process: RankProcess | None = None
        self.job, self.mine = job, attempt_from_env(os.environ)

    def run(self) -> int:
        """Start the rank, pass signals on, wait for its end; the exit code for srun."""
        for number in FORWARDED:
            signal.signal(number, self._ask)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        self.process = RankProcess(
            self.rank,
            [sys.executable, "-u", *self.job.arguments],
            self.log_dir,
            task_environment(self.preset, dict(os.environ)),
            cwd=self.job.cwd if Path(self.job.cwd).is_dir() else None,
        )
        if self.asked is not None:  # while it was being started
            self._tell(self.asked)
        deadline: float | None = None
        while not self.process.poll():
            if self.asked is not None and deadline is None and self._somebody_failed():
                deadline = time.monotonic() + self.preset.peer_grace_s
            if deadline is not None and time.monotonic() > deadline:  # it waits for a rank that is gone
                self.process.kill()
            time.sleep(POLL_S)
        code = self.process.code or 0
        # srun ends the others: they note first how they ended; after SIGTERM there is no time for that
        if self.asked != signal.SIGTERM and code not in (0, EXIT_REQUEUE):
            time.sleep(SETTLE_S)
        if self.rank == 0 and self.asked == signal.SIGTERM and batch_script_gone():
            return end(self.log_dir.parent, code)  # in its place, as long as Slurm lets this task live
        return 0 if code == EXIT_REQUEUE else 128 - code if code < 0 else code

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """Slurm signals every process of a step, or only this one: pass it on, ranks take it twice as once."""
        self.asked = what_ranks_understand(number)
        self._tell(self.asked)

    def _tell(self, number: int) -> None:
        """Tell the rank to save and go, and note that it was told: its end is not its own failure then."""
        if self.process is not None and self.process.ended is None:
            self.process.ask(number)
            note_end(end_path(self.log_dir, self.rank), None, time.time(), self.mine, asked=True)

    def _somebody_failed(self) -> bool:
        ends = (read_end(self.log_dir, rank, self.mine) for rank in range(self.world) if rank != self.rank)
        return any(end is not None and failed(end) for end in ends)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code for srun."""
    (job_dir,) = sys.argv[1:] if argv is None else argv
    try:
        folder = element_dir(Path(job_dir), os.environ)
        job, preset = own_job(folder)
        return _RankTask(job, preset, folder, int(os.environ["SLURM_PROCID"]), job.world).run()
    except (MarcError, KeyError) as error:
        print(f"marc-launch: error: {error}", file=sys.stderr)
        return EXIT_HUNG if is_passing(error) else EXIT_USER


if __name__ == "__main__":
    sys.exit(main())
