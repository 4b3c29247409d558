"""Which loss, which temperatures, which vector: heads on frozen features and whole encoders, on real collections.

    python benchmarks/loss_study.py [--data ../shared/data] [--seeds 5] [--procs 2] [--parts losses,macl,long,views]
    python benchmarks/loss_study.py --parts full --seeds 5        # whole encoders: hours on a CPU
    python benchmarks/loss_study.py --report                      # the tables of docs/results.md from what is there

Every cell (collection x setting x seed) is an ordinary marc-dist run of an EfficientNet-Lite0 with ImageNet's weights,
scored on the test split against the training split. Its figures go into ``OUT/loss_study/``, one file a cell: a cell
that is there, made with the same settings, is not run again, so the script may be killed at any moment. Seeds come in
turn: stopped early, every setting has as many. A collection whose files are not there is left out with a word. The
built-in sample needs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import OUT

from marc_dist import metrics
from marc_dist.cli.shard import main as shard
from marc_dist.config import Config, build, flatten
from marc_dist.data.dataset import Dataset, open_dataset
from marc_dist.data.loader import iter_eval
from marc_dist.encoder.export import load_encoder
from marc_dist.encoder.model import Encoder, build_encoder
from marc_dist.encoder.published import resolve_scale
from marc_dist.retrieval.exact import exact_unit, full_ranking
from marc_dist.retrieval.protocols import choose
from marc_dist.retrieval.scoring import gathered, scorer
from marc_dist.retrieval.vectors.features import BackboneFeatures
from marc_dist.training.trainer import train

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results.md"
COLUMNS = ("mAP", "nDCG@10", "Jaccard@10", "label AP", "rare", "medium", "common")
VECTORS = ("backbone", "hidden", "projection", "concat")
NOISE = 0.005
"""Differences below this, or below two standard errors over seeds, count as none."""
Words = dict[str, Any]


class Collection(NamedTuple):
    """A collection of pictures: how it is packed, and how heads and encoders are trained on it."""

    title: str
    source: str | None  # below --data; None = built in
    recipe: str
    image_size: int
    epochs: int
    batch: int


COLLECTIONS = {
    "ml-aid": Collection("ML-AID, 150 px", "ml-aid-150px", "ml-aid", 150, 15, 256),
    "gid-mtl5": Collection("GID-MTL5, 128 px", "gid-mtl5", "benchmarks/recipes/gid-mtl5.yaml", 128, 30, 256),
    "sample": Collection("built-in sample, 64 px", None, "sample", 64, 40, 150),
}


def macl(form: str, tau: float, alpha: float, beta: float, strength: float, **more: Any) -> Words:
    words: Words = {"loss.name": "macl", "loss.temperature_form": form, "loss.tau": tau, "loss.alpha": alpha}
    return words | {"loss.beta": beta, "loss.strength": strength, **more}


def other(name: str, tau: float) -> Words:
    return {"loss.name": name, **({} if name == "triplet" else {"loss.tau": tau})}


DEFAULT = "macl, the default"
OLD_DEFAULT = "macl, sharpen t.1 a.5 b.5 s1 (the old default)"
LOSSES: dict[str, Words] = {
    DEFAULT: {"loss.name": "macl"},
    "macl, anchor_mean": {"loss.name": "macl", "loss.aggregate": "anchor_mean"},
    OLD_DEFAULT: macl("sharpen", 0.1, 0.5, 0.5, 1.0),
    **{f"mulsupcon t{tau:g}": other("mulsupcon", tau) for tau in (0.1, 0.2, 0.3)},
    **{f"supcon_any t{tau:g}": other("supcon_any", tau) for tau in (0.1, 0.2)},
    **{
        f"{name} t0.1": other(name, 0.1)
        for name in ("supcon_all", "ntxent", "jaccard", "multisupcon", "msc", "similarity_dissimilarity")
    },
    "triplet": other("triplet", 0.1),
}
FORMS = [
    ("sharpen", 0.2, 0.1, 0.5, 0.5),
    ("sharpen", 0.2, 0.0, 0.5, 0.5),
    ("soften", 0.1, 0.0, 0.0, 0.5),
    ("soften", 0.1, 0.5, 0.0, 0.0),
    ("soften", 0.1, 0.5, 0.5, 0.25),
    ("soften", 0.1, 0.5, 0.0, 0.5),
    ("soften", 0.1, 0.5, 0.0, 1.0),
    ("soften", 0.1, 0.5, 0.5, 0.5),
    ("soften", 0.15, 0.5, 0.0, 0.5),
    ("soften_sharpen", 0.1, 0.5, 0.5, 0.5),
    ("soften_sharpen", 0.15, 0.5, 0.5, 0.5),
    ("soften_sharpen", 0.2, 0.25, 0.5, 0.25),
]
SETTINGS = {f"{form} t{t:g} a{a:g} b{b:g} s{s:g}": macl(form, t, a, b, s) for form, t, a, b, s in FORMS}
VIEWS = {
    f"{num} kept views, dropout {drop:g}": {"data.feature_views": num, "augment.feature_dropout": drop}
    for num in (0, 1, 4)
    for drop in (0.0, 0.1)
}
LIVE = {"model.batch_norm": "sync"}  # as it was by default; recipe_study.py has what is better
FULL = {
    DEFAULT: {"loss.name": "macl", **LIVE},
    "mulsupcon t0.2": {**other("mulsupcon", 0.2), **LIVE},
    OLD_DEFAULT: {**macl("sharpen", 0.1, 0.5, 0.5, 1.0), **LIVE},
}
WHOLE = {"full"}  # parts that give the encoder pictures of 96 px, and score it as it has become
FEWER_SEEDS = {("full", OLD_DEFAULT): 1}  # hours for a setting that is behind by more than seeds differ
PARTS: dict[str, dict[str, Words]] = {
    "losses": LOSSES,
    "macl": SETTINGS,
    "long": {
        name: {**words, "train.epochs": 45}
        for name, words in {**LOSSES, **SETTINGS}.items()
        if name
        in (DEFAULT, "mulsupcon t0.1", "mulsupcon t0.2", "mulsupcon t0.3", "soften_sharpen t0.2 a0.25 b0.5 s0.25")
    },
    "views": VIEWS,
    "full": FULL,
}


@dataclass(frozen=True)
class Cell:
    """One run."""

    part: str
    collection: str
    name: str
    seed: int

    @property
    def path(self) -> str:
        """Where its figures lie, below the study's folder."""
        plain = "".join(c if c.isalnum() else "-" for c in self.name)
        return f"{self.part}/{self.collection}/{plain}/{self.seed}"


class Study:
    """The cells of a study, and the folder that keeps their figures."""

    def __init__(self, data: Path, out: Path) -> None:
        self.data, self.out = data, out / "loss_study"
        torch.set_num_threads(1)

    def collections(self, part: str) -> list[str]:
        """Those whose files are there; parts that take long have fewer."""
        there = [name for name, c in COLLECTIONS.items() if c.source is None or (self.data / c.source).is_dir()]
        left_out = {"full": ("sample",), "long": ("sample", "gid-mtl5"), "views": ("ml-aid",)}.get(part, ())
        return [name for name in there if name not in left_out]

    @cache  # noqa: B019
    def dataset(self, name: str) -> Dataset:
        """A collection, packed when it is not."""
        collection, folder = COLLECTIONS[name], self.out / "data" / name
        if not (folder / "dataset.json").exists():
            source = [] if collection.source is None else ["--source", str(self.data / collection.source)]
            recipe = collection.recipe if "/" not in collection.recipe else str(ROOT / collection.recipe)
            if shard(["--dataset", recipe, *source, "--out", str(folder), "--workers", "1"]) != 0:
                raise SystemExit(f"{name}: could not be packed")
        return open_dataset(folder)

    def config(self, cell: Cell, more: Words | None = None) -> Config:
        """The run of a cell.

        Args:
            cell: which.
            more: further settings, which go before all others.
        """
        collection = COLLECTIONS[cell.collection]
        full = cell.part in WHOLE
        words: Words = {
            "data.dir": str(self.dataset(cell.collection).root),
            "data.image_size": 96 if full else collection.image_size,
            "data.num_workers": 0,
            "data.features_dir": str(self.out / "features"),
            "model.freeze": "none" if full else "backbone",
            "train.epochs": 3 if full else collection.epochs,
            "train.global_batch": 100 if full else collection.batch,
            "train.run_dir": str(self.out / "runs" / cell.path),
            "train.seed": cell.seed,
            "train.device": "cpu",
            "train.checkpoint_every": 50 if full else 100_000,
            "eval.batch": 32,
        }
        return build(Config, {**words, **PARTS[cell.part][cell.name], **(more or {})})

    def figures(self, cell: Cell) -> dict[str, Any] | None:
        """What is kept of a cell, if it was made with the settings that it has now."""
        path = self.out / "figures" / f"{cell.path}.json"
        found = json.loads(path.read_text()) if path.exists() else None
        return found if found is not None and found["settings"] == self._settings(cell) else None

    def _settings(self, cell: Cell) -> str:
        if cell.part == "untrained":
            return ""
        plain = {key: value for key, value in flatten(self.config(cell)).items() if not key.startswith("eval.")}
        for place in ("data.dir", "data.features_dir", "train.run_dir", "train.threads"):
            del plain[place]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    def run(self, cell: Cell) -> None:
        """Train and score one cell, unless that is done."""
        if self.figures(cell) is not None:
            return
        started, config = time.perf_counter(), self.config(cell)
        with Path(os.devnull).open("w") as quiet, contextlib.redirect_stderr(quiet):
            train(config)
        trained_s = time.perf_counter() - started
        encoder, _ = load_encoder(config.train.run_dir)
        vectors = vectors_of(cell.part)
        found = {"train_s": trained_s, "scores": self.scores(cell, config, encoder, vectors)}
        self._keep(cell, found)
        shutil.rmtree(config.train.run_dir)
        print(f"{cell.path}: {trained_s:.0f} s, {found['scores'][vectors[-1]]}", flush=True)

    def _keep(self, cell: Cell, found: dict[str, Any]) -> None:
        found = {"settings": self._settings(cell), **found}
        path = self.out / "figures" / f"{cell.path}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(found, indent=1))
        temporary.replace(path)

    def untrained(self, part: str, name: str) -> None:
        """The pretrained backbone, not trained: the floor."""
        cell = Cell("untrained", name, "full" if part in WHOLE else "frozen", 0)
        if self.figures(cell) is None:
            config = self.config(Cell(part, name, next(iter(PARTS[part])), 0))
            encoder = build_encoder(config.model, 0, config.data.image_size)
            self._keep(cell, {"scores": self.scores(Cell(part, name, "", 0), config, encoder.eval(), ("backbone",))})

    def scores(self, cell: Cell, config: Config, encoder: Encoder, what: tuple[str, ...]) -> dict[str, list[float]]:
        """``COLUMNS`` of each kind of vector."""
        dataset = self.dataset(cell.collection)
        queries, archive = dataset.rows("test"), dataset.rows("train")
        both = {name: self._features(cell, config, encoder, name) for name in ("test", "train")}
        out = {}
        for kind in what:
            with torch.inference_mode():
                asks, answers = (
                    exact_unit(encoder.searched(torch.from_numpy(both[name]), kind).numpy())
                    for name in ("test", "train")
                )
            out[kind] = score(dataset, config, asks, answers)
        assert len(queries) and len(archive)
        return out

    def _features(self, cell: Cell, config: Config, encoder: Encoder, split: str) -> np.ndarray:
        dataset = self.dataset(cell.collection)
        if cell.part not in WHOLE:
            return self._kept(cell.collection, split)
        rows = []
        with torch.inference_mode():
            for images, _ in iter_eval(
                dataset, dataset.rows(split), config.data.image_size, resolve_scale(config), 32, 0
            ):
                rows.append(encoder.backbone(images).numpy())
        return np.concatenate(rows)

    @cache  # noqa: B019
    def _kept(self, collection: str, split: str) -> np.ndarray:
        config = self.config(Cell("losses", collection, DEFAULT, 0))
        encoder = build_encoder(config.model, 0, config.data.image_size)
        dataset = self.dataset(collection)
        store = BackboneFeatures(
            encoder, config, dataset, image_size=config.data.image_size, scale=resolve_scale(config), say=print
        ).clean(split)
        assert store is not None
        return np.array(store.rows(dataset.rows(split)))


def score(dataset: Dataset, config: Config, asks: np.ndarray, answers: np.ndarray) -> list[float]:
    """``COLUMNS`` of test against train."""
    protocol = choose(dataset, config.eval.model_copy(update={"ks": (10,)}))
    scoring = scorer(protocol, config.eval.model_copy(update={"ks": (10,)}), complete=True)
    blocks = []
    for start in range(0, len(asks), 64):
        own = np.full(len(asks[start : start + 64]), -1)
        blocks.append(scoring.block(start, full_ranking(asks[start : start + 64], answers, own)))
    found = gathered(blocks)
    per_label = metrics.mean_known(found.label_ap)
    third = metrics.label_thirds(dataset.label_counts("train"))
    asked = dataset.labels[protocol.queries.ids][:, None]
    given = dataset.labels[found.top[:, :10]]
    union = (asked | given).sum(-1)
    jaccard = np.where(union > 0, (asked & given).sum(-1) / np.maximum(union, 1), 0.0).mean()
    thirds = [float(np.nanmean(per_label[third == at])) for at in range(3)]
    names = list(metrics.THIRDS)
    by_name = dict(zip(names, thirds, strict=True))
    means = [float(found.scores["mAP"].mean()), float(found.scores["nDCG@10"].mean()), float(jaccard)]
    return [*means, float(np.nanmean(per_label)), by_name["rare"], by_name["medium"], by_name["common"]]


# tables


def table(study: Study, part: str, name: str, vector: str) -> dict[str, np.ndarray]:
    """Setting -> (seeds, columns), of the settings that have any seed."""
    found = {}
    for setting in PARTS[part]:
        rows, seed = [], 0
        while (kept := study.figures(Cell(part, name, setting, seed))) is not None:
            rows.append(kept["scores"][vector])
            seed += 1
        if rows:
            found[setting] = np.array(rows)
    return found


def near_best(rows: dict[str, np.ndarray]) -> dict[str, list[bool]]:
    """Setting -> by column, whether it is the best or within noise of it, over the seeds that both have."""
    out = {}
    for name, mine in rows.items():
        near = []
        for column in range(len(COLUMNS)):
            best = max(rows.values(), key=lambda one: one[:, column].mean())
            num = min(len(best), len(mine))
            gap = best[:num, column] - mine[:num, column]
            error = gap.std(ddof=1) / np.sqrt(num) if num > 1 else 0.0
            near.append(bool(gap.mean() <= max(NOISE, 2 * error)))
        out[name] = near
    return out


def markdown(study: Study, part: str, vector: str = "projection") -> Iterator[str]:
    """The tables of a part, one a collection; the best and what is within noise of it in bold."""
    for name in study.collections(part):
        rows = table(study, part, name, vector)
        if not rows:
            continue
        floor = study.figures(Cell("untrained", name, "full" if part in WHOLE else "frozen", 0))
        near = near_best(rows)
        seeds = sorted({len(one) for one in rows.values()})
        told = (
            "one seed" if seeds == [1] else f"means of {'-'.join(map(str, seeds))} seeds, in brackets their deviation"
        )
        yield f"\n{title_of(part, name)}; {told}:\n"
        yield f"| setting | {' | '.join(COLUMNS)} |"
        yield f"| --- |{' --- |' * len(COLUMNS)}"
        if floor is not None:
            cells = " | ".join(f"{value:.3f}" for value in floor["scores"]["backbone"])
            yield f"| *pretrained, not trained* | {cells} |"
        for setting, values in rows.items():
            cells = []
            for column in range(len(COLUMNS)):
                spread = f" ({values[:, column].std(ddof=1):.3f})" if len(values) > 1 else ""
                text = f"{values[:, column].mean():.3f}"
                cells.append((f"**{text}**" if near[setting][column] else text) + spread)
            yield f"| {setting} | {' | '.join(cells)} |"


def vectors_table(study: Study, part: str) -> Iterator[str]:
    """What is searched: means over all losses and seeds, and in how many (loss, column) each vector is best or near."""
    for name in study.collections(part):
        tables = {vector: table(study, part, name, vector) for vector in vectors_of(part)}
        settings = list(tables["projection"])
        floor = study.figures(Cell("untrained", name, "frozen", 0))
        if not settings:
            continue
        if "backbone" not in tables:
            if floor is None:
                continue
            tables["backbone"] = {setting: np.array([floor["scores"]["backbone"]] * 2) for setting in settings}
        wins = dict.fromkeys(VECTORS, 0)
        for setting in settings:
            near = near_best({vector: tables[vector][setting] for vector in VECTORS})
            for vector in VECTORS:
                wins[vector] += sum(near[vector])
        yield f"\n{title_of(part, name)}; means over {len(settings)} losses:\n"
        yield f"| searched | {' | '.join(COLUMNS)} | best or within noise |"
        yield f"| --- |{' --- |' * (len(COLUMNS) + 1)}"
        for vector in VECTORS:
            means = np.mean([tables[vector][setting].mean(axis=0) for setting in settings], axis=0)
            cells = " | ".join(f"{value:.3f}" for value in means)
            yield f"| {vector} | {cells} | {wins[vector]} of {len(settings) * len(COLUMNS)} |"


def title_of(part: str, name: str) -> str:
    """A collection and its size in pixels."""
    title = COLLECTIONS[name].title
    return title if part not in WHOLE else f"{title.split(',')[0]}, 96 px"


def everywhere(study: Study) -> Iterator[str]:
    """Settings of MACL over all collections and columns: how often near the best, and how far below it at the worst."""
    counts: dict[str, list[int]] = {}
    worst: dict[str, tuple[float, str]] = {}
    for name in study.collections("macl"):
        rows = table(study, "macl", name, "projection")
        if not rows:
            continue
        best = np.max([values.mean(axis=0) for values in rows.values()], axis=0)
        for setting, near in near_best(rows).items():
            won, of = counts.get(setting, [0, 0])
            counts[setting] = [won + sum(near), of + len(near)]
            gap = best - rows[setting].mean(axis=0)
            place = f"{COLUMNS[int(gap.argmax())]}, {title_of('macl', name).split(',')[0]}"
            worst[setting] = max(worst.get(setting, (0.0, "")), (float(gap.max()), place))
    if not counts:
        return
    yield "\n| setting of MACL | best or within noise of it | farthest below the best |"
    yield "| --- | --- | --- |"
    for setting, (gap, place) in sorted(worst.items(), key=lambda item: item[1][0]):
        won, of = counts[setting]
        yield f"| {setting} | {won} of {of} | {gap:.3f} ({place}) |"


def bars(study: Study) -> list[tuple[bool, str]]:
    """What the defaults were chosen to reach."""
    out = []
    for name in ("ml-aid", "gid-mtl5"):
        rows = table(study, "losses", name, "projection")
        floor = study.figures(Cell("untrained", name, "frozen", 0))
        peers = [setting for setting in rows if setting.startswith("mulsupcon")]
        if DEFAULT not in rows or not peers or floor is None:
            continue
        mine = rows[DEFAULT].mean(axis=0)
        for peer in peers:
            theirs = rows[peer].mean(axis=0)
            for column in (0, 1):
                gap = mine[column] - theirs[column]
                out.append(
                    (gap >= -0.01, f"{name}: {COLUMNS[column]} against {peer}: {gap:+.3f} (claimed: -0.010 or more)")
                )
            gap = mine[4] - theirs[4]
            out.append((gap >= 0.05, f"{name}: rare label AP against {peer}: {gap:+.3f} (claimed: +0.050 or more)"))
        below = [c for c, a, b in zip(COLUMNS, mine, floor["scores"]["backbone"], strict=True) if a < b]
        out.append((not below, f"{name}: below the untrained encoder: {', '.join(below) or 'nothing'}"))
    return out


def filled(text: str, part: str, lines: list[str], script: str) -> str:
    """A page with the tables of one part between its marks; a part that was not run keeps its tables."""
    begin, end = f"<!-- {part}: {script} -->", f"<!-- end of {part} -->"
    if begin not in text or not any(line.startswith("|") for line in lines):
        return text
    before, rest = text.split(begin, 1)
    return before + begin + "\n" + "\n".join(lines) + "\n\n" + end + rest.split(end, 1)[1]


def report(study: Study) -> bool:
    """Write the tables into docs/results.md and everything into loss_study.json; whether the claims hold."""
    parts = {
        "losses": list(markdown(study, "losses")),
        "macl": list(markdown(study, "macl")),
        "everywhere": list(everywhere(study)),
        "long": list(markdown(study, "long")),
        "vectors": list(vectors_table(study, "losses")),
        "views": list(markdown(study, "views")),
        "full": list(markdown(study, "full")),
        "full-vectors": list(vectors_table(study, "full")),
    }
    text = RESULTS.read_text() if RESULTS.exists() else ""
    for part, lines in parts.items():
        text = filled(text, part, lines, "loss_study.py")
    if text:
        RESULTS.write_text(text)
    figures = {
        part: {
            name: {v: {s: rows.tolist() for s, rows in table(study, part, name, v).items()} for v in vectors_of(part)}
            for name in study.collections(part)
        }
        for part in PARTS
    }
    seconds = [
        kept["train_s"]
        for kept in (json.loads(p.read_text()) for p in (study.out / "figures").glob("[lmv]*/*/*/*.json"))
    ]
    (study.out.parent / "loss_study.json").write_text(json.dumps({"columns": COLUMNS, "figures": figures}) + "\n")
    if seconds:
        print(f"{len(seconds)} heads trained, {statistics.median(seconds):.1f} s each (median, one thread)")
    verdicts = bars(study)
    for holds, line in verdicts:
        print(f"{'ok  ' if holds else 'MISS'}  {line}")
    return all(holds for holds, _ in verdicts)


def vectors_of(part: str) -> tuple[str, ...]:
    """Which vectors the cells of a part are scored by; a frozen backbone's features are those of the floor."""
    return {"losses": ("hidden", "concat", "projection"), "full": VECTORS}.get(part, ("projection",))


def main() -> int:
    """Run the cells, then the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real files")
    parser.add_argument("--out", type=Path, default=OUT, help="where JSON and work files go")
    parser.add_argument("--parts", default="losses,macl,long,views", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--procs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--report", action="store_true", help="only the tables")
    parser.add_argument("--quick", action="store_true", help="one seed of two losses on the sample: that it runs")
    options = parser.parse_args()
    study = Study(options.data, options.out)
    if not options.report:
        parts = ["losses"] if options.quick else options.parts.split(",")
        for part in parts:
            for name in study.collections(part) if not options.quick else ["sample"]:
                study.dataset(name)
                study.untrained(part, name)
        cells = [
            Cell(part, name, setting, seed)
            for seed in range(1 if options.quick else options.seeds)
            for part in parts
            for name in (["sample"] if options.quick else study.collections(part))
            for setting in (list(PARTS[part])[:2] if options.quick else PARTS[part])
            if seed < FEWER_SEEDS.get((part, setting), options.seeds)
        ]
        cells.sort(key=lambda cell: (cell.part, cell.name) in FEWER_SEEDS)  # they come last
        missing = [name for name, c in COLLECTIONS.items() if c.source and not (options.data / c.source).is_dir()]
        for name in missing:
            print(f"{name}: LEFT OUT, {options.data / str(COLLECTIONS[name].source)} is not there (see --data)")
        if options.procs > 1 and options.worker is None:
            command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
            workers = [subprocess.Popen([*command, "--worker", str(at)]) for at in range(options.procs)]
            if any([worker.wait() for worker in workers]):
                return 1
        else:
            for cell in cells[(options.worker or 0) :: options.procs]:
                study.run(cell)
        if options.worker is not None:
            return 0
    holds = report(study)
    return 0 if holds or options.quick else 1


if __name__ == "__main__":
    raise SystemExit(main())
