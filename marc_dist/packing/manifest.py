"""What stands beside the shards: the index, the facts about the data set, and a few lines for other people's tools."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marc_dist import __version__
from marc_dist.data.columns import CHUNK, SCHEMA
from marc_dist.data.dataset import FORMAT, content_fingerprint, cooccurrence
from marc_dist.geography.acquisition import Acquisition
from marc_dist.geography.places import add_to_index
from marc_dist.packing import sources
from marc_dist.packing.reading.samples import LabelledPicture, Source
from marc_dist.packing.tar import Entry, WrittenShard, by_key, file_sum

ShardPlan = Mapping[str, Sequence[tuple[LabelledPicture, Entry]]]


def describe(
    source: Source,
    plan: ShardPlan,
    shards: Mapping[str, Sequence[WrittenShard]],
    folder: Path,
    packed_with: Mapping[str, object],
    bands: Mapping[str, object] | None = None,
) -> None:
    """Write every sidecar; ``dataset.json`` last, because its presence says that the folder is whole.

    Args:
        source: what was found in the download.
        plan: split -> samples in order of their keys.
        shards: split -> finished shards in order; the index has the samples of a split in order of their keys, in
            whichever shard they are.
        folder: where the shards lie.
        packed_with: what a later ``marc-shard --append`` must ask for, too.
        bands: names, numbers and statistics of the bands, where the recipe names them.
    """
    recipe, classes = source.recipe, list(source.classes)
    fingerprint = _write_index(_rows(plan, shards, classes), folder / "index.parquet", classes)
    if any(map(any, _taken(plan))):
        add_to_index(folder / "index.parquet", _taken(plan))
    sources_sha256 = sources.write(folder, plan, shards)
    sizes = {shard.name: len(shard.rows) for split in shards for shard in shards[split]}
    _text(folder / "sizes.json", json.dumps(sizes, indent=1) + "\n")
    _text(folder / "README.md", _card(source, list(shards)))
    splits = {split: statistics((sample.labels for sample, _ in plan[split]), len(classes)) for split in plan}
    _text(folder / "cooccurrence.csv", _cooccurrence_csv(classes, splits))
    for name, content in source.beside.items():
        _text(folder / name, content)
    meta: dict[str, Any] = {
        "format": FORMAT,
        "name": recipe.name,
        "title": recipe.title,
        "licence": recipe.licence,
        "citation": recipe.citation,
        "classes": classes,
        "splits": splits,
        "split_source": recipe.splits.source,
        "shards": [
            {
                "name": shard.name,
                "split": split,
                "num_samples": len(shard.rows),
                "size": shard.size,
                "sha256": shard.sha256,
            }
            for split in shards
            for shard in shards[split]
        ],
        "fingerprint": fingerprint,
        "index_sha256": file_sum([folder / "index.parquet"]),
        "sources_sha256": sources_sha256,
        **({} if bands is None else {"bands": dict(bands)}),
        "packed_with": dict(packed_with),
        "warnings": source.warnings,
        "versions": {"marc_dist": __version__},
    }
    _text(folder / "dataset.json", json.dumps(meta, indent=1, ensure_ascii=False) + "\n")


def _cooccurrence_csv(classes: Sequence[str], splits: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each label of each split: how many pictures carry it together with each of the labels."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "label", *classes])
    for split, found in splits.items():
        writer.writerows([split, name, *row] for name, row in zip(classes, found["cooccurrence"], strict=True))
    return text.getvalue()


def statistics(labels: Iterable[Sequence[int]], num_classes: int) -> dict[str, Any]:
    """Sizes, n_l and c_kl of a split, from the class numbers of each of its samples."""
    num = 0

    def parts() -> Iterator[NDArray[np.bool_]]:
        nonlocal num
        rest = iter(labels)
        while some := list(islice(rest, CHUNK)):
            num += len(some)
            rows = np.zeros((len(some), num_classes), dtype=np.bool_)
            for row, numbers in zip(rows, some, strict=True):
                row[list(numbers)] = True
            yield rows
        if not num:
            yield np.zeros((0, num_classes), dtype=np.bool_)

    both = cooccurrence(parts())
    return {"num_samples": num, "label_counts": both.diagonal().tolist(), "cooccurrence": both.tolist()}


Fact = tuple[str, str, str, int, int, int, bytes, str, int, int, str]  # a row of the index, as SCHEMA has it


def _rows(plan: ShardPlan, shards: Mapping[str, Sequence[WrittenShard]], classes: list[str]) -> Iterator[Fact]:
    """The index's rows."""
    packed: dict[tuple[int, ...], bytes] = {}
    for split, pairs in plan.items():
        written = by_key(shards[split])
        for (sample, entry), (shard, row) in zip(pairs, written, strict=True):
            if sample.labels not in packed:
                bits = np.zeros(len(classes), dtype=np.uint8)
                bits[list(sample.labels)] = 1
                packed[sample.labels] = np.packbits(bits, bitorder="little").tobytes()
            yield (
                row.key, split, shard, row.offset, row.size, row.crc32,
                packed[sample.labels], sample.scene, row.width, row.height, entry.ext,
            )  # fmt: skip


def _taken(plan: ShardPlan) -> Iterator[Acquisition]:
    """Where and when each picture of the index was taken."""
    return (sample.taken for pairs in plan.values() for sample, _ in pairs)


def _write_index(rows: Iterator[Fact], path: Path, classes: list[str]) -> str:
    """Write the index; the fingerprint of the content: free of paths, shard sizes and library versions."""
    import pyarrow.parquet as pq

    places = [list(SCHEMA).index(name) for name in ("key", "split", "labels", "scene", "crc32", "size")]
    with pq.ParquetWriter(path, sources.schema_of(SCHEMA), compression="zstd") as writer:

        def facts() -> Iterator[Any]:
            while some := list(islice(rows, sources.ROWS)):
                writer.write_batch(sources.batch(some, SCHEMA))
                for row in some:
                    yield [row[place] for place in places]

        fingerprint = content_fingerprint(classes, facts())
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return fingerprint


def _card(source: Source, splits: list[str]) -> str:
    """A data set card whose first lines tell Hugging Face's tools where the splits are."""
    recipe = source.recipe
    files = "".join(f"  - split: {split}\n    path: {split}-*.tar\n" for split in splits)
    warnings = "".join(f"- {warning}\n" for warning in source.warnings)
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n# {recipe.title}\n\n"
        f"WebDataset shards written by marc-dist {__version__}: `KEY.jpg`, `KEY.png` or `KEY.tif` with the picture and "
        f'`KEY.json` with `{{"labels": [...], "scene": ..., "path": ...}}`.\n\n'
        f"- Licence: {recipe.licence}\n- Cite: {recipe.citation or 'not stated'}\n- Splits: {recipe.splits.source}\n"
        f"- Classes: {', '.join(source.classes)}\n" + (f"\nNoted while packing:\n\n{warnings}" if warnings else "")
    )


def _text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
