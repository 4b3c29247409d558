"""A run as a folder for the Hugging Face Hub: its encoder, and a card with what the run knows of itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from marc_dist.config import Config, DataError, flatten
from marc_dist.config.paths import PATHS
from marc_dist.data.dataset import open_dataset
from marc_dist.encoder.export import load_encoder
from marc_dist.encoder.hub_folder import Shared, check_share, write_hub_folder
from marc_dist.encoder.model import Encoder
from marc_dist.metrics.intervals import LEVEL
from marc_dist.report.sharing.model_card import Facts, Score, model_card
from marc_dist.run.evaluations import evaluation_folders, name_of, read_summary

SHOWN_OF = ("augment.", "data.", "loss.", "model.", "optim.", "train.")
"""Sections whose settings a card shows; how it was scored stands beside the scores."""
OF_MACHINES = ("train.device", "train.threads", "data.num_workers", "data.cache", "train.trackers")
"""Settings that say nothing about what comes out."""
THIRDS = {"all": "label_mAP", "rare": "rare_mAP", "medium": "medium_mAP", "common": "common_mAP"}


def share_run(
    run: Path,
    out: Path,
    config: Config,
    say: Callable[[str], None],
    *,
    name: str | None = None,
    licence: str | None = None,
    onnx: bool = False,
    scores: Sequence[Score] | None = None,
    level: float = LEVEL,
    notes: Sequence[str] = (),
) -> Shared:
    """Write the encoder of a run, with its card, into a folder of its own.

    Args:
        run: the run folder.
        out: the folder to write.
        config: of the run.
        say: takes one line for people.
        name: title of the card; None = name of ``out``.
        licence: identifier of a licence as the hub knows it; None = the card says that none was chosen.
        onnx: whether to write ``model.onnx``, too.
        scores: what the card shows; None = the evaluations that lie in the run.
        level: of the intervals of ``scores``.
        notes: further sentences for the card.

    Raises:
        ConfigError: a folder of other things, or ONNX that is not installed.
        DataError: no encoder in the run, or a damaged evaluation.
        LaunchError: what was written does not read back, or ONNX differs from torch.
    """
    check_share(out, onnx=onnx)
    encoder, info = load_encoder(run)
    data, counts = _training_data(config, info, say)
    features = config.eval.features
    base, base_licence = _base_model(encoder, info)
    facts = Facts(
        name=name or out.name,
        info={"interpolation": "bilinear", **info},
        architecture=encoder.name,
        base=base,
        base_licence=base_licence,
        features=features,
        dim=encoder.searched_width(features),
        settings=_settings(config),
        data=data,
        counts=counts,
        scores=_scores_of(run, features) if scores is None else scores,
        level=level,
        licence=licence,
        onnx=onnx,
        notes=notes,
    )
    if not facts.scores:
        say(
            f"{run}: no evaluation of eval.features={features}, so the card has no scores; make one with "
            f"marc-eval {run}"
        )
    return write_hub_folder(out, encoder, info, features, model_card(facts), onnx=onnx)


def shared_words(shared: Shared) -> str:
    """One line on what was written."""
    size = sum(shared.files.values()) / 1e6
    told = f"exported: {shared.folder} ({len(shared.files) + 1} files, {size:.1f} MB)"
    if shared.onnx_difference is not None:
        told += f"; model.onnx differs from torch by {shared.onnx_difference:.1e} at most"
    return told


def _training_data(
    config: Config, info: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, int]]:
    """``dataset.json`` of the training data, and how many training pictures carry each label."""
    try:
        dataset = open_dataset(config.data.dir, shards=False)
        if dataset.fingerprint != info.get("fingerprint"):
            raise DataError("other data than the encoder was trained on")
        numbers = dataset.label_counts(dataset.train_rows(config.data)).tolist()
    except DataError as error:
        say(f"data.dir={config.data.dir}: {error}; the card has no licence, source and label counts of the data")
        return {}, {}
    return dict(dataset.meta), dict(zip(dataset.classes, numbers, strict=True))


def _base_model(encoder: Encoder, info: Mapping[str, Any]) -> tuple[str, str]:
    """Repository and licence of the published weights that it began with; empty where it began with others."""
    import timm

    cfg = None if str(info.get("weights", "random")).startswith("random") else timm.get_pretrained_cfg(encoder.name)
    return ("", "") if cfg is None else (str(cfg.hf_hub_id or ""), str(cfg.license or ""))


def _settings(config: Config) -> dict[str, Any]:
    """What differs from the defaults, as plain values; paths and machines are nobody's business."""
    usual = flatten(Config())
    hidden = (*PATHS, *OF_MACHINES)
    changed = {
        key: value
        for key, value in flatten(config).items()
        if key.startswith(SHOWN_OF) and not key.startswith(hidden) and value != usual[key]
    }
    told: dict[str, Any] = json.loads(json.dumps({"loss.name": config.loss.name, **changed}, default=str))
    return told


def _scores_of(run: Path, features: str) -> list[Score]:
    """Every metric of the evaluations of a run that searched these vectors, with its interval over queries."""
    summaries = [read_summary(folder) for folder in evaluation_folders(run)]
    return [score for summary in summaries if summary["features"] == features for score in scores_of(summary)]


def scores_of(summary: Mapping[str, Any]) -> list[Score]:
    """What an evaluation says, as a card shows it.

    Args:
        summary: of ``read_summary``.
    """
    ends, means = summary["intervals"], dict(summary["scores"]["trained"])
    pairs = dict(ends["scores"]["trained"])
    for group, metric in THIRDS.items():
        means[metric] = summary["thirds"]["trained"].get(group, {}).get("mAP")
        pairs[metric] = ends["thirds"]["trained"].get(group)
    archive, queries = summary["archive"], summary["queries"]
    told = ", ".join(f"{key} {summary[key]}" for key in ("features", "gain", "relevance", "index"))
    about = f"{summary['protocol_sentence']}; {told}"
    return [
        Score(
            name_of(summary), about, str(archive["title"]), str(queries["split"]), metric, value,
            *(pairs.get(metric) or (None, None)),
        )
        for metric, value in means.items()
        if value is not None and not math.isnan(value)
    ]  # fmt: skip
