"""``RUN/report.html``: one file that explains a run, without network and without scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marc_dist.config import Config, DataError, flatten
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.files import write_atomic
from marc_dist.metrics.metric_help import SEARCHED
from marc_dist.report import score_rows
from marc_dist.report.charts import Chart, recall_chart, step_chart
from marc_dist.report.example_queries import Example, Galleries, Gallery, choose_examples, score_name
from marc_dist.report.label_maps import MAP_SIZE, label_maps, map_sentence
from marc_dist.report.page import render_page
from marc_dist.report.picture_sheets import example_sheet
from marc_dist.report.text_tables import without_relevant
from marc_dist.report.training_views import training_views
from marc_dist.retrieval import results
from marc_dist.retrieval.label_map import LabelMap, map_of
from marc_dist.retrieval.protocols import labels_over
from marc_dist.run.evaluations import PANEL, REPORT, evaluation_folder, name_of, read, read_map, read_summary

LOGGED = (
    ("loss", "loss"),
    ("lr", "learning rate"),
    ("grad_norm", "gradient norm before clipping"),
    ("images_per_s", "images per second"),
)
NUM_VIEWED = 3


def write_report(config: Config, folder: Path) -> Path:
    """Write ``report.html`` and ``panel.png`` beside an evaluation, and the same page as ``folder/report.html``.

    Args:
        config: the evaluation that it names is shown.
        folder: of the run.

    Raises:
        DataError: no such evaluation, or the data are not those that were evaluated.
        LaunchError: no room, or the folder cannot be written.
    """
    place = evaluation_folder(folder, config.eval.protocol, config.eval.name)
    summary, rows = read(place)
    placed = read_map(place, summary)
    queries = _opened(config.eval.queries_dir or config.data.dir, summary["queries"], folder, place)
    archive = queries
    if summary["archive"]["fingerprint"] != queries.fingerprint:
        archive = _opened(config.eval.archive_dir or queries.root, summary["archive"], folder, place)
    classes = tuple(summary["classes"])
    label_map = map_of(summary.get("label_map"))
    asking = _gallery(config, queries, classes, label_map)
    answering = asking if archive is queries else _gallery(config, archive, classes, label_map)
    galleries = Galleries(asking, answering, classes)
    examples = choose_examples(asking.labels, summary, rows, config.eval.panels)
    pages = {}
    if examples:
        metric = score_name(summary)
        told = ", ".join(f"{name} {one[metric]:.3f}" for name, one in summary["scores"].items())
        pages[place / PANEL] = example_sheet(galleries, examples, f"{_searched(summary)}: {metric} {told}", metric)
    page = render(config, folder, summary, galleries, examples, placed)
    asking.reader.close()
    answering.reader.close()
    pages |= {place / REPORT: page.encode(), folder / REPORT: page.encode()}
    with results.held(place):
        if read_summary(place) != summary:
            raise DataError(f"{place}: another marc-eval replaced it just now; that one writes the report")
        for path, data in pages.items():
            write_atomic(path, data)
    return folder / REPORT


def _opened(data: str | Path, told: dict[str, Any], folder: Path, place: Path) -> Dataset:
    dataset = open_dataset(data)
    if dataset.fingerprint != told["fingerprint"]:
        raise DataError(f"{dataset.root}: not the data that {place} was made with; run marc-eval {folder}")
    return dataset


def _gallery(config: Config, dataset: Dataset, classes: tuple[str, ...], label_map: LabelMap) -> Gallery:
    reader = IndexedReader(dataset, verify_crc=config.data.verify_crc)
    return Gallery(dataset, reader, labels_over(dataset, classes, label_map))


def _searched(summary: dict[str, Any]) -> str:
    """What was searched, and with what if that is of other data."""
    queries, archive = summary["queries"]["title"], summary["archive"]["title"]
    return str(archive) if queries == archive else f"{queries} in {archive}"


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; none when there is no such file. A torn last line is passed over."""
    path = folder / "metrics.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def render(
    config: Config,
    folder: Path,
    summary: dict[str, Any],
    galleries: Galleries,
    examples: Sequence[Example],
    placed: Sequence[dict[str, Any]],
) -> str:
    """The page.

    Args:
        config: of the run.
        folder: of the run, for its name and training log.
        summary: of the evaluation.
        galleries: both sides; their readers are open.
        examples: queries to show.
        placed: rows of ``map.parquet``.
    """
    name = folder.resolve().name
    known = (folder / "config.yaml").is_file()  # else the encoder lies alone, and nobody knows how it was trained
    sides = (galleries.queries, galleries.archive)
    trained_on = next((side for side in sides if side.dataset.fingerprint == summary["trained_on"]), None)
    num_viewed = NUM_VIEWED if known and trained_on is not None and config.eval.panels else 0
    viewed = trained_on or galleries.queries
    places, maps = label_maps(summary, galleries, placed)
    usual = [*score_rows.metric_rows(summary, usual=True), *score_rows.third_rows(summary)]
    return render_page(
        "run_report.html.j2",
        title=f"{name}: retrieval report",
        heading=name,
        facts=_facts(config if known else None, summary),
        summary=summary,
        encoders=list(summary["scores"]),
        protocol=_protocol(summary),
        headlines=score_rows.headline_rows(summary),
        scores=score_rows.with_meanings(usual, summary),
        further={
            group: score_rows.with_meanings(rows, summary) for group, rows in score_rows.further_rows(summary).items()
        },
        recalls=recall_charts(summary),
        labels=score_rows.label_rows(summary),
        score_name=score_name(summary),
        examples=examples,
        galleries=galleries,
        map_sentence=map_sentence(summary, placed),
        map_size=MAP_SIZE,
        places=places,
        maps=maps,
        curves=step_charts(folder),
        viewed=viewed,
        views=training_views(config, viewed.dataset, viewed.reader, num_viewed),
        train_split=config.data.train_split,
        num_views=config.data.num_views,
        settings=_settings(config) if known else {},
    )


def recall_charts(summary: dict[str, Any]) -> list[Chart]:
    """Precision against recall: all queries, then the labels of each third; nothing for rankings that were cut."""
    curves = {name: one for name, one in summary["curves"].items() if one}
    if not curves:
        return []
    every = {name: one["queries"] for name, one in curves.items()}
    drawn = [recall_chart("recall-all", "all queries", every, summary["relevant_share"])]
    for third in ("rare", "medium", "common"):
        some = {name: one["thirds"][third] for name, one in curves.items()}
        shares = [
            label["archive_count"] / summary["num_archive"]
            for label in summary["per_label"]
            if label["third"] == third and label["ap"]["trained"] is not None
        ]
        chance = float(np.mean(shares)) if shares else None
        drawn.append(recall_chart(f"recall-{third}", f"{third} labels", some, chance))
    return drawn


def step_charts(folder: Path) -> list[Chart]:
    """What training logged, over global steps; none without a log."""
    records = read_curves(folder)
    charts = [
        step_chart(f"step-{key}", title, [(float(one["step"]), one.get(key)) for one in records])
        for key, title in LOGGED
    ]
    return charts if records else []


def _facts(config: Config | None, summary: dict[str, Any]) -> list[str]:
    queries, archive = summary["queries"]["title"], summary["archive"]["title"]
    facts = [archive] if queries == archive else [f"queries: {queries}", f"archive: {archive}"]
    facts.append(f"evaluation {name_of(summary)}")
    frozen = "frozen " if config is not None and config.model.head_only else ""
    facts += [f"{frozen}{summary['backbone']}, {summary['image_size']} px"]
    if config is not None:
        facts += [
            f"{config.loss.name} ({config.loss.aggregate}), tau {config.loss.tau:g}",
            f"{config.train.epochs} epochs, batch {config.train.global_batch}, seed {config.train.seed}",
        ]
    return facts


def _protocol(summary: dict[str, Any]) -> str:
    rule = summary["relevance"]
    rules = {"any": "shares a label", "exact": "has the same labels", "subset": "has no label that the query lacks"}
    meaning = rules.get(rule, f"has label Jaccard of {rule} or more")
    none = summary["queries_without_relevant"]
    origin = summary["untrained_weights"]
    before = ""
    if origin:
        theirs = summary.get("untrained_features", summary["features"])
        before = (
            f" The untrained encoder has the weights with which training began ({origin}); it is searched by "
            f"{SEARCHED[theirs]}, the trained one by {SEARCHED[summary['features']]}."
        )
    tail = f" {none:,} queries have no relevant image; they {without_relevant(summary)}." if none else ""
    ranked = "" if summary["full_ranking"] else f" Rankings end at {max(summary['ks'])}."
    sentence = summary["protocol_sentence"]
    return (
        f"{summary['num_queries']:,} queries against {summary['num_archive']:,} images: {sentence} "
        f"({summary['protocol']}). Relevant is what {meaning}; gain: "
        f"{summary['gain']}{_form(summary)}.{_index(summary)}{ranked} "
        f"In random order a share of {summary['relevant_share']:.3f} of the answers is relevant.{tail}{before}"
    )


def _form(summary: dict[str, Any]) -> str:
    """How the gain enters nDCG, of evaluations since there has been a choice."""
    forms = {"linear": ", as it is in nDCG", "exponential": ", 2^gain - 1 in nDCG"}
    return forms.get(summary.get("ndcg_form", ""), "")


def _index(summary: dict[str, Any]) -> str:
    """A sentence on an index that is not exact."""
    if summary["index"] == "flat":
        return ""
    recall = summary["index_recall"] or {}
    found = ", ".join(f"{value:.3f} ({name})" for name, value in recall.items())
    return f" Index: {summary['index']}" + (
        f"; share of the exact first answers that it finds: {found}." if found else "."
    )


def _settings(config: Config) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(config).items()}
