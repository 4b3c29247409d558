"""A download as a person has it, a folder or an archive, as folders to read. Archives are unpacked first."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from marc_dist.config import DataError
from marc_dist.data.recipes import Recipe


def where_to_get(recipe: Recipe) -> str:
    """One line: what is missing, where a person gets it, what to put where."""
    return (
        f"{recipe.title} is not downloaded by this command; get it from {recipe.download or 'its authors'}; then pass "
        f"--source with the folder or archive that holds {recipe.layout or 'pictures and labels'}"
    )


@contextmanager
def opened(recipe: Recipe, places: Sequence[Path], beside: Path) -> Iterator[list[Path]]:
    """The download as folders; what had to be unpacked or drawn is removed again at the end.

    Args:
        recipe: of the data set.
        places: folders, .zip or .tar files; none for a built-in set.
        beside: temporary folders are made in this one.

    Raises:
        DataError: no such place, not an archive, or no room to unpack it.
    """
    if not places and recipe.builtin is None:
        raise DataError(where_to_get(recipe))
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
            _unpack(place, folder)
            roots.append(folder)
        if recipe.builtin is not None and not places:
            from marc_dist.data.sample import write_sample

            folder = stack.enter_context(_temporary(beside))
            try:
                write_sample(folder)
            except OSError as error:
                raise DataError(f"{beside}: cannot draw the sample there ({error.strerror or error})") from None
            roots.append(folder)
        yield roots


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


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar; members that would leave the folder are refused by the libraries or kept inside."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened_zip:
                _fits(archive, sum(info.file_size for info in opened_zip.infolist()), folder)
                opened_zip.extractall(folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened_tar:
                _fits(archive, sum(member.size for member in opened_tar), folder)
                opened_tar.extractall(folder, filter="data")
        else:
            raise DataError(f"{archive}: expected a folder, a .zip or a .tar file; unpack it yourself (RAR, 7z) first")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive}: damaged archive ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{archive}: cannot be unpacked beside the target ({error.strerror or error})") from None


def _fits(archive: Path, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DataError(f"{archive}: needs {size / 1e6:.1f} MB unpacked, the disk has {free / 1e6:.1f} MB free")
