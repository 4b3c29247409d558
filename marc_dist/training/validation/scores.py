"""Scores of the validation samples while a run trains: they ask, the samples that it trains on answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from marc_dist import metrics
from marc_dist.config import Config, ConfigError, DataConfig

if TYPE_CHECKING:
    import torch

    from marc_dist.data.dataset import Dataset
    from marc_dist.encoder.model import Encoder

K = 10
METRICS = {
    "mAP": "mean average precision over queries",
    "label_mAP": "mean over labels of their average precision",
    "rare_mAP": "label_mAP of the rarest third of the labels",
    "medium_mAP": "label_mAP of the middle third of the labels",
    "common_mAP": "label_mAP of the commonest third of the labels",
    f"nDCG@{K}": f"mean normalised discounted gain of the first {K} answers",
    f"P@{K}": f"mean share of relevant pictures among the first {K}",
}
"""What a training reports of its validation samples; higher is better in all of them. Definitions: docs/metrics.md."""
BLOCK = 64  # queries ranked at a time
Ids = NDArray[np.int64]


def check_groups(dataset: Dataset, data: DataConfig, objectives: Sequence[str], place: str = "objective ") -> None:
    """Refuse an objective that no validation sample of this data could have a value for.

    Args:
        dataset: an opened shard folder.
        data: says which samples are trained on and which validate.
        objectives: metrics, see ``METRICS``; only those of a third of the labels can be refused.
        place: where the objective was given, before its name.

    Raises:
        ConfigError: names the objective and the share.
    """
    queries, archive = dataset.validation_rows(data), dataset.train_rows(data)
    counts = dataset.label_counts(archive)
    known, third = dataset.label_rows(queries).any(axis=0) & (counts > 0), metrics.label_thirds(counts)
    groups = {f"{name}_mAP": third == at for at, name in enumerate(metrics.THIRDS)}
    for name in objectives:
        if name in groups and not (known & groups[name]).any():
            raise ConfigError(
                f"{place}{name}: none of the {len(queries)} validation samples of {dataset.root} has such a label; "
                f"raise data.validation_share={data.validation_share:g}, or choose another metric"
            )


def validate(
    encoder: Encoder,
    dataset: Dataset,
    config: Config,
    tick: Callable[[], None],
    kept: Callable[[Ids], NDArray[np.float32]] | None = None,
) -> dict[str, float]:
    """Search the training samples with the validation samples and score it. A collective.

    Args:
        encoder: on its device, in evaluation mode; not changed.
        dataset: an opened shard folder.
        config: the run's settings; ``eval.features``, ``eval.batch`` and ``eval.relevance`` count here, too.
        tick: called after every batch.
        kept: ids -> features of the frozen backbone, in place of the pictures.

    Returns:
        ``METRICS`` by name, the same on every rank. Features that are not finite score 0 everywhere, and ``diverged``
        is 1 then. A third without any query is left out of the dictionary.

    Raises:
        DataError: a picture that cannot be read.
    """
    from marc_dist import comm

    queries, archive = dataset.validation_rows(config.data), dataset.train_rows(config.data)
    ids = np.union1d(queries, archive)
    features, device = _embed(encoder, dataset, ids, config, tick, kept)
    everywhere = comm.gather_rows_plain(features.to(device)).cpu().numpy()
    figures = _scores(everywhere, ids, queries, archive, dataset, config) if comm.rank() == 0 else {}
    return dict(comm.broadcast_object(figures))


def _embed(
    encoder: Encoder,
    dataset: Dataset,
    ids: Ids,
    config: Config,
    tick: Callable[[], None],
    kept: Callable[[Ids], NDArray[np.float32]] | None,
) -> tuple[torch.Tensor, torch.device]:
    """Vectors of this rank's part of ``ids``, (n, D) float32 on the CPU, and where the encoder is.

    Parts are whole batches of the one-process run, so vectors do not depend on the number of ranks.
    """
    import torch

    from marc_dist.retrieval.features import rank_ids

    parameter, what = next(encoder.parameters()), config.eval.features
    parts = [torch.empty(0, encoder.searched_width(what))]  # some ranks may have nothing to add
    mine = rank_ids(ids, config.eval.batch)
    with torch.inference_mode():
        for inputs in _inputs(dataset, mine, config, kept):
            inputs = inputs.to(parameter.device, parameter.dtype)
            features = inputs if kept is not None else encoder.features(inputs)
            parts.append(encoder.searched(features, what).float().cpu())
            tick()
    return torch.cat(parts), parameter.device


def _inputs(
    dataset: Dataset, ids: Ids, config: Config, kept: Callable[[Ids], NDArray[np.float32]] | None
) -> Iterator[torch.Tensor]:
    """Batches of pixels, or of features that are kept."""
    import torch

    from marc_dist.data.loader import iter_eval
    from marc_dist.encoder.published import resolve_scale

    batch = config.eval.batch
    if kept is None:
        size, workers, crc = config.data.image_size, config.data.num_workers, config.data.verify_crc
        for images, _ in iter_eval(dataset, ids, size, resolve_scale(config), batch, workers, crc):
            yield images
        return
    for start in range(0, len(ids), batch):
        yield torch.from_numpy(kept(ids[start : start + batch]))


def _scores(
    features: NDArray[np.float32], ids: Ids, queries: Ids, archive: Ids, dataset: Dataset, config: Config
) -> dict[str, float]:
    """Figures from the features of all ``ids`` in order."""
    from marc_dist.retrieval.exact import exact_unit, full_ranking

    if not np.isfinite(features).all():
        return {**dict.fromkeys(METRICS, 0.0), "diverged": 1.0}
    unit = exact_unit(features)
    asks, answers = unit[np.searchsorted(ids, queries)], unit[np.searchsorted(ids, archive)]
    scoring = metrics.Scoring((K,), relevance=config.eval.relevance)
    sets = metrics.distinct_sets(dataset.label_rows(archive))
    scored: dict[str, list[NDArray[Any]]] = {}
    label_ap = []
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        asked, own = dataset.label_rows(queries[block]), np.full(len(queries[block]), -1)
        ranking = full_ranking(asks[block], answers, own)
        for name, values in metrics.score_queries(ranking, asked, sets, own, scoring, complete=True).items():
            scored.setdefault(name, []).append(values)
        label_ap.append(metrics.score_labels(ranking, asked, sets, own, complete=True))
    per_label = metrics.mean_known(np.concatenate(label_ap))
    third = metrics.label_thirds(dataset.label_counts(archive))
    out = {name: float(np.concatenate(scored[name]).mean()) for name in METRICS if name in scored}
    groups = {"label": np.full(len(third), True)}
    groups |= {name: third == at for at, name in enumerate(metrics.THIRDS)}
    for name, chosen in groups.items():
        known = per_label[chosen & ~np.isnan(per_label)]
        if len(known):
            out[f"{name}_mAP"] = float(known.mean())
    return {name: out[name] for name in METRICS if name in out}
