"""The page of a study: values for the template ``study_report.html.j2``, from findings, figures and pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marc_dist.study.page.augmented_views import augmented_views
from marc_dist.study.page.nearest_answers import nearest_answers
from marc_dist.study.page.score_tables import shown_block
from marc_dist.study.plan import Plan
from marc_dist.study.state import is_done
from marc_dist.study.tables.chosen import Chosen
from marc_dist.study.tables.collected import Findings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from marc_dist.report.charts import Chart

FILES = {
    "tables.md": "this page's tables as Markdown",
    "tables.tex": "the scores as tabular, for booktabs",
    "scores.csv": "means with intervals",
    "seeds.csv": "one line a seed",
    "pairs.csv": "every pair of losses with both tests and effect sizes",
    "ranks.csv": "mean ranks over data sets",
    "chosen.csv": "what every search has chosen",
    "audit.md": "leaks between splits and doubtful labels",
    "MANIFEST.json": "versions, commands, seeds, fingerprints, hashes of all files",
}
SHOWN_MISSING = 20
"""Names on the page; MANIFEST.json has all."""


@dataclass(frozen=True)
class Drawn:
    """A figure of the page, and the files that it is in."""

    name: str
    chart: Chart


def study_page(
    plan: Plan,
    findings: Findings,
    chosen: Sequence[Chosen],
    figures: Mapping[str, Figure],
    files: Sequence[str],
    versions: Mapping[str, str],
    audit: str = "",
) -> str:
    """The page.

    Args:
        plan: of the study.
        findings: its scores and tests.
        chosen: results of its searches.
        figures: file name without its end -> figure.
        files: names of all files beside the page.
        versions: of what the numbers depend on.
        audit: what an audit of the data has found, as Markdown; empty where there was none.
    """
    from marc_dist.report.page import render_page  # PIL, and matplotlib below
    from marc_dist.report.scripts import sorting_script

    title = plan.study.title or plan.path.stem
    done = sum(is_done(plan, task) for task in plan.tasks.values())
    drawn = [Drawn(name, _chart(name, figure)) for name, figure in figures.items()]
    script, policy = sorting_script()
    with nearest_answers(plan, findings.blocks) as answered:
        return render_page(
            "study_report.html.j2",
            title=title,
            heading=title,
            facts=_facts(plan),
            claim=plan.study.claim,
            notes=findings.notes,
            done=done,
            num_tasks=len(plan.tasks),
            missing=list(findings.missing.items())[:SHOWN_MISSING],
            num_missing=len(findings.missing),
            blocks=[shown_block(plan, block) for block in findings.blocks],
            level=f"{100 * plan.study.statistics.level:g} %",
            ranks=[one for one in drawn if one.name.startswith("ranks-")],
            sweeps=[one for one in drawn if not one.name.startswith("ranks-")],
            settings=_settings(plan),
            chosen=chosen,
            answered=answered,
            viewed=augmented_views(plan),
            audit=audit,
            manifest=_manifest(plan, versions),
            study_text=plan.path.read_text(encoding="utf-8"),
            links=[(name, FILES.get(name, "")) for name in files if not name.endswith((".png", ".pdf"))],
            num_figures=len(figures),
            script=script,
            policy=policy,
        )


def _chart(name: str, figure: Figure) -> Chart:
    from marc_dist.report.charts import Chart, as_svg

    return Chart(name, as_svg(figure, name, name))


def _facts(plan: Plan) -> list[str]:
    study = plan.study
    counted = ((study.datasets, "data set"), (study.encoders, "encoder"), (study.losses, "loss"), (study.seeds, "seed"))
    return [
        f"{len(of)} {name if len(of) == 1 else f'{name}es' if name == 'loss' else f'{name}s'}" for of, name in counted
    ]


def _settings(plan: Plan) -> list[tuple[str, str]]:
    """What the file says of each loss: its title, and its settings in one line."""
    found = []
    for method in plan.methods:
        told = {**method.settings, **method.sweep}
        text = ", ".join(f"{key}={_plain(value)}" for key, value in told.items())
        found.append((method.title, text))
    return found


def _plain(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _manifest(plan: Plan, versions: Mapping[str, str]) -> list[tuple[str, str]]:
    """What the numbers stand on, in short."""
    told = [("study file", f"{plan.path.name}, sha256 {hashlib.sha256(plan.path.read_bytes()).hexdigest()[:16]}")]
    for name, one in plan.datasets.items():
        told.append((f"data set {name}", f"{one.title}, {len(one):,} pictures, fingerprint {one.fingerprint[:16]}"))
    told.append(("seeds", ", ".join(map(str, plan.study.seeds))))
    return [*told, *versions.items()]
