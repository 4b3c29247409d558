"""What a file that cannot be unpacked is: told by its first bytes and its name, each kind with its remedy."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from marc_dist.config import DataError

ARCHIVES = re.compile(
    r"(?i).*\.(zip|zipx|tar|tgz|tbz2?|txz|tar\.\w+|rar|7z|gz|bz2|xz|zst|z\d\d|\d{3}|tar\.\w+[a-z]{2})"
)
PART = re.compile(
    r"(?i).*(\.(zip|7z|rar|tar|tar\.\w+|tgz)\.\d{2,4}|\.z\d\d|\.part\d+\.rar|\.r\d\d|\.tar\.(gz|bz2|xz)\w{2})"
)
METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "XZ", 97: "WavPack", 98: "PPMd", 99: "AES"}
READABLE = (0, 8, 12, 14)  # stored, deflated, bzip2, LZMA
STARTS = {
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
}


def what_is(path: Path) -> str:
    """One line about a file that is neither a zip nor a tar, with its remedy; empty when nothing is known of it."""
    if PART.fullmatch(path.name):
        return (
            f"{path}: a part of a split archive; put the parts together (`7z x` of the first one, `cat` in order, or "
            "`zip -s 0`) and pass the whole"
        )
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return ""
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return f"{path}: a web page, not an archive: the download failed (a quota, a login?); use a browser"
    if not start:
        return f"{path}: an empty file: the download failed; fetch it again"
    for sign, kind in STARTS.items():
        if start.startswith(sign):
            remedy = "fetch it with `git lfs pull`" if "LFS" in kind else "unpack it yourself and pass the folder"
            return f"{path}: {kind}; {remedy}"
    if start.startswith(b"PK\x03\x04"):
        return f"{path}: a zip without its end: a download cut short, or a part of a split one; fetch it again"
    return ""


def check_zip(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse a zip that Python cannot unpack although it is sound, and one whose members would overwrite one another.

    Raises:
        DataError: names what it is and what to do.
    """
    remedy = "unpack it yourself (with 7z) and pass the folder"
    locked = next((member.filename for member in members if member.flag_bits & 1), None)
    if locked is not None:
        raise DataError(f"{path}: locked with a password ({locked}); {remedy}")
    for member in members:
        if member.compress_type not in READABLE:
            method = METHODS.get(member.compress_type, f"method {member.compress_type}")
            raise DataError(f"{path}: {member.filename} is packed with {method}, which Python cannot unpack; {remedy}")
    if list(path.parent.glob(f"{path.stem}.z[0-9][0-9]")):
        raise DataError(
            f"{path}: the last part of a split archive; join the parts (`zip -s 0`, or 7z) and pass the whole"
        )
    seen: dict[str, int] = {}
    for member in members:
        if not member.is_dir() and seen.setdefault(member.filename, member.CRC) != member.CRC:
            raise DataError(f"{path}: two different members are called {member.filename}; {remedy}")


def is_archive(name: str) -> bool:
    """Whether a file name is an archive's."""
    return bool(ARCHIVES.fullmatch(name) or PART.fullmatch(name))
