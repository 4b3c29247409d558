"""``marc-search``: the images of an archive that are nearest to a picture, as a table, a contact sheet and a page."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from marc_dist.config import Config
    from marc_dist.retrieval.archive import Answers, Archive

EPILOG = """\
The archive is a shard folder (marc-shard makes one of any images). Its vectors are made once and kept in the run, or in
--index-dir; that folder can be copied, and refuses an encoder that did not make it.

examples:
  marc-search runs/demo harbour.jpg
  marc-search runs/demo a.tif b.png --archive data/ml-aid --top 24 --label water --label dock
  marc-search runs/demo --archive data/ml-aid --index-dir indexes/ml-aid --index IVF256,PQ32 --index-only
  marc-search runs/demo harbour.jpg --index-dir indexes/ml-aid --index IVF256,PQ32
"""
TAKEN = ("eval.features", "eval.batch", "eval.float16", "data.num_workers", "data.verify_crc", "train.device")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marc-search",
        description="The nearest images of an archive for each query picture.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("encoder", metavar="ENCODER", help="a run folder, or its encoder.safetensors")
    parser.add_argument(
        "arguments", nargs="*", metavar="query.jpg | key=value", help="pictures of any size and kind, then settings"
    )
    parser.add_argument("--archive", metavar="DIR", help="shard folder to search; the run's own unless said")
    parser.add_argument("--split", action="append", default=[], metavar="NAME", help="only this split; may be repeated")
    parser.add_argument("--top", type=int, default=12, metavar="K", help="answers a query (12)")
    parser.add_argument(
        "--label", action="append", default=[], metavar="NAME", help="only images that carry it; repeated: all of them"
    )
    parser.add_argument("--index", metavar="SPEC", help="flat, sign, itq64, IVF256,PQ32, ... (eval.index)")
    parser.add_argument("--index-dir", metavar="DIR", help="where vectors and index are kept; ENCODER/embeddings/...")
    parser.add_argument("--index-only", action="store_true", help="make the index and stop")
    parser.add_argument("--out", metavar="DIR", help="where search.png and search.html go; ENCODER/search")
    return parser


def _config(folder: Path, options: argparse.Namespace, words: Sequence[str]) -> Config:
    from marc_dist.config import ConfigError, load_config

    strange = [word.partition("=")[0] for word in words if not word.startswith(TAKEN)]
    if strange:
        load_config(None, words)  # a misspelt key is told as such
        raise ConfigError(f"{strange[0]}: marc-search takes {', '.join(TAKEN)}")
    file = folder / "config.yaml"
    place = {} if options.index is None else {"eval.index": options.index}
    return load_config(file if file.is_file() else None, words, place=place)


def _places(options: argparse.Namespace, queries: Sequence[str], folder: Path) -> tuple[list[Path], Path, Path | None]:
    """The query pictures, where the sheet goes, and the index folder.

    Raises:
        ConfigError: what cannot work, before anything is computed.
    """
    from marc_dist.config import ConfigError, user_path

    if not queries and not options.index_only:
        raise ConfigError("expected a query picture, or --index-only")
    if options.index_only and (queries or options.label or options.out):
        raise ConfigError("--index-only: makes the index of the whole archive; expected no pictures, --label or --out")
    if options.top < 1:
        raise ConfigError(f"--top: expected 1 or more, got {options.top}")
    paths = [user_path(query) for query in queries]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"{path}: no such picture")
    out = folder / "search" if options.out is None else user_path(options.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: a file, expected a folder")
    return paths, out, None if options.index_dir is None else user_path(options.index_dir)


def _body(options: argparse.Namespace) -> int:
    from marc_dist.cli.evaluate import encoder_folder
    from marc_dist.config import printable

    queries = [word for word in options.arguments if "=" not in word or os.path.lexists(word)]
    words = [word for word in options.arguments if word not in queries]
    folder = encoder_folder([options.encoder])
    config = _config(folder, options, words)
    paths, out, index_dir = _places(options, queries, folder)
    known = (folder / "config.yaml").is_file() and (index_dir is None or not (index_dir / "store.json").exists())
    archive_dir = options.archive or (config.data.dir if known else None)
    from rich.console import Console

    from marc_dist.cluster.failure import failure_told

    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    with failure_told():
        from marc_dist import comm  # torch
        from marc_dist.retrieval.archive import Archive
        from marc_dist.retrieval.evaluate import LIMIT_S
        from marc_dist.training.device import resolve_device

        here = comm.join(resolve_device(config.train.device).type, timeout_s=LIMIT_S, folder=folder / "logs")
        speaks = here.rank == 0

        def say(line: str) -> None:
            if speaks:
                errors.print(printable(line), markup=False)

        archive = Archive(folder, archive_dir, index_dir, options.split, config, say)
        if options.index_only:
            archive.build()
        found = archive.search(paths, options.top, options.label) if paths else []
        comm.leave()
        if speaks and found:
            _show(found, archive, out, options.label)
    if speaks and options.index_only:
        print(f"index of {len(archive.ids)} images: {archive.folder}")
    return 0


def _show(found: Sequence[Answers], archive: Archive, out: Path, labels: Sequence[str]) -> None:
    """A table for each query; then the sheet and the page."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from marc_dist.config import printable
    from marc_dist.data.reader import IndexedReader
    from marc_dist.retrieval.sheet import contact_sheet, key_of, labels_of, left_out, search_page
    from marc_dist.training.runfolder import write_atomic

    console, dataset = Console(highlight=False), archive.dataset
    for answers in found:
        remark = f" ({answers.picture.remark})" if answers.picture.remark else ""
        table = Table(title=Text(printable(f"{answers.path}{remark}")))
        table.add_column("#", justify="right")
        table.add_column("score", justify="right")
        for column in ("key", "split", "labels"):
            table.add_column(column, overflow="fold")
        for at, hit in enumerate(answers.hits, 1):
            names = Text(", ".join(labels_of(dataset, hit.id)))
            split = Text(printable(str(dataset.split[hit.id])))
            table.add_row(str(at), f"{hit.score:.4f}", Text(key_of(dataset, hit.id)), split, names)
        console.print(table)
    with_labels = f", with {' and '.join(labels)}" if labels else ""
    title = printable(f"Nearest images in {dataset.title}{with_labels}")
    num = f"{len(archive.carriers(labels))} of {len(dataset)} images searched"
    facts = [num, f"index {archive.spec.text}", f"encoder {archive.embedder.fingerprint[:12]}"]
    reader = IndexedReader(dataset)
    sheet = contact_sheet(found, dataset, reader, title)
    page = search_page(found, dataset, reader, title, facts, labels).encode()
    reader.close()
    write_atomic(out / "search.png", sheet)
    write_atomic(out / "search.html", page)
    print("\n".join([f"sheet: {out / 'search.png'}", f"page: {out / 'search.html'}", *left_out(found)]))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: the exit code. ``--help`` is answered before anything of ours is imported."""
    options = _parser().parse_intermixed_args(argv)
    from marc_dist.cli.common import run_command

    return run_command("marc-search", lambda _: _body(options), argv)


if __name__ == "__main__":
    sys.exit(main())
