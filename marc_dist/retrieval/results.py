"""``RUN/eval``: the summary of an evaluation, and its files, each written completely or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from marc_dist.config import Config, DataError
from marc_dist.data.dataset import Dataset
from marc_dist.retrieval import metrics
from marc_dist.retrieval.intervals import DRAWS, LEVEL, percentile_interval, resampled_means
from marc_dist.retrieval.protocols import Protocol
from marc_dist.training.runfolder import write_atomic

FORMAT = 1
TOP = 10
"""First answers that are kept for every query."""
Tables = dict[str, tuple[dict[str, metrics.Float], metrics.Float, metrics.Int]]
"""Encoder -> metrics (Q,) by name, label AP (Q, L), first answers (Q, TOP)."""


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _pair(ends: tuple[metrics.Float, metrics.Float], at: int) -> list[float] | None:
    return None if math.isnan(ends[0][at]) else [float(ends[0][at]), float(ends[1][at])]


def _groups(third: metrics.Int) -> dict[str, metrics.Bool]:
    """The labels of all and of each third."""
    every = {name: third == at for at, name in enumerate(metrics.THIRDS)}
    return {"all": np.full(len(third), True), **every}


def _thirds(per_label: metrics.Float, third: metrics.Int) -> dict[str, dict[str, Any]]:
    """Mean AP of the labels that have one, of all and of each third."""
    out = {}
    for name, chosen in _groups(third).items():
        known = per_label[chosen & ~np.isnan(per_label)]
        out[name] = {"mAP": float(known.mean()) if len(known) else None, "num_labels": len(known)}
    return out


def _named(scores: dict[str, metrics.Float]) -> dict[str, metrics.Float]:
    return {name: values for name, values in scores.items() if name != "num_relevant"}


def _intervals(tables: Tables, third: metrics.Int) -> dict[str, Any]:
    """Bootstrap intervals over queries: of every metric, label and third of the labels, and of trained - untrained.

    A sample in which a label has no query leaves that label out of its third.
    """
    scores, labels, thirds = {}, {}, {}
    for name, (one, label_ap, _) in tables.items():
        scores[name] = resampled_means(np.stack([*_named(one).values()], axis=1))
        labels[name] = resampled_means(label_ap)
        groups = [metrics.mean_known(labels[name][:, chosen].T) for chosen in _groups(third).values()]
        thirds[name] = np.stack(groups, axis=1)
    if "untrained" in tables:
        for means in (scores, labels, thirds):
            means["difference"] = means["trained"] - means["untrained"]
    ends = [{name: percentile_interval(values) for name, values in means.items()} for means in (scores, labels, thirds)]
    metric_names, third_names = list(_named(tables["trained"][0])), list(_groups(third))
    return {
        "level": LEVEL,
        "draws": DRAWS,
        "scores": {who: {m: _pair(pair, at) for at, m in enumerate(metric_names)} for who, pair in ends[0].items()},
        "per_label": {who: [_pair(pair, at) for at in range(len(third))] for who, pair in ends[1].items()},
        "thirds": {
            who: {name: _pair(pair, at) for at, name in enumerate(third_names)} for who, pair in ends[2].items()
        },
    }


def summarise(
    config: Config, dataset: Dataset, protocol: Protocol, info: dict[str, Any], tables: Tables
) -> dict[str, Any]:
    """What ``metrics.json`` says: how it was measured, and every mean."""
    counts = np.asarray(dataset.labels[protocol.archive].sum(axis=0), dtype=np.int64)
    asked = dataset.labels[protocol.queries].sum(axis=0)
    third = metrics.label_thirds(counts)
    means = {name: metrics.mean_known(label_ap) for name, (_, label_ap, _) in tables.items()}
    trained = tables["trained"][0]
    scoring = metrics.Scoring()
    averages = {
        name: {m: metrics.mean_known(v[:, None])[0] for m, v in _named(one[0]).items()} for name, one in tables.items()
    }
    return {
        "format": FORMAT,
        "dataset": dataset.name,
        "title": dataset.title,
        "fingerprint": dataset.fingerprint,
        "trained_on": info.get("fingerprint"),
        "backbone": info["backbone"],
        "image_size": info["image_size"],
        "untrained_weights": info.get("untrained_weights"),
        "protocol": config.eval.protocol,
        "protocol_sentence": protocol.sentence,
        "features": config.eval.features,
        "gain": config.eval.gain,
        "relevance": config.eval.relevance,
        "denominator": scoring.denominator,
        "ideal": scoring.ideal,
        "ks": list(config.eval.ks),
        "full_ranking": "mAP" in trained,
        "num_queries": len(protocol.queries),
        "num_archive": len(protocol.archive),
        "relevant_share": float(trained["num_relevant"].mean() / len(protocol.archive)),
        "queries_without_relevant": int((trained["num_relevant"] == 0).sum()),
        "scores": {name: {metric: _plain(value) for metric, value in one.items()} for name, one in averages.items()},
        # metrics that leave queries out, and how many they keep
        "queries_kept": {m: int((~np.isnan(v)).sum()) for m, v in trained.items() if np.isnan(v).any()},
        "intervals": _intervals(tables, third),
        "thirds": {name: _thirds(means[name], third) for name in tables},
        "per_label": [
            {
                "label": label,
                "archive_count": int(counts[at]),
                "query_count": int(asked[at]),
                "third": metrics.THIRDS[third[at]],
                "ap": {name: _plain(means[name][at]) for name in tables},
            }
            for at, label in enumerate(dataset.classes)
        ],
    }


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


def _parquet(dataset: Dataset, protocol: Protocol, tables: Tables) -> bytes:
    """One row per encoder and query: who, its metrics, its first answers (-1: none)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for name, (one, _, top) in tables.items():
        columns: dict[str, Any] = {
            "encoder": [name] * len(protocol.queries),
            "id": protocol.queries,
            "key": dataset.keys[protocol.queries].tolist(),
            **one,
            "num_relevant": one["num_relevant"].astype(np.int64),
            "top": pa.array(top.tolist(), type=pa.list_(pa.int64())),
        }
        parts.append(pa.table(columns))
    sink = io.BytesIO()
    pq.write_table(pa.concat_tables(parts), sink)
    return sink.getvalue()


def write(folder: Path, summary: dict[str, Any], dataset: Dataset, protocol: Protocol, tables: Tables) -> None:
    """Write ``per_query.parquet``, ``per_label.csv`` and, last, ``metrics.json``, which holds the SHA-256 of both.

    All bytes exist before the first file is touched. A death between two files leaves a set that ``read`` refuses.

    Raises:
        LaunchError: no room, or the folder cannot be written.
    """
    files = {"per_query.parquet": _parquet(dataset, protocol, tables), "per_label.csv": _csv(summary)}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files["metrics.json"] = (json.dumps({**summary, "sha256": sums}, indent=2, allow_nan=False) + "\n").encode()
    for name, data in files.items():
        write_atomic(folder / name, data)


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the rows of ``per_query.parquet``.

    Raises:
        DataError: not there, of another format, or a mixture of two evaluations.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        summary = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        data = (folder / "per_query.parquet").read_bytes()
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
    except FileNotFoundError:
        raise DataError(f"{folder}: no evaluation; make one with marc-eval {folder.parent}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder}: cannot be read ({error}); evaluate again with marc-eval") from None
    if summary.get("format") != FORMAT:
        raise DataError(f"{folder}/metrics.json: expected format {FORMAT}, got {summary.get('format')!r}")
    if hashlib.sha256(data).hexdigest() != summary.get("sha256", {}).get("per_query.parquet"):
        raise DataError(f"{folder}: its files are of different evaluations; evaluate again with marc-eval")
    return summary, rows
