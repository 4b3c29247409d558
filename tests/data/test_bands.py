"""Bands of 8 and 16 bits and floats: read as they were written, measured as a plain loop measures."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from marc_dist.augment.bands import BandScale, read_band_scale
from marc_dist.config import DataError, MarcError
from marc_dist.data.bands.pick import BandPick, places_of
from marc_dist.data.bands.preview import grey_of_bands, preview, shown_bands
from marc_dist.data.bands.query import read_band_query
from marc_dist.data.bands.statistics import BandCounts, codes_of, merged, values_of
from marc_dist.data.bands.tiff import DTYPES, missing, read_tiff, tiff_facts
from marc_dist.packing.bands.pictures import write_tiff

NAMES = ("B02", "B03", "B04", "B08")


def planes(dtype: str, num: int = 4, side: int = 9, seed: int = 0) -> NDArray[Any]:
    """Values over the whole range of a type."""
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return (rng.normal(0, 1, (num, side, side)) * 10.0 ** rng.integers(-6, 7, (num, 1, 1))).astype(np.float32)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (num, side, side), dtype=dtype, endpoint=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tiff_gives_back_what_was_written(dtype: str) -> None:
    written = planes(dtype)
    found = read_tiff(write_tiff(written, NAMES, nodata=7), "x")
    assert found.planes.dtype == written.dtype and np.array_equal(found.planes, written)
    assert found.facts == (4, dtype, 7.0, NAMES, 9, 9)
    some = read_tiff(write_tiff(written, NAMES), "x", [4, 1])
    assert np.array_equal(some.planes, written[[3, 0]]) and some.facts.nodata is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_keep_the_order_and_nearly_the_value(dtype: str) -> None:
    values = np.sort(planes(dtype, 1, 60).reshape(-1))
    codes = codes_of(values)
    assert (np.diff(codes.astype(np.int64)) >= 0).all()
    back = values_of(codes, dtype)
    if dtype == "float32":
        assert (abs(back - values) <= abs(values.astype(np.float64)) * 2.0**-7 + 1e-37).all()
    else:
        assert np.array_equal(back, values.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_are_those_of_a_plain_loop_however_they_are_shared_out(dtype: str) -> None:
    nodata = 5 if dtype != "float32" else -9999.0
    pictures = [planes(dtype, 3, 8, seed) for seed in range(7)]
    for number, picture in enumerate(pictures):
        picture[0, number % 8, :3] = nodata
        if dtype == "float32":
            picture[1, 0, number % 8] = math.nan
    parts = []
    for start, stop in ((0, 1), (1, 4), (4, 7)):
        part = BandCounts(3, dtype)
        for picture in pictures[start:stop]:
            part.add(picture, nodata)
        parts.append(pickle.loads(pickle.dumps(part)))
    found = merged(parts).facts()
    assert found == merged(parts[::-1]).facts()
    json.dumps(found, allow_nan=False)
    for band in range(3):
        values = [
            float(value)
            for picture in pictures
            for value in picture[band].reshape(-1).tolist()
            if value != nodata and math.isfinite(value)
        ]
        mean = math.fsum(values) / len(values)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        assert found["num_values"][band] == len(values) and found["num_missing"][band] == 7 * 64 - len(values)
        assert found["mean"][band] == pytest.approx(mean, rel=1e-12, abs=1e-12)
        assert found["std"][band] == pytest.approx(std, rel=1e-9)
        assert (found["min"][band], found["max"][band]) == (min(values), max(values))
        for key, percent in (("p2", 2), ("p98", 98)):
            expected = float(np.percentile(values, percent, method="inverted_cdf"))
            assert found[key][band] == pytest.approx(expected, rel=2.0**-7 if dtype == "float32" else 0)


def test_a_band_without_values_has_counts_alone() -> None:
    counts = BandCounts(2, "uint16")
    counts.add(np.array([[[0, 0]], [[3, 0]]], dtype=np.uint16), 0)
    found = counts.facts()
    assert found["mean"] == [None, 3.0] and found["num_missing"] == [2, 1] and found["std"] == [None, 0.0]


def a_pick(dtype: str, nodata: float | None, fill: tuple[float, ...]) -> BandPick:
    return BandPick(("B08", "B02"), (4, 1), 4, dtype, nodata, fill)


def test_bands_are_picked_ordered_and_their_gaps_filled() -> None:
    written = planes("uint16")
    written[3, 2, 2], written[0, 1, 1] = 0, 0
    found = a_pick("uint16", 0, (11.0, 12.0))(write_tiff(written, NAMES, nodata=0), "x")
    expected = np.stack([written[3], written[0]], axis=2)
    gone = expected == 0
    assert found.shape == (9, 9, 2) and found.flags.c_contiguous and np.array_equal(found[~gone], expected[~gone])
    assert found[2, 2, 0] == 11 and found[1, 1, 1] == 12
    floats = planes("float32")
    floats[3, 0, 0], floats[0, 0, 1] = math.nan, math.inf
    found = a_pick("float32", None, (0.5, 0.25))(write_tiff(floats, NAMES), "x")
    assert found[0, 0, 0] == 0.5 and found[0, 1, 1] == 0.25 and np.isfinite(found).all()


def test_files_of_other_bands_or_numbers_are_refused_with_both_named() -> None:
    pick = a_pick("uint16", None, (0.0, 0.0))
    with pytest.raises(DataError, match="k: expected 4 bands of uint16, got 5 of uint16"):
        pick(write_tiff(planes("uint16", 5), (*NAMES, "B11")), "k")
    with pytest.raises(DataError, match="k: expected 4 bands of uint16, got 4 of int16"):
        pick(write_tiff(planes("int16"), NAMES), "k")
    with pytest.raises(DataError, match="no band B11; the encoder takes B02, B11, the data has B02, B03, B04, B08"):
        places_of(("B02", "B11"), NAMES, "k")


def test_what_is_no_tiff_or_is_damaged_is_one_line() -> None:
    sound = write_tiff(planes("uint16", 4, 40), NAMES, nodata=0)
    for data, what in ((b"", "expected a TIFF|damaged"), (b"\x89PNG\r\n", "expected a TIFF"), (sound[:200], "damaged")):
        with pytest.raises(DataError, match=what) as caught:
            read_tiff(data, "k")
        assert "\n" not in str(caught.value) and str(caught.value).startswith("k: ")
    rng, refused = np.random.default_rng(1), 0
    for _ in range(150):  # tags and data with flipped bytes: another picture, or one line
        broken = bytearray(sound)
        for place in rng.integers(0, len(sound) if rng.random() < 0.5 else 400, 3):
            broken[place] = int(rng.integers(256))
        try:
            read_tiff(bytes(broken), "k")
        except MarcError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10


def test_nodata_that_a_type_cannot_hold_is_nowhere() -> None:
    values = np.array([0, 1], dtype=np.uint8)
    assert not missing(values, -9999.0).any() and not missing(values, math.nan).any() and not missing(values, 0.5).any()
    assert missing(values, 1.0).tolist() == [False, True]


def test_people_see_red_green_and_blue() -> None:
    assert shown_bands(NAMES) == (2, 1, 0) and shown_bands(("PAN",)) == (0, 0, 0)
    assert shown_bands(("blue", "green", "red", "nir")) == (2, 1, 0) and shown_bands(("x", "y", "z")) == (0, 1, 2)
    written = planes("uint16")
    image = preview(written, NAMES, None, {"p2": [0] * 4, "p98": [65535] * 4})
    assert image.size == (9, 9) and np.array_equal(np.asarray(image)[:, :, 0], np.rint(written[2] / 65535 * 255))
    grey = grey_of_bands(write_tiff(written, NAMES), "x")
    assert grey is not None and grey.mode == "L" and grey_of_bands(b"no", "x") is None


SCALE = BandScale(("B08", "B04"), "uint16", "percentiles", (1.0, 2.0), (9.0, 8.0), (4.4, 5.6), (1.0, 2.0))


def test_a_contract_is_read_back_and_a_broken_one_refused() -> None:
    told = json.loads(json.dumps(SCALE.facts()))
    assert read_band_scale(told) == SCALE and SCALE.fill == (4.0, 6.0)
    for key, value in (
        ("names", ["B08"]), ("names", ["B08", "B08"]), ("low", [9.0, 2.0]), ("low", [True, 2.0]), ("dtype", "int64"),
        ("scaling", "none"), ("mean", [1.0, "x"]), ("std", []),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            read_band_scale({**told, key: value})
    with pytest.raises(ValueError, match="expected names"):
        read_band_scale({"names": []})


def test_a_query_says_which_band_is_which(tmp_path: Path) -> None:
    written = planes("uint16")

    def ask(names: tuple[str, ...], of: NDArray[Any] = written, archive: tuple[str, ...] = NAMES) -> Any:
        (tmp_path / "q.tif").write_bytes(write_tiff(of, names))
        return read_band_query(tmp_path / "q.tif", SCALE, archive)

    right = np.stack([written[3], written[2]], axis=2)
    assert np.array_equal(ask(NAMES).values, right) and ask(NAMES).remark == ""
    turned = ask(NAMES[::-1], written[::-1])  # the names tell, not the places
    assert np.array_equal(turned.values, right)
    assert np.array_equal(ask(("",) * 4).values, right) and "as the archive's" in ask(("",) * 4).remark
    two = ask(("", ""), written[[3, 2]])
    assert np.array_equal(two.values, right) and "taken as B08, B04" in two.remark
    with pytest.raises(DataError, match="no band B08; the encoder takes B08, B04, the data has B02, B03, B04"):
        ask(NAMES[:3], written[:3])
    with pytest.raises(DataError, match="3 bands without names, but the encoder takes B08, B04"):
        ask(("", "", ""), written[:3])
    with pytest.raises(DataError, match="bands of int16, but the encoder was trained on uint16"):
        ask(NAMES, planes("int16"))
    assert tiff_facts((tmp_path / "q.tif").read_bytes(), "q").names == NAMES
