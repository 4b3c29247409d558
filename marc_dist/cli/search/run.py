"""What ``marc-search`` does: search an archive, print a table for each query, write the contact sheet and the page."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from marc_dist import comm
from marc_dist.cli.search.answer_files import GEOJSON, GEOPARQUET, as_geojson, as_geoparquet, facts_of
from marc_dist.cli.search.request import Request
from marc_dist.config import LaunchError, printable
from marc_dist.data.reader import IndexedReader
from marc_dist.encoder.device import resolve_device
from marc_dist.files import make_folder, write_atomic
from marc_dist.geography.grid import middle
from marc_dist.report.picture_sheets import ITSELF, contact_sheet, key_of, labels_of, split_of
from marc_dist.report.search_page import left_out, search_page
from marc_dist.retrieval.archive import Answers, Archive, Hit
from marc_dist.retrieval.evaluate import LIMIT_S

SHEET, PAGE = "search.png", "search.html"


def search(request: Request) -> int:
    """Search as one rank, or make the index; rank 0 prints and writes; the exit code."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    device = resolve_device(request.config.train.device).type
    here = comm.join(device, timeout_s=LIMIT_S, folder=request.folder / "logs")
    speaks = here.rank == 0

    def say(line: str) -> None:
        if speaks:
            errors.print(printable(line), markup=False)

    archive = Archive(request.folder, request.dataset, request.index_dir, request.splits, request.config, say)
    if not request.queries:
        archive.build()
    answers = _asked(archive, request) if request.queries else []
    comm.leave()
    if not speaks:
        return 0
    if not request.queries:
        print(f"index of {len(archive.ids)} images: {archive.folder}")
        return 0
    out = request.out
    if out is None and not request.json:
        asked = zip(request.queries, request.own, strict=True)
        out = new_folder(request.folder / "search", [path if one is None else Path(one.key) for path, one in asked])
    if out is not None:
        _write_pages(answers, archive, request, out)
    if request.json:
        print(json.dumps(_plain(answers, archive, request, out), indent=2, ensure_ascii=False, allow_nan=False))
        return 0
    _print_tables(answers, archive)
    assert out is not None
    more = [f"places: {out / GEOJSON}, {out / GEOPARQUET}"] if _knows_places(archive) else []
    print(f"sheet: {out / SHEET}", f"page: {out / PAGE}", *more, *left_out(answers), sep="\n")
    return 0


def _knows_places(archive: Archive) -> bool:
    return bool(archive.places.placed.any())


def _asked(archive: Archive, request: Request) -> list[Answers]:
    """The answers; images of the archive that were asked for go by their keys."""
    own = [-1 if one is None else one.id for one in request.own]
    found = archive.search(request.queries, request.top, request.labels, request.where, own)
    return [
        answers
        if one is None
        else replace(
            answers,
            path=Path(one.key),
            picture=answers.picture._replace(
                remark=", ".join(filter(None, ("an image of the archive", one.remark, answers.picture.remark)))
            ),
        )
        for answers, one in zip(found, request.own, strict=True)
    ]


def _names(found: Sequence[Answers]) -> list[str]:
    return [printable(answers.path.name) for answers in found]


def new_folder(parent: Path, queries: Sequence[Path]) -> Path:
    """Make the next free folder for a search: a number, and the name of its first query.

    Raises:
        LaunchError: the folder cannot be written.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", queries[0].stem)[:40].strip("-.") or "query"
    more = f"-and-{len(queries) - 1}-more" if len(queries) > 1 else ""
    try:
        make_folder(parent)
        taken = [int(one.name.partition("-")[0]) for one in parent.iterdir() if re.match(r"\d+-", one.name)]
        number = max(taken, default=0)
        while True:
            number += 1
            hidden = parent / f".{number:04d}"  # another search may take this number under another name
            try:
                hidden.mkdir()
            except FileExistsError:
                continue
            if any(parent.glob(f"{number:04d}-*")):  # it has, since we looked
                hidden.rmdir()
                continue
            return hidden.rename(parent / f"{number:04d}-{name}{more}")
    except OSError as error:
        raise LaunchError(f"{parent}: cannot be written ({error.strerror}); choose another place with --out") from None


def _print_tables(found: Sequence[Answers], archive: Archive) -> None:
    """A table for each query, under its path: whole on one line, so that it can be copied."""
    console, dataset = Console(highlight=False), archive.dataset
    for answers in found:
        remark = f" ({answers.picture.remark})" if answers.picture.remark else ""
        print(printable(f"{answers.path}{remark}"))
        table = Table()
        table.add_column("#", justify="right")
        table.add_column("score", justify="right")
        placed, dated = _knows_places(archive), bool(archive.places.dated.any())
        more = [*(["date"] if dated else []), *(["lon, lat"] if placed else [])]
        for column in ("key", "split", *more, "labels"):
            table.add_column(column, overflow="fold", no_wrap=column in ("date", "lon, lat"))
        for at, hit in enumerate(answers.hits, 1):
            names = Text(", ".join(labels_of(dataset, hit.id)))
            key = Text(key_of(dataset, hit.id) + (f" ({ITSELF})" if hit.same else ""))
            day = archive.places.date(hit.id).partition("T")[0]  # the page and --json have the time
            facts = [*([day] if dated else []), *([_middle(archive, hit.id)] if placed else [])]
            split = Text(split_of(dataset, hit.id))
            table.add_row(str(at), f"{hit.score:.4f}", key, split, *map(Text, facts), names)
        console.print(table)


def _middle(archive: Archive, row: int) -> str:
    """Longitude and latitude of the middle of an image's footprint, or empty."""
    if not archive.places.placed[row]:
        return ""
    lon, lat = middle(archive.places.wkb[row].as_py())
    return f"{lon:.4f}, {lat:.4f}"


def _plain(found: Sequence[Answers], archive: Archive, request: Request, out: Path | None) -> dict[str, Any]:
    """The answers as ``--json`` prints them; names are as they are, not as a terminal may show them."""
    dataset = archive.dataset
    known = _knows_places(archive) or bool(archive.places.dated.any())
    placed = out is not None and _knows_places(archive)

    def answer(rank: int, hit: Hit) -> dict[str, Any]:
        return {
            "rank": rank,
            "key": str(dataset.keys[hit.id]),
            "score": hit.score,
            "split": str(dataset.split[hit.id]),
            "labels": [name for name, on in zip(dataset.classes, dataset.label_rows(hit.id), strict=True) if on],
            "same": hit.same,
            **(facts_of(dataset, archive.places, hit.id) if known else {}),
        }

    return {
        "format": 1,
        "archive": {"title": dataset.title, "dir": str(dataset.root.resolve()), "fingerprint": dataset.fingerprint},
        "encoder": archive.embedder.fingerprint,
        "features": archive.embedder.features,
        "index": archive.spec.text,
        "labels": request.labels.text or None,
        "where": request.where.text or None,
        "searched": len(archive.carriers(request.labels, request.where)),
        "sheet": None if out is None else str(out / SHEET),
        "page": None if out is None else str(out / PAGE),
        "geojson": str(out / GEOJSON) if placed and out is not None else None,
        "geoparquet": str(out / GEOPARQUET) if placed and out is not None else None,
        "queries": [
            {
                "path": os.fsencode(one.path).decode("utf-8", "replace") if own is None else None,
                "key": None if own is None else own.key,
                "remark": one.picture.remark or None,
                "answers": [answer(rank, hit) for rank, hit in enumerate(one.hits, 1)],
            }
            for one, own in zip(found, request.own, strict=True)
        ],
    }


def _write_pages(found: Sequence[Answers], archive: Archive, request: Request, out: Path) -> None:
    """The contact sheet and the page."""
    dataset, labels = archive.dataset, request.labels
    asked = [f"with {labels.text}" if labels.text else "", request.where.text]
    title = printable(", ".join([f"Nearest images in {dataset.title}", *filter(None, asked)]))
    facts = [
        f"{len(archive.carriers(labels, request.where))} of {len(dataset)} images searched",
        f"{archive.embedder.features} searched",
        f"index {archive.spec.text}",
        f"encoder {archive.embedder.fingerprint[:12]}",
    ]
    reader = IndexedReader(dataset)
    sheet = contact_sheet(found, dataset, reader, title)
    page = search_page(found, dataset, reader, title, facts, labels.wanted, archive.places).encode()
    reader.close()
    write_atomic(out / SHEET, sheet)
    write_atomic(out / PAGE, page)
    if _knows_places(archive):
        names, places = _names(found), archive.places
        write_atomic(out / GEOJSON, as_geojson(found, names, dataset, places))
        write_atomic(out / GEOPARQUET, as_geoparquet(found, names, dataset, places))
