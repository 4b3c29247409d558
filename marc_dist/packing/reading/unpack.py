"""A download as a person has it, a folder or an archive, as folders to read. Archives are unpacked first."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from marc_dist.config import DataError
from marc_dist.packing.reading.archive_kinds import PART, check_zip, what_is
from marc_dist.packing.reading.recipes import Recipe
from marc_dist.packing.reading.tiles import cut_tiles
from marc_dist.packing.tar import BLOCK, members
from marc_dist.progress_bar import Show, quiet

BOMB_BYTES = 1 << 30  # what unpacks to more than this, and to ...
BOMB_RATIO = 200  # ... more than so many times its own size, is no archive of pictures
MAX_DEPTH = 100  # folders in a folder


SAMPLE = "marc-shard --dataset sample"


def where_to_get(recipe: Recipe) -> str:
    """One line: what is missing, where a person gets it, what to put where."""
    return (
        f"{recipe.title} is not downloaded by this command; get it from {recipe.download or 'its authors'}; then pass "
        f"--source with the folder or archive that holds {recipe.layout or 'pictures and labels'}"
    )


@contextmanager
def opened(
    recipe: Recipe, places: Sequence[Path], beside: Path, workers: int = 1, show: Show = quiet
) -> Iterator[list[Path]]:
    """The download as folders; what had to be unpacked or drawn is removed again at the end.

    Args:
        recipe: of the data set.
        places: folders, .zip or .tar files; none for a built-in set.
        beside: temporary folders are made in this one.
        workers: processes that cut tiles.
        show: tells how far the unpacking and the cutting is.

    Raises:
        DataError: no such place, not an archive, or no room to unpack it.
    """
    if not places and recipe.builtin is None:
        raise DataError(f"{where_to_get(recipe)}; to try now, without it:", next_command=SAMPLE)
    for place in places:
        if not place.exists():
            raise DataError(f"{place}: no such file or folder; {where_to_get(recipe)}")
    with ExitStack() as stack:
        roots = []
        for place in places:
            if place.is_dir():
                roots.append(place)
                continue
            folder = stack.enter_context(_temporary(beside))
            stack.enter_context(_called(folder, place))
            _unpack(place, folder, show)
            roots.append(folder)
        if recipe.builtin is not None and not places:
            from marc_dist.packing.drawn.sample import write_sample

            folder = stack.enter_context(_temporary(beside))
            try:
                write_sample(folder)
            except OSError as error:
                raise DataError(f"{beside}: cannot draw the sample there ({error.strerror or error})") from None
            roots.append(folder)
        if recipe.tile is not None:
            folder = stack.enter_context(_temporary(beside))
            try:
                roots = cut_tiles(recipe, roots, folder, workers, show)
            except OSError as error:
                raise DataError(f"{beside}: cannot cut tiles there ({error.strerror or error})") from None
        yield roots


@contextmanager
def _called(folder: Path, archive: Path) -> Iterator[None]:
    """Errors name the archive, not the temporary folder that is gone when they are read."""
    try:
        yield
    except DataError as error:
        if str(folder) not in str(error):
            raise
        raise DataError(str(error).replace(str(folder), str(archive))) from None


@contextmanager
def _temporary(beside: Path) -> Iterator[Path]:
    try:
        beside.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".unpacked-", dir=beside))
    except OSError as error:
        raise DataError(f"{beside}: cannot write there ({error.strerror or error})") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(archive: Path, folder: Path, show: Show) -> None:
    """Unpack a zip or tar; members that would leave the folder are refused by the libraries or kept inside."""
    try:
        if not archive.is_file():
            raise DataError(f"{archive}: expected a folder, a .zip or a .tar file; unpack it yourself (RAR, 7z) first")
        if PART.fullmatch(archive.name):
            raise DataError(what_is(archive))
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder, show)
        elif _is_tar(archive):
            num = _check(archive, _plain_members(archive), folder)
            with show(f"unpacking {archive.name}", num, "files") as tell:
                size = 0
                for done, (tar, member) in enumerate(members(archive, "r:*"), 1):
                    tar.extract(member, folder, filter="data")
                    size += member.size
                    tell(done, size)
        else:
            generic = f"{archive}: expected a folder, a .zip or a .tar file; unpack it yourself (RAR, 7z) first"
            raise DataError(what_is(archive) or generic)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{archive}: cannot be unpacked beside the target ({error.strerror or error})") from None
    except Exception as error:  # the libraries raise whatever comes up: BadZipFile, LZMAError, OverflowError, ...
        raise DataError(f"{archive}: damaged archive ({error or type(error).__name__}); fetch it again") from None


def _unpack_zip(archive: Path, folder: Path, show: Show) -> None:
    with zipfile.ZipFile(archive) as opened_zip:
        infos = opened_zip.infolist()
        for info in infos:  # some programs of Windows write them against the standard; unzip turns them, too
            info.filename = info.filename.replace("\\", "/")
        check_zip(archive, infos)
        _check(archive, ((info.filename, info.file_size) for info in infos), folder)
        with show(f"unpacking {archive.name}", len(infos), "files") as tell:
            size = 0
            for done, info in enumerate(infos, 1):
                opened_zip.extract(info, folder)
                size += info.file_size
                tell(done, size)


def _is_tar(archive: Path) -> bool:
    try:
        next(members(archive, "r:*"), None)
    except tarfile.ReadError:
        return False
    return True


def _plain_members(archive: Path) -> Iterator[tuple[str, int]]:
    """Name and size of each file of a tar.

    Raises:
        DataError: a link, which could lead out of the folder.
    """
    for _, member in members(archive, "r:*"):
        if not (member.isreg() or member.isdir()):
            raise DataError(f"{archive}: {member.name} is a link or a device; unpack it yourself, pass the folder")
        yield member.name, member.size


def _check(archive: Path, files: Iterable[tuple[str, int]], folder: Path) -> int:
    """Refuse what would fill the disk, before the first byte is written; the number of files."""
    free, total, most = shutil.disk_usage(folder).free, 0, max(BOMB_BYTES, BOMB_RATIO * archive.stat().st_size)
    num = 0
    for name, size in files:
        num += 1
        total += BLOCK + size
        if name.count("/") > MAX_DEPTH:
            raise DataError(f"{archive}: {name[:50]}... lies more than {MAX_DEPTH} folders deep")
        if total > most:
            raise DataError(
                f"{archive}: unpacks to more than {most / 1e6:.0f} MB, {BOMB_RATIO} times its own size; if it is "
                "no decompression bomb, unpack it yourself and pass the folder"
            )
    if total > free:
        raise DataError(f"{archive}: needs {total / 1e6:.1f} MB unpacked, the disk has {free / 1e6:.1f} MB free")
    return num
