"""Archives as ``--source``: nothing is written outside the output folder, whatever they hold."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marc_dist.cli.shard import main
from marc_dist.config import DataError
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.source import read_source
from marc_dist.packing.reading.unpack import opened
from tests import downloads
from tests.fuzz.damage import NAMES, damaged, error_of, fresh, fuzz, in_time, little_memory, run, snapshot
from tests.fuzz.test_pictures import saved

PNG = saved(downloads.picture(1, (8, 8)), "PNG")
KINDS = (
    tarfile.REGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    b"S",
    b"V",
)
NAME = st.sampled_from([name for name in NAMES if name]) | st.sampled_from(
    ["own/a/p.png", "own/b/q.png", "own", "own/l"]
)


def tar_of(members: list[tuple[str, bytes, str]], **headers: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, errors="surrogatepass") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.pax_headers = kind, target, dict(headers)
            info.size = len(PNG) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(PNG) if info.size else None)
    return buffer.getvalue()


def zip_of(members: list[tuple[str, bytes, str]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name in dict.fromkeys(name for name, _, _ in members):
            info = zipfile.ZipInfo(name.encode(errors="replace").decode())
            kind = next(kind for other, kind, _ in members if other == name)
            info.external_attr = (0o120777 if kind == tarfile.SYMTYPE else 0o100644) << 16
            file.writestr(info, "../../outside" if kind == tarfile.SYMTYPE else PNG, method)
    return buffer.getvalue()


SOUND = [
    ("own/a/p.png", tarfile.REGTYPE, ""),
    ("own/b/q.png", tarfile.REGTYPE, ""),
    ("own/b/r.png", tarfile.REGTYPE, ""),
]
ARCHIVES = {
    "zip": zip_of(SOUND),
    "stored": zip_of(SOUND, zipfile.ZIP_STORED),
    "zip lzma": zip_of(SOUND, zipfile.ZIP_LZMA),
    "tar": tar_of(SOUND),
    "gz": gzip.compress(tar_of(SOUND)),
    "bz2": bz2.compress(tar_of(SOUND)),
    "xz": lzma.compress(tar_of(SOUND)),
    "pax": tar_of([("own/a/" + "p" * 120 + ".png", tarfile.REGTYPE, ""), *SOUND], mtime="12.5", comment="é"),
}


class Place:
    """A folder with something beside the archive that nobody may touch."""

    def __init__(self, root: Path) -> None:
        self.root = fresh(root)
        (root / "outside").mkdir()
        (root / "outside" / "precious").write_text("precious")
        self.archive = root / "download"

    def unpack(self, data: bytes) -> str | None:
        """Read it as ``marc-shard`` does; everything around is then as it was."""
        self.archive.write_bytes(data)
        before = snapshot(self.root)

        def read() -> None:
            recipe = load_recipe("folder")
            with opened(recipe, [self.archive], self.root) as roots:
                read_source(recipe, roots, labels="folders", allow=["doubled"])

        message = error_of(read)
        assert snapshot(self.root) == before
        return message


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "here")


@pytest.mark.parametrize("kind", ARCHIVES)
def test_damaged_archives(kind: str, place: Place) -> None:
    assert place.unpack(ARCHIVES[kind]) is None

    @fuzz(40)
    @given(damaged(ARCHIVES[kind]))
    def check(data: bytes) -> None:
        place.unpack(data)

    check()


@pytest.mark.parametrize("packer", ["tar", "zip"])
def test_names_and_links(packer: str, place: Place) -> None:
    links = NAME | st.sampled_from(["../outside/precious", "../../outside", str(place.root / "outside"), "own"])

    @fuzz(80)
    @given(st.lists(st.tuples(NAME, st.sampled_from(KINDS), links), min_size=1, max_size=4), st.booleans())
    def check(members: list[tuple[str, bytes, str]], more: bool) -> None:
        tidy = [[text.replace("\ud800", "\udcff") for text in (name, target)] for name, _, target in members]
        members = [(name, kind, target) for (name, target), (_, kind, _) in zip(tidy, members, strict=True)]
        members = [*members, *(SOUND if more else [])]
        place.unpack(tar_of(members) if packer == "tar" else zip_of(members))

    check()


@fuzz(60)
@given(
    st.sampled_from(["size", "mtime", "path", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.numblocks",
                     "GNU.sparse.major", "GNU.sparse.realsize", "hdrcharset", "uid", "linkpath"]),
    st.sampled_from(["", "-1", "-512", "1e30", "nan", "inf", "x", "9" * 30, "1,2,3", "../../x", "1", "0", "BINARY"]),
)  # fmt: skip
def test_pax_headers(tmp_path_factory: pytest.TempPathFactory, key: str, value: str) -> None:
    place = Place(tmp_path_factory.getbasetemp() / "pax")
    place.unpack(tar_of(SOUND, **{key: value, **({"GNU.sparse.minor": "0"} if key.endswith("major") else {})}))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_the_command_writes_its_folder_and_nothing_else(
    kind: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset", "folder", "--source", str(place.archive), "--out", str(place.root / "out"), "--workers", "1"]

    @fuzz(12)
    @given(damaged(ARCHIVES[kind], 2))
    def check(data: bytes) -> None:
        place.archive.write_bytes(data)
        before = snapshot(place.root)
        code, _ = run(main, [*words, "--force"], capsys)
        after = snapshot(place.root)
        if code == 0:
            after = {name: state for name, state in after.items() if name.split("/")[0] != "out"}
            before = {name: state for name, state in before.items() if name.split("/")[0] != "out"}
        assert after == before

    check()


def first(data: bytes, **fields: tuple[int, bytes]) -> bytes:
    """A tar whose first header has other bytes at some places, and the right sum."""
    head = bytearray(data[:512])
    for place, value in fields.values():
        head[place : place + len(value)] = value
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data[512:]


PLAIN = io.BytesIO()
with tarfile.open(fileobj=PLAIN, mode="w", format=tarfile.USTAR_FORMAT) as _tar:
    for _name, _, _ in SOUND:
        _info = tarfile.TarInfo(_name)
        _info.size = len(PNG)
        _tar.addfile(_info, io.BytesIO(PNG))
BACKWARDS = first(PLAIN.getvalue(), size=(124, b"\xff" * 10 + struct.pack(">h", -1024)))
HUGE_NAME = first(PLAIN.getvalue(), size=(124, b"77777777777\0"), kind=(156, b"L"))


def bomb(size: int = 3 * 10**9) -> bytes:
    """A zip that says what it unpacks to, and more than two hundred times its size."""
    data = bytearray(zip_of(SOUND))
    for place, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        start = data.index(place)
        data[start + offset : start + offset + 4] = struct.pack("<I", size)
    return bytes(data)


def encrypted() -> bytes:
    data = bytearray(zip_of(SOUND))
    for place, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        start = -1
        while (start := data.find(place, start + 1)) >= 0:
            data[start + offset] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file: the download failed"),
        (gzip.compress(bytes(50_000_000)), "expected a folder, a .zip or a .tar file|no pictures"),
        (BACKWARDS, "damaged archive|expected a folder"),
        (gzip.compress(HUGE_NAME + bytes(200_000_000)), "expected a folder"),
        (PLAIN.getvalue()[:600], "unexpected end of data"),
        (PLAIN.getvalue()[:1024] + b"x" + PLAIN.getvalue()[1025:], "a header is damaged"),
        (tar_of([*SOUND, ("own/l", tarfile.SYMTYPE, "/etc")]), "own/l is a link or a device"),
        (tar_of([*SOUND, ("own/l", tarfile.LNKTYPE, "own/a/p.png")]), "own/l is a link or a device"),
        (tar_of(SOUND, mtime="1e30"), "damaged archive|^$"),
        (tar_of([("a/" * 300 + "p.png", tarfile.REGTYPE, ""), *SOUND]), "more than 100 folders deep"),
        (bomb(), "unpacks to more than 1074 MB, 200 times its own size"),
        (tar_of(SOUND, **{"size": "9" * 15}), "damaged archive|unpacks to more than|expected a folder"),
        (encrypted(), "locked with a password"),
        (ARCHIVES["zip lzma"].replace(PNG[:4], b"abcd"), "^$"),
        (tar_of([("own/a/\udcff.png", tarfile.REGTYPE, ""), *SOUND]), "a name that is not UTF-8"),
    ],
)
def test_archives_that_are_refused(data: bytes, message: str, place: Place) -> None:
    with little_memory(400):
        assert re.search(message, place.unpack(data) or "")


def test_a_pipe_is_no_archive(tmp_path: Path) -> None:
    """Found: reading one waits for ever."""
    os.mkfifo(tmp_path / "pipe")
    recipe = load_recipe("folder")
    with (
        in_time(),
        pytest.raises(DataError, match="expected a folder, a .zip or a .tar"),
        opened(recipe, [tmp_path / "pipe"], tmp_path),
    ):
        pass


@pytest.mark.parametrize("out", [".", "/", "..", "a/..", "", "~nobody-here/x", "x" * 300, "a\nb"])
def test_odd_output_folders(
    out: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found: ``--out .`` and ``~name`` ended in a traceback."""
    monkeypatch.chdir(fresh(tmp_path / "work"))
    before = snapshot(tmp_path)
    words = ["--dataset", "folder", "--source", str(own), "--workers", "1", "--out", out]
    code, _ = run(main, words, capsys)
    if out in ("", "a\nb"):
        assert code == 0
    else:
        assert code == 2 and {name for name in snapshot(tmp_path) if name != "work/a"} == set(before)


def test_a_link_in_place_of_the_private_folder(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found: what lay in the folder that ``.out.partial`` led to was removed."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("precious")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "outside")
    before = snapshot(tmp_path)
    words = ["--dataset", "folder", "--source", str(own), "--workers", "1", "--out", str(tmp_path / "out")]
    assert run(main, words, capsys)[0] == 2
    assert snapshot(tmp_path) == before
