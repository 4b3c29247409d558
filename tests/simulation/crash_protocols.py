"""The protocols whose crashes are enumerated: what is done, step by step; how it is read; what the next run does."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marc_dist.config import Config, DataError, LaunchError, build
from marc_dist.data.cache import open_cache
from marc_dist.data.dataset import open_dataset
from marc_dist.data.reader import IndexedReader
from marc_dist.encoder.export import load_encoder, pixel_scale, save_encoder
from marc_dist.encoder.model import Encoder, build_encoder
from marc_dist.files import write_atomic
from marc_dist.packing.adding.append import append
from marc_dist.packing.pack import pack
from marc_dist.packing.reading.recipes import load_recipe
from marc_dist.packing.reading.samples import Source, hold_samples
from marc_dist.packing.reading.source import read_source
from marc_dist.packing.verify import verify
from marc_dist.retrieval import evaluate, results, search
from marc_dist.retrieval.exact import exact_unit
from marc_dist.retrieval.index.kept import kept_part
from marc_dist.retrieval.index.spec import parse_spec
from marc_dist.retrieval.index_folder import check_index_dir
from marc_dist.retrieval.vectors import store as st
from marc_dist.retrieval.vectors.features import BackboneFeatures
from marc_dist.retrieval.vectors.writer import write_split
from marc_dist.run import attempts as at
from marc_dist.run import evaluations
from marc_dist.run.folder import METRICS, VALIDATION, read_lines
from marc_dist.run.job import Job, read_job, write_job
from marc_dist.training import trainer
from marc_dist.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from marc_dist.tuning import driver
from marc_dist.tuning.journal import Journal, write_plan
from marc_dist.tuning.local_executor import call_trials
from tests import downloads
from tests.retrieval.runs import make_run, pack_tiny
from tests.tuning import searches

Step = Callable[[Path], None]
LOST = "lost"
"""What a cache shows when it has nothing: it is made again."""


class ThirdState(AssertionError):
    """Neither the old state nor the new one."""


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Attributes:
        name: of it.
        steps: what is done; the caller knows a step to be done when it returns.
        observe: reads the folder with the real code: a value for each state; an error means a third state.
        again: the next run, after which the folder must show what it shows after the last step.
        before: what is there before, all durable.
        cache: it may be lost, but never wrong.
        between: a value that is neither old nor new, but documented.
    """

    name: str
    steps: tuple[Step, ...]
    observe: Callable[[Path], Hashable]
    again: Step
    before: Step = lambda root: None
    cache: bool = False
    between: Hashable | None = None


def _silent(line: str) -> None:
    """Nobody reads it here."""


@contextmanager
def quiet() -> Iterator[None]:
    """What is printed goes nowhere."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def checkpoints() -> Protocol:
    """Save four, keep two."""

    def payload(step: int) -> dict[str, Any]:
        return {"model": {"w": torch.full((700,), float(step))}, "epoch": 0}  # more than a page

    def save(step: int) -> Step:
        return lambda root: void(save_checkpoint(root / "run", step, payload(step), keep=2))

    def observe(root: Path) -> int:
        path = newest_checkpoint(root / "run", _silent)
        if path is None:
            return 0
        found = load_checkpoint(path)
        if not torch.equal(found["model"]["w"], payload(found["step"])["model"]["w"]):
            raise ThirdState(f"{path.name} holds other weights")
        return int(found["step"])

    def again(root: Path) -> None:
        for step in range(observe(root) + 1, 5):
            save(step)(root)

    return Protocol("checkpoint", tuple(save(step) for step in (1, 2, 3, 4)), observe, again)


def void(_: object) -> None:
    """Nothing, whatever it is given."""


@cache
def _encoder(seed: int) -> Encoder:
    return build_encoder(_settings(Path("any")).model, seed, 32)


def _settings(run: Path, **words: Any) -> Config:
    values = {
        "data.image_size": 32, "data.num_workers": 0, "data.cache": "none", "data.mean": (0.5,) * 3,
        "data.std": (0.5,) * 3,
        "model.backbone": "test_resnet", "model.pretrained": False, "model.head_hidden": 8, "model.head_dim": 6,
        "train.run_dir": str(run), "train.device": "cpu", "eval.batch": 16,
    }  # fmt: skip
    return build(Config, {**values, **words})


def export() -> Protocol:
    """The encoder of a run, then that of more epochs."""

    def save(seed: int) -> Step:
        return lambda root: void(save_encoder(_encoder(seed), _settings(root / "run"), {"step": seed}))

    def observe(root: Path) -> Hashable:
        try:
            encoder, info = load_encoder(root / "run")
        except DataError as error:
            if "a finished marc-train run writes it" in str(error):
                return None
            raise
        for seed in (1, 2):
            if st.encoder_fingerprint(encoder) == _fingerprint(seed) and info["step"] == seed:
                return seed
        raise ThirdState("weights and description of different encoders")

    return Protocol("export", (save(1), save(2)), observe, save(2))


@cache
def _fingerprint(seed: int) -> str:
    return st.encoder_fingerprint(_encoder(seed))


def shards(lab: Path, *, resume: bool = False) -> Protocol:
    """A download is packed; another one takes its place."""

    def source(version: int) -> Source:
        found = load_recipe("folder")
        return read_source(found, [_download(lab, version)])

    def write(version: int) -> Step:
        def step(root: Path) -> None:
            pack(source(version), root / "data" / "out", samples_per_shard=3, force=True, resume=resume)

        return step

    def observe(root: Path) -> Hashable:
        out = root / "data" / "out"
        if not out.exists():
            old = out.with_name(".out.old")
            return None if not old.is_dir() else f"beside: {sound(old)}"
        return sound(out)

    def sound(out: Path) -> str:
        faults = [fault for report in verify(out) for fault in report.faults]
        if faults:
            raise ThirdState(faults[0])
        return open_dataset(out).fingerprint

    return Protocol(
        "shards, resumed" if resume else "shards", (write(1), write(2)), observe, write(2), between="beside"
    )


def added(lab: Path) -> Protocol:
    """Two pictures come, one goes, one has another label: shards are kept, dropped, new, and written anew."""

    def source(*without: str) -> Source:
        found = read_source(load_recipe("folder"), [_download(lab, 1)])
        found.samples = hold_samples(one for one in found.samples if Path(one.origin).stem not in without)
        return found

    def first(root: Path) -> None:
        pack(source("p6", "p7"), root / "data" / "out", samples_per_shard=2)

    def add(root: Path) -> None:
        found = source("p5")
        found.samples = hold_samples(
            replace(sample, labels=(0,)) if Path(sample.origin).stem == "p4" else sample for sample in found.samples
        )
        append(found, root / "data" / "out", samples_per_shard=2, remove_missing=True)

    return Protocol("shards, added", (add,), shards(lab).observe, add, first, between="beside")


def _download(lab: Path, version: int) -> Path:
    root = lab / f"download-{version}"
    if not root.exists():
        rows = []
        for number in range(8):
            picture = downloads.picture(number + version, (16, 12))
            downloads.save(picture, root / ("sand", "sea")[number % 2] / f"p{number}.png")
            rows.append(f"p{number},{'sand|sea' if number % 3 else 'sea'},{'train' if number % 4 else 'test'}\n")
        (root / "labels.csv").write_text("image,labels,split\n" + "".join(rows))
    return root


def training(lab: Path) -> Protocol:
    """A whole small run: log, scores, checkpoints, encoder. Its lines reach as far as its newest checkpoint."""
    tiny = _tiny(lab)
    last = 6

    def config(root: Path) -> Config:
        words = {"data.dir": str(tiny), "data.validation_share": 0.4, "train.epochs": 3, "train.global_batch": 9}
        more = {"train.log_every": 1, "train.checkpoint_every": 1, "train.keep_checkpoints": 2, "optim.name": "sgd"}
        return _settings(root / "run", **words, **more)

    def run(root: Path) -> None:
        with quiet(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("torch.utils.tensorboard.writer.SummaryWriter", _NoWriter)
            assert trainer.train(config(root)).step == last

    def observe(root: Path) -> Hashable:
        path = newest_checkpoint(root / "run", _silent)
        step = 0 if path is None else int(load_checkpoint(path)["step"])
        steps = [line["step"] for line in read_lines(root / "run" / METRICS) if line["step"] <= step]
        if steps != list(range(1, step + 1)):
            raise ThirdState(f"{METRICS} has steps {steps}, the checkpoint is of step {step}")
        scored = [line["step"] for line in read_lines(root / "run" / VALIDATION) if line["step"] <= step]
        due = [one for one in (2, 4, 6) if one <= step]
        if scored != due and [*scored, step] != due:  # a step is saved first, and scored by the next start if need be
            raise ThirdState(f"{VALIDATION} has steps {scored}, the checkpoint is of step {step}")
        try:
            encoder, _ = load_encoder(root / "run")
        except DataError:
            return "begun"
        return f"done {st.encoder_fingerprint(encoder)}"

    return Protocol("training", (run,), observe, run, before=lambda root: (root / "run").mkdir())


class _NoWriter:
    """TensorBoard's files are not promised; their thread would blur the record."""

    def __init__(self, *_: Any, **__: Any) -> None:
        return

    def add_scalar(self, *_: Any, **__: Any) -> None:
        return

    def close(self) -> None:
        return


@cache
def _tiny(lab: Path) -> Path:
    return pack_tiny(lab / "tiny").root


def journal() -> Protocol:
    """The lines of a search."""
    lines = [{"event": "row", "number": n, "text": "x" * 1500} for n in range(5)]  # some lie on two pages

    def add(number: int) -> Step:
        def step(root: Path) -> None:
            if number == 0:
                write_plan(root / "search", searches.plan())
            Journal(root / "search").append(lines[number])

        return step

    def observe(root: Path) -> int:
        found = Journal(root / "search").events
        if found != lines[: len(found)]:
            raise ThirdState("other lines")
        return len(found)

    def again(root: Path) -> None:
        for number in range(observe(root), len(lines)):
            add(number)(root)

    return Protocol("search journal", tuple(add(n) for n in range(5)), observe, again)


def search_folder() -> Protocol:
    """A whole search with a function in place of the training: lines, table of trials, best setting."""

    def run(root: Path) -> None:
        folder = root / "search"
        driver.begin(folder, searches.plan(trials=4, config={"train.epochs": 3}, grace=1), resume=True)
        found = driver.open_search(folder, Journal(folder))
        keeper = driver.Recorder(found, folder, lambda: None)

        def told(settings: Any, seed: int) -> Iterator[dict[str, float]]:
            for row in searches.trained(settings, seed):
                keeper.show()
                yield row

        call_trials(found, told, concurrent=2)
        keeper.write()

    def observe(root: Path) -> Hashable:
        import pyarrow.parquet as pq

        folder = root / "search"
        if not (folder / "search.json").exists():
            return "begun"
        found = driver.open_search(folder, Journal(folder))
        for name in ("trials.parquet", "best.yaml"):
            if (folder / name).exists():
                assert pq.read_table(folder / name) if name.endswith("parquet") else (folder / name).read_text()
        return repr(searches.story(found)) if found.over and (folder / "best.yaml").exists() else "begun"

    return Protocol("search folder", (run,), observe, run, before=lambda root: (root / "search").mkdir())


def vectors(lab: Path) -> Protocol:
    """Kept vectors of two splits, then of another encoder."""
    dataset = open_dataset(_tiny(lab))

    def rows(seed: int) -> np.ndarray:
        return exact_unit(np.random.default_rng(seed).standard_normal((40, 40)))

    def made(seed: int) -> dict[str, Any]:
        return {"encoder": f"e{seed}", "dataset": dataset.fingerprint}

    def write(seed: int, split: str) -> Step:
        x = rows(seed)[dataset.rows(split)]

        def step(root: Path) -> None:
            check_index_dir(root / "kept")
            if st.missing_splits(root / "kept", made(seed), [split]):
                write_split(root / "kept", split, x.shape, made(seed), {}, lambda put: put(0, x), lambda: None)

        return step

    def observe(root: Path) -> Hashable:
        found = []
        for seed, split in order:
            if not st.missing_splits(root / "kept", made(seed), [split]):
                ids = dataset.rows(split)
                kept = np.asarray(st.Store(root / "kept", dataset, [split], made(seed)).rows(ids))
                if not np.array_equal(kept, rows(seed)[ids]):
                    raise ThirdState(f"other vectors of {split}")
                found.append((seed, split))
        return tuple(found)

    order = [(1, "train"), (1, "test"), (2, "train"), (2, "test")]

    def again(root: Path) -> None:
        for split in ("train", "test"):
            write(2, split)(root)

    return Protocol("kept vectors", tuple(write(*one) for one in order), observe, again)


def index(lab: Path) -> Protocol:
    """A learnt index beside the vectors."""
    dataset = open_dataset(_tiny(lab))
    ids = np.arange(40)
    x = exact_unit(np.random.default_rng(3).standard_normal((40, 16)))

    def before(root: Path) -> None:
        for split in ("train", "test"):
            part = x[dataset.rows(split)]
            write_split(root / "kept", split, part.shape, {"e": 1}, {}, lambda put: put(0, part), lambda: None)  # noqa: B023

    def answers(root: Path, word: str) -> tuple[bool, Hashable]:
        said: list[str] = []
        store = st.Store(root / "kept", dataset, ["test", "train"], {"e": 1})
        part = kept_part(parse_spec(word), store, ids, said.append, must=True)
        return any("from" in line for line in said), search.top_k(part, x[:9], ids[:9], 7)[1].tobytes()

    right: dict[str, Hashable] = {}

    def learn(word: str) -> Step:
        def step(root: Path) -> None:
            right.setdefault(word, answers(root, word)[1])

        return step

    words = ("IVF2,Flat", "SQ8")

    def observe(root: Path) -> Hashable:
        found = []
        for word in words:
            if word in right:
                kept, answer = answers(root, word)
                if answer != right[word]:
                    raise ThirdState(f"{word}: other answers")
                found += [word] * kept
        return tuple(found)

    def again(root: Path) -> None:
        for word in words:
            answers(root, word)

    return Protocol("kept index", tuple(map(learn, words)), observe, again, before)


def evaluation(lab: Path) -> Protocol:
    """The files of an evaluation, and those of the next."""
    first, second = _evaluations(lab)

    def write(number: int) -> Step:
        return lambda root: results.write(root / "run" / "eval" / "test_vs_train", *(first, second)[number])

    def pages(root: Path) -> Iterator[Path]:
        yield root / "run" / "eval" / "test_vs_train" / evaluations.REPORT
        yield root / "run" / evaluations.REPORT

    def show(root: Path) -> None:
        summary = evaluations.read_summary(root / "run" / "eval" / "test_vs_train")
        for page in pages(root):
            write_atomic(page, str(summary["gain"]).encode())

    def observe(root: Path) -> Hashable:
        folder = root / "run" / "eval" / "test_vs_train"
        try:
            summary, rows = evaluations.read(folder)
        except DataError as error:
            if "no evaluation" in str(error):
                return None
            raise
        shown = evaluations.read_map(folder, summary)
        for page in pages(root):
            if page.exists() and page.read_text() != summary["gain"]:
                raise ThirdState(f"{page.name} shows another evaluation")
        return hashlib.sha256(repr((summary, rows, shown)).encode()).hexdigest()

    steps = (write(0), show, write(1), show)
    return Protocol("evaluation", steps, observe, write(1), before=lambda root: (root / "run").mkdir())


@cache
def _evaluations(lab: Path) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    found = []
    config = make_run(lab / "evaluated", open_dataset(_tiny(lab)), eval__baseline=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write", lambda folder, *rest: found.append(rest))
        for words in ({}, {"eval__gain": "jaccard"}):
            config = make_run(lab / "evaluated", open_dataset(_tiny(lab)), eval__baseline=False, **words)
            evaluate.evaluate(config, lab / "evaluated", _silent)
    return found[0], found[1]


def job() -> Protocol:
    """The record of a job: submitted, begun, ended, begun again."""
    one = Job(kind="local", id="a:1:2", arguments=["-m", "x"], submitted_at=5.0, host="h", user="u")

    def tell(root: Path, number: int) -> None:
        run = root / "run"
        steps: list[Callable[[], None]] = [
            lambda: write_job(run, one),
            lambda: at.begin_attempt(run, one.attempt(0), ["h"]),
            lambda: at.end_attempt(run, one.attempt(0), 1, "x" * 5000, True, "to go on"),
            lambda: write_job(run, one.model_copy(update={"id": "a:1:3"})),
            lambda: at.begin_attempt(run, one.attempt(1), ["h"]),
            lambda: at.end_attempt(run, one.attempt(1), 0, None, False, "done"),
        ]
        steps[number]()

    def observe(root: Path) -> Hashable:
        try:
            found = read_job(root / "run").id
        except LaunchError as error:
            if "no job.json" not in str(error):
                raise
            found = None
        seen = [
            (one.number, one.code, None if one.error is None else len(one.error)) for one in at.attempts(root / "run")
        ]
        return found, tuple(seen)

    def again(root: Path) -> None:
        shown = observe(root)
        for number in range(values.index(shown), 6):
            tell(root, number)

    attempts = [(), ((0, None, None),), ((0, 1, 5000),), ((0, 1, 5000), (1, None, None)), ((0, 1, 5000), (1, 0, None))]
    names = [None, *["a:1:2"] * 3, *["a:1:3"] * 3]
    values = list(zip(names, [attempts[n] for n in (0, 0, 1, 2, 2, 3, 4)], strict=True))
    return Protocol("job record", tuple(lambda root, n=n: tell(root, n) for n in range(6)), observe, again)  # type: ignore[misc]


def decoded(lab: Path) -> Protocol:
    """Decoded pictures of a split."""
    dataset = open_dataset(_tiny(lab))
    reader = IndexedReader(dataset)
    truth = {sample: np.asarray(reader.image(sample)) for sample in dataset.rows("train").tolist()}

    def make(root: Path) -> None:
        open_cache(dataset, "train", root / "cache", reader=IndexedReader(dataset))

    def observe(root: Path) -> Hashable:
        folder = root / "cache" / f"{dataset.fingerprint[:24]}-train"
        kept = folder.is_dir()
        cache = open_cache(dataset, "train", root / "cache", reader=IndexedReader(dataset))
        for sample, picture in truth.items():
            if not np.array_equal(cache.picture(sample), picture):
                raise ThirdState(f"another picture of sample {sample}")
        return "kept" if kept else LOST

    return Protocol("decoded pictures", (make,), observe, make, cache=True)


def features(lab: Path) -> Protocol:
    """Kept features of a frozen backbone: as they are, and of a view."""
    dataset = open_dataset(_tiny(lab))
    truth: dict[str, np.ndarray] = {}

    def stores(root: Path, steps: int = 2) -> Iterator[tuple[str, st.Store]]:
        config = _settings(root / "run", **{"data.features_dir": str(root / "features"), "model.freeze": "backbone"})
        scale = pixel_scale({"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"})
        kept = BackboneFeatures(_encoder(1).eval(), config, dataset, image_size=32, scale=scale, say=_silent)
        clean = kept.clean("test")
        assert clean is not None
        yield "test", clean
        if steps == 2:
            (view,) = kept.views("test", 1)
            yield "view", view

    def compute(steps: int) -> Step:
        def step(root: Path) -> None:
            for name, store in stores(root, steps):
                rows = np.array(np.asarray(store.rows(dataset.rows("test"))))
                if not np.array_equal(truth.setdefault(name, rows), rows):
                    raise ThirdState(f"other features: {name}")

        return step

    def observe(root: Path) -> Hashable:
        compute(2)(root)
        return "kept"

    return Protocol("kept features", (compute(1), compute(2)), observe, compute(2), cache=True)


def all_protocols(lab: Path) -> list[Protocol]:
    """All of them; ``lab`` is a folder for what they need."""
    return [
        checkpoints(), export(), shards(lab), shards(lab, resume=True), training(lab), journal(), search_folder(),
        vectors(lab), index(lab), evaluation(lab), job(), decoded(lab), features(lab), added(lab),
    ]  # fmt: skip
