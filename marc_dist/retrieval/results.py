"""``RUN/eval/PROTOCOL[-NAME]``: the summary of an evaluation and its files, written whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marc_dist import metrics
from marc_dist.config import Config, DataError, EvalConfig, LaunchError
from marc_dist.data.columns import distinct
from marc_dist.files import make_folder, sync_folder, try_lock, write_set
from marc_dist.metrics.intervals import DRAWS, LEVEL, Resampled, percentile_interval, resampled
from marc_dist.retrieval.embedding_map import map_samples
from marc_dist.retrieval.protocols import Protocol, Side
from marc_dist.retrieval.scoring import Searched, scoring_of
from marc_dist.run.evaluations import FORMAT, METRICS_FILE, PANEL, REPORT, name_of, read_summary, run_of

POLL_S = 0.05
Tables = Mapping[str, Searched]
"""Encoder -> what it found."""
Maps = Mapping[str, NDArray[np.floating]]
"""Encoder -> coordinates (n, 2) of ``map_samples``, queries first."""
MAP_COLUMNS = ("encoder", "side", "id", "x", "y")
MEASURED = (
    *("query_split", "archive_split", "seed", "index", "features", "baseline", "ks", "gain", "relevance"),
    *("denominator", "ideal", "ndcg_form", "without_relevant", "extra", "label_map"),
)
"""Settings of ``eval`` that decide what an evaluation says, beside its data and protocol."""


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _pair(ends: tuple[metrics.Float, metrics.Float], at: int) -> list[float] | None:
    return None if math.isnan(ends[0][at]) else [float(ends[0][at]), float(ends[1][at])]


def _named(scores: dict[str, metrics.Float]) -> dict[str, metrics.Float]:
    return {name: values for name, values in scores.items() if name != "num_relevant"}


def _intervals(tables: Tables, third: metrics.Int) -> dict[str, Any]:
    """Bootstrap intervals over queries: of every metric, label and third of the labels, and of trained - untrained."""
    drawn = {
        name: resampled(np.stack([*_named(one.scores).values()], axis=1), one.label_ap, third)
        for name, one in tables.items()
    }
    if "untrained" in tables:
        pairs = zip(drawn["trained"], drawn["untrained"], strict=True)
        drawn["difference"] = Resampled(*(trained - untrained for trained, untrained in pairs))
    ends = {name: [percentile_interval(means) for means in one] for name, one in drawn.items()}
    metric_names, third_names = list(_named(tables["trained"].scores)), list(metrics.label_groups(third))
    return {
        "level": LEVEL,
        "draws": DRAWS,
        "scores": {who: {m: _pair(of[0], at) for at, m in enumerate(metric_names)} for who, of in ends.items()},
        "per_label": {who: [_pair(of[1], at) for at in range(len(third))] for who, of in ends.items()},
        "thirds": {who: {name: _pair(of[2], at) for at, name in enumerate(third_names)} for who, of in ends.items()},
    }


def _rounded(curve: metrics.Float) -> list[float] | None:
    return None if np.isnan(curve).any() else [round(float(value), 4) for value in curve]


def _curves(one: Searched, third: metrics.Int) -> dict[str, Any] | None:
    """Precision at recall 0, 0.01, ..., 1: mean over queries, over the labels of a third, and of every label."""
    if one.curves is None:
        return None
    groups = {
        name: metrics.mean_known(one.curves.labels[chosen]) for name, chosen in metrics.label_groups(third).items()
    }
    return {
        "queries": _rounded(one.curves.queries),
        "thirds": {name: _rounded(curve) for name, curve in groups.items()},
        "labels": [_rounded(curve) for curve in one.curves.labels],
    }


def _side(side: Side) -> dict[str, Any]:
    dataset = side.dataset
    splits = distinct(dataset.split, side.ids)
    return {
        "name": dataset.name,
        "title": dataset.title,
        "fingerprint": dataset.fingerprint,
        "split": ", ".join(splits),
    }


def summarise(
    config: Config,
    protocol: Protocol,
    info: dict[str, Any],
    tables: Tables,
    *,
    index_recall: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What ``metrics.json`` says: how it was measured, and every mean.

    Args:
        config: ``eval``.
        protocol: both sides.
        info: of ``encoder.json``; ``untrained_weights`` if there is a baseline.
        tables: what each encoder found.
        index_recall: encoder -> share of the exact first answers that an inexact index finds.
    """
    queries, archive = protocol.queries, protocol.archive
    counts = np.asarray(archive.labels[archive.ids].sum(axis=0), dtype=np.int64)
    asked = queries.labels[queries.ids].sum(axis=0)
    third = metrics.label_thirds(counts)
    means = {name: metrics.mean_known(one.label_ap) for name, one in tables.items()}
    trained = tables["trained"].scores
    scoring = scoring_of(config.eval)
    averages = {
        name: {m: metrics.mean_known(v[:, None])[0] for m, v in _named(one.scores).items()}
        for name, one in tables.items()
    }
    return {
        "format": FORMAT,
        "queries": _side(queries),
        "archive": _side(archive),
        "classes": list(protocol.classes),
        "trained_on": info.get("fingerprint"),
        "backbone": info["backbone"],
        "image_size": info["image_size"],
        "untrained_weights": info.get("untrained_weights"),
        "name": config.eval.name,
        "protocol": config.eval.protocol,
        "settings": measured(config.eval),
        "protocol_sentence": protocol.sentence,
        "label_map": protocol.label_map.plain() or None,
        "features": config.eval.features,
        "untrained_features": "backbone",  # its head is random
        "index": config.eval.index,
        "index_recall": None if index_recall is None else dict(index_recall),
        "gain": config.eval.gain,
        "relevance": config.eval.relevance,
        "denominator": scoring.denominator,
        "ideal": scoring.ideal,
        "ndcg_form": "linear" if scoring.linear else "exponential",
        "without_relevant": scoring.without_relevant,
        "ks": list(config.eval.ks),
        "full_ranking": "mAP" in trained,
        "num_queries": len(queries.ids),
        "num_archive": len(archive.ids),
        "relevant_share": float(trained["num_relevant"].mean() / len(archive.ids)),
        "queries_without_relevant": int((trained["num_relevant"] == 0).sum()),
        "scores": {name: {metric: _plain(value) for metric, value in one.items()} for name, one in averages.items()},
        # metrics that leave queries out, and how many they keep
        "queries_kept": {m: int((~np.isnan(v)).sum()) for m, v in trained.items() if np.isnan(v).any()},
        "lower_is_better": [metric for metric in _named(trained) if metrics.lower_is_better(metric)],
        "intervals": _intervals(tables, third),
        "thirds": {name: metrics.group_means(means[name], third) for name in tables},
        "per_label": [
            {
                "label": label,
                "archive_count": int(counts[at]),
                "query_count": int(asked[at]),
                "third": metrics.THIRDS[third[at]],
                "ap": {name: _plain(means[name][at]) for name in tables},
            }
            for at, label in enumerate(protocol.classes)
        ],
        "curves": {name: _curves(one, third) for name, one in tables.items()},
    }


def measured(config: EvalConfig) -> dict[str, Any]:
    """The settings that decide what an evaluation says, as JSON has them: ``eval.gain``, ..."""
    kept = config.model_dump(mode="json")
    return {f"eval.{key}": kept[key] for key in MEASURED}


def _csv(summary: dict[str, Any]) -> bytes:
    names = list(summary["scores"])
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"ap_{name}_{end}" for name in names for end in ("low", "high")]
    writer.writerow(["label", "archive_count", "query_count", "third", *(f"ap_{name}" for name in names), *ends])
    for at, row in enumerate(summary["per_label"]):
        pairs = [summary["intervals"]["per_label"][name][at] or (None, None) for name in names]
        numbers = [*(row["ap"][name] for name in names), *(end for pair in pairs for end in pair)]
        told = ["" if number is None else repr(number) for number in numbers]
        writer.writerow([row["label"], row["archive_count"], row["query_count"], row["third"], *told])
    return text.getvalue().encode()


def _bytes(table: Any) -> bytes:
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _parquet(protocol: Protocol, tables: Tables) -> bytes:
    """One row per encoder and query: who, its metrics, its first answers (-1: none), its AP of each label (or null)."""
    import pyarrow as pa

    queries, parts = protocol.queries, []
    for name, one in tables.items():
        columns: dict[str, Any] = {
            "encoder": [name] * len(queries.ids),
            "id": queries.ids,
            "key": queries.dataset.keys[queries.ids].tolist(),
            **one.scores,
            "num_relevant": one.scores["num_relevant"].astype(np.int64),
            "top": pa.array(one.top.tolist(), type=pa.list_(pa.int64())),
            "label_ap": _lists(one.label_ap),
        }
        parts.append(pa.table(columns))
    return _bytes(pa.concat_tables(parts))


def _lists(values: metrics.Float) -> Any:
    """(Q, L) as a column of Q lists; NaN is null."""
    import pyarrow as pa

    ends = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.ravel(), mask=np.isnan(values.ravel())))


def _map_parquet(protocol: Protocol, maps: Maps) -> bytes:
    """One row per encoder and image of the map."""
    import pyarrow as pa

    asked, answering = map_samples(protocol)
    sides = ["query"] * len(asked) + ["archive"] * len(answering)
    parts = []
    for name, points in maps.items():
        columns = ([name] * len(sides), sides, np.concatenate([asked, answering]), *points.astype(np.float32).T)
        parts.append(pa.table(dict(zip(MAP_COLUMNS, columns, strict=True))))
    return _bytes(pa.concat_tables(parts))


def _json(summary: dict[str, Any]) -> bytes:
    """Indented, with lists of numbers on one line each."""
    text = json.dumps(summary, indent=2, allow_nan=False)
    flat = re.sub(r"\[\n\s+([-+.\de]+(?:,\n\s+[-+.\de]+)*)\n\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    return (flat + "\n").encode()


def write(folder: Path, summary: dict[str, Any], protocol: Protocol, tables: Tables, maps: Maps | None = None) -> None:
    """Write ``per_query.parquet``, ``per_label.csv``, ``map.parquet`` and ``metrics.json`` with their SHA-256.

    All bytes exist before the first file is touched. Pages that show other scores go, then the files are replaced:
    after a crash ``evaluations.read`` finds the old evaluation or the new one, and no page shows a third.

    Args:
        folder: of the evaluation; made when it is not there.
        summary: of ``summarise``.
        protocol: both sides.
        tables: what each encoder found.
        maps: coordinates of ``map_samples(protocol)`` by encoder; without them there is no ``map.parquet``.

    Raises:
        LaunchError: no room, or the folder cannot be written.
    """
    files = {"per_query.parquet": _parquet(protocol, tables), "per_label.csv": _csv(summary)}
    if maps:
        files["map.parquet"] = _map_parquet(protocol, maps)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    index = _json({**summary, "sha256": sums})
    with held(folder):
        _remove_pages(folder, index)
        write_set(folder, files, METRICS_FILE, index)
        if not maps:
            (folder / "map.parquet").unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """One process at a time writes an evaluation; where a file system has no locks, everybody does.

    Raises:
        LaunchError: the folder that it lies in cannot be made.
    """
    path, lock = folder.with_name(f".{folder.name}.lock"), None
    try:
        make_folder(folder.parent)
    except OSError as error:
        raise LaunchError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from None
    with suppress(OSError):
        while (lock := try_lock(path)) is None:
            time.sleep(POLL_S)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _remove_pages(folder: Path, index: bytes) -> None:
    """Unless ``index`` is what lies there, remove the report and the panel, and the run's report if it is this one."""
    page, of_run = folder / REPORT, run_of(folder) / REPORT
    try:
        if (folder / METRICS_FILE).is_file() and (folder / METRICS_FILE).read_bytes() == index:
            return
        if page.is_file() and of_run.is_file() and page.read_bytes() == of_run.read_bytes():
            of_run.unlink()
            sync_folder(of_run.parent)
        for path in (page, folder / PANEL):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise LaunchError(f"{error.filename}: cannot be removed ({error.strerror}); make it writable") from None


def replaced(folder: Path, summary: Mapping[str, Any]) -> str | None:
    """One line on an evaluation that was made otherwise and that ``summary`` is about to replace; None without one."""
    try:
        old = read_summary(folder)
    except DataError:
        return None
    known, settings = old.get("settings", {}), summary["settings"]
    other = [f"{key}={known[key]}" for key in settings if key in known and known[key] != settings[key]]
    other += [
        f"{side} of other data"
        for side in ("queries", "archive")
        if old[side]["fingerprint"] != summary[side]["fingerprint"]
    ]
    if not other:
        return None
    return f"replaced: {name_of(summary)} of {', '.join(other)}; --name NAME keeps one beside the other"
