"""Archives as people have them: the right labels, or one line that says what is the matter and what to do."""

from __future__ import annotations

import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from marc_dist.cli.shard import main
from marc_dist.config import DataError
from marc_dist.data.dataset import open_dataset
from marc_dist.data.decode import decode_any
from marc_dist.data.reader import IndexedReader
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.samples import Source
from marc_dist.packing.reading.source import read_source
from marc_dist.packing.reading.unpack import opened
from tests import downloads


def pictures(root: Path, *names: str, size: tuple[int, int] = (24, 16)) -> Path:
    for seed, name in enumerate(names):
        downloads.save(downloads.picture(seed, size), root / name)
    return root


def folder(*roots: Path, **options: object) -> Source:
    return read_source(load_recipe("folder"), list(roots), **options)  # type: ignore[arg-type]


def labels(source: Source) -> dict[str, list[str]]:
    return {sample.origin: [source.classes[label] for label in sample.labels] for sample in source.samples}


def splits(source: Source) -> dict[str, str]:
    return {sample.origin: sample.split for sample in source.samples}


def refused(root: Path, message: str, **options: object) -> None:
    with pytest.raises(DataError, match=message) as error:
        folder(root, **options)
    assert "\n" not in str(error.value)


def column(out: Path, name: str) -> list[str]:
    """A column of a packed folder's index."""
    import pyarrow.parquet as pq

    return pq.read_table(out / "index.parquet").column(name).to_pylist()  # type: ignore[no-any-return]


class TestLabelCells:
    """What stands in a cell."""

    def test_a_column_called_label_holds_whole_names(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png", "b.png", "c.png")
        (tmp_path / "labels.csv").write_text("image,label\na.png,bare soil\nb.png,mobile home\nc.png,bare soil\n")
        assert labels(folder(tmp_path)) == {"a.png": ["bare soil"], "b.png": ["mobile home"], "c.png": ["bare soil"]}

    def test_names_that_blanks_may_cut_are_asked_for(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png", "b.png")
        (tmp_path / "labels.csv").write_text("image,labels\na.png,bare soil\nb.png,water\n")
        refused(tmp_path, r"column 'labels': 'bare soil' may be one name or two; .*--separator ' '.*--separator ';'")

    def test_lists_of_programs_and_empty_ones(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png", "b.png", "c.png", "d.png")
        rows = """a.png,"['water', 'bare soil']"\nb.png,"[""trees""]"\nc.png,[]\nd.png,"('water',)"\n"""
        (tmp_path / "labels.csv").write_text("image,labels\n" + rows)
        source = folder(tmp_path, allow=["empty_labels"])
        assert labels(source) == {"a.png": ["bare soil", "water"], "b.png": ["trees"], "c.png": [], "d.png": ["water"]}
        (tmp_path / "labels.csv").write_text("image,labels\na.png,\"['water'\"\nb.png,x\nc.png,x\nd.png,x\n")
        refused(tmp_path, r"row 2: .*a list that does not close")

    def test_class_numbers_need_names(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png", "b.png")
        (tmp_path / "labels.csv").write_text("image,label\na.png,0\nb.png,1\n")
        refused(tmp_path, "column 'label' holds numbers up to 1, and no class list is given.*--classes")
        assert labels(folder(tmp_path, classes=["sand", "sea"])) == {"a.png": ["sand"], "b.png": ["sea"]}

    def test_a_row_for_each_label(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png", "b.png")
        (tmp_path / "labels.csv").write_text("image,label\na.png,water\na.png,trees\nb.png,water\n")
        source = folder(tmp_path)
        assert labels(source) == {"a.png": ["trees", "water"], "b.png": ["water"]}
        assert any("3 rows of 2 pictures, a label each: joined" in note for note in source.warnings)


class TestColumns:
    """Which column is which."""

    @pytest.mark.parametrize(
        "text",
        [
            "id,file_name,width,water,trees\n7,a.png,20,1,0\n8,b.png,20,1,1\n",
            ",image,water,trees\n0,a.png,1,0\n1,b.png,1,1\n",
            "water;trees;picture\n1;0;a.png\n1;1;b.png\n",
            "name|water|trees|lat\na.png|1|-1|1.5\nb.png|1|1|2.5\n",
            "sep=;\nimage;water;trees\na.png;1;0\nb.png;1;1\n",
            "image\tsplit\tlabels\na.png\ttrain\twater\nb.png\tTEST\twater,trees\n",
            "image,image_id,label_id,label\na.png,1,3,water\nb.png,2,4,water;trees\n",
        ],
    )
    def test_columns_are_found_by_name_and_content(self, tmp_path: Path, text: str) -> None:
        pictures(tmp_path, "a.png", "b.png")
        (tmp_path / "labels.csv").write_text(text)
        assert labels(folder(tmp_path)) == {"a.png": ["water"], "b.png": ["water", "trees"]} or labels(
            folder(tmp_path)
        ) == {"a.png": ["water"], "b.png": ["trees", "water"]}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("image,elevation\na.png,3.5\nb.png,2\n", "expected 0 or 1, got '3.5'; a column of names.*table: ignore"),
            ("image,labels,water\na.png,x,1\nb.png,y,0\n", "both a column 'labels' and columns of 0 and 1"),
            ("image,label,tags\na.png,x,u\nb.png,y,v\n", "labels could stand in any of label, tags"),
            ("image,split,mask,train\na.png,test,x,1\nb.png,test,x,0\n", "class_names"),
        ],
    )
    def test_what_could_be_meant_in_two_ways_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        pictures(tmp_path, "a.png", "b.png")
        (tmp_path / "labels.csv").write_text(text)
        refused(tmp_path, message)

    @pytest.mark.parametrize("kind", ["parquet", "xlsx", "utf-16", "jsonl"])
    def test_files_of_other_programs(self, tmp_path: Path, kind: str) -> None:
        pictures(tmp_path, "a.png", "b.png")
        rows = [{"file_name": "a.png", "labels": ["bare soil"]}, {"file_name": "b.png", "labels": ["été", "bare soil"]}]
        if kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
        elif kind == "xlsx":
            import openpyxl

            book = openpyxl.Workbook()
            assert book.active is not None
            for line in (["image", "bare soil", "été"], ["a.png", 1, 0], ["b.png", 1, 1]):
                book.active.append(line)
            book.save(tmp_path / "whatever.xlsx")
        elif kind == "jsonl":
            import json

            (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        else:
            text = "image,labels\na.png,bare soil\nb.png,été;bare soil\n"
            (tmp_path / "labels.csv").write_bytes(text.encode("utf-16"))
        assert labels(folder(tmp_path)) == {"a.png": ["bare soil"], "b.png": ["bare soil", "été"]}


class TestSplits:
    """Splits that an archive brings along are honoured, or the archive is refused."""

    @pytest.mark.parametrize(
        ("train", "test"),
        [("train", "test"), ("Train", "Test"), ("training", "validation"), ("images/train", "images/val")],
    )
    def test_folders(self, tmp_path: Path, train: str, test: str) -> None:
        pictures(
            tmp_path, *(f"{split}/{name}/{n}.png" for split in (train, test) for name in ("a", "b") for n in (1, 2))
        )
        source = folder(tmp_path)
        assert source.classes == ("a", "b")
        other = "val" if "val" in test else "test"
        assert splits(source) == {o: "train" if "rain" in o else other for o in splits(source)}
        assert len(source.samples) == 8

    def test_a_class_called_train_is_no_split(self, tmp_path: Path) -> None:
        pictures(tmp_path, "train/1.png", "bus/1.png", "plane/1.png")
        refused(tmp_path, "classes called like folders.*: train; .*--allow class_names")
        assert folder(tmp_path, allow=["class_names"]).classes == ("bus", "plane", "train")

    def test_pictures_outside_are_refused(self, tmp_path: Path) -> None:
        pictures(tmp_path, "train/a/1.png", "test/a/1.png", "more/a/2.png")
        refused(tmp_path, "1 pictures lie outside the folders")

    def test_lists(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a/1.png", "a/2.png", "b/3.png")
        (tmp_path / "train.txt").write_text("a/1.png\nb/3.png\n")
        (tmp_path / "test.txt").write_text("a/2.png\n")
        source = folder(tmp_path)
        assert splits(source) == {"a/1.png": "train", "a/2.png": "test", "b/3.png": "train"}
        (tmp_path / "test.txt").write_text("a/2.png\na/1.png\n")
        refused(tmp_path, "train.txt: a/1 stands in the list of test, too")

    def test_two_families_of_lists_that_differ_are_refused(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a/1.png", "a/2.png", "b/3.png")
        for family, (one, two) in {"eurosat": ("a/1\nb/3", "a/2"), "eurosat-spatial": ("a/1\na/2", "b/3")}.items():
            (tmp_path / f"{family}-train.txt").write_text(one)
            (tmp_path / f"{family}-test.txt").write_text(two)
        refused(tmp_path, "two splits fit that differ: lists eurosat-.*, or lists eurosat-.*")

    def test_columns_as_people_write_them(self, tmp_path: Path) -> None:
        pictures(tmp_path, "1.png", "2.png", "3.png")
        (tmp_path / "labels.csv").write_text("image,water,split\n1,1,Train\n2,1,validation\n3,1,TEST\n")
        assert splits(folder(tmp_path)) == {"1.png": "train", "2.png": "val", "3.png": "test"}

    def test_a_table_for_each_split(self, tmp_path: Path) -> None:
        pictures(tmp_path, "1.png", "2.png", "3.png")
        (tmp_path / "train.csv").write_text("image,labels\n1.png,water|sand\n2.png,sea\n")
        (tmp_path / "test.csv").write_text("image,labels\n3.png,sea|sky\n")
        source = folder(tmp_path)
        assert splits(source) == {"1.png": "train", "2.png": "train", "3.png": "test"}
        assert labels(source) == {"1.png": ["sand", "water"], "2.png": ["sea"], "3.png": ["sea", "sky"]}


class TestNames:
    """Names that look alike are alike."""

    @pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
    def test_accents(self, tmp_path: Path, on_disk: str, in_table: str) -> None:
        names = ["étang_1", "서울_2", "が_3"]
        pictures(tmp_path, *(unicodedata.normalize(on_disk, name) + ".png" for name in names))  # type: ignore[arg-type]
        rows = "".join(f"{unicodedata.normalize(in_table, name)}.png,1\n" for name in names)  # type: ignore[arg-type]
        (tmp_path / "labels.csv").write_text("image,water\n" + rows, encoding="utf-8")
        assert len(folder(tmp_path).samples) == 3

    def test_two_folders_that_look_alike_are_one_class(self, tmp_path: Path) -> None:
        pictures(
            tmp_path, *(f"{unicodedata.normalize(form, 'forêt')}/{form}.png" for form in ("NFC", "NFD")), "mer/1.png"
        )
        assert folder(tmp_path).classes == ("forêt", "mer")
        given = folder(tmp_path, classes=[unicodedata.normalize("NFD", "forêt"), "mer"])
        assert given.classes == ("forêt", "mer")


class TestArchives:
    """What Python cannot unpack is called by its name."""

    def error(self, path: Path, tmp_path: Path) -> str:
        recipe = load_recipe("folder")
        with pytest.raises(DataError) as error, opened(recipe, [path], tmp_path / "out") as roots:
            read_source(recipe, roots)
        assert "unpacked-" not in str(error.value) and "damaged" not in str(error.value)
        return str(error.value)

    def zipped(self, path: Path, method: int | None = None, flags: int = 0) -> Path:
        pictures(path.parent / "src", "beach/1.png", "river/2.png")
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((path.parent / "src").rglob("*.png")):
                archive.write(file, file.relative_to(path.parent / "src"))
        data = bytearray(path.read_bytes())
        for sign, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            place = 0
            while (place := data.find(sign, place)) >= 0:
                data[place + at] |= flags
                if method is not None:
                    data[place + at + 2] = method
                place += 4
        path.write_bytes(data)
        return path

    def test_kinds(self, tmp_path: Path) -> None:
        deflate64 = self.zipped(tmp_path / "deflate64.zip", method=9)
        assert "packed with Deflate64, which Python cannot unpack; unpack it yourself" in self.error(
            deflate64, tmp_path
        )
        assert "packed with Zstandard" in self.error(self.zipped(tmp_path / "zstd.zip", method=93), tmp_path)
        assert "locked with a password" in self.error(self.zipped(tmp_path / "locked.zip", flags=1), tmp_path)
        whole = self.zipped(tmp_path / "whole.zip").read_bytes()
        nested = tmp_path / "nested.zip"
        with zipfile.ZipFile(nested, "w") as archive:
            archive.write(tmp_path / "whole.zip", "data/images.zip")
        assert f"{nested}: holds other archives (data/images.zip)" in self.error(nested, tmp_path)
        for name, data, message in (
            ("a.zip.001", whole[:90], "a part of a split archive"),
            ("a.tar.gzaa", b"\x1f\x8b", "a part of a split archive"),
            ("quota.zip", b"<!DOCTYPE html><html>Quota exceeded", "a web page, not an archive"),
            ("cut.zip", whole[:90], "a zip without its end"),
            ("rar.zip", b"Rar!\x1a\x07\x00", "a RAR archive; unpack it yourself"),
            ("lfs.zip", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
            ("empty.zip", b"", "an empty file"),
        ):
            (tmp_path / name).write_bytes(data)
            assert message in self.error(tmp_path / name, tmp_path)

    def test_backslashes(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
            archive.writestr(zipfile.ZipInfo("set\\"), b"")
            for name in ("beach", "river"):
                picture = downloads.save(downloads.picture(len(name)), tmp_path / f"{name}.png").read_bytes()
                archive.writestr(zipfile.ZipInfo(f"set\\{name}\\00.png"), picture)
            archive.writestr(zipfile.ZipInfo("..\\..\\outside.txt"), b"x")
        with opened(load_recipe("folder"), [tmp_path / "in.zip"], tmp_path / "deep" / "er") as roots:
            found = labels(folder(*roots))
        assert found == {"set/beach/00.png": ["beach"], "set/river/00.png": ["river"]}
        assert not list(tmp_path.glob("**/outside.txt"))

    def test_members_of_one_name(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
            archive.writestr("a/1.png", b"one")
            archive.writestr(zipfile.ZipInfo("a\\1.png"), b"two")
        assert "two different members are called a/1.png" in self.error(tmp_path / "in.zip", tmp_path)


class TestPictures:
    """Pictures that are not stored as they lie there."""

    def packed(self, root: Path, *words: str) -> tuple[int, Path]:
        out = root.parent / f"{root.name}-out"
        return main(["--dataset", "folder", "--source", str(root), "--out", str(out), *words]), out

    @pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
    @pytest.mark.parametrize("turn", [2, 3, 5, 6, 8])
    def test_exif_turns_are_applied(
        self, tmp_path: Path, kind: str, turn: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = pictures(tmp_path / "in", f"beach/1.{kind}", f"river/2.{kind}", size=(32, 16))
        exif = Image.Exif()
        exif[274] = turn
        path = root / f"beach/1.{kind}"
        downloads.save(downloads.picture(7, (32, 16)), path, exif=exif, **({"quality": 95} if kind == "jpg" else {}))
        code, out = self.packed(root)
        assert code == 0 and "1 pictures turned as their EXIF note says: 1" in capsys.readouterr().out
        query = decode_any(path.read_bytes(), "query", 64).image
        reader = IndexedReader(open_dataset(out))
        stored = reader.image(column(out, "key").index("1"))
        reader.close()
        assert stored.size == query.size
        difference = np.abs(np.asarray(stored, dtype=int) - np.asarray(query, dtype=int))
        assert difference.max() <= (6 if kind == "jpg" else 0)

    def test_a_fourth_band_is_dropped_only_with_a_word(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = pictures(tmp_path / "in", "beach/1.png", "river/2.png")
        rgba = downloads.picture(5, (24, 16)).convert("RGBA")
        downloads.save(rgba, root / "beach/1.png")
        code, _ = self.packed(root)
        assert code == 0 and "1 pictures whose fourth band says nothing" in capsys.readouterr().out
        rgba.putalpha(downloads.picture(6, (24, 16)).convert("L"))
        downloads.save(rgba, root / "beach/1.png")
        code, _ = self.packed(root, "--force")
        assert (
            code == 2 and "has a fourth band (alpha, or near infrared) that would be dropped" in capsys.readouterr().err
        )
        code, _ = self.packed(root, "--force", "--allow", "bands")
        assert code == 0 and "1 pictures whose fourth band was dropped: 1" in capsys.readouterr().out

    @pytest.mark.parametrize("kind", ["bmp", "gif", "webp"])
    def test_other_kinds_are_named_and_taken_as_png(
        self, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = pictures(tmp_path / "in", f"beach/1.{kind}", f"river/2.{kind}")
        code, out = self.packed(root)
        assert code == 2 and f"2 .{kind} files are not taken as they are; to store them as PNG: --to-png" in (
            capsys.readouterr().err
        )
        code, out = self.packed(root, "--to-png")
        assert code == 0 and set(column(out, "ext")) == {"png"}
        pictures(root, "beach/3.jpg")
        code, out = self.packed(root, "--force")
        assert code == 0 and f"passed over as neither pictures nor labels: 2 .{kind}" in capsys.readouterr().out

    def test_jfif_is_jpeg_and_jp2_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        downloads.save(downloads.picture(1), tmp_path / "in/beach/1.jfif", format="JPEG")
        assert self.packed(tmp_path / "in")[0] == 0
        (tmp_path / "raw" / "a").mkdir(parents=True)
        (tmp_path / "raw" / "a" / "1.jp2").write_bytes(b"x")
        assert self.packed(tmp_path / "raw")[0] == 2
        assert "1 .jp2 files are not taken; convert them to PNG or JPEG first" in capsys.readouterr().err

    def test_turns_in_xmp_and_animated_png(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Pillow takes a turn from XMP, too, and stores EXIF of old programs as text."""
        note = '<rdf:Description tiff:Orientation="6"/>'
        images = [downloads.picture(seed, (32, 16)) for seed in (1, 2)]
        root = pictures(tmp_path / "in", "beach/2.jpg", "beach/3.png")
        images[0].save(root / "beach/1.jpg", xmp=note.encode())
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", note)
        images[0].save(root / "beach/4.png", pnginfo=text)
        code, _ = self.packed(root, "--to-png")
        assert code == 0 and "2 pictures turned as their EXIF note says: 4, 1" in capsys.readouterr().out
        images[0].save(root / "beach/4.png", save_all=True, append_images=images[1:])
        assert self.packed(root, "--to-png", "--force")[0] == 2
        assert "4.png: 2 frames or pages in one file" in capsys.readouterr().err

    def test_an_animation_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        root = pictures(tmp_path / "in", "beach/1.gif", "river/2.gif")
        frames = [downloads.picture(seed, (24, 16)) for seed in (1, 2)]
        frames[0].save(root / "beach/1.gif", save_all=True, append_images=frames[1:])
        assert self.packed(root, "--to-png")[0] == 2
        assert "1.gif: 2 frames or pages in one file; expected one picture" in capsys.readouterr().err
