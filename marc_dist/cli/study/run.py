"""What ``marc-study`` does: check the whole study, run what is left of it, write the tables."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from marc_dist.cli.sample_data import pack_sample
from marc_dist.cluster.preset import LocalPreset, RayPreset, SlurmPreset, load_preset
from marc_dist.config import Config, build, user_path
from marc_dist.files import write_atomic
from marc_dist.study.audit.run import audit
from marc_dist.study.audit.text import PAGE as AUDIT_PAGE
from marc_dist.study.board import Board, clock
from marc_dist.study.checks import make_plan
from marc_dist.study.estimate import estimate
from marc_dist.study.jobs import submit_study, workers_of
from marc_dist.study.local import LocalStudy, jobs_here
from marc_dist.study.plan import Plan
from marc_dist.study.sharing.export import export_study
from marc_dist.study.state import forget_failures, refuse_changed, study_lock
from marc_dist.study.study_file import StudyFile, leaves, read_study
from marc_dist.study.tables.collected import Findings, note_on_tests
from marc_dist.study.tables.report import INDEX, REPORT, write_report
from marc_dist.study.worker import STUDY

SHOWN = 10


def study(options: argparse.Namespace) -> int:
    """Run a study, or go on with one; the exit code.

    Raises:
        ConfigError: a fault in the file, or cells that were made with other settings.
        DataError: no such shards.
        LaunchError: workers or jobs do not start.
    """
    console = Console(highlight=False)
    file, path = read_study(options.study)
    _pack_sample(file)
    plan = make_plan(options.study, options.out)
    if options.dry_run:
        _dry_run(plan, load_preset(options.on), options.jobs, console)
        return 0
    if options.report:
        return _end(plan, write_report(plan), console)
    if options.export is not None:
        return _export(plan, options, console)
    if options.audit:
        return _audit(plan, console)
    preset = load_preset(options.on)
    with study_lock(plan.out):
        for name in refuse_changed(plan, again=options.again):
            console.print(f"{name}: does not fit the study; removed, and made again", markup=False, soft_wrap=True)
        forget_failures(plan)
        write_atomic(plan.out / STUDY, path.read_bytes())
        if not isinstance(preset, LocalPreset):
            return submit_study(plan, preset, options.jobs, console)
        _run_here(plan, options, console)
    return _end(plan, write_report(plan), console)


def _export(plan: Plan, options: argparse.Namespace, console: Console) -> int:
    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    out = user_path(options.export)
    for line in export_study(plan, out, say, cell=options.cell, licence=options.license, onnx=options.onnx):
        say(line)
    return 0


def _audit(plan: Plan, console: Console) -> int:
    """Audit, then write the report anew: its page shows what was found."""

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    with study_lock(plan.out):
        names = audit(plan, say)
        write_report(plan)
    others = ", ".join(name for name in names if name != AUDIT_PAGE)
    say(f"audit: {plan.out / REPORT / AUDIT_PAGE} and {others}")
    return 0


def _pack_sample(file: StudyFile) -> None:
    """Pack the built-in sample where a study names it, and nothing lies there."""
    for entry in file.datasets.values():
        where = leaves(entry).get("data.dir")
        if isinstance(where, str):
            pack_sample(build(Config, {"data.dir": where}))


def _run_here(plan: Plan, options: argparse.Namespace, console: Console) -> None:
    found = estimate(plan)
    left = sum(found.left.values())
    if not left:
        return
    jobs = min(options.jobs or jobs_here(plan.study.threads), left)
    console.print(f"{plan.out}: {_counts(plan)}; {jobs} at a time on this machine", markup=False, soft_wrap=True)
    with Board(plan, console, jobs) as board:
        try:
            LocalStudy(plan, jobs, board.show, board.say).go()
        except KeyboardInterrupt:
            words = shlex.join([options.study, *(["--out", options.out] if options.out else [])])
            console.print(f"stopped; go on with: marc-study {words}", markup=False, soft_wrap=True)
            raise
        board.show([], now=True)


def _counts(plan: Plan) -> str:
    found = estimate(plan)
    words = {"search": "searches", "floors": "sets of floors", "cell": "cells"}
    return ", ".join(
        f"{found.done[kind]} of {found.done[kind] + found.left[kind]} {word} done"
        for kind, word in words.items()
        if found.done[kind] + found.left[kind]
    )


def _dry_run(plan: Plan, preset: LocalPreset | SlurmPreset | RayPreset, jobs: int | None, console: Console) -> None:
    found = estimate(plan)
    left = sum(found.left.values())
    if isinstance(preset, LocalPreset):
        jobs, place = min(jobs or jobs_here(plan.study.threads), max(1, left)), "here"
    else:
        jobs, place = max(1, workers_of(plan, preset, jobs, left)), f"on {preset.kind}"
    tune = plan.study.tune
    trials = 0 if tune is None else found.left["search"] * tune.trials * tune.seeds
    stand = f"measured on {found.measured} done" if found.measured else "a guess, for a CPU core; none is done yet"
    for line in (
        f"{plan.out}: {_counts(plan)}",
        f"{len(plan.study.datasets)} data set(s) x {len(plan.study.encoders)} encoder(s) x {len(plan.methods)} "
        f"loss(es) x {len(plan.study.seeds)} seed(s)",
        f"left: {found.left['cell']} trainings, {trials} trials of {found.left['search']} searches",
        f"time: {clock(found.seconds)} in all, {clock(found.seconds / jobs)} with {jobs} at a time {place} ({stand})",
        f"disk: {found.size / 1e9:.2f} GB more",
        *([note_on_tests(plan)] if plan.study.statistics.tests else []),
    ):
        console.print(line, markup=False, soft_wrap=True)


def _end(plan: Plan, findings: Findings, console: Console) -> int:
    """Say where the tables are and what is missing; the exit code."""
    for name, reason in list(findings.missing.items())[:SHOWN]:
        console.print(f"missing: {name}: {reason}", markup=False, soft_wrap=True)
    if len(findings.missing) > SHOWN:
        console.print(
            f"missing: {len(findings.missing) - SHOWN} more, in {REPORT}/MANIFEST.json", markup=False, soft_wrap=True
        )
    folder: Path = plan.out / REPORT
    console.print(f"tables: {folder / 'tables.md'}", markup=False, soft_wrap=True)
    console.print(f"page: {folder / INDEX}", markup=False, soft_wrap=True)
    return 1 if findings.missing else 0
