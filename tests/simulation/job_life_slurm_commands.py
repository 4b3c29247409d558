"""The commands of the simulated Slurm, as our code calls them; what they do stands in ``job_life_slurm.py``."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.simulation.job_life_slurm import LIVE, Slurm, SlurmJob, numbers


class SlurmCommands:
    """squeue, scontrol, sacct, scancel, sinfo.

    Args:
        slurm: whom they ask.
    """

    def __init__(self, slurm: Slurm) -> None:
        self.slurm = slurm

    def _known(self, name: str) -> list[SlurmJob]:
        """The job of a name, the elements of an array, or some of them; without those that are forgotten."""
        array, _, which = name.partition("_")
        chosen = numbers(which.strip("[]")) if which else None
        found = []
        for job in self.slurm.jobs.values():
            mine = job.id == name or (
                job.array is not None and job.array[0] == array and (chosen is None or job.array[1] in chosen)
            )
            if mine and (job.over_at is None or self.slurm.kernel.now - job.over_at <= self.slurm.forget_s):
                found.append(job)
        return found

    def programs(self) -> dict[str, Callable[[list[str]], tuple[int, str, str]]]:
        """Slurm's commands as our code calls them."""

        silent = (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")

        def answered(fn: Callable[[list[str]], tuple[int, str, str]]) -> Callable[[list[str]], tuple[int, str, str]]:
            return lambda words: silent if self.slurm.silent() else fn(words)

        found = {"scontrol": self._scontrol, "squeue": self._squeue, "sacct": self._sacct, "scancel": self._scancel}
        found["sinfo"] = lambda words: (0, f"main*|{len(self.slurm.nodes)}|64|(null)\n", "")
        return {
            "sinfo": lambda words: (
                silent if self.slurm.silent() else (0, f"main*|{len(self.slurm.nodes)}|64|(null)\n", "")
            )
        } | {name: answered(fn) for name, fn in found.items()}

    def _scontrol(self, words: list[str]) -> tuple[int, str, str]:
        if "hostnames" in words:
            return 0, "\n".join(words[-1].split(",")), ""
        known = self._known(words[-1])
        if not known:
            return 1, "", "slurm_load_jobs error: Invalid job id specified"
        if "requeue" in words:
            (job,) = known
            if job.state in ("RUNNING",) and job.finish is None:
                self.slurm.on_requeue(job)
                self.slurm.requeue(job)
                return 0, "", ""
            return 1, "", f"Requested operation is presently disabled for job {job.id}"
        lines = [f"JobId={job.id} JobState={job.state} Reason={job.reason} Restarts={job.restarts}" for job in known]
        return 0, "\n".join(lines), ""

    def _squeue(self, words: list[str]) -> tuple[int, str, str]:
        known = self._known(words[words.index("-j") + 1])
        if not known:
            return 1, "", "slurm_load_jobs error: Invalid job id specified"
        lines = []
        for job in known:
            line = words[words.index("-o") + 1].replace("%i", job.id).replace("%T", job.state)
            nodes = ",".join(node.name for node in job.nodes)
            lines.append(line.replace("%r", job.reason).replace("%N", nodes) + "\n")
        return 0, "".join(lines), ""

    def _sacct(self, words: list[str]) -> tuple[int, str, str]:
        name = words[words.index("-j") + 1]
        jobs = [
            job
            for job in self.slurm.jobs.values()
            if job.id == name or (job.array is not None and job.array[0] == name)
        ]
        if not self.slurm.accounting or not jobs:
            return 1, "", "Slurm accounting storage is disabled"
        return 0, "".join(f"{job.state}|{job.reason}\n" for job in jobs), ""

    def _scancel(self, words: list[str]) -> tuple[int, str, str]:
        options = [word for word in words[1:] if word.startswith("--")]
        known = [job for job in self._known(words[-1]) if job.state in LIVE]
        if not known:
            return 1, "", "scancel: error: Kill job error on job id: Invalid job id specified"
        for job in known:
            self.slurm.on_scancel(job)
        if any(option.startswith("--signal=") for option in options):
            running = [job for job in known if job.state == "RUNNING"]
            for job in running:
                self.slurm.warn(job, signal.SIGUSR2)
            over = f"scancel: error: Signal job error on job id {words[-1]}: Job/step already completing or completed"
            return (0, "", "") if running else (1, "", over)
        for job in known:
            self.slurm.cancel(job)
        return 0, "", ""
