"""What ``marc-jobs status`` says: all that is known of one job, as plain values for scripts and as text for people."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marc_dist.cli.jobs.listing import ago, one_line, when
from marc_dist.config import EXIT_USER
from marc_dist.run.attempts import ATTEMPTS, Attempt, attempts, attempts_of
from marc_dist.run.exit_codes import EXIT_REQUEUE
from marc_dist.run.folder import METRICS, log_path
from marc_dist.run.heartbeats import read_beats
from marc_dist.run.job import OVER, Job, State
from marc_dist.run.progress import (
    Progress,
    clock,
    first_failure,
    life_age_s,
    planned_steps,
    read_progress,
    who_is_late,
)
from marc_dist.run.rank_ends import RankEnd


def facts(run_dir: Path, job: Job, state: State) -> dict[str, Any]:
    """All that is known of a job, as JSON values with the same keys every time.

    Args:
        run_dir: its run folder.
        job: what ``job.json`` says.
        state: how it stands now.
    """
    tries = attempts(run_dir)
    mine = attempts_of(tries, job.token, job.submitted_at)
    progress = _progress(run_dir, job, mine)
    alive = state.word in ("running", "unknown") and mine != [] and mine[-1].ended_at is None
    beats = read_beats(run_dir, job.world, job.attempt(mine[-1].number)) if alive else []
    quiet_s = life_age_s(run_dir, (METRICS, ATTEMPTS)) or 0.0
    return {
        "run": str(run_dir),
        **job.model_dump(mode="json", exclude={"preset"}),
        "state": state.word,
        "detail": state.detail,
        "attempts": [one._asdict() for one in tries],
        "progress": None if progress is None else progress._asdict(),
        "heartbeat": [beat._asdict() for beat in beats if beat is not None],
        "late": who_is_late(run_dir, beats, quiet_s) if state.word == "running" else None,
        "life_age_s": life_age_s(run_dir),
        "failure": _failure(run_dir, job, state, mine),
        "next": what_next(run_dir, job, state, mine),
    }


def _progress(run_dir: Path, job: Job, mine: Sequence[Attempt]) -> Progress | None:
    if job.what != "train" or job.run_dirs:
        return None
    progress = read_progress(run_dir, mine[-1].first_step if mine else 0)
    return progress if progress.total_steps else progress._replace(total_steps=planned_steps(run_dir))


def _failure(run_dir: Path, job: Job, state: State, mine: Sequence[Attempt]) -> dict[str, Any] | None:
    """The rank that failed first in the last attempt, with host and log; what is not known is None."""
    if state.word in ("done", "pending"):
        return None
    first = _first_failed(run_dir, job, mine)
    text = mine[-1].error if mine else None
    if first is None:
        return None if text is None else {"rank": None, "host": None, "code": None, "log": None, "error": text}
    log = str(log_path(run_dir, first.rank))
    return {"rank": first.rank, "host": first.host, "code": first.code, "log": log, "error": first.error or text}


def _first_failed(run_dir: Path, job: Job, mine: Sequence[Attempt]) -> RankEnd | None:
    """The rank that failed first in the job's last attempt; None while it has none."""
    return first_failure(run_dir, job.world, job.attempt(mine[-1].number)) if mine else None


def what_next(run_dir: Path, job: Job, state: State, mine: Sequence[Attempt]) -> str:
    """What a person does now: the exact command, or what to mend before it.

    Args:
        run_dir: the run folder of the job.
        job: what ``job.json`` says.
        state: how it stands now.
        mine: its attempts, without those of earlier jobs in the folder.
    """
    run = shlex.quote(str(run_dir))
    if job.run_dirs:
        again = f"; marc-jobs resume {run} hands in those that are not done" if state.word in OVER - {"done"} else ""
        return f"marc-jobs list {run} shows each of its elements{again}"
    if state.word == "pending":
        return f"marc-jobs logs -f {run} shows it as soon as it starts; marc-jobs cancel {run} takes it back"
    if state.word == "running":
        return f"marc-jobs logs -f {run}"
    if state.word == "done":
        return f"marc-launch local eval {run}" if job.what == "train" else f"marc-jobs logs {run}"
    if state.word == "unknown":
        return f"marc-jobs logs {run}; when it has surely ended: marc-jobs resume --force {run}"
    if state.word == "failed":
        first = _first_failed(run_dir, job, mine)
        log = f"marc-jobs logs --lines 200 --rank {'all' if first is None else first.rank} {run}"
        if mine and mine[-1].code == EXIT_USER:
            return f"mend what the error names, then marc-jobs resume {run}"
        return f"{log}; then marc-jobs resume {run}"
    return f"marc-jobs resume {run}"


def print_facts(known: dict[str, Any]) -> None:
    """All that is known of a job, for people."""
    lines = [("state", str(State(known["state"], known["detail"])))]
    size = f"{known['nodes']} x {known['procs_per_node']} processes"
    lines.append(("job", f"{known['kind']} {known['id'] or '(no id)'}, {known['what']}, {size}"))
    lines.append(("command", shlex.join(["python", *known["arguments"]])))
    lines.append(
        ("submitted", f"{when(known['submitted_at'])} by {known['user']} from {known['host']}, in {known['cwd']}")
    )
    lines += [("element", part) for part in known["run_dirs"]]
    mine = attempts_of((Attempt(**one) for one in known["attempts"]), known["token"], known["submitted_at"])
    for one in known["attempts"]:
        old = "" if Attempt(**one) in mine else " (an earlier job)"
        last = one is known["attempts"][-1] and not old
        lines.append((f"start {one['number'] + 1}", _attempt(one, known["cancelled_at"] if last else None) + old))
    if known["progress"]:
        lines.append(("progress", _progress_line(known["progress"])))
    if known["life_age_s"] is not None:
        lines.append(("sign of life", ago(known["life_age_s"])))
    if known["heartbeat"]:
        ages = [max(beat["age_s"], 0.0) for beat in known["heartbeat"]]
        world = known["nodes"] * known["procs_per_node"]
        lines.append(("heartbeat", f"{len(ages)} of {world} ranks, the oldest {ago(max(ages))}"))
    if known["late"]:
        lines.append(("late", known["late"]))
    if known["failure"]:
        lines.append(("failure", _failure_line(known["failure"])))
    lines.append(("next", known["next"]))
    print(one_line(known["run"]))
    for key, text in lines:
        print(f"  {key:<12}  {one_line(text)}")


def _progress_line(progress: dict[str, Any]) -> str:
    total = progress["total_steps"]
    text = f"step {progress['step']}" + (f" of {total} ({progress['step'] / total:.0%})" if total else "")
    shown = (("loss", "loss {:.4f}"), ("lr", "lr {:.2e}"), ("images_per_s", "{:.0f} images/s"))
    text += "".join(", " + form.format(progress[key]) for key, form in shown if progress[key] is not None)
    if progress["loader_wait"] is not None:
        text += f", {progress['loader_wait']:.0%} of the time waiting for pictures"
    return text + (f", {clock(progress['eta_s'])} left" if progress["eta_s"] is not None else "")


def _attempt(one: dict[str, Any], cancelled_at: float | None) -> str:
    hosts = one["hosts"]
    where = " ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
    begin = f"{when(one['started_at'])} on {where} after step {one['first_step']}"
    if one["ended_at"] is None:
        return f"{begin}; " + ("no word of its end" if cancelled_at is None else f"cancelled {when(cancelled_at)}")
    code = "stopped and saved" if one["code"] == EXIT_REQUEUE else f"code {one['code']}"
    end = f"{begin}, ended {when(one['ended_at'])} after step {one['last_step']}: {code}"
    return end + (f"; {one['why']}" if one["why"] else "") + (f"; {one['error']}" if one["error"] else "")


def _failure_line(failure: dict[str, Any]) -> str:
    if failure["rank"] is None:
        return str(failure["error"])
    error = failure["error"] or f"code {failure['code']}"
    return f"rank {failure['rank']} on {failure['host']}: {error}; log: {failure['log']}"
