"""``OUT/report``: page, tables, tests, figures, and ``MANIFEST.json``, all from what lies in the study's folder."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from marc_dist import __version__
from marc_dist.files import write_atomic
from marc_dist.study.page.study_page import study_page
from marc_dist.study.plan import Plan
from marc_dist.study.state import read_record
from marc_dist.study.tables import text
from marc_dist.study.tables.chosen import chosen_csv, chosen_settings
from marc_dist.study.tables.collected import Findings, collect
from marc_dist.study.tables.figures import figure_files, sweep_figures
from marc_dist.study.tables.rank_figures import rank_figures

REPORT = "report"
MANIFEST = "MANIFEST.json"
INDEX = "index.html"
AUDIT = "audit.md"
"""What ``marc-study --audit`` has left in the folder; with its tables, ``audit-*.csv``, it stays and is linked."""
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
    chosen = chosen_settings(plan)
    if plan.study.tune is not None:
        files["chosen.csv"] = chosen_csv(chosen).encode()
    figures = {**rank_figures(plan, findings), **sweep_figures(plan, findings)}
    files |= figure_files(figures)
    audits = sorted(path.name for path in folder.glob("audit*") if path.suffix in (".md", ".csv"))
    audit = (folder / AUDIT).read_text(encoding="utf-8") if AUDIT in audits else ""
    names = [*files, *audits, MANIFEST]
    files[INDEX] = study_page(plan, findings, chosen, figures, names, _versions(), audit).encode()
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


def _versions() -> dict[str, str]:
    """Of everything that numbers depend on."""
    versions = {
        "marc-dist": __version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
    }
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _manifest(plan: Plan, findings: Findings, files: dict[str, bytes]) -> dict[str, Any]:
    """What the tables stand on."""
    shown = plan.path.read_bytes()
    return {
        "title": plan.study.title,
        "study": {"name": plan.path.stem, "sha256": hashlib.sha256(shown).hexdigest(), "text": shown.decode()},
        "commands": [f"marc-study {plan.path} --out {plan.out}", f"marc-study {plan.path} --out {plan.out} --report"],
        "versions": _versions(),
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
