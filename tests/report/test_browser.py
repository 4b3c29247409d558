"""The report in a real browser: it fits wide and narrow windows, loads nothing, and the console stays empty."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from marc_dist.data.dataset import Dataset
from marc_dist.data.decode import Query
from marc_dist.data.reader import IndexedReader
from marc_dist.report.run_report import write_report
from marc_dist.report.search_page import search_page
from marc_dist.retrieval.archive import Answers, Hit
from marc_dist.retrieval.evaluate import evaluate
from marc_dist.tuning.report import write_report as write_tuning_report
from tests.retrieval.runs import make_run, pack_tiny
from tests.tuning.searches import finished

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage --allow-file-access-from-files --enable-logging=stderr "
    "--virtual-time-budget=5000"
).split()
PROBE = """<!doctype html><meta charset="utf-8"><body><pre id="out">not loaded</pre>
<iframe id="frame" style="width:%dpx;height:900px;border:0"></iframe><script>
const frame = document.getElementById("frame");
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach((one) => { one.open = true; });
  const wide = [...page.querySelectorAll("body *")]  // what lies in a box that scrolls may be wider than the window
    .filter((one) => !one.closest(".scroll table, .wide svg"))
    .filter((one) => one.getBoundingClientRect().right > root.clientWidth + 1);
  const letters = [...page.querySelectorAll(".drawing text")].map((one) => Math.hypot(one.getScreenCTM().a,
    one.getScreenCTM().b) * parseFloat(page.defaultView.getComputedStyle(one).fontSize));
  document.getElementById("out").textContent = JSON.stringify({
    width: root.clientWidth, scroll: root.scrollWidth, wide: wide.map((one) => one.outerHTML.slice(0, 80)),
    images: page.images.length, broken: [...page.images].filter((one) => !one.naturalWidth).length,
    loaded: frame.contentWindow.performance.getEntriesByType("resource").map((one) => one.name)
      .filter((name) => !name.startsWith("data:")),
    letters: letters.length ? [Math.min(...letters), Math.max(...letters)] : [],
    strokes: [...page.querySelectorAll(".drawing [id$=curve] path")]
      .map((one) => page.defaultView.getComputedStyle(one).stroke),
    paper: page.defaultView.getComputedStyle(page.body).backgroundColor,
    title: page.title, small: [...page.querySelectorAll("p,td,th,li,span")].filter((one) => one.textContent.trim()
      && parseFloat(page.defaultView.getComputedStyle(one).fontSize) < 12).length });
};
frame.src = %s;</script></body>"""


def look(report: Path, width: int, folder: Path, *more: str) -> tuple[dict[str, Any], str]:
    if BROWSER is None:
        message = "no chromium on this machine (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    probe = folder / "probe.html"
    probe.write_text(PROBE % (width, json.dumps(report.resolve().as_uri())))
    words = [f"--user-data-dir={folder / 'profile'}", "--window-size=1500,1000", "--dump-dom", probe.as_uri()]
    done = subprocess.run(
        [BROWSER, *FLAGS, *more, *words],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "HOME": str(folder)},
    )
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1].startswith("{"), done.stdout[:500] + done.stderr[-500:]
    return json.loads(html.unescape(found[1])), done.stderr


@pytest.mark.parametrize("width", [1280, 400, 320])
def test_report_fits_and_is_quiet(evaluated: Path, tmp_path: Path, width: int) -> None:
    seen, log = look(evaluated / "report.html", width, tmp_path)
    assert width - 20 <= seen["width"] <= width
    assert seen["scroll"] <= seen["width"] and seen["wide"] == []
    assert seen["images"] > 20 and seen["broken"] == 0
    assert seen["loaded"] == []
    assert "CONSOLE" not in log
    assert seen["small"] == 0
    assert 9.5 < seen["letters"][0] <= seen["letters"][1] < 17  # of charts, in pixels of the screen
    assert seen["title"] == "tiny<run>: retrieval report"


def test_charts_are_dark_where_the_page_is(evaluated: Path, tmp_path: Path) -> None:
    seen = [
        look(evaluated / "report.html", 400, tmp_path, f"--blink-settings=preferredColorScheme={at}")[0]
        for at in (1, 0)
    ]
    assert [one["paper"] for one in seen] == ["rgb(251, 251, 249)", "rgb(20, 24, 29)"]
    assert [set(one["strokes"]) for one in seen] == [{"rgb(11, 110, 117)"}, {"rgb(76, 192, 200)"}]


@pytest.mark.parametrize("width", [1280, 320])
def test_a_search_and_a_tuning_fit_too(tiny: Dataset, tmp_path: Path, width: int) -> None:
    picture = Query(Image.new("RGB", (64, 48)), (64, 48), "remark " * 20)
    found = [Answers(Path("query" * 30 + ".png"), picture, tuple(Hit(at, 0.5) for at in range(20)))]
    reader = IndexedReader(tiny)
    (tmp_path / "search.html").write_text(search_page(found, tiny, reader, "title " * 30, ["fact"], []))
    reader.close()
    surface = {f"loss.{name}": {"grid": [0.0, 0.5, 1.0]} for name in ("alpha", "beta")}
    write_tuning_report(finished(tmp_path, {"search": "grid", "parameters": surface}, trials=9), tmp_path)
    for name, num in (("search.html", 21), ("report.html", 0)):
        seen, log = look(tmp_path / name, width, tmp_path)
        assert seen["scroll"] <= seen["width"] and seen["wide"] == [] and seen["small"] == 0
        assert seen["images"] == num and seen["broken"] == 0 and seen["loaded"] == [] and "CONSOLE" not in log
        assert not seen["letters"] or 6.5 < seen["letters"][0] <= seen["letters"][1] < 17, seen["letters"]


@pytest.mark.parametrize("width", [1280, 320])
def test_everything_at_once_fits_too(tmp_path: Path, width: int) -> None:
    """Two data sets, all metrics unfolded, long and unbroken names."""
    classes = ("green" * 12, "D" * 60, "land of many words " * 4, "a", "never")
    asking = pack_tiny(tmp_path / "data", classes=classes, title="T" * 90)
    other = pack_tiny(tmp_path / "other", 24, 3, classes, "other " * 12)
    config = make_run(tmp_path / "run", asking, eval__archive_dir=str(other.root), eval__extra=True)
    evaluate(config, tmp_path / "run", lambda line: None)
    seen, log = look(write_report(config, tmp_path / "run"), width, tmp_path)
    assert seen["scroll"] <= seen["width"] and seen["wide"] == [] and seen["small"] == 0 and "CONSOLE" not in log


def test_the_probe_sees_faults(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<body><div style="width:2000px">x</div><img src="none.png" alt=""><script>console.error("no")</script>'
    )
    seen, log = look(bad, 400, tmp_path)
    assert seen["scroll"] > seen["width"] and seen["wide"] and seen["broken"] == 1 and "CONSOLE" in log
