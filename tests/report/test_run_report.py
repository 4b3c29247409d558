"""The report: everything escaped, nothing from outside, the right pictures; the charts it is made of."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marc_dist.config import DataError, load_config
from marc_dist.data.dataset import Dataset
from marc_dist.data.loader import TrainLoader
from marc_dist.data.reader import IndexedReader
from marc_dist.encoder.published import resolve_scale
from marc_dist.report import example_queries, label_maps, picture_sheets, run_report
from marc_dist.report.run_report import read_curves, recall_charts, write_report
from marc_dist.report.score_rows import signed
from marc_dist.report.training_views import training_views
from marc_dist.retrieval.evaluate import evaluate
from marc_dist.run import evaluations
from tests.retrieval.runs import HOSTILE, OTHERS, make_run, pack_tiny


class Page(HTMLParser):
    """Tags with attributes, and the text between them; complains about tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def page(evaluated: Path) -> Page:
    parsed = Page()
    parsed.feed((evaluated / "report.html").read_text())
    assert not parsed.open
    return parsed


def test_hostile_names_stay_text(page: Page) -> None:
    tags = {tag for tag, _ in page.tags}
    assert not {"script", "b1", "iframe"} & tags
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    text = " ".join(page.text)
    assert HOSTILE in text and "red & blue" in text and "dark'\"" in text and "tiny<run>" in text
    alts = " ".join(attributes.get("alt", "") for _, attributes in page.tags)
    assert "<b>" in alts  # keys of samples


def test_nothing_comes_from_outside(page: Page, evaluated: Path) -> None:
    text = re.sub(r'base64,[^"]*', "", (evaluated / "report.html").read_text())
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    named = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    places = {f"#{name}" for name in named}
    assert len(places) == len(named)  # no chart points into another one
    for tag, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "srcset", "action"):
            place = attributes.get(key, "data:")
            assert place.startswith("data:") or (tag == "use" and place in places)
    assert set(re.findall(r"url\((#[^)]*)\)", text)) <= places
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_pictures_are_the_real_ones_and_described(page: Page, evaluated: Path, tiny: Dataset) -> None:
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    _, rows = evaluations.read(evaluated / "eval" / "test_vs_train")
    assert len(images) == 6 * (1 + 6 + 6) + 3 * (1 + 6)
    reader = IndexedReader(tiny)
    answers = {row["id"]: row["top"] for row in rows if row["encoder"] == "trained"}
    query = next(q for q in answers if images[0]["alt"].startswith(f"query {tiny.keys[q]}:"))
    for image, sample in zip(images[:7], [query, *answers[query][:6]], strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
        assert picture.tobytes() == reader.image(sample).tobytes() and str(tiny.keys[sample]) in image["alt"]


def test_views_are_those_that_training_draws(page: Page, evaluated: Path, tiny: Dataset) -> None:
    config = load_config(evaluated / "config.yaml")
    first = training_views(config, tiny, IndexedReader(tiny), 3)
    assert [sample for sample, _ in first] == [0, 18, 38] and set(tiny.split[[0, 18, 38]]) == {"train"}
    loader = TrainLoader(tiny, config, 0, 1, resolve_scale(config))
    drawn = {}
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            views = batch.images.reshape(2, len(batch.ids), 3, 32, 32)
            drawn |= {(epoch, view, int(i)): views[view, at] for view in (0, 1) for at, i in enumerate(batch.ids)}
    loader.close()
    scale, shift = np.array(resolve_scale(config).std), np.array(resolve_scale(config).mean)
    for sample, views in first:
        for picture, (epoch, view) in zip(views, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=False):
            pixels = drawn[epoch, view, sample].numpy().transpose(1, 2, 0) * scale + shift
            assert np.abs(np.asarray(picture) / 255 - pixels.clip(0, 1)).max() < 0.51 / 255
    assert sum(a.get("alt", "").startswith("view ") for tag, a in page.tags if tag == "img") == 18
    text = " ".join(page.text)
    assert (
        "Images of train" in text
        and "training began (random, seed 0); it is searched by the backbone's features" in text
    )


def test_figures_of_both_encoders_are_shown(page: Page, evaluated: Path) -> None:
    summary, _ = evaluations.read(evaluated / "eval" / "test_vs_train")
    text = " ".join(page.text)
    for scores in summary["scores"].values():
        for value in scores.values():
            assert f"{value:.4f}" in text
    for name, pair in summary["intervals"]["scores"]["difference"].items():
        gain = summary["scores"]["trained"][name] - summary["scores"]["untrained"][name]
        assert signed(gain) in text and f"{signed(pair[0], 3)} to {signed(pair[1], 3)}" in text
    for pair in summary["intervals"]["thirds"]["untrained"].values():
        assert f"{pair[0]:.3f}\u2013{pair[1]:.3f}" in text
    for chart in ("loss", "learning rate", "gradient norm", "images per second"):
        assert chart in text
    for key in ("loss.tau", "train.seed", "eval.protocol"):
        assert key in page.text


def test_labels_go_from_common_to_rare(page: Page, tiny: Dataset) -> None:
    counts = [int(n) for n in re.findall(r"([\d]+) in archive", " ".join(page.text))]
    assert counts == sorted(tiny.label_counts("train").tolist(), reverse=True)


def test_panel_picture(evaluated: Path) -> None:
    with Image.open(evaluated / "eval" / "test_vs_train" / "panel.png") as picture:
        assert picture.format == "PNG" and picture.width > 900 and picture.height > 6 * picture_sheets.TILE


def test_panels_are_different_queries_of_each_kind(evaluated: Path, tiny: Dataset) -> None:
    summary, rows = evaluations.read(evaluated / "eval" / "test_vs_train")
    name = example_queries.score_name(summary)
    panels = example_queries.choose_examples(tiny.labels, summary, rows, 4)
    assert [one.kind for one in panels] == list(example_queries.KINDS) and len({one.query for one in panels}) == 4
    score = {row["id"]: row[name] for row in rows if row["encoder"] == "trained" and row["num_relevant"]}
    by_kind = {one.kind: one for one in panels}
    many = [q for q in score if tiny.labels[q].sum() > 1]
    assert by_kind["best"].score == max(score[q] for q in many)
    assert by_kind["worst"].score <= by_kind["median"].score <= max(score.values())
    counts = tiny.label_counts("train")
    rarest = {q: min(counts[label] for label in range(len(counts)) if tiny.labels[q, label]) for q in score}
    assert rarest[by_kind["rare label"].query] == min(rarest.values())
    assert example_queries.choose_examples(tiny.labels, summary, rows, 0) == []
    assert len(example_queries.choose_examples(tiny.labels, summary, rows, 50)) == len(
        score
    )  # never twice, never a query without answers


def test_shared_labels_come_first(tiny: Dataset) -> None:
    side = example_queries.Gallery(tiny, IndexedReader(tiny), tiny.labels)
    galleries = example_queries.Galleries(side, side, tiny.classes)
    for query in range(10):
        for answer in range(10, 20):
            pairs = galleries.shared_labels(query, answer)
            assert sum(same for _, same in pairs) == int((tiny.labels[query] & tiny.labels[answer]).sum())
            assert [same for _, same in pairs] == sorted((same for _, same in pairs), reverse=True)
            assert len(pairs) == tiny.labels[answer].sum()


def test_report_without_training_log(tiny: Dataset, evaluated: Path, tmp_path: Path) -> None:
    import shutil

    config = make_run(tmp_path / "run", tiny, eval__panels=0)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    shutil.copytree(evaluated / "eval" / "test_vs_train", tmp_path / "run" / "eval" / "test_vs_train")
    (tmp_path / "run" / "eval" / "test_vs_train" / "panel.png").unlink()
    text = write_report(config, tmp_path / "run").read_text()
    assert "<h2>Training</h2>" not in text and "<h2>Answers</h2>" not in text and "<h2>Scores</h2>" in text
    assert not (tmp_path / "run" / "eval" / "test_vs_train" / "panel.png").exists()


def test_nothing_is_made_up_about_an_encoder_alone(tiny: Dataset, tmp_path: Path) -> None:
    """Without config.yaml the settings are defaults, not those of the run."""
    config = make_run(tmp_path / "run", tiny, loss__tau=0.31)
    evaluate(config, tmp_path / "run", lambda line: None)
    text = write_report(config, tmp_path / "run").read_text()
    assert "tau 0.31" in text and "<h2>Settings</h2>" in text and "<h2>Augmentation</h2>" in text
    (tmp_path / "run" / "config.yaml").unlink()
    text = write_report(config, tmp_path / "run").read_text()
    assert "tau" not in re.sub(r'base64,[^"]*', "", text) and "epochs" not in text and "test_resnet, 32 px" in text
    assert "<h2>Settings</h2>" not in text and "<h2>Augmentation</h2>" not in text and "<h2>Answers</h2>" in text


def test_views_are_shown_of_the_training_data_only(tiny: Dataset, tmp_path: Path) -> None:
    other = pack_tiny(tmp_path / "other", seed=1)
    make_run(tmp_path / "run", tiny)
    config = load_config(tmp_path / "run" / "config.yaml", [f"data.dir={other.root}"])
    evaluate(config, tmp_path / "run", lambda line: None)
    assert "<h2>Augmentation</h2>" not in write_report(config, tmp_path / "run").read_text()


def test_other_data_are_refused(evaluated: Path, tmp_path: Path) -> None:
    pack_tiny(tmp_path / "other", seed=1)
    config = load_config(evaluated / "config.yaml", [f"data.dir={tmp_path / 'other'}"])
    with pytest.raises(DataError, match="not the data"):
        write_report(config, evaluated)


def test_torn_line_of_the_log_is_passed_over(evaluated: Path) -> None:
    assert [record["step"] for record in read_curves(evaluated)] == list(range(1, 9))


def test_report_is_the_same_each_time(evaluated: Path) -> None:
    before = (evaluated / "report.html").read_bytes()
    write_report(load_config(evaluated / "config.yaml"), evaluated)
    assert (evaluated / "report.html").read_bytes() == before


def test_precision_and_recall_of_queries_and_thirds(page: Page, evaluated: Path) -> None:
    summary, _ = evaluations.read(evaluated / "eval" / "test_vs_train")
    told = [
        a["aria-label"] for tag, a in page.tags if tag == "svg" and a.get("aria-label", "").startswith("precision,")
    ]
    assert [one.split(":")[0] for one in told] == [
        "precision, all queries",
        *(
            f"precision, {third} labels"
            for third in ("rare", "medium", "common")
            if summary["thirds"]["trained"][third]["mAP"]
        ),
    ]
    curve = summary["curves"]["untrained"]["queries"]
    assert f"untrained {curve[10]:.2f} at recall 0.1, {curve[50]:.2f} at 0.5" in told[0]
    drawn = [a["id"] for tag, a in page.tags if tag == "g" and "-curve-" in a.get("id", "")]
    assert drawn == [f"recall-{name}-curve-{who}" for name in ("all", "rare", "medium", "common")
                     for who in ("untrained", "trained")]  # fmt: skip


def test_maps_of_labels(page: Page, evaluated: Path, tiny: Dataset) -> None:
    """Every map holds all images in grey and one label's carriers in colour, as compact paths."""
    told = [a["aria-label"] for tag, a in page.tags if tag == "svg" and a.get("aria-label", "").startswith("map of")]
    counts = [(int(n), name) for n, name in zip(tiny.labels.sum(axis=0), tiny.classes, strict=True) if n]
    counts.sort(key=lambda pair: pair[0])
    assert told == [
        f"map of the {who} encoder, {num} images with {name} in colour"
        for num, name in counts
        for who in ("trained", "untrained")
    ]
    paths = {a["class"]: [b["d"] for t, b in page.tags if b.get("class") == a["class"] and t == "path"]
             for tag, a in page.tags if tag == "path" and a.get("class") in ("all", "some")}  # fmt: skip
    assert [path.count("M") for path in paths["all"]] == [40, 40]
    assert [path.count("M") for path in paths["some"]] == [num for num, _ in counts for _ in range(2)]
    every = paths["all"][0].split("M")[1:]
    assert set(paths["some"][0].split("M")[1:]) <= set(every)
    places = np.array([[int(n) for n in one.removesuffix("h0").split()] for one in every])
    assert places.min() >= label_maps.MAP_MARGIN - 1 and (places <= np.array(label_maps.MAP_SIZE) - 23).all()
    assert "All 40 images of queries and archive" in " ".join(page.text)


def test_labels_worth_a_map() -> None:
    carried = np.zeros((400, 9), dtype=bool)
    for label, num in enumerate((3, 4, 200, 0, 90, 50, 40, 300, 10)):
        carried[:num, label] = True
    assert label_maps.shown_labels(carried) == [1, 8, 6, 5, 4, 2]  # 3 of 400 are too few, 300 too many
    carried[:201, 2] = True
    assert label_maps.shown_labels(carried) == [1, 8, 6, 5, 4, 2]  # one of most images, where others are too few
    assert label_maps.shown_labels(carried[:, [7, 2, 4, 5, 0]]) == [3, 2, 1, 0]
    assert label_maps.shown_labels(carried[:, 3:4]) == [] and label_maps.shown_labels(carried, 5) == [
        1,
        8,
        6,
        5,
        4,
    ]


def test_two_sets_are_told_apart(tiny: Dataset, tmp_path: Path) -> None:
    """Pictures, keys, labels and maps come from the side they belong to; other data on either side are refused."""
    other = pack_tiny(tmp_path / "other", 24, 3, OTHERS, "other <b>")
    words = {"eval__protocol": "transfer", "eval__archive_dir": str(other.root), "eval__panels": 2, "eval__extra": True}
    config = make_run(tmp_path / "run", tiny, **words)
    summary = evaluate(config, tmp_path / "run", lambda line: None)
    parsed = Page()
    parsed.feed(write_report(config, tmp_path / "run").read_text())
    text = " ".join(parsed.text)
    assert (
        f"queries: tiny {HOSTILE}" in text
        and "archive: other <b>" in text
        and summary["classes"] == ["red & blue", "green"]
    )
    assert (summary["queries"]["title"], summary["archive"]["title"]) == (tiny.title, other.title)
    _, rows = evaluations.read(tmp_path / "run" / "eval" / "transfer")
    answers = {row["key"]: row["top"] for row in rows if row["encoder"] == "trained"}
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    key = re.match(r"query (.*): ", images[0]["alt"])[1]
    reader = IndexedReader(other)
    for image, sample in zip(images[1:7], answers[key][:6], strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
        assert picture.tobytes() == reader.image(sample).tobytes()
        named = image["alt"].rsplit(": ", 1)[1]
        known = [name for name, at in (("red & blue", 2), ("green", 0)) if other.labels[sample, at]]
        assert sorted(named.split(", ")) == sorted(known or ["no labels"])
    assert f"all images of tiny {HOSTILE}" in text
    assert "all further metrics" in text and "lower is better" in text and "ANMRR_mpeg7" in text
    folded = [a for tag, a in parsed.tags if tag == "details"]
    assert folded and all("open" not in a for a in folded)
    for word in ("eval.archive_dir", "data.dir"):
        changed = load_config(tmp_path / "run" / "config.yaml", [f"{word}={pack_tiny(tmp_path / word, seed=9).root}"])
        with pytest.raises(DataError, match="not the data"):
            write_report(changed, tmp_path / "run")


def test_cut_rankings_and_indexes_that_are_not_exact(evaluated: Path, tmp_path: Path) -> None:
    summary, _ = evaluations.read(evaluated / "eval" / "test_vs_train")
    cut = {**summary, "curves": {"trained": None, "untrained": None}, "index": "IVF8,<PQ4>", "index_recall": None}
    assert recall_charts(cut) == [] and len(recall_charts(summary)) == 4
    assert run_report._index(summary) == "" and run_report._index(cut) == " Index: IVF8,<PQ4>."
    told = run_report._index({**cut, "index_recall": {"trained": 0.98765}})
    assert told.endswith("share of the exact first answers that it finds: 0.988 (trained).")
