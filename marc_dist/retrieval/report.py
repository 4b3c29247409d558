"""``RUN/report.html``: one file that explains a run, without network and without scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marc_dist.config import Config, DataError, flatten
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.retrieval import report_pictures as pictures
from marc_dist.retrieval import report_scores as figures
from marc_dist.retrieval import results
from marc_dist.retrieval.charts import esc, line_chart
from marc_dist.retrieval.panel import Galleries, Gallery, Panel, choose_panels, panel_png, score_name
from marc_dist.retrieval.protocols import labels_over
from marc_dist.retrieval.style import CSS
from marc_dist.training.runfolder import write_atomic

CURVES = (
    ("loss", "loss", True),
    ("lr", "learning rate", True),
    ("grad_norm", "gradient norm before clipping", True),
    ("images_per_s", "images per second", True),
)
RECALL = (
    "Interpolated precision at each recall: the mean over all queries; and the mean over the labels of a third, where "
    "an answer is right if it carries the label."
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(config: Config, folder: Path) -> Path:
    """Write ``folder/eval/panel.png`` and ``folder/report.html`` from ``folder`` and the data of both sides.

    Raises:
        DataError: no evaluation yet, or the data are not those that were evaluated.
        LaunchError: no room, or the folder cannot be written.
    """
    summary, rows = results.read(folder / "eval")
    placed = results.read_map(folder / "eval", summary)
    queries = _opened(config.eval.queries_dir or config.data.dir, summary["queries"], folder)
    archive = queries
    if summary["archive"]["fingerprint"] != queries.fingerprint:
        archive = _opened(config.eval.archive_dir or queries.root, summary["archive"], folder)
    classes = tuple(summary["classes"])
    asking = _gallery(config, queries, classes)
    answering = asking if archive is queries else _gallery(config, archive, classes)
    galleries = Galleries(asking, answering, classes)
    panels = choose_panels(asking.labels, summary, rows, config.eval.panels)
    if panels:
        metric = score_name(summary)
        told = ", ".join(f"{name} {one[metric]:.3f}" for name, one in summary["scores"].items())
        picture = panel_png(galleries, panels, f"{_titles(summary)}: {metric} {told}", metric)
        write_atomic(folder / "eval" / "panel.png", picture)
    page = render(config, folder, summary, galleries, panels, placed)
    asking.reader.close()
    answering.reader.close()
    write_atomic(folder / "report.html", page.encode())
    return folder / "report.html"


def _opened(place: str | Path, told: dict[str, Any], folder: Path) -> Dataset:
    dataset = open_dataset(place)
    if dataset.fingerprint != told["fingerprint"]:
        raise DataError(f"{dataset.root}: not the data that {folder / 'eval'} was made with; run marc-eval {folder}")
    return dataset


def _gallery(config: Config, dataset: Dataset, classes: tuple[str, ...]) -> Gallery:
    return Gallery(dataset, IndexedReader(dataset, verify_crc=config.data.verify_crc), labels_over(dataset, classes))


def _titles(summary: dict[str, Any]) -> str:
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
    panels: Sequence[Panel],
    placed: Sequence[dict[str, Any]],
) -> str:
    """The page.

    Args:
        config: of the run.
        folder: of the run, for its name and training log.
        summary: of ``results.read``.
        galleries: both sides; their readers are open.
        panels: queries to show.
        placed: rows of ``map.parquet``.
    """
    name = folder.resolve().name
    known = (folder / "config.yaml").is_file()  # else the encoder lies alone, and nobody knows how it was trained
    sides = (galleries.queries, galleries.archive)
    trained_on = next((side for side in sides if side.dataset.fingerprint == summary["trained_on"]), None)
    views = pictures.view_panels(config, trained_on) if known and trained_on is not None else ""
    drawn = figures.recall_charts(summary)
    parts = [
        _head(name, config if known else None, summary),
        _section("Scores", figures.cards(summary) + figures.score_table(summary), _protocol(summary)),
        _section("Precision and recall", drawn, RECALL),
        _section("Labels", figures.label_table(summary), "Average precision of each label, most frequent first."),
        _section(
            "Answers", pictures.answer_panels(summary, galleries, panels), pictures.panel_sentence(summary, panels)
        ),
        _section("Map", pictures.maps(summary, galleries, placed), pictures.map_sentence(summary, placed)),
        _section("Training", _curves(folder), ""),
        _section("Augmentation", views, pictures.views_sentence(config)),
        _section("Settings", _settings(config) if known else "", ""),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{esc(name)}: retrieval report</title><style>{CSS}</style></head>\n<body><main>"
        + "\n".join(part for part in parts if part)
        + "</main></body></html>\n"
    )


def _section(title: str, body: str, lead: str) -> str:
    lead = f'<p class="lead">{esc(lead)}</p>' if lead else ""
    place = title.lower().replace(" ", "-")
    return f'<section id="{esc(place)}"><h2>{esc(title)}</h2>{lead}{body}</section>' if body else ""


def _head(name: str, config: Config | None, summary: dict[str, Any]) -> str:
    queries, archive = summary["queries"]["title"], summary["archive"]["title"]
    facts = [archive] if queries == archive else [f"queries: {queries}", f"archive: {archive}"]
    facts += [f"{summary['backbone']}, {summary['image_size']} px"]
    if config is not None:
        facts += [
            f"{config.loss.name} ({config.loss.aggregate}), tau {config.loss.tau:g}",
            f"{config.train.epochs} epochs, batch {config.train.global_batch}, seed {config.train.seed}",
        ]
    chips = "".join(f"<li>{esc(fact)}</li>" for fact in facts)
    kicker = '<p class="kicker">marc-dist retrieval report</p>'
    return f'<header>{kicker}<h1>{esc(name)}</h1><ul class="facts">{chips}</ul></header>'


def _protocol(summary: dict[str, Any]) -> str:
    rule = summary["relevance"]
    rules = {"any": "shares a label", "exact": "has the same labels", "subset": "has no label that the query lacks"}
    meaning = rules.get(rule, f"has label Jaccard of {rule} or more")
    none = summary["queries_without_relevant"]
    origin = summary["untrained_weights"]
    before = f" The untrained encoder has the weights with which training began: {origin}." if origin else ""
    tail = f" {none:,} queries have no relevant image; they score 0 and count." if none else ""
    ranked = "" if summary["full_ranking"] else f" Rankings end at {max(summary['ks'])}."
    sentence = summary["protocol_sentence"]
    return (
        f"{summary['num_queries']:,} queries against {summary['num_archive']:,} images: {sentence} "
        f"({summary['protocol']}). Relevant is what {meaning}; gain: {summary['gain']}.{_index(summary)}{ranked} "
        f"In random order a share of {summary['relevant_share']:.3f} of the answers is relevant.{tail}{before}"
    )


def _index(summary: dict[str, Any]) -> str:
    """A sentence on an index that is not exact."""
    if summary["index"] == "flat":
        return ""
    recall = summary["index_recall"] or {}
    found = ", ".join(f"{value:.3f} ({name})" for name, value in recall.items())
    return f" Index: {summary['index']}" + (
        f"; share of the exact first answers that it finds: {found}." if found else "."
    )


def _curves(folder: Path) -> str:
    records = read_curves(folder)
    if not records:
        return ""
    charts = [
        line_chart(title, [(float(one["step"]), one.get(key)) for one in records], from_zero=zero)
        for key, title, zero in CURVES
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _settings(config: Config) -> str:
    told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(config).items()}
    lines = "".join(f'<tr><th scope="row">{esc(key)}</th><td>{esc(value)}</td></tr>' for key, value in told.items())
    return f"<details><summary>all settings of the run</summary><table>{lines}</table></details>"
