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

from marc_dist.retrieval.evaluate import evaluate
from marc_dist.retrieval.report import write_report
from tests.retrieval.runs import make_run, pack_tiny

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
  const wide = [...page.querySelectorAll("body *")]
    .filter((one) => one.getBoundingClientRect().right > root.clientWidth + 1);
  document.getElementById("out").textContent = JSON.stringify({
    width: root.clientWidth, scroll: root.scrollWidth, wide: wide.map((one) => one.outerHTML.slice(0, 80)),
    images: page.images.length, broken: [...page.images].filter((one) => !one.naturalWidth).length,
    loaded: frame.contentWindow.performance.getEntriesByType("resource").map((one) => one.name)
      .filter((name) => !name.startsWith("data:")),
    title: page.title, small: [...page.querySelectorAll("p,td,th,li,span")].filter((one) => one.textContent.trim()
      && parseFloat(page.defaultView.getComputedStyle(one).fontSize) < 12).length });
};
frame.src = %s;</script></body>"""


def look(report: Path, width: int, folder: Path) -> tuple[dict[str, Any], str]:
    if BROWSER is None:
        message = "no chromium on this machine (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    probe = folder / "probe.html"
    probe.write_text(PROBE % (width, json.dumps(report.resolve().as_uri())))
    more = [f"--user-data-dir={folder / 'profile'}", "--window-size=1500,1000", "--dump-dom", probe.as_uri()]
    done = subprocess.run(
        [BROWSER, *FLAGS, *more],
        capture_output=True,
        text=True,
        timeout=90,
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
    assert seen["title"] == "tiny<run>: retrieval report"


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
