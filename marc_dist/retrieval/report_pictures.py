"""The parts of the report that show pictures: answers, the map, augmentations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from marc_dist.config import Config
from marc_dist.retrieval.charts import dots, esc
from marc_dist.retrieval.embedding_map import MAP_POINTS
from marc_dist.retrieval.panel import Galleries, Gallery, Panel, data_uri, score_name, training_views
from marc_dist.retrieval.protocols import Bool
from marc_dist.retrieval.report_scores import legend

NUM_VIEWED = 3
MAP_SIZE, MAP_MARGIN = (1000, 750), 24
NUM_MAPS = 6
LEAST_SHARE = 0.01
"""Of a map's images that a label must be on to have a map of its own."""


def panel_sentence(summary: dict[str, Any], panels: Sequence[Panel]) -> str:
    """How to read the panels."""
    if not panels:
        return ""
    return (
        f"Queries chosen by the trained encoder's {score_name(summary)}; answers in rank order. "
        "Filled labels are shared with the query, struck ones are not."
    )


def _chips(pairs: Sequence[tuple[str, bool]]) -> str:
    chips = "".join(f'<li class="{"same" if same else "other"}">{esc(name)}</li>' for name, same in pairs)
    return f'<ul class="chips">{chips}</ul>' if chips else '<p class="none">no labels</p>'


def _answer(galleries: Galleries, query: int, answer: int, rank: int) -> str:
    pairs, archive = galleries.shared(query, answer), galleries.archive
    num, of = sum(same for _, same in pairs), len(galleries.asked(query))
    told = f"answer {rank}, {archive.dataset.keys[answer]}: {', '.join(name for name, _ in pairs) or 'no labels'}"
    return (
        f'<li class="tile {"hit" if num else "miss"}">'
        f'<img src="{data_uri(archive.reader.image(answer))}" alt="{esc(told)}">'
        f'<p class="rank">{rank}. <span>{num} of {of} shared</span></p>{_chips(pairs)}</li>'
    )


def _row(galleries: Galleries, query: int, answers: Sequence[int]) -> str:
    tiles = "".join(_answer(galleries, query, answer, at + 1) for at, answer in enumerate(answers))
    return f'<ol class="answers">{tiles}</ol>'


def answer_panels(summary: dict[str, Any], galleries: Galleries, panels: Sequence[Panel]) -> str:
    """Each query with its first answers, those of the other encoder folded away."""
    out = []
    for panel in panels:
        queries, names = galleries.queries, galleries.asked(panel.query)
        told = f"query {queries.dataset.keys[panel.query]}: {', '.join(names)}"
        more = "".join(
            f"<details><summary>answers of the {esc(name)} encoder</summary>"
            f"{_row(galleries, panel.query, answers)}</details>"
            for name, answers in panel.answers.items()
            if name != "trained"
        )
        out.append(
            f'<article class="panel"><div class="query"><h3>{esc(panel.kind)}</h3>'
            f'<img src="{data_uri(queries.reader.image(panel.query))}" alt="{esc(told)}">'
            f"<p>{esc(score_name(summary))} {panel.score:.3f}</p>{_chips([(name, True) for name in names])}</div>"
            f"<div>{_row(galleries, panel.query, panel.answers['trained'])}{more}</div></article>"
        )
    return "".join(out)


def views_sentence(config: Config) -> str:
    """What the augmentation panel shows."""
    return (
        f"Images of {config.data.train_split}, each beside the views that training drew of it: "
        f"{config.data.num_views} in every epoch, from the first epoch on."
    )


def view_panels(config: Config, gallery: Gallery) -> str:
    """Some training images beside their augmented views."""
    dataset, out = gallery.dataset, []
    for sample, pictures in training_views(config, dataset, gallery.reader, NUM_VIEWED if config.eval.panels else 0):
        key = esc(dataset.keys[sample])
        tiles = "".join(
            f'<li><img src="{data_uri(picture)}" alt="view {at} of {key}"></li>'
            for at, picture in enumerate(pictures, 1)
        )
        out.append(
            f'<article class="panel views"><div class="query"><img src="{data_uri(gallery.reader.image(sample))}" '
            f'alt="{key}"></div><div><ol class="answers">{tiles}</ol></div></article>'
        )
    return "".join(out)


def map_sentence(summary: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """How to read the maps."""
    num = sum(row["encoder"] == "trained" for row in rows)
    told = f"All {num:,} images" if num < MAP_POINTS else f"{num:,} images, evenly spaced,"
    return (
        f"{told} of queries and archive, placed by the features of {'each' if len(summary['scores']) > 1 else 'the'} "
        "encoder (t\u2011SNE): what lies together is found together; distances between groups mean little. "
        "Every map shows all of them, and in colour those that carry one label; rare labels first."
    )


def _places(rows: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Whole places within ``MAP_SIZE`` that hold all points, with the same scale both ways."""
    points = np.array([(row["x"], row["y"]) for row in rows], dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    size = np.array(MAP_SIZE, dtype=np.float64)
    scale = float(((high - low) / (size - 2 * MAP_MARGIN)).max()) or 1.0
    placed = np.rint(size / 2 + (points - (low + high) / 2) / scale).astype(np.int64)
    return [(x, y) for x, y in placed.tolist()]


def shown_labels(carried: Bool, num: int = NUM_MAPS) -> list[int]:
    """Up to ``num`` labels worth a map, by frequency: half of them the rarest, half the most common.

    Rarer ones than ``LEAST_SHARE`` are passed over; those on most of the images come last, they tell little.

    Args:
        carried: (n, L) labels of the map's images.
        num: of maps.
    """
    counts = carried.sum(axis=0)
    least = max(1.0, LEAST_SHARE * len(carried))
    order = [at for at in np.argsort(counts, kind="stable").tolist() if counts[at] >= least]
    rare = order[: num // 2]
    over = 2 * counts - len(carried)
    common = sorted(order[len(rare) :], key=lambda at: (over[at] > 0, abs(over[at])))
    return sorted([*rare, *common[: num - len(rare)]], key=order.index)


def maps(summary: dict[str, Any], galleries: Galleries, rows: Sequence[dict[str, Any]]) -> str:
    """A small map for each of a few labels; both encoders side by side."""
    if not rows:
        return ""
    by_encoder = {name: [row for row in rows if row["encoder"] == name] for name in summary["scores"]}
    first = by_encoder["trained"]
    sides = {"query": galleries.queries.labels, "archive": galleries.archive.labels}
    carried = np.stack([sides[row["side"]][row["id"]] for row in first])
    places = {name: _places(some) for name, some in by_encoder.items()}
    marked = []
    if galleries.queries.dataset.fingerprint != galleries.archive.dataset.fingerprint:
        asked = np.array([row["side"] == "query" for row in first])
        marked.append((f"all images of {galleries.queries.dataset.title}", asked))
    chosen = shown_labels(carried, NUM_MAPS - len(marked))
    marked += [(galleries.classes[at], carried[:, at]) for at in chosen]
    figures = [_map_figure(title, some, places, drawn=at > 0) for at, (title, some) in enumerate(marked)]
    many = "pairs" if len(places) > 1 else "singles"
    return f'{legend(summary)}<div class="maps {many}">{"".join(figures)}</div>'


def _map_figure(title: str, chosen: Bool, places: dict[str, list[tuple[int, int]]], *, drawn: bool) -> str:
    """One label on the map of each encoder; the grey dots are written out once and then pointed at."""
    num = int(chosen.sum())
    out = []
    for name, points in places.items():
        here = f"map-{esc(name)}"
        grey = f'<use href="#{here}"/>' if drawn else f'<path id="{here}" class="all" d="{dots(points)}"/>'
        some = dots([place for place, mine in zip(points, chosen, strict=True) if mine])
        told = esc(f"map of the {name} encoder, {num} images with {title} in colour")
        out.append(
            f'<svg class="{esc(name)}" viewBox="0 0 {MAP_SIZE[0]} {MAP_SIZE[1]}" role="img" aria-label="{told}">'
            f'{grey}<path class="some" d="{some}"/></svg>'
        )
    return f"<figure><figcaption>{esc(title)}<span>{num:,} images</span></figcaption><div>{''.join(out)}</div></figure>"
