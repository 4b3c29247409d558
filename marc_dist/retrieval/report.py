"""``RUN/report.html``: one file that explains a run, without network and without scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marc_dist.config import Config, DataError, flatten
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.retrieval import results
from marc_dist.retrieval.charts import bar, esc, line_chart
from marc_dist.retrieval.panel import Panel, choose_panels, data_uri, panel_png, score_name, shared, training_views
from marc_dist.retrieval.style import CSS
from marc_dist.retrieval.tables import MISSING, figure, rows_of
from marc_dist.training.runfolder import write_atomic

CURVES = (
    ("loss", "loss", True),
    ("lr", "learning rate", True),
    ("grad_norm", "gradient norm before clipping", True),
    ("images_per_s", "images per second", True),
)
MEANINGS = {
    "mAP": "mean average precision over the whole ranking",
    "mAP@": "mean average precision of the first {k}, divided by the hits among them",
    "wAP@": "weighted average precision: mean ACG at the hits",
    "nDCG@": "discounted gain against the best possible list of the archive",
    "ACG@": "mean gain of the first {k}",
    "P@": "share of relevant images among the first {k}",
    "label AP": "average precision of single labels; the mean over labels, their number in brackets",
}
NUM_VIEWED = 3
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(config: Config, folder: Path) -> Path:
    """Write ``folder/eval/panel.png`` and ``folder/report.html`` from what lies in the folder and in ``data.dir``.

    Raises:
        DataError: no evaluation yet, or the data are not those that were evaluated.
        LaunchError: no room, or the folder cannot be written.
    """
    summary, rows = results.read(folder / "eval")
    dataset = open_dataset(config.data.dir)
    if dataset.fingerprint != summary["fingerprint"]:
        raise DataError(f"{dataset.root}: not the data that {folder / 'eval'} was made with; run marc-eval {folder}")
    reader = IndexedReader(dataset, verify_crc=config.data.verify_crc)
    panels = choose_panels(dataset, summary, rows, config.eval.panels)
    if panels:
        metric = score_name(summary)
        told = ", ".join(f"{name} {one[metric]:.3f}" for name, one in summary["scores"].items())
        picture = panel_png(dataset, reader, panels, f"{dataset.title}: {metric} {told}", metric)
        write_atomic(folder / "eval" / "panel.png", picture)
    page = render(config, folder, summary, dataset, reader, panels)
    reader.close()
    write_atomic(folder / "report.html", page.encode())
    return folder / "report.html"


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
    dataset: Dataset,
    reader: IndexedReader,
    panels: Sequence[Panel],
) -> str:
    """The page."""
    name = folder.resolve().name
    known = (folder / "config.yaml").is_file()  # else the encoder lies alone, and nobody knows how it was trained
    same = known and summary["trained_on"] == summary["fingerprint"]
    parts = [
        _head(name, config if known else None, summary),
        _section("Scores", _cards(summary) + _score_table(summary), _protocol(summary)),
        _section("Labels", _label_table(summary), "Average precision of each label, most frequent first."),
        _section("Answers", _panels(summary, dataset, reader, panels), _panel_sentence(summary, panels)),
        _section("Training", _curves(folder), ""),
        _section("Augmentation", _views(config, dataset, reader) if same else "", _views_sentence(config)),
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
    return f'<section id="{esc(title.lower())}"><h2>{esc(title)}</h2>{lead}{body}</section>' if body else ""


def _head(name: str, config: Config | None, summary: dict[str, Any]) -> str:
    facts = [summary["title"], f"{summary['backbone']}, {summary['image_size']} px"]
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
    tail = f" {none} queries have no relevant image; they score 0 and count." if none else ""
    ranked = "" if summary["full_ranking"] else f" Rankings end at {max(summary['ks'])}."
    sentence = summary["protocol_sentence"]
    return (
        f"{summary['num_queries']} queries against {summary['num_archive']} images: {sentence} "
        f"({summary['protocol']}). Relevant is what {meaning}; gain: {summary['gain']}.{ranked} "
        f"In random order a share of {summary['relevant_share']:.3f} of the answers is relevant.{tail}{before}"
    )


def _cards(summary: dict[str, Any]) -> str:
    scores = summary["scores"]
    first = str(min(summary["ks"]))
    whole = "mAP" if summary["full_ranking"] else f"mAP@{max(summary['ks'])}"
    wanted = [whole, f"nDCG@{first}", f"P@{first}"]
    told = [(metric, [one[metric] for one in scores.values()]) for metric in wanted]
    rare = [one["rare"]["mAP"] for one in summary["thirds"].values()]
    told.append(("AP of rare labels", rare))
    cards = []
    for metric, values in told:
        under = ""
        if len(values) > 1 and None not in values:
            gain = values[0] - values[1]
            side = "up" if gain > 0 else "down" if gain < 0 else ""
            under = f'<p>untrained {figure(values[1])} <b class="{side}">{gain:+.4f}</b></p>'
        cards.append(f'<div class="card"><h3>{esc(metric)}</h3><strong>{figure(values[0])}</strong>{under}</div>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _meaning(metric: str) -> str:
    name, _, k = metric.partition("@")
    if metric.startswith("label AP"):
        return MEANINGS["label AP"]
    return MEANINGS[f"{name}@"].format(k=k) if k else MEANINGS[name]


def _score_table(summary: dict[str, Any]) -> str:
    names = list(summary["scores"])
    head = "".join(f'<th scope="col" class="num">{esc(name)}</th>' for name in names)
    lines: list[str] = []
    explained: set[str] = set()
    for metric, values in rows_of(summary):
        kind = re.split("[@,]", metric)[0]
        note = "" if kind in explained else f"<small>{esc(_meaning(metric))}</small>"
        explained |= {kind} if kind != metric else set()
        cells = "".join(f'<td class="num">{figure(value)}</td>' for value in values)
        if len(names) == 2:
            gain = MISSING if None in values else f"{values[0] - values[1]:+.4f}"  # type: ignore[operator]
            cells += f'<td class="num">{gain}</td>'
        lines.append(f'<tr><th scope="row">{esc(metric)}{note}</th>{cells}</tr>')
    if len(names) == 2:
        head += '<th scope="col" class="num">difference</th>'
    head = f'<thead><tr><th scope="col">metric</th>{head}</tr></thead>'
    return f'<table class="scores">{head}<tbody>{"".join(lines)}</tbody></table>'


def _label_table(summary: dict[str, Any]) -> str:
    lines = []
    for row in sorted(summary["per_label"], key=lambda row: -row["archive_count"]):
        bars = "".join(bar(value, name, f"average precision of {row['label']}") for name, value in row["ap"].items())
        lines.append(
            f'<tr><th scope="row">{esc(row["label"])}<small>{row["archive_count"]} in archive, {row["query_count"]} '
            f"queries, {esc(row['third'])}</small></th><td>{bars}</td></tr>"
        )
    legend = "".join(f'<li class="{esc(name)}">{esc(name)}</li>' for name in summary["scores"])
    return (
        f'<ul class="legend">{legend}</ul><table class="labels"><thead class="unseen"><tr><th scope="col">label</th>'
        f'<th scope="col">average precision</th></tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )


def _panel_sentence(summary: dict[str, Any], panels: Sequence[Panel]) -> str:
    if not panels:
        return ""
    return (
        f"Queries chosen by the trained encoder's {score_name(summary)}; answers in rank order. "
        "Filled labels are shared with the query, struck ones are not."
    )


def _chips(pairs: Sequence[tuple[str, bool]]) -> str:
    chips = "".join(f'<li class="{"same" if same else "other"}">{esc(name)}</li>' for name, same in pairs)
    return f'<ul class="chips">{chips}</ul>' if chips else '<p class="none">no labels</p>'


def _answer(dataset: Dataset, reader: IndexedReader, query: int, answer: int, rank: int) -> str:
    pairs = shared(dataset, query, answer)
    num, of = sum(same for _, same in pairs), int(dataset.labels[query].sum())
    told = f"answer {rank}, {dataset.keys[answer]}: {', '.join(name for name, _ in pairs) or 'no labels'}"
    return (
        f'<li class="tile {"hit" if num else "miss"}"><img src="{data_uri(reader.image(answer))}" alt="{esc(told)}">'
        f'<p class="rank">{rank}. <span>{num} of {of} shared</span></p>{_chips(pairs)}</li>'
    )


def _row(dataset: Dataset, reader: IndexedReader, query: int, answers: Sequence[int]) -> str:
    tiles = "".join(_answer(dataset, reader, query, answer, at + 1) for at, answer in enumerate(answers))
    return f'<ol class="answers">{tiles}</ol>'


def _panels(summary: dict[str, Any], dataset: Dataset, reader: IndexedReader, panels: Sequence[Panel]) -> str:
    out = []
    for panel in panels:
        pairs = shared(dataset, panel.query, panel.query)
        told = f"query {dataset.keys[panel.query]}: {', '.join(name for name, _ in pairs)}"
        more = "".join(
            f"<details><summary>answers of the {esc(name)} encoder</summary>"
            f"{_row(dataset, reader, panel.query, answers)}</details>"
            for name, answers in panel.answers.items()
            if name != "trained"
        )
        out.append(
            f'<article class="panel"><div class="query"><h3>{esc(panel.kind)}</h3>'
            f'<img src="{data_uri(reader.image(panel.query))}" alt="{esc(told)}">'
            f"<p>{esc(score_name(summary))} {panel.score:.3f}</p>{_chips(pairs)}</div>"
            f"<div>{_row(dataset, reader, panel.query, panel.answers['trained'])}{more}</div></article>"
        )
    return "".join(out)


def _curves(folder: Path) -> str:
    records = read_curves(folder)
    if not records:
        return ""
    charts = [
        line_chart(title, [(float(one["step"]), one.get(key)) for one in records], from_zero=zero)
        for key, title, zero in CURVES
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _views_sentence(config: Config) -> str:
    return (
        f"Images of {config.data.train_split}, each beside the views that training drew of it: "
        f"{config.data.num_views} in every epoch, from the first epoch on."
    )


def _views(config: Config, dataset: Dataset, reader: IndexedReader) -> str:
    out = []
    for sample, pictures in training_views(config, dataset, reader, NUM_VIEWED if config.eval.panels else 0):
        key = esc(dataset.keys[sample])
        tiles = "".join(
            f'<li><img src="{data_uri(picture)}" alt="view {at} of {key}"></li>'
            for at, picture in enumerate(pictures, 1)
        )
        out.append(
            f'<article class="panel views"><div class="query"><img src="{data_uri(reader.image(sample))}" '
            f'alt="{key}"></div><div><ol class="answers">{tiles}</ol></div></article>'
        )
    return "".join(out)


def _settings(config: Config) -> str:
    told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(config).items()}
    lines = "".join(f'<tr><th scope="row">{esc(key)}</th><td>{esc(value)}</td></tr>' for key, value in told.items())
    return f"<details><summary>all settings of the run</summary><table>{lines}</table></details>"
