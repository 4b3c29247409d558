"""What ``marc-eval`` does: embed, search, score, and write tables and report; compare and list what is there."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from marc_dist.cli.eval.words import Asked
from marc_dist.config import Config, ConfigError, DataError, LaunchError, printable, user_path
from marc_dist.data.dataset import open_dataset
from marc_dist.files import write_atomic
from marc_dist.report.run_report import write_report
from marc_dist.report.sharing.share import share_run, shared_words
from marc_dist.report.text_tables import print_comparison, print_list, print_tables
from marc_dist.retrieval.evaluate import evaluate_rank
from marc_dist.retrieval.results import measured
from marc_dist.run.evaluations import (
    METRICS_FILE,
    evaluation_folder,
    evaluation_folders,
    evaluation_name,
    find_evaluation,
    name_of,
    read_summary,
)
from marc_dist.study.comparison import as_csv, compared, read_evaluated

DATA = ("data.dir", "eval.queries_dir", "eval.archive_dir")


def evaluate(config: Config, folder: Path, *, report: bool) -> int:
    """Score an encoder as one rank; rank 0 writes and prints; the exit code.

    Args:
        config: the settings, ``eval.*`` first of all.
        folder: where the encoder lies, and where the evaluation is kept.
        report: whether ``report.html`` and ``panel.png`` are written, too.
    """
    summary, speaks = evaluate_rank(config, folder, _say)
    if not speaks:
        return 0
    page = write_report(config, folder) if report else None
    print_tables(summary, Console(highlight=False))
    print(f"scores: {evaluation_folder(folder, config.eval.protocol, config.eval.name) / METRICS_FILE}")
    if page is not None:
        print(f"report: {page}")
    return 0


def _say(line: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(printable(line), markup=False)


def export(config: Config, folder: Path, out: str, *, licence: str | None, onnx: bool) -> int:
    """Write the encoder of a run as a folder for the Hugging Face Hub; the exit code.

    Args:
        config: of the run.
        folder: where the encoder lies.
        out: the folder to write.
        licence: identifier of a licence, for the model card.
        onnx: whether to write ``model.onnx``, too.
    """
    print(shared_words(share_run(folder, user_path(out), config, _say, licence=licence, onnx=onnx)))
    return 0


def compare(asked: Asked, *, csv_file: str | None, report: bool) -> int:
    """Evaluate the runs that have no evaluation of this protocol and name, then compare all; the exit code.

    Args:
        asked: two runs or more, the first is compared with.
        csv_file: where the comparison is written, too.
        report: whether a run that is evaluated now gets its report.

    Raises:
        ConfigError: settings were given, and an evaluation that is there was made with others.
        DataError: no encoder, a damaged evaluation, or evaluations that cannot be compared.
    """
    missing = []
    for name, folder, config in asked.runs:
        place = find_evaluation(folder, config.eval.protocol, config.eval.name)
        if place is not None:
            _refuse_other_settings(place, config, asked.given)
        elif not (folder / "encoder.json").is_file():
            raise DataError(f"{folder}: no encoder.json; a finished marc-train run writes it")
        else:
            missing.append((name, folder, config))
    speaks = True
    for name, folder, config in missing:
        _say(f"{name}: no evaluation {evaluation_name(config.eval.protocol, config.eval.name)} yet, making it")
        _, speaks = evaluate_rank(config, folder, _say)
        if speaks and report:
            write_report(config, folder)
    if not speaks:
        return 0
    runs = []
    for name, folder, config in asked.runs:
        place = find_evaluation(folder, config.eval.protocol, config.eval.name)
        if place is None:
            raise LaunchError(f"{folder}: its evaluation was removed just now; run it again")
        runs.append(read_evaluated(name, place))
    found, first = compared(runs), runs[0].summary
    title = f"{first['archive']['title']}: {first['num_queries']:,} queries, {first['num_archive']:,} images"
    names = [run.name for run in runs]
    print_comparison(f"{title}, {name_of(first)}", names, [found.metrics, found.thirds], Console(highlight=False))
    if csv_file is not None:
        write_atomic(user_path(csv_file), as_csv(names, found))
        print(f"comparison: {csv_file}")
    return 0


def _refuse_other_settings(place: Path, config: Config, given: frozenset[str]) -> None:
    """What was asked for on the command line must be what an evaluation was made with."""
    summary = read_summary(place)
    wanted, made = measured(config.eval), summary.get("settings", {})
    for key in sorted(given & wanted.keys()):
        if key not in made or made[key] != wanted[key]:
            raise ConfigError(
                f"{place}: expected {key}={wanted[key]}, was made with {made.get(key, 'settings that nobody kept')}; "
                "give the new ones a name of their own with --name"
            )
    if given & set(DATA):
        dirs = {"queries": config.eval.queries_dir or config.data.dir}
        dirs["archive"] = config.eval.archive_dir or dirs["queries"]
        for side, data in dirs.items():
            if open_dataset(data).fingerprint != summary[side]["fingerprint"]:
                raise ConfigError(f"{place}: its {side} are not of {data}; give the new ones a name with --name")


def show_list(asked: Asked) -> int:
    """Print what evaluations the runs have; the exit code."""
    console = Console(highlight=False)
    for name, folder, _ in asked.runs:
        folders = evaluation_folders(folder)
        if folders:
            print_list(name, [_line(place) for place in folders], console)
        else:
            print(f"{printable(name)}: no evaluation; make one with marc-eval {printable(name)}")
    return 0


def _line(place: Path) -> list[str]:
    """One evaluation for the list; a damaged one says so."""
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime((place / METRICS_FILE).stat().st_mtime))
    try:
        summary = read_summary(place)
    except DataError:
        return [place.name, day, "", "", "", "damaged; evaluate again"]
    name = "eval" if place.name == "eval" else name_of(summary)
    whole = summary["scores"]["trained"].get("mAP")
    made = f"{summary['features']}, {summary['index']}, {summary['gain']}, {summary['relevance']}"
    numbers = [f"{summary['num_queries']:,}", f"{summary['num_archive']:,}", "-" if whole is None else f"{whole:.4f}"]
    return [name, day, *numbers, made]
