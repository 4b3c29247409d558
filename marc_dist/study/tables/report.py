"""``OUT/report``: tables, tests, figures, and ``MANIFEST.json``, all from what lies in the study's folder."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from marc_dist import __version__
from marc_dist.config import MarcError
from marc_dist.files import write_atomic
from marc_dist.study.plan import Plan
from marc_dist.study.state import is_done, read_record
from marc_dist.study.tables import text
from marc_dist.study.tables.collected import Findings, collect
from marc_dist.study.tables.figures import sweep_figures
from marc_dist.tuning.driver import open_search
from marc_dist.tuning.journal import Journal

REPORT = "report"
MANIFEST = "MANIFEST.json"
LIBRARIES = ("torch", "timm", "numpy", "scipy", "scikit-learn", "faiss-gpu", "faiss-cpu", "optuna")


def write_report(plan: Plan) -> Findings:
    """Write everything anew into ``OUT/report``; equal scores give equal files.

    Args:
        plan: of the study.

    Returns:
        What was found, and what is missing.
    """
    findings = collect(plan)
    folder = plan.out / REPORT
    files = {
        "tables.md": text.markdown(plan, findings).encode(),
        "tables.tex": text.latex(findings).encode(),
        "scores.csv": text.scores_csv(findings).encode(),
        "seeds.csv": text.seeds_csv(findings).encode(),
    }
    if any(block.pairs for block in findings.blocks):
        files["pairs.csv"] = text.pairs_csv(findings).encode()
    if findings.rankings:
        files["ranks.csv"] = text.ranks_csv(findings).encode()
    if plan.study.tune is not None:
        files["chosen.csv"] = _chosen_csv(plan).encode()
    files |= sweep_figures(plan, findings)
    for name, data in files.items():
        write_atomic(folder / name, data)
    _clear(folder, set(files))
    write_atomic(folder / MANIFEST, (json.dumps(_manifest(plan, findings, files), indent=1) + "\n").encode())
    return findings


def _clear(folder: Path, names: set[str]) -> None:
    """Take away what an earlier report of ours has and this one has not; files of others stay."""
    try:
        earlier = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in set(earlier) - names:
        if name == Path(name).name:
            (folder / name).unlink(missing_ok=True)


def _chosen_csv(plan: Plan) -> str:
    """What every search has chosen, with its validation score."""
    rows: list[list[object]] = []
    for task in plan.tasks.values():
        if task.kind != "search" or not is_done(plan, task) or task.method is None:
            continue
        try:
            search = open_search(plan.folder(task), Journal(plan.folder(task)))
        except MarcError:
            continue
        metric = search.plan.objectives[0]
        for best in search.finished()[:1]:
            values = search.values(best, metric)
            score = sum(values) / len(values) if values else math.nan
            for key, value in search.space.settings(search.points[best]).items():
                rows.append(
                    [task.dataset, task.encoder, task.method.loss, key, value, metric, score, len(search.points)]
                )
    heads = ["dataset", "encoder", "loss", "setting", "value", "metric", "validation", "trials"]
    return text.as_csv(heads, rows)


def _manifest(plan: Plan, findings: Findings, files: dict[str, bytes]) -> dict[str, Any]:
    """What the tables stand on."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    shown = plan.path.read_bytes()
    return {
        "title": plan.study.title,
        "study": {"name": plan.path.stem, "sha256": hashlib.sha256(shown).hexdigest(), "text": shown.decode()},
        "commands": [f"marc-study {plan.path} --out {plan.out}", f"marc-study {plan.path} --out {plan.out} --report"],
        "versions": {
            "marc-dist": __version__,
            "python": platform.python_version(),
            "platform": f"{sys.platform} {platform.machine()}",
            **versions,
        },
        "seeds": list(plan.study.seeds),
        "data": {
            name: {"dir": str(one.root), "title": one.title, "fingerprint": one.fingerprint, "samples": len(one)}
            for name, one in plan.datasets.items()
        },
        "tasks": {
            name: {
                "state": read_record(plan.folder(task)).word,
                "fingerprint": plan.fingerprint(task),
                "seconds": dict(read_record(plan.folder(task)).seconds),
            }
            for name, task in plan.tasks.items()
        },
        "missing": findings.missing,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
