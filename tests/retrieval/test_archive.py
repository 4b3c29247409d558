"""Anybody's picture against an archive: the right answers, an index folder that stays, and one that is foreign."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marc_dist.augment.views import eval_transform
from marc_dist.config import Config, ConfigError, DataError
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.decode import MAX_BYTES
from marc_dist.data.reader import IndexedReader
from marc_dist.encoder.export import load_encoder, pixel_scale
from marc_dist.retrieval import archive as ar
from marc_dist.retrieval.index_folder import archive_of
from marc_dist.retrieval.label_query import parse_labels
from tests.retrieval.runs import CLASSES, make_run, pack_tiny
from tests.worlds import run_in_world


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Dataset) -> tuple[Path, Config]:
    folder = tmp_path_factory.mktemp("archive") / "run"
    return folder, make_run(folder, tiny)


def opened(run: tuple[Path, Config], said: list[str] | None = None, index_dir: Path | None = None, **words: object):  # type: ignore[no-untyped-def]
    folder, config = run
    config = config.model_copy(update={"eval": config.eval.model_copy(update=words)})
    tell = (lambda _: None) if said is None else said.append
    return ar.Archive(folder, open_dataset(config.data.dir), index_dir, [], config, tell)


def picture(dataset: Dataset, sample: int, path: Path) -> Path:
    path.write_bytes(IndexedReader(dataset).read(sample))
    return path


def naive(folder: Path, dataset: Dataset, image: Image.Image, ids: list[int]) -> list[int]:
    (encoder, info), reader = load_encoder(folder), IndexedReader(dataset)

    def unit(image: Image.Image) -> np.ndarray:
        x = encoder(eval_transform(image, 32, pixel_scale(info))[None])[0][0].double().detach().numpy()
        return x / np.linalg.norm(x)

    query = unit(image)
    return sorted(ids, key=lambda i: -float(query @ unit(reader.image(i))))


def test_a_picture_of_the_archive_finds_itself_and_its_neighbours(
    run: tuple[Path, Config], tiny: Dataset, tmp_path: Path
) -> None:
    path = picture(tiny, 7, tmp_path / "q.png")
    (found,) = opened(run).search([path], 9)
    assert found.path == path and found.picture.remark == "" and found.picture.size == (20, 20)
    assert [hit.id for hit in found.hits] == naive(run[0], tiny, found.picture.image, list(range(40)))[:9]
    assert found.hits[0].id == 7 and found.hits[0].score == pytest.approx(1, abs=1e-6)
    assert [hit.same for hit in found.hits] == [True, *[False] * 8]


def test_labels_that_answers_must_carry(run: tuple[Path, Config], tiny: Dataset, tmp_path: Path) -> None:
    archive = opened(run)
    path = picture(tiny, 7, tmp_path / "q.png")
    both = [i for i in range(40) if tiny.labels[i, 0] and tiny.labels[i, 2]]
    (found,) = archive.search([path], 50, parse_labels(["RED  & blue", "green"], CLASSES))
    assert [hit.id for hit in found.hits] == naive(run[0], tiny, found.picture.image, both) and both
    with pytest.raises(ConfigError, match=r"--label gren: .* did you mean green\?; it has red & blue"):
        parse_labels(["gren"], CLASSES)
    with pytest.raises(DataError, match="no image has the labels never"):
        archive.search([path], 5, parse_labels([CLASSES[-1]], CLASSES))


def test_an_index_folder_is_used_again(run: tuple[Path, Config], tiny: Dataset, tmp_path: Path) -> None:
    path, folder, said = picture(tiny, 7, tmp_path / "q.png"), tmp_path / "index", []
    first = opened(run, said, folder, index="IVF2,Flat:nprobe=2")
    first.build()
    names = sorted(file.name.partition("-")[0] for file in folder.iterdir())
    assert names == [".begun.lock", "contents", "contents", "index", "index", "store.json", "test", "train"]
    expected = first.search([path], 9)[0].hits
    assert any("40 images in" in line for line in said)
    said.clear()
    config = run[1].model_copy(update={"eval": run[1].eval.model_copy(update={"index": "IVF2,Flat:nprobe=2"})})
    again = ar.Archive(
        run[0], open_dataset(archive_of(folder)), folder, [], config, said.append
    )  # the folder knows its archive
    assert again.search([path], 9)[0].hits == expected
    assert "vectors of 40 images from" in said[0] and str(folder) in said[1] and len(said) == 2


def test_an_encoder_that_did_not_make_it_is_refused(run: tuple[Path, Config], tiny: Dataset, tmp_path: Path) -> None:
    opened(run, None, tmp_path / "index").build()
    other = tmp_path / "other"
    config = make_run(other, tiny, model__head_dim=5)
    with pytest.raises(
        DataError, match=r"index: was made with another encoder, [0-9a-f]{12}, this one is [0-9a-f]{12}"
    ):
        opened((other, config), None, tmp_path / "index")
    with pytest.raises(DataError, match=r"another eval.features, backbone, this one is projection"):
        opened(run, None, tmp_path / "index", features="projection")
    data = pack_tiny(tmp_path / "data", seed=5)
    with pytest.raises(DataError, match="another archive"):
        ar.Archive(run[0], data, tmp_path / "index", [], run[1], print)


def test_another_machine_does_not_embed_again(run: tuple[Path, Config], tmp_path: Path) -> None:
    opened(run, None, tmp_path / "index").build()
    said: list[str] = []
    opened(run, said, tmp_path / "index", batch=7).build()
    assert len(said) == 2 and "vectors of 40 images from" in said[0]


def test_splits_and_places(run: tuple[Path, Config], tiny: Dataset, tmp_path: Path) -> None:
    archive = ar.Archive(run[0], tiny, None, ["test"], run[1], print)
    path = picture(tiny, 7, tmp_path / "q.png")
    (found,) = archive.search([path], 99)
    assert sorted(hit.id for hit in found.hits) == tiny.rows("test").tolist()
    with pytest.raises(DataError, match="no split named 'val'"):
        ar.Archive(run[0], tiny, None, ["val"], run[1], print)
    with pytest.raises(ConfigError, match="--archive: expected the shard folder"):
        archive_of(None)
    with pytest.raises(ConfigError, match="add --archive DIR"):
        archive_of(tmp_path / "nothing")
    twice = ar.Archive(run[0], tiny, None, ["test", "train", "test"], run[1], print)
    assert sorted(twice.ids.tolist()) == list(range(40)) and len(twice.search([path], 99)[0].hits) == 40
    opened(run, None, tmp_path / "index").build()
    meta = json.loads((tmp_path / "index" / "store.json").read_text())
    meta["about"]["archive_dir"] = str(tmp_path / "moved")
    (tmp_path / "index" / "store.json").write_text(json.dumps(meta))
    with pytest.raises(ConfigError, match="say where it is with --archive DIR"):
        archive_of(tmp_path / "index")


def pictures() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 90, 3)).astype(np.uint8))

    def saved(image: Image.Image, kind: str, **how: object) -> bytes:
        data = io.BytesIO()
        image.save(data, kind, **how)
        return data.getvalue()

    wide = rng.integers(0, 4000, (30, 30)).astype(np.uint16)
    real = rng.random((30, 30)).astype(np.float32)
    real[3, 4] = np.nan
    turned = Image.Exif()
    turned[274] = 6
    return {
        "cmyk.jpg": saved(rgb.convert("CMYK"), "JPEG"),
        "wide.png": saved(Image.fromarray(wide), "PNG"),
        "float.tif": saved(Image.fromarray(real), "TIFF"),
        "dot.png": saved(rgb.crop((0, 0, 1, 1)), "PNG"),
        "strip.png": saved(rgb.resize((3000, 2)), "PNG"),
        "bits.png": saved(rgb.convert("1"), "PNG"),
        "glass.png": saved(rgb.convert("LA"), "PNG"),
        "moving.gif": saved(rgb.convert("P"), "GIF"),
        "large.jpg": saved(rgb.resize((3000, 2000)), "JPEG"),
        "turned.jpg": saved(rgb, "JPEG", exif=turned),
    }


def test_other_peoples_pictures(run: tuple[Path, Config], tmp_path: Path) -> None:
    paths = []
    for name, data in pictures().items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    found = {answers.path.name: answers for answers in opened(run).search(paths, 3)}
    assert all(len(answers.hits) == 3 for answers in found.values())
    remarks = {name: answers.picture.remark for name, answers in found.items()}
    assert remarks["cmyk.jpg"] == "CMYK, converted to RGB" and remarks["glass.png"] == "transparency dropped"
    assert "percentiles 2 to 98" in remarks["wide.png"] and "percentiles 2 to 98" in remarks["float.tif"]
    assert remarks["turned.jpg"] == "turned as its EXIF note says" and remarks["moving.gif"] == ""
    assert remarks["large.jpg"] == "decoded at 375 x 250" and found["large.jpg"].picture.size == (3000, 2000)
    assert found["turned.jpg"].picture.image.size == (40, 90)


def test_codes_are_those_of_the_whole_archive_whatever_is_asked_for(
    run: tuple[Path, Config], tiny: Dataset, tmp_path: Path
) -> None:
    archive = opened(run, index="sign")
    path = picture(tiny, 7, tmp_path / "q.png")
    every = {hit.id: hit.score for hit in archive.search([path], 99)[0].hits}
    some = opened(run, index="sign").search([path], 99, parse_labels(["green"], CLASSES))[0].hits
    assert 0 < len(some) < 40 and {hit.id: hit.score for hit in some}.items() <= every.items()


def test_mistakes_are_told_before_the_archive_is_embedded(run: tuple[Path, Config], tmp_path: Path) -> None:
    (tmp_path / "q.jpg").write_bytes(b"hello")
    archive = opened(run, None, tmp_path / "index")
    with pytest.raises(DataError, match="not a picture"):
        archive.search([tmp_path / "q.jpg"], 1)
    with (tmp_path / "q.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match="expected a picture of at most"):
        archive.search([tmp_path / "q.jpg"], 1)
    assert not (tmp_path / "index").exists()


def test_a_deep_picture_is_spread_over_eight_bits(run: tuple[Path, Config], tmp_path: Path) -> None:
    values = np.linspace(1000, 3000, 900).reshape(30, 30).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "q.png")
    (found,) = opened(run).search([tmp_path / "q.png"], 1)
    low, high = np.percentile(values, [2, 98])
    expected = np.rint(((values - low) / (high - low)).clip(0, 1) * 255)
    assert np.array_equal(np.asarray(found.picture.image)[..., 0], expected)


def test_what_is_no_picture_is_told(run: tuple[Path, Config], tmp_path: Path) -> None:
    (tmp_path / "q.jpg").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"q\.jpg: not a picture"):
        opened(run).search([tmp_path / "q.jpg"], 1)
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read"):
        opened(run).search([tmp_path / "gone.jpg"], 1)


def ranked(run: tuple[Path, Config], path: Path) -> list[ar.Hit]:
    return list(opened(run).search([path], 9, parse_labels(["green"], CLASSES))[0].hits)


def test_ranks_search_as_one(run: tuple[Path, Config], tiny: Dataset, tmp_path: Path) -> None:
    path = picture(tiny, 7, tmp_path / "q.png")
    alone = ranked(run, path)
    assert run_in_world(ranked, 3, run, path) == [alone] * 3
