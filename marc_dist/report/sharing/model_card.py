"""The model card of an exported encoder: ``README.md`` with the YAML that the Hugging Face Hub reads. Pure text."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from marc_dist import __version__
from marc_dist.encoder.hub_folder import bands_of
from marc_dist.encoder.onnx_file import BOUND, PIXELS, VECTORS
from marc_dist.metrics.metric_help import SEARCHED

TAGS = ("timm", "marc-dist", "remote-sensing", "image-retrieval", "multi-label", "contrastive-learning")
TASK = "image-feature-extraction"
FEW = 30
"""Training pictures below which the card warns of a label."""


@dataclass(frozen=True)
class Score:
    """One figure of the card.

    Attributes:
        evaluation: its name.
        about: how it was measured, a sentence.
        data: title of what was searched.
        split: of the queries.
        metric: its name.
        value: the mean.
        low: lower end of its interval; None without one.
        high: upper end.
        over: what the interval is over: queries, seeds and queries, ...
        own: whether it is of this encoder alone; the hub's table shows these.
    """

    evaluation: str
    about: str
    data: str
    split: str
    metric: str
    value: float
    low: float | None
    high: float | None
    over: str = "queries"
    own: bool = True


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        name: of the folder.
        info: of ``encoder.json``.
        architecture: timm's name.
        base: repository of the backbone's first weights on the Hugging Face Hub; empty for none.
        base_licence: of these weights, as timm knows it.
        features: which vectors are searched.
        dim: numbers of a vector.
        settings: of the training, those that are not defaults, by dotted key.
        data: of the training data's ``dataset.json``; empty when it is not at hand.
        counts: label -> training pictures that carry it; empty when unknown.
        scores: of this encoder, or of its loss.
        level: of the intervals.
        licence: identifier for the hub; None = not said.
        onnx: whether ``model.onnx`` is there.
        notes: further sentences about how it was chosen.
    """

    name: str
    info: Mapping[str, Any]
    architecture: str
    base: str
    base_licence: str
    features: str
    dim: int
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    counts: Mapping[str, int]
    scores: Sequence[Score]
    level: float
    licence: str | None
    onnx: bool
    notes: Sequence[str] = ()


def model_card(facts: Facts) -> str:
    """The whole file."""
    parts = [_front_matter(facts), _head(facts), _use(facts), _pixels(facts), _training(facts), _scores(facts)]
    return "\n".join([*parts, _limits(facts), _labels(facts)])


def _plain(text: object) -> str:
    """A name from somewhere else, for one line of Markdown or a cell of a table."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")


def _front_matter(facts: Facts) -> str:
    """The YAML at the top: what the hub shows and searches."""
    told: dict[str, Any] = {"license": facts.licence or "other"}
    if facts.licence is None:
        told["license_name"] = "not-stated"
    told |= {"library_name": "timm", "pipeline_tag": TASK, "tags": list(TAGS)}
    if facts.info.get("dataset"):
        told["datasets"] = [str(facts.info["dataset"])]
    if facts.base:
        told["base_model"] = facts.base
    told["metrics"] = list(dict.fromkeys(score.metric for score in facts.scores))
    results: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for score in filter(lambda one: one.own, facts.scores):
        entry: dict[str, Any] = {"type": score.metric, "name": score.metric, "value": round(score.value, 6)}
        if score.low is not None and score.high is not None:
            ends = {"low": round(score.low, 6), "high": round(score.high, 6)}
            entry["args"] = {"interval": facts.level, **ends, "over": score.over}
        results.setdefault((score.evaluation, score.data, score.split), []).append(entry)
    if results:
        told["model-index"] = [
            {
                "name": facts.name,
                "results": [
                    {
                        "task": {"type": TASK, "name": "multi-label image retrieval"},
                        "dataset": {"name": data, "type": str(facts.info.get("dataset") or data), "split": split,
                                    "config": evaluation},
                        "metrics": entries,
                    }
                    for (evaluation, data, split), entries in results.items()
                ],
            }
        ]  # fmt: skip
    return f"---\n{yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=10_000)}---\n"


def _head(facts: Facts) -> str:
    trained = _plain(facts.data.get("title") or facts.info.get("dataset") or "unknown data")
    size = facts.info["image_size"]
    lines = [
        f"# {_plain(facts.name)}",
        "",
        f"An encoder for retrieval of remote-sensing pictures by their labels: `{facts.architecture}` and a projection "
        f"head, trained on {trained} with the loss `{facts.settings.get('loss.name', 'macl')}` of marc-dist "
        f"{__version__}. It takes pictures as squares of {size} px and gives unit vectors of {facts.dim} numbers "
        f"({SEARCHED[facts.features]}); similar label sets have a large cosine.",
        *[f"\n{note}" for note in facts.notes],
    ]
    return "\n".join(lines) + "\n"


def _use(facts: Facts) -> str:
    size, num_bands = facts.info["image_size"], len(facts.info["mean"])
    onnx = f"""
```python
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
vectors = session.run(["{VECTORS}"], {{"{PIXELS}": pixels}})[0]  # (B, {num_bands}, {size}, {size}) float32
```

`model.onnx` takes any number of pictures of {size} px, normalised as below. Its unit vectors differ from torch's by at
most {BOUND:g} a number (checked at export).
"""
    transform = (
        f"features = model(pixels)  # (B, {num_bands}, {size}, {size}) float32, normalised as below"
        if "bands" in facts.info
        else "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)\n"
        'features = model(transform(picture.convert("RGB"))[None])'
    )
    return f"""## How to load it

`FOLDER` is this folder; a repository on the Hugging Face Hub is written `hf-hub:ORG/NAME`.

Backbone and head, with [marc-dist](https://pypi.org/project/marc-dist/):

```python
import marc_dist

encoder = marc_dist.load_encoder("FOLDER")  # or "hf-hub:ORG/NAME"
vectors = marc_dist.embed(encoder, ["a.png", "b.png"])  # (2, {facts.dim}), each of length 1
```

The backbone alone ({facts.info["num_features"]} features), with timm:

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:ORG/NAME"
{transform}
```
{onnx if facts.onnx else ""}"""


def _pixels(facts: Facts) -> str:
    info = facts.info
    if isinstance(info.get("bands"), Mapping):
        return _named_bands(info)
    rows = zip(bands_of(info), info["mean"], info["std"], strict=True)
    bands = "\n".join(f"| {at} | {_plain(name)} | {mean:g} | {std:g} |" for at, (name, mean, std) in enumerate(rows))
    side, how = info["image_size"], info.get("interpolation", "bilinear")
    return f"""## What it expects of pixels

The whole picture, resized to {side} x {side} px ({how}, antialiased, without a crop), 8-bit values divided by 255, then
(value - mean) / std of each band:

| place | band | mean | std |
| --- | --- | --- | --- |
{bands}
"""


def _named_bands(info: Mapping[str, Any]) -> str:
    """The same of an encoder of named bands: ``bands`` says how the files' values become 0 to 1."""
    told, side = info["bands"], info["image_size"]
    columns = (told["names"], told["low"], told["high"], info["mean"], info["std"])
    rows = "\n".join(
        f"| {at} | {_plain(name)} | {low:g} | {high:g} | {mean:g} | {std:g} |"
        for at, (name, low, high, mean, std) in enumerate(zip(*columns, strict=True))
    )
    return f"""## What it expects of pixels

Arrays of {told["dtype"]} of the bands below, in this order. The whole picture, resized to {side} x {side} px
({info.get("interpolation", "bilinear")}, antialiased, without a crop); a value v becomes (v - low) / (high - low), then
(that - mean) / std. Where low and high come from: {told["scaling"]}.

| place | band | low | high | mean | std |
| --- | --- | --- | --- | --- | --- |
{rows}
"""


def _training(facts: Facts) -> str:
    info, data = facts.info, facts.data
    rows: list[tuple[str, object]] = [
        ("data", data.get("title") or info.get("dataset") or "unknown"),
        ("pictures of the training split", (data.get("splits") or {}).get("train", {}).get("num_samples", "unknown")),
        ("fingerprint of the data", str(info.get("fingerprint", "unknown"))[:16]),
        ("licence of the data", data.get("licence") or "not stated"),
        ("source of the data", data.get("citation") or "not stated"),
        ("first weights of the backbone", info.get("weights") or "not stated"),
        ("licence of these weights", facts.base_licence or "not stated"),
        ("frozen while it trained", info.get("freeze", "none")),
        ("steps", f"{info.get('step', 'unknown')} of {info.get('total_steps', 'unknown')}"),
    ]
    shown = "\n".join(f"| {name} | {_plain(value)} |" for name, value in rows)
    settings = yaml.safe_dump(dict(facts.settings), sort_keys=True, allow_unicode=True).rstrip()
    return f"""## How it was trained

| | |
| --- | --- |
{shown}

Settings that are not the defaults of marc-dist {__version__}:

```yaml
{settings}
```
"""


def _scores(facts: Facts) -> str:
    if not facts.scores:
        return "## Scores\n\nNone: the run has no evaluation.\n"
    parts = ["## Scores\n"]
    for name in dict.fromkeys(score.evaluation for score in facts.scores):
        mine = [score for score in facts.scores if score.evaluation == name]
        parts += [f"**{_plain(name)}** ({_plain(mine[0].data)}): {_plain(mine[0].about)}.\n"]
        parts += [f"| metric | mean | {100 * facts.level:g} % interval | over |", "| --- | --- | --- | --- |"]
        for one in mine:
            ends = "-" if one.low is None or one.high is None else f"{one.low:.4f} to {one.high:.4f}"
            parts.append(f"| {one.metric} | {one.value:.4f} | {ends} | {one.over if ends != '-' else '-'} |")
        parts.append("")
    return "\n".join(parts)


def _limits(facts: Facts) -> str:
    info = facts.info
    own = {score.data for score in facts.scores}
    seen = f"Scores are of {', '.join(map(_plain, sorted(own)))}." if own else "Nobody has scored it."
    lines = [
        f"- Trained on one data set of {len(info.get('classes', []))} labels. {seen} Other places, sensors and "
        "resolutions: measure before use.",
        f"- Bands are {', '.join(map(_plain, bands_of(info)))}, in this order; other bands are not understood.",
        f"- Pictures are seen at {info['image_size']} px: what is a few pixels large there is lost.",
        "- Labels of the training data are taken as they are; what is wrong or missing in them was learnt.",
        "- A vector is a measure of likeness, not a classifier: it has no probabilities and no threshold.",
    ]
    few = {name: num for name, num in facts.counts.items() if num < FEW}
    if few:
        shown = ", ".join(f"{_plain(name)} ({num})" for name, num in sorted(few.items(), key=lambda one: one[1]))
        lines.append(f"- Labels with fewer than {FEW} training pictures: {shown}.")
    if facts.licence is None:
        lines.append(
            "- No licence was chosen for this folder. First weights and training data have their own (above); choose "
            "one with `--license` before you share it."
        )
    return "## Limits\n\n" + "\n".join(lines) + "\n"


def _labels(facts: Facts) -> str:
    names = facts.info.get("classes", [])
    if not facts.counts:
        return f"## Labels\n\n{', '.join(map(_plain, names)) or 'unknown'} (also in `labels.txt`).\n"
    rows = "\n".join(f"| {_plain(name)} | {facts.counts.get(name, 0)} |" for name in names)
    return f"## Labels\n\nAlso in `labels.txt`.\n\n| label | training pictures |\n| --- | --- |\n{rows}\n"
