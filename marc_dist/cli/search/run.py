"""What ``marc-search`` does: search an archive, print a table for each query, write the contact sheet and the page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from marc_dist import comm
from marc_dist.cli.search.words import Request
from marc_dist.config import printable
from marc_dist.data.reader import IndexedReader
from marc_dist.encoder.device import resolve_device
from marc_dist.files import write_atomic
from marc_dist.report.picture_sheets import contact_sheet, key_of, labels_of
from marc_dist.report.search_page import left_out, search_page
from marc_dist.retrieval.archive import Answers, Archive
from marc_dist.retrieval.evaluate import LIMIT_S


def search(request: Request) -> int:
    """Search as one rank, or make the index; rank 0 prints and writes; the exit code."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    device = resolve_device(request.config.train.device).type
    here = comm.join(device, timeout_s=LIMIT_S, folder=request.folder / "logs")
    speaks = here.rank == 0

    def say(line: str) -> None:
        if speaks:
            errors.print(printable(line), markup=False)

    archive = Archive(request.folder, request.archive_dir, request.index_dir, request.splits, request.config, say)
    if not request.queries:
        archive.build()
    answers = archive.search(request.queries, request.top, request.labels) if request.queries else []
    comm.leave()
    if speaks and answers:
        _print_tables(answers, archive)
        _write_pages(answers, archive, request)
    if speaks and not request.queries:
        print(f"index of {len(archive.ids)} images: {archive.folder}")
    return 0


def _print_tables(found: Sequence[Answers], archive: Archive) -> None:
    """A table for each query, under its path: whole on one line, so that it can be copied."""
    console, dataset = Console(highlight=False), archive.dataset
    for answers in found:
        remark = f" ({answers.picture.remark})" if answers.picture.remark else ""
        print(printable(f"{answers.path}{remark}"))
        table = Table()
        table.add_column("#", justify="right")
        table.add_column("score", justify="right")
        for column in ("key", "split", "labels"):
            table.add_column(column, overflow="fold")
        for at, hit in enumerate(answers.hits, 1):
            names = Text(", ".join(labels_of(dataset, hit.id)))
            split = Text(printable(str(dataset.split[hit.id])))
            table.add_row(str(at), f"{hit.score:.4f}", Text(key_of(dataset, hit.id)), split, names)
        console.print(table)


def _write_pages(found: Sequence[Answers], archive: Archive, request: Request) -> None:
    """The contact sheet and the page."""
    dataset, labels = archive.dataset, request.labels
    with_labels = f", with {' and '.join(labels)}" if labels else ""
    title = printable(f"Nearest images in {dataset.title}{with_labels}")
    facts = [
        f"{len(archive.carriers(labels))} of {len(dataset)} images searched",
        f"{archive.embedder.features} searched",
        f"index {archive.spec.text}",
        f"encoder {archive.embedder.fingerprint[:12]}",
    ]
    reader = IndexedReader(dataset)
    sheet = contact_sheet(found, dataset, reader, title)
    page = search_page(found, dataset, reader, title, facts, labels).encode()
    reader.close()
    write_atomic(request.out / "search.png", sheet)
    write_atomic(request.out / "search.html", page)
    print(f"sheet: {request.out / 'search.png'}", f"page: {request.out / 'search.html'}", *left_out(found), sep="\n")
