"""Place and time of a large archive: what the columns of its index cost to write and read, and what filters cost.

    python benchmarks/place_filters.py [--rows 549488]

Squares of 0.012 x 0.01 degrees at random places in Europe, all dated; 549,488 is the number of patches of BigEarthNet
v2. Each answer is compared with a loop of shapely over every footprint. Seconds by the clock, one run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from common import write

from marc_dist.geography.acquisition import Acquisition
from marc_dist.geography.areas import nearest, parse_box, parse_circle
from marc_dist.geography.places import add_columns, read_places


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=549_488)
    num = parser.parse_args().rows
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.2f} s")
        return result

    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-10, 30, num), rng.uniform(36, 70, num)
    shapes = shapely.box(lon, lat, lon + 0.012, lat + 0.01)
    rows = [Acquisition(wkb, "2017-06-13T10:10:31Z") for wkb in shapely.to_wkb(shapes, byte_order=1)]
    right = True
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.parquet"
        table = timed("columns made", lambda: add_columns(pa.table({"row": np.arange(num)}), rows))
        timed("file written", lambda: pq.write_table(table, file, compression="zstd"))
        size = file.stat().st_size
        print(f"{size / 1e6:.1f} MB")
        places = timed("bounds and dates read", lambda: read_places(file))
        ids = np.arange(num)
        areas = {"box": parse_box("5.9,45.8,10.5,47.8"), "circle of 500 km": parse_circle("8,50,500")}
        for name, area in areas.items():
            found = timed(name, lambda area=area: area.within(places, ids))  # the first reads the footprints, too
            right &= np.array_equal(found, np.flatnonzero(shapely.intersects(area.shape, shapes)))
            print(f"  {len(found)} of {num} footprints")
        timed("nearest to a place", lambda: nearest(places, ids, 8.0, 50.0))
    print("as a loop over all footprints" if right else "NOT as a loop over all footprints")
    write("place_filters", {"rows": num, "bytes": size, "seconds": seconds, "right": right})
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
