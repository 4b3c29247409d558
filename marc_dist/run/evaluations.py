"""The evaluations of a run: ``RUN/eval/PROTOCOL``, or ``RUN/eval/PROTOCOL-NAME`` where one has a name. No torch."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from marc_dist.config import DataError
from marc_dist.files import read_json, set_member
from marc_dist.metrics import Float

T = TypeVar("T")
FORMAT = 2

EVAL = "eval"
METRICS_FILE = "metrics.json"
"""Speaks for an evaluation: it is there once the evaluation is whole."""
REPORT = "report.html"
PANEL = "panel.png"


def evaluation_name(protocol: str, name: str | None) -> str:
    """What an evaluation is called among those of its run."""
    return protocol if name is None else f"{protocol}-{name}"


def evaluation_folder(run: Path, protocol: str, name: str | None = None) -> Path:
    """Where an evaluation goes; the next one of the same protocol and name takes its place.

    Args:
        run: the run folder.
        protocol: ``eval.protocol``.
        name: ``eval.name``.
    """
    return run / EVAL / evaluation_name(protocol, name)


def run_of(folder: Path) -> Path:
    """The run folder in which the folder of an evaluation lies."""
    return folder.parent if folder.name == EVAL else folder.parent.parent


def find_evaluation(run: Path, protocol: str, name: str | None = None) -> Path | None:
    """The folder of an evaluation that is there; earlier versions kept one, without a name, in ``RUN/eval`` itself.

    Args:
        run: the run folder.
        protocol: ``eval.protocol``.
        name: ``eval.name``.
    """
    folder, old = evaluation_folder(run, protocol, name), run / EVAL
    if (folder / METRICS_FILE).exists():
        return folder
    with suppress(FileNotFoundError, ValueError):
        if name is None and read_json(old / METRICS_FILE).get("protocol") == protocol:
            return old
    return None


def evaluation_folders(run: Path) -> list[Path]:
    """The folders of all evaluations of a run, in the order of their names; that of an earlier version first."""
    return sorted(file.parent for file in [*run.glob(f"{EVAL}/{METRICS_FILE}"), *run.glob(f"{EVAL}/*/{METRICS_FILE}")])


def name_of(summary: Mapping[str, Any]) -> str:
    """What an evaluation is called: its protocol, and its name if it has one."""
    return evaluation_name(summary["protocol"], summary.get("name"))


class Queries(NamedTuple):
    """What an evaluation keeps of each query, of one encoder.

    Attributes:
        keys: Q keys.
        scores: metric -> (Q,), NaN where a query does not count.
        label_ap: (Q, L), NaN where a query says nothing of a label; None of an earlier version, which kept none.
    """

    keys: list[str]
    scores: dict[str, Float]
    label_ap: Float | None


def read_queries(folder: Path, summary: dict[str, Any], encoder: str = "trained") -> Queries:
    """The scores of each query.

    Args:
        folder: of the evaluation.
        summary: of ``read_summary``.
        encoder: trained or untrained.

    Raises:
        DataError: damaged, of another evaluation, or without this encoder.
    """

    def reader() -> Queries:
        import pyarrow.compute as pc

        table = _table(folder, "per_query.parquet", summary.get("sha256", {}))
        table = table.filter(pc.equal(table["encoder"], encoder))
        if not len(table):
            raise ValueError(f"no {encoder} encoder")
        scores = {name: table[name].to_numpy() for name in summary["scores"][encoder]}
        label_ap = None
        if "label_ap" in table.column_names:
            label_ap = pc.list_flatten(table["label_ap"]).to_numpy().reshape(len(table), -1)
        return Queries(table["key"].to_pylist(), scores, label_ap)

    return _read(folder, reader)


def _table(folder: Path, name: str, sums: Any) -> Any:
    import pyarrow.parquet as pq

    try:
        data = set_member(folder, name, sums).read_bytes()
    except FileNotFoundError:  # it took its place just now
        data = (folder / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != sums.get(name):
        raise DataError(f"{folder}: its files are of different evaluations; evaluate again with marc-eval")
    return pq.read_table(io.BytesIO(data))


def _rows(folder: Path, name: str, sums: Any) -> list[dict[str, Any]]:
    table = _table(folder, name, sums)
    rows: list[dict[str, Any]] = table.drop_columns({"label_ap"} & set(table.column_names)).to_pylist()
    return rows


def read_summary(folder: Path) -> dict[str, Any]:
    """What ``metrics.json`` says.

    Raises:
        DataError: not there, damaged, or of another format.
    """
    summary = _read(folder, lambda: read_json(folder / METRICS_FILE))
    if summary.get("format") != FORMAT:
        raise DataError(
            f"{folder}/metrics.json: expected format {FORMAT}, got {summary.get('format')!r}; "
            "evaluate again with marc-eval"
        )
    return summary


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the rows of ``per_query.parquet`` without the labels' AP.

    Raises:
        DataError: not there, of another format, or a mixture of two evaluations.
    """
    summary = read_summary(folder)
    return summary, _read(folder, lambda: _rows(folder, "per_query.parquet", summary.get("sha256", {})))


def read_map(folder: Path, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of ``map.parquet``; none when the evaluation drew no map.

    Raises:
        DataError: damaged, or of another evaluation.
    """
    sums = summary.get("sha256", {})
    return _read(folder, lambda: _rows(folder, "map.parquet", sums)) if "map.parquet" in sums else []


def _read(folder: Path, reader: Callable[[], T]) -> T:
    import pyarrow as pa

    try:
        return reader()
    except FileNotFoundError:
        raise DataError(f"{folder}: no evaluation; make one with marc-eval {run_of(folder)}") from None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{folder}: cannot be read ({error}); evaluate again with marc-eval") from None
